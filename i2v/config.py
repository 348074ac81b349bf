"""One YAML file per experiment, read strictly: an unknown key or a wrong type is one clear sentence.

The sections are the dataclasses below. `model.options` are the keyword arguments of the method's build()
(i2v/methods/<method>.py), `clips` the options of pipelines.build_loader; both are checked where they are used.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import yaml

from i2v.console import refuse_pipe
from i2v.experiments import find_config, installed_configs
from i2v.metrics import METRICS, OF_ONE, OF_SEVERAL
from i2v.model import head_kind
from i2v.optim import SCHEDULES
from i2v.rules import Count, at_least, between, broken, different, is_finite, more_than, one_of


class ConfigError(ValueError):
    """What is wrong with a configuration, where, and what to do."""


Place = Annotated[str, one_of("auto", "cpu", "gpu")]
Positive = Annotated[float, more_than(0)]
NotNegative = Annotated[float, at_least(0)]
Numbers = Annotated[list[float], different("a list of different numbers more than 0", lambda value: value > 0)]
NumbersOrZero = Annotated[list[float], different("a list of different numbers, at least 0", lambda value: value >= 0)]


@dataclass(frozen=True)
class ModelConfig:
    method: str
    backbone: str | dict = "ViT-B-16"  # a name, a folder of Hugging Face's, or a geometry (docs/trunks.md)
    weights: str = "openai"  # a tag, a file, or "random"; a folder as backbone has its own
    init: str | None = None  # a checkpoint of this method, ours or its authors', to start from; the head may be another
    num_frames: Count = 8
    # type linear, factors or text, and its options (docs/training.md)
    head: dict = field(default_factory=lambda: {"type": "linear", "dropout": 0.5})
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    train: str | list  # a folder or URL that make_shards wrote to; several: a list of {path, weight}
    val: str | None = None
    device: Place = "auto"  # where clips are made and the model runs
    decode: Place = "auto"  # where videos are decoded
    threads: Count | None = None  # that decode, and of DALI, per process; None: all cores, shared fairly
    order: dict = field(default_factory=dict)  # shuffle, window_shards, balance, repeats, epoch_clips (OrderOptions)
    sample_weights: str | None = None  # how often each video of `train` is wanted: a .npy, or a CSV of key,weight
    cache: str | None = None  # where shards of a URL are staged
    cache_size: str | int | None = None  # bytes, or text such as 500GB
    prefetch_bytes: Count = 1 << 30  # of clips that are read ahead, per process: compressed, or decoded where FFmpeg decodes

    @property
    def repeats(self) -> int:
        """How often a video follows itself in the stream of training."""
        return self.order.get("repeats", 1)


@dataclass(frozen=True)
class TrainConfig:
    epochs: Annotated[float, more_than(0), between(0, 1_000_000)]
    batch_size: Count  # clips per step, all devices together
    lr: Positive
    micro_batch: Count | None = None  # clips per device and forward pass; smaller means gradient accumulation
    optimizer: Annotated[str, one_of("adamw", "sgd")] = "adamw"
    momentum: Annotated[float, between(0, 1, below=True)] = 0.9  # Nesterov's, of sgd
    weight_decay: NotNegative = 0.0
    no_decay: list = field(default_factory=lambda: ["bias"])  # parts of names, or "1-d" (i2v/optim.py)
    lr_multipliers: dict = field(default_factory=dict)  # part of a name: factor on lr
    # factor on lr from each layer of the backbone to the one below
    layer_decay: Annotated[float, more_than(0), between(0, 1)] = 1.0
    betas: list = field(default_factory=lambda: [0.9, 0.999])  # of adamw
    schedule: Annotated[str, one_of(*SCHEDULES)] = "after_warmup"  # i2v/optim.py
    warmup_epochs: NotNegative = 0.0
    warmup_lr: NotNegative = 0.0  # where the warm-up begins
    min_lr: NotNegative = 0.0  # where the cosine ends
    label_smoothing: Annotated[float, between(0, 1, below=True)] = 0.0
    class_weights: Annotated[float, between(0, 1)] = 0.0  # of a class in the loss: its size^-this; 1: all weigh the same
    mixup: Annotated[float, between(0, 1000)] = 0.0  # parameter of the Beta distribution; 0: off (i2v/mixing.py)
    cutmix: Annotated[float, between(0, 1000)] = 0.0
    mix_probability: Annotated[float, between(0, 1)] = 1.0  # of a batch to be mixed at all
    mix_switch: Annotated[float, between(0, 1)] = 0.5  # if both are on: of CutMix
    clip_grad: Positive | None = None  # the largest norm of all gradients together
    ema: Annotated[float, more_than(0), between(0, 1, below=True)] | None = None  # decay of the weights' average (i2v/ema.py)
    head_epochs: NotNegative = 0.0  # so long only the head trains
    # auto: bf16 where the device has it, fp16 on older GPUs, float32 without one
    precision: Annotated[str, one_of("auto", "bf16", "fp16", "float32")] = "auto"
    recompute: Annotated[str, one_of("none", "half", "all")] = "none"  # of the blocks, in the backward pass: saves memory
    # torch.compile, block by block; auto: on a GPU. Left out, with a note, where no compiler is installed. autotune: products
    # and what follows them are one kernel where that is measured to be faster, which may take minutes at the first step
    compile: bool | Annotated[str, one_of("auto", "autotune")] = "auto"
    seed: Annotated[int, between(0, 2**63 - 1)] = 0
    steps: Count | None = None  # the run's length, in place of epochs, which then follow from it
    max_steps: Count | None = None  # stop early, on the schedule of the full run
    eval_every: Annotated[float, at_least(1e-6)] = 1.0  # epochs
    eval_batch: Count | None = None  # videos per device; None: as in training
    # which figure of a validation best.safetensors has; None: top1, or map where videos have several classes
    best: Annotated[str, one_of(*METRICS)] | None = None
    keep: Count | list | None = None  # weights of every so manieth epoch, or of those listed, as epoch-5.safetensors
    save_every: Count = 500  # steps
    mirror: str | None = None  # a URL to which checkpoints and logs are copied, and from which an empty folder goes on
    log_every: Count = 20  # steps
    skip_nonfinite: Count = 3  # steps in a row without a finite loss and gradient, none of them taken, that end the run
    stall_after: Positive = 600.0  # seconds that a process may keep the others waiting before it is named


@dataclass(frozen=True)
class ProbeConfig:
    """Linear heads that i2v.probe trains at once on the features of a frozen trunk, with AdamW and a cosine down to 0. The
    defaults are those of V-JEPA 2's probes (arXiv 2506.09985)."""

    lr: Numbers = field(default_factory=lambda: [5e-3, 3e-3, 1e-3, 3e-4, 1e-4])  # each with each weight_decay is a head
    weight_decay: NumbersOrZero = field(default_factory=lambda: [0.01, 0.1, 0.4, 0.8])
    epochs: Count = 20
    batch_size: Count = 256  # clips per step


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    clips: dict = field(default_factory=dict)
    out: str | None = None  # the run's folder; None: runs/<the config's place under configs/>


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """The experiment in a YAML file, everything checked; see read_config. Raises ConfigError."""
    return read_config(Config, path, overrides, check_values)


