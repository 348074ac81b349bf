"""One YAML file per experiment, read strictly: an unknown key or a wrong type is one clear sentence.

The sections are the dataclasses below. `model.options` are the keyword arguments of the method's build()
(i2v/methods/<method>.py), `clips` the options of pipelines.build_loader; both are checked where they are used.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from i2v.optim import SCHEDULES


class ConfigError(ValueError):
    """What is wrong with a configuration, where, and what to do."""


@dataclass(frozen=True)
class ModelConfig:
    method: str
    backbone: str | dict = "ViT-B-16"  # an open_clip name, or a geometry (see i2v.create_model)
    weights: str = "openai"  # an open_clip tag, a file, or "random"
    num_frames: int = 8
    head: dict = field(default_factory=lambda: {"type": "linear", "dropout": 0.5})
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class DataConfig:
    train: str | list  # a folder or URL that make_shards wrote to; several: a list of {path, weight}
    val: str | None = None
    device: str = "auto"  # cpu, gpu: where clips are made and the model runs
    decode: str = "auto"  # cpu, gpu: where videos are decoded
    threads: int | None = None  # of DALI, per process; None: all cores, shared fairly
    order: dict = field(default_factory=dict)  # shuffle, window_shards, balance, repeats, epoch_clips (OrderOptions)
    sample_weights: str | None = None  # how often each video of `train` is wanted: a .npy, or a CSV of key,weight
    cache: str | None = None  # where shards of a URL are staged
    cache_size: str | int | None = None  # bytes, or text such as 500GB
    prefetch_bytes: int = 1 << 30  # of compressed clips that wait for the decoder, per process


@dataclass(frozen=True)
class TrainConfig:
    epochs: float
    batch_size: int  # clips per step, all devices together
    lr: float
    micro_batch: int | None = None  # clips per device and forward pass; smaller means gradient accumulation
    weight_decay: float = 0.0
    no_decay: list = field(default_factory=lambda: ["bias"])  # parts of names, or "1-d" (i2v/optim.py)
    lr_multipliers: dict = field(default_factory=dict)  # part of a name: factor on lr
    layer_decay: float = 1.0  # factor on lr from each layer of the backbone to the one below
    betas: list = field(default_factory=lambda: [0.9, 0.999])
    schedule: str = "after_warmup"  # after_warmup, through_warmup or per_epoch (i2v/optim.py)
    warmup_epochs: float = 0.0
    warmup_lr: float = 0.0  # where the warm-up begins
    min_lr: float = 0.0  # where the cosine ends
    label_smoothing: float = 0.0
    mixup: float = 0.0  # parameter of the Beta distribution; 0: off
    cutmix: float = 0.0
    precision: str = "auto"  # bf16, float32; auto: bf16 where the device has it
    compile: bool = True  # torch.compile, block by block
    seed: int = 0
    max_steps: int | None = None  # stop early, on the schedule of the full run
    eval_every: float = 1.0  # epochs
    eval_batch: int | None = None  # videos per device; None: as in training
    save_every: int = 500  # steps
    log_every: int = 20  # steps


@dataclass(frozen=True)
class Config:
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    clips: dict = field(default_factory=dict)
    out: str | None = None  # the run's folder; None: runs/<the config's place under configs/>


def load_config(path: str, overrides: list[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides (values are YAML), check everything. Raises ConfigError."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give --config the path of a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold the sections {', '.join(_names(Config))}.")
    for override in overrides:
        _apply(values, override)
    config = _build(Config, values, "", path)
    if config.out is None:
        config = dataclasses.replace(config, out=str(_default_out(Path(path))))
    _check_values(config, path)
    return config


def parse_option(text: str) -> tuple[str, object]:
    """"crops=3" -> ("crops", 3): the value is YAML. Raises ConfigError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} is not an option: write name=value, for example crops=3.")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is not valid YAML: {' '.join(str(error).split())}.") from error


def to_dict(config: Config) -> dict:
    """Plain dicts and lists: what YAML and JSON can hold."""
    return dataclasses.asdict(config)


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


def _apply(values: dict, override: str) -> None:
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
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r} is not valid YAML: {' '.join(str(error).split())}.") from error


