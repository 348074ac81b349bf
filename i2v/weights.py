"""Reads CLIP, authors' and our own checkpoints into a model, completely or not at all.

A layout says how the names of a file become ours and what the file may lack:

    clip     OpenAI's or open_clip's image tower, alone or in a full CLIP; must fill the whole trunk, lacks the rest;
             a method whose trunk has tensors of another shape makes them from CLIP's in from_clip(state, model)
    image    as clip, for a method with a trunk of its own: from_image(name) knows the names of the image model's files,
             inflated(values, model) the shapes, and ADDED is what that model does not have
    authors  the checkpoints a method's authors released, renamed by the method's from_authors(name)
    i2v      our own names
    auto     the one of these that fits best; an error when two fit equally

Files of the last two must hold everything that is trained, and of the frozen trunk all or nothing. A text head takes
`proj` and, where the file has it, `logit_scale` from CLIP; its text_features no file must hold.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from i2v.archive import read_file
from i2v.foreign import DEEPEST, unwrap
from i2v.huggingface import family_of, to_timm
from i2v.model import VideoClassifier, method_module
from i2v.timm_towers import from_timm, is_timm, resampled
from i2v.vit import VisionTransformer, ViTSpec

LAYOUTS = ("clip", "authors", "i2v", "auto", "image")
NOT_IMAGE = ("logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size")
TEXT_FEATURES = "head.text_features"  # computed from the class names; the head refuses to run without
COUNTER = "num_batches_tracked"  # of batch norms, which older files and other tools leave out
TEXT_TOWER = (
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "text.",
    "text_model.",
)


@dataclass
class LoadReport:
    """What load_weights did: our names that were filled and that were not, the file's names that were not used, and how
    its names were understood, as sentences."""

    loaded: list[str]
    missing: list[str]
    ignored: list[str]
    notes: list[str] = field(default_factory=list)


def load_weights(model: VideoClassifier, source: str | Path | Mapping, layout: str = "auto", may_stay: str = "") -> LoadReport:
    """Copy a checkpoint (path or state dict) into the model, cast to the model's dtype -> LoadReport.

    may_stay: a part of the model, such as "head.", that stays as it is where the file's does not fit it as a whole.
    Raises ValueError, and leaves the model as it was, when a name is missing or unexpected or a shape differs, except
    for what the layout legitimately lacks (see the top of this file).
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is unknown: use one of {', '.join(LAYOUTS)}")
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    state, notes = unwrap(source if isinstance(source, Mapping) else read_file(source), where)
    family = family_of(state)
    if (family or is_timm(state)) and isinstance(model.spec, ViTSpec):
        whose = family or "timm"
        try:
            state, more = from_timm(to_timm(state) if family else state, model.spec)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:  # of what lacks or differs
            reason = " ".join(str(error).split())
            raise ValueError(f"{where} is damaged or no whole model of {whose} ({reason}): download it again") from error
        notes += [f"its names are those of {whose}", *more]
    target = model.state_dict()
    find = partial(_detect, where=where) if layout == "auto" else partial(_plan, layout=layout)
    plan = find(model, target, state, may_stay=may_stay)
    notes += [f"{plan.prefix} was taken out of its names"] * bool(plan.prefix) + plan.notes
    if plan.problems:
        fitting = [other for other in layouts_of(model) if not _plan(model, target, state, other, may_stay).problems]
        remedy = f"it fits as layout {fitting[0]!r}" if fitting else plan.remedy
        raise ValueError(f"{where} does not fit the model as layout {plan.layout!r}: {', '.join(plan.problems)}; {remedy}")
    problems = unsound(plan, target)
    if problems:
        raise ValueError(
            f"{where} holds values that are no weights: {', '.join(problems)}; give the floating-point checkpoint "
            "that it was made from, or one from before training failed"
        )
    with torch.no_grad():
        for name, tensor in plan.values.items():
            target[name].copy_(tensor)
    missing = set(target) - set(plan.sources) - ({TEXT_FEATURES} if getattr(model.head, "filled", False) else set())
    return LoadReport(sorted(plan.sources), sorted(missing), sorted(plan.ignored), notes)