def read_config(kind: type, path: str | Path, overrides: list[str] = (), check: Callable = lambda config, path: None):
    """Read a YAML file, or an installed one by its name, apply `section.key=value` overrides (values are YAML), check what
    every value must be; kind: a dataclass of sections, with `out`. check(config, path): what must go together. Raises
    ConfigError."""
    path = find_config(path)
    try:
        refuse_pipe(path)
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        near = difflib.get_close_matches(str(path), installed_configs(), n=1) or ["st_adapter/k400_vit-b16_8f"]
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): give --config the path of a YAML file, or the name of one that is "
            f"installed, such as {near[0]}."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8 ({error}): save it as that.") from error
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold the sections {', '.join(_names(kind))}.")
    for override in overrides:
        apply_override(values, override)
    config = build_config(kind, values, path)
    check(config, path)
    _refuse_infinite(values, "", path)
    return config if config.out else dataclasses.replace(config, out=str(_default_out(path)))


def build_config(kind: type, values: dict, path: str | Path):
    """The dataclass of sections that plain values say; path: where they stand, for people. Raises ConfigError."""
    return _build(kind, values, "", path, kind)


class _OnceEach(yaml.SafeLoader):
    """YAML in which no key comes twice: of two, the reader would believe the first and the program the second."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value} comes a second time in its section: remove one", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return node


# ~/data is below the home folder, as in a shell
_OnceEach.add_constructor("tag:yaml.org,2002:str", lambda loader, node: os.path.expanduser(loader.construct_scalar(node)))


class _Quoting(yaml.SafeDumper):
    """Quotes text that _OnceEach would read as a number."""


for _kind in (_OnceEach, _Quoting):  # 1e-3 is a number, as in YAML 1.2 and JSON, and not text, as PyYAML reads it
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("+-.0123456789")
    )


def parse_option(text: str) -> tuple[str, object]:
    """ "crops=3" -> ("crops", 3): the value is YAML. Raises ConfigError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} is not an option: write name=value, for example crops=3.")
    return name, _parse(value, repr(text))