def _build(kind, values, where: str, path: str):
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {where or 'the file'} must be a section of keys, not {values!r}.")
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(hints)}."
            raise ConfigError(f"{path}: unknown key {_join(where, key)}: {hint}")
    for spec in dataclasses.fields(kind):
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and spec.name not in values:
            raise ConfigError(f"{path}: {_join(where, spec.name)} is missing: it has no default.")
    return kind(**{key: _convert(hints[key], value, _join(where, key), path) for key, value in values.items()})


def _convert(hint, value, where: str, path: str):
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, path)
    accepted = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if float in accepted:
        value = _number(value)  # YAML reads 1e-3 as text
    for kind in accepted:
        if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if kind in (int, str, bool, list, dict, type(None)) and type(value) is kind:
            return value
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", list: "a list", dict: "a section"}
    wanted = " or ".join(names.get(kind, "null") for kind in accepted)
    raise ConfigError(f"{path}: {where} is {value!r}: it must be {wanted}.")


def _number(value):
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check_values(config: Config, path: str) -> None:
    train = config.train
    rules = {
        "train.epochs": (0 < train.epochs < float("inf"), "a number, more than 0"),
        "train.max_steps": (train.max_steps is None or train.max_steps >= 1, "at least 1"),
        "train.eval_batch": (train.eval_batch is None or train.eval_batch >= 1, "at least 1"),
        "train.batch_size": (train.batch_size >= 1, "at least 1"),
        "train.micro_batch": (train.micro_batch is None or train.micro_batch >= 1, "at least 1"),
        "train.lr": (train.lr > 0, "more than 0"),
        "train.weight_decay": (train.weight_decay >= 0, "at least 0"),
        "train.warmup_epochs": (0 <= train.warmup_epochs <= train.epochs, "between 0 and train.epochs"),
        "train.warmup_lr": (0 <= train.warmup_lr <= train.lr, "between 0 and train.lr"),
        "train.min_lr": (0 <= train.min_lr <= train.lr, "between 0 and train.lr"),
        "train.schedule": (train.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
        "train.layer_decay": (0 < train.layer_decay <= 1, "more than 0 and at most 1"),
        "train.lr_multipliers": (
            all(isinstance(factor, (int, float)) and factor >= 0 for factor in train.lr_multipliers.values()),
            "factors, at least 0",
        ),
        "train.label_smoothing": (0 <= train.label_smoothing < 1, "at least 0 and below 1"),
        "train.mixup": (train.mixup >= 0, "at least 0"),
        "train.cutmix": (train.cutmix >= 0, "at least 0"),
        "train.precision": (train.precision in ("auto", "bf16", "float32"), "auto, bf16 or float32"),
        "train.seed": (0 <= train.seed < 2**63, "at least 0"),
        "train.eval_every": (train.eval_every > 0, "more than 0"),
        "train.save_every": (train.save_every >= 1, "at least 1"),
        "train.log_every": (train.log_every >= 1, "at least 1"),
        "train.betas": (
            len(train.betas) == 2 and all(isinstance(b, float) and 0 <= b < 1 for b in train.betas),
            "two numbers in [0, 1)",
        ),
        "data.device": (config.data.device in ("auto", "cpu", "gpu"), "auto, cpu or gpu"),
        "data.decode": (config.data.decode in ("auto", "cpu", "gpu"), "auto, cpu or gpu"),
        "data.prefetch_bytes": (config.data.prefetch_bytes >= 1, "at least 1"),
        "model.num_frames": (config.model.num_frames >= 1, "at least 1"),
    }
    for key, (fine, rule) in rules.items():
        section, name = key.split(".")
        if not fine:
            raise ConfigError(f"{path}: {key} is {getattr(getattr(config, section), name)!r}: it must be {rule}.")
    for key in ("num_frames", "size", "dtype"):
        if key in config.clips:
            raise ConfigError(f"{path}: clips.{key} is decided by the model: remove it (model.num_frames, model.backbone).")


def _join(where: str, key) -> str:
    return f"{where}.{key}" if where else str(key)


def _names(kind) -> list[str]:
    return [spec.name for spec in dataclasses.fields(kind)]