def unsound(plan, target) -> list[str]:
    """What is wrong with the values that would be loaded, one phrase per kind: nothing makes numbers of them silently."""
    kinds = {"of another kind of number": [], "not finite": []}
    for name, value in plan.values.items():
        wanted, plain = target[name], value.layout == torch.strided and not value.is_meta
        if not plain or value.is_floating_point() != wanted.is_floating_point() or value.is_complex() != wanted.is_complex():
            said = str(value.dtype if plain else "meta" if value.is_meta else value.layout).removeprefix("torch.")
            kinds["of another kind of number"].append(f"{plan.sources.get(name, name)} {said}")
        elif name != TEXT_FEATURES and not value.to(wanted.dtype).isfinite().all():  # in the model's dtype: that may be shorter
            kinds["not finite"].append(plan.sources.get(name, name))
    return [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]


def may_lack(name: str) -> bool:
    return name == TEXT_FEATURES or name.endswith(COUNTER)


@dataclass
class _Plan:
    layout: str
    prefix: str  # what stands before the file's names
    sources: dict[str, str]  # our name -> the file's name
    values: dict[str, torch.Tensor]  # our name -> the tensor, in the model's form
    ignored: list[str]  # the file's names
    problems: list[str]  # one phrase per kind
    count: int  # names with a problem
    fits: int  # names that are known
    notes: list[str]  # what was done to the tensors that is not obvious

    @property
    def remedy(self) -> str:
        """What there is to do if no layout fits."""
        if self.fits:
            return "build the model with the backbone, options and num_classes that the checkpoint is for"
        return "none of its names is one of the model's, so it is a checkpoint of another kind"


def _plan(model, target, state, layout, may_stay):
    """How the file would be loaded under a layout, and what is wrong with it; changes nothing."""
    names_of = {"clip": partial(_clip_names, model), "image": partial(_image_names, model, target)}.get(
        layout, partial(_own_names, model, target, layout)
    )
    prefix = _outer_prefix(state, target, *names_of(state)[:2])
    inner = {name: name.removeprefix(prefix) for name in state}
    rename, known, required = names_of(inner.values())
    renamed = {name: rename(short) for name, short in inner.items()}
    if may_stay and not _fits(renamed, state, target, required, may_stay):
        renamed = {name: None if ours is not None and ours.startswith(may_stay) else ours for name, ours in renamed.items()}
        known, required = ({name for name in names if not name.startswith(may_stay)} for names in (known, required))
    sources = {ours: name for name, ours in renamed.items() if ours is not None}
    values = {ours: state[name] for ours, name in sources.items()}
    module = method_module(model.method)
    notes = []
    if layout == "clip":
        spec, tables = model.trunk.spec, [name for name in values if name.endswith(".positional_embedding")]
        values |= {name: resampled(values[name], spec.prefix, spec.grid, notes) for name in tables}
    if layout == "clip" and hasattr(module, "from_clip"):
        values = module.from_clip(values, model)
    if layout == "image":
        values = module.inflated(values, model)
    frozen = known - required
    if frozen & set(sources):  # a part of the frozen trunk is there, so all of it must be
        required = known

    missing = sorted(name for name in required - set(sources) if not may_lack(name))
    unexpected = sorted(name for ours, name in sources.items() if ours not in known)
    differing = [
        f"{name} {_shape(state[name])} for the model's {_shape(target[ours])}"
        for ours, name in sources.items()
        if ours in known and _shape(values[ours]) != _shape(target[ours])
    ]
    twice = sorted(name for name, ours in renamed.items() if ours is not None and sources[ours] != name)
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": differing, "there twice": twice}
    problems = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]
    ignored = [name for name, ours in renamed.items() if ours is None]
    count, fits = sum(map(len, kinds.values())), len(known & set(sources))
    return _Plan(layout, prefix, sources, values, ignored, problems, count, fits, notes)


def _fits(renamed, state, target, required, part):
    """Whether the file has all that the model has in a part of it, in the same shapes, and nothing else there."""
    theirs = {ours: _shape(state[name]) for name, ours in renamed.items() if ours is not None and ours.startswith(part)}
    needed = {name for name in required if name.startswith(part) and not may_lack(name)}
    return needed <= theirs.keys() and all(name in target and _shape(target[name]) == shape for name, shape in theirs.items())


def _outer_prefix(state, target, rename, known):
    """What a wrapper, such as the attribute of a LightningModule, put before the names: the leading parts without which
    most of them are known. The shortest if several are as good; never a part with which our own names begin."""
    ours, prefixes = {name.split(".")[0] for name in target}, {""}
    for name in state:
        path = name.split(".")[:-1]
        if path and path[0] not in ours:
            prefixes |= {".".join(path[:depth]) + "." for depth in range(1, min(len(path), DEEPEST) + 1)}
    known_without = {
        prefix: sum(rename(name.removeprefix(prefix)) in known for name in state if name.startswith(prefix))
        for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix))
    }
    return max(known_without, key=known_without.get)