def _parse(text: str, what: str):
    """YAML. Raises ConfigError for what it cannot be, numbers and dates that do not exist included."""
    try:
        return yaml.load(text, _OnceEach)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{what} is not valid YAML: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise ConfigError(f"{what} has lists or sections nested too deeply: write it flatter.") from error


def _refuse_infinite(value, where: str, path: str, inside: tuple = ()) -> None:
    """No setting is infinite, none is no number, and none holds itself."""
    if id(value) in inside:
        raise ConfigError(f"{path}: {where} holds itself (an alias to what it is in): write out what it should be.")
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        _refuse_infinite(part, _join(where, key), path, (*inside, id(value)))
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not is_finite(value):
        raise ConfigError(f"{path}: {where} is {value!r:.40}: it must be a finite number.")


def to_dict(config: Config) -> dict:
    """Plain dicts and lists: what YAML and JSON can hold."""
    return dataclasses.asdict(config)


def to_yaml(config) -> str:
    """The text of a file that load_config reads as this configuration."""
    return yaml.dump(to_dict(config), Dumper=_Quoting, sort_keys=False)


def with_defaults(values: dict, kind=Config) -> dict:
    """A configuration as to_dict gave it, maybe by an older version, with the defaults of the keys that came later."""
    completed = dict(values)
    for spec in dataclasses.fields(kind):
        section = typing.get_type_hints(kind)[spec.name]
        if dataclasses.is_dataclass(section):
            completed[spec.name] = with_defaults(values.get(spec.name, {}), section)
        elif spec.name not in values and spec.default_factory is not dataclasses.MISSING:
            completed[spec.name] = spec.default_factory()
        elif spec.name not in values and spec.default is not dataclasses.MISSING:
            completed[spec.name] = spec.default
    return completed


def _default_out(path: Path) -> Path:
    parts = path.with_suffix("").parts
    below = parts[parts.index("configs") + 1 :] if "configs" in parts[:-1] else parts[-1:]
    return Path("runs", *below)


def apply_override(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override: write section.key=value, for example train.lr=1e-3.")
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r} does not fit: {section} is not a section.")
    values[last] = _parse(text, repr(override))


def _build(kind, values, where: str, path: str, whole: type):
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {where or 'the file'} must be a section of keys, not {values!r}.")
    hints = typing.get_type_hints(kind, include_extras=True)
    hints = {name: hints[name] for name in _names(kind)}
    for key in values:
        if key not in hints:
            raise ConfigError(f"{path}: unknown key {_join(where, key)}: {_hint(str(key), hints, whole)}")
    for spec in dataclasses.fields(kind):
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and spec.name not in values:
            raise ConfigError(f"{path}: {_join(where, spec.name)} is missing: it has no default.")
    values = {key: _convert(hints[key], value, _join(where, key), path, whole) for key, value in values.items()}
    try:
        return kind(**values)
    except ValueError as error:  # of values that do not go together
        raise ConfigError(f"{path}: {_join(where, error)}") from error


def _hint(key: str, known, whole: type) -> str:
    """What to write instead of a key that is not among the known ones of its section."""
    if key in ("num_classes", "classes", "class_names", "nb_classes"):
        return "classes come from the data, their number and names from the shards of data.train: leave it out."
    sections = typing.get_type_hints(whole)
    other = next((name for name, kind in sections.items() if dataclasses.is_dataclass(kind) and key in _names(kind)), None)
    near = difflib.get_close_matches(key, known, n=1)
    if other:
        return f"did you mean {other}.{key}?"
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."


def _convert(hint, value, where: str, path: str, whole: type):
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, path, whole)
    rule = broken(hint, value)
    if rule is not None:
        raise ConfigError(f"{path}: {where} is {value!r}: it must be {rule}.")
    return float(value) if float in _types(hint) and value is not None else value


def _types(hint) -> list:
    """The types under their rules."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else [hint]
    return [typing.get_args(part)[0] if typing.get_origin(part) is Annotated else part for part in parts]


def with_epochs(config: Config, epochs: float) -> Config:
    """The configuration with the epochs that train.steps comes to, if that is given. Raises ConfigError."""
    train = config.train
    if train.steps is None:
        return config
    config = dataclasses.replace(config, train=dataclasses.replace(train, epochs=epochs))
    check_values(config, f"train.steps={train.steps}, which are {epochs:.4g} epochs")
    return config


def with_best(config: Config, several: bool) -> Config:
    """The configuration with the figure by which the best weights are chosen; several: classes a video. Raises ConfigError."""
    possible, best = (OF_SEVERAL if several else OF_ONE), config.train.best
    if best not in (None, *possible):
        kind = "several classes" if several else "one class"
        raise ConfigError(f"train.best is {best!r}, but the videos have {kind} each: it must be {' or '.join(possible)}.")
    return dataclasses.replace(config, train=dataclasses.replace(config.train, best=best or possible[0]))


def check_values(config: Config, path: str | Path) -> None:
    """Raises ConfigError for values that do not go together; path: where they stand, for people."""
    train = config.train
    betas, multipliers = train.betas, train.lr_multipliers
    rules = {
        "warmup_epochs": (train.warmup_epochs <= train.epochs, "between 0 and train.epochs"),
        "warmup_lr": (train.warmup_lr <= train.lr, "between 0 and train.lr"),
        "min_lr": (train.min_lr <= train.lr, "between 0 and train.lr"),
        "lr_multipliers": (
            all(isinstance(part, str) and is_finite(factor) and factor >= 0 for part, factor in multipliers.items()),
            "factors, at least 0, of parts of names",
        ),
        "no_decay": (all(isinstance(entry, str) for entry in train.no_decay), "parts of names"),
        "keep": (_are_epochs(train.keep, train.epochs), "a number of epochs, or a list of epochs up to train.epochs"),
        "betas": (len(betas) == 2 and all(is_finite(beta) and 0 <= beta < 1 for beta in betas), "two numbers in [0, 1)"),
    }
    for name, (fine, rule) in rules.items():
        if not fine:
            raise ConfigError(f"{path}: train.{name} is {getattr(train, name)!r}: it must be {rule}.")
    for key in ("num_frames", "size", "dtype", "mean", "std"):
        if key in config.clips:
            raise ConfigError(f"{path}: clips.{key} is decided by the model: remove it (model.num_frames, model.backbone).")
    if config.clips.get("pretext"):
        _check_pretext(config, path)


def _check_pretext(config: Config, path: str | Path) -> None:
    """Raises ConfigError for what is made for the labels of videos, where the labels are motions."""
    train, head = config.train, head_kind(config.model.head)
    wrong = [f"train.{name} is on" for name in ("class_weights", "mixup", "cutmix") if getattr(train, name)]
    wrong += [f"model.head is a {head} head, not a linear one"] if head != "linear" else []
    if wrong:
        raise ConfigError(f"{path}: {wrong[0]}, but clips.pretext is mosi, whose labels are nine motions: change one of them.")


def _are_epochs(keep, last: float) -> bool:
    return not isinstance(keep, list) or all(is_finite(epoch) and 0 < epoch <= last for epoch in keep)


def _join(where: str, key) -> str:
    return f"{where}.{key}" if where else str(key)


def _names(kind) -> list[str]:
    return [spec.name for spec in dataclasses.fields(kind)]