def _clip_names(model, names):
    """For a file's names: rename(name) -> our name or None to ignore it, the names that may come, and those that must."""
    prefix, trunk = next(((n, m) for n, m in model.named_modules() if isinstance(m, VisionTransformer)), ("", None))
    if trunk is None:
        raise ValueError(f"method {model.method!r} has no trunk of CLIP's: use layout 'image', 'authors' or 'i2v'")
    with torch.device("meta"):
        clip = VisionTransformer(trunk.spec, project=trunk.proj is not None)
    full_clip = any(name.startswith("visual.") for name in names)
    text_head = {name for name in ("proj", "proj_bias", "logit_scale") if getattr(model.head, name, None) is not None}

    def rename(name):
        inner = name.removeprefix("visual.")
        if inner in text_head:
            return f"head.{inner}"
        if name in NOT_IMAGE or (inner in ("proj", "proj_bias") and trunk.proj is None):
            return None
        if full_clip and inner == name:  # beside the image tower: the text tower, or something unexpected
            return None if name.startswith(TEXT_TOWER) else name
        return f"{prefix}.{inner}"

    known = {f"{prefix}.{name}" for name in clip.state_dict()} | {f"head.{name}" for name in text_head}
    return rename, known, known - {"head.logit_scale"}


def _image_names(model, target, names):
    """As _clip_names, of a method with a trunk of its own."""
    module = method_module(model.method)
    if not hasattr(module, "from_image"):
        raise ValueError(f"method {model.method!r} has CLIP's trunk: use layout 'clip' for the image model's weights")

    def rename(name):
        if name in NOT_IMAGE or name.startswith(TEXT_TOWER):
            return None
        return module.from_image(name.removeprefix("visual.").removeprefix("trunk."))  # open_clip's, around timm's

    known = {name for name in target if name.startswith("backbone.") and not set(name.split(".")) & set(module.ADDED)}
    return rename, known, known


def _own_names(model, target, layout, names):
    """As _clip_names, for the layouts that hold what the method trains."""
    rename = getattr(method_module(model.method), "from_authors", None) if layout == "authors" else str
    if rename is None:
        raise ValueError(f"method {model.method!r} has no authors' checkpoints: use layout {image_layout(model)!r} or 'i2v'")
    return rename, set(target), set(target) - set(model.frozen_parameters())


def _detect(model, target, state, where, may_stay):
    """The plan with the fewest problems."""
    layouts = layouts_of(model)
    plans = [_plan(model, target, state, layout, may_stay) for layout in layouts]
    plans.sort(key=lambda plan: (plan.count, plan.layout != "i2v"))
    if not any(plan.fits for plan in plans):
        raise ValueError(
            f"cannot tell which layout {where} has: none of its {len(state)} names ({_first(list(state))}) is "
            f"known in {', '.join(layouts)}, so it is a checkpoint of another kind, or of another method"
        )
    if plans[0].count == plans[1].count and plans[0].sources != plans[1].sources:  # same sources: same outcome
        raise ValueError(
            f"cannot tell which layout {where} has, as its names ({_first(list(state))}) fit "
            f"{plans[0].layout} no better than {plans[1].layout}: pass one of {', '.join(layouts)}"
        )
    return plans[0]


def layouts_of(model) -> list[str]:
    """Those that a file for the model can have."""
    return [image_layout(model), *["authors"] * hasattr(method_module(model.method), "from_authors"), "i2v"]


def image_layout(model) -> str:
    """The layout of the image model's weights."""
    return "image" if hasattr(method_module(model.method), "from_image") else "clip"


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """name -> tensor of a checkpoint file (i2v/archive.py), without what other tools put around it (i2v/foreign.py).

    Raises FileNotFoundError or ValueError, one sentence each.
    """
    return unwrap(read_file(path), f"checkpoint {path}")[0]


def fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """16 hex digits that identify tensors by name, shape and float32 value; for the trunk, pass frozen_parameters().

    float16 weights and their float32 copies agree; take it before the trunk is cast to fewer bits.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.numpy())
    return digest.hexdigest()[:16]


def _shape(value):
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def _first(names):
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
