"""A video classifier is a method's backbone and a head; create_model builds one from plain values."""

import difflib
import importlib
import inspect
import math
import numbers
import pkgutil
from dataclasses import asdict

import torch
from torch import nn

from i2v import methods
from i2v.heads import TEMPLATES, FactorsHead, LinearHead, TextHead, check_factors
from i2v.rules import Count, check
from i2v.trunks import backbone_spec, checked, plain
from i2v.vit import VisionTransformer

HEADS = {"linear": LinearHead, "factors": FactorsHead, "text": TextHead}
OWN = ("method", "backbone", "num_frames", "num_classes", "head")  # create_model's own arguments; the rest is the method's


class VideoClassifier(nn.Module):
    """(B, 3, T, H, W) normalised clips -> (B, num_classes) logits.

    `config` is the plain dict with which create_model(**config) builds the same model again.
    """

    def __init__(self, backbone, head, config=None):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.config = config or {}
        self.spec = backbone.spec
        self.method = self.config.get("method")
        self.num_frames = self.config.get("num_frames")

    def forward_features(self, clips: torch.Tensor) -> torch.Tensor:
        """(B, 3, T, H, W) -> (B, D): what enters the classifier, before dropout."""
        if clips.ndim != 5:
            raise ValueError(
                f"clips must have 5 dimensions (B, 3, T, H, W), got shape {tuple(clips.shape)}: "
                "fold several views into the batch before calling the model"
            )
        return self.backbone(clips)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.head(self.forward_features(clips))

    @property
    def trunk(self) -> nn.Module:
        """The image model, a VisionTransformer or the method's own: the backbone itself, or what it owns."""
        return next((module for module in self.backbone.modules() if isinstance(module, VisionTransformer)), self.backbone)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """name -> Parameter that the recipe trains."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def frozen_parameters(self) -> dict[str, nn.Parameter]:
        """name -> Parameter that the recipe leaves as CLIP has it."""
        return {name: p for name, p in self.named_parameters() if not p.requires_grad}


def create_model(
    method: str,
    backbone: str | dict = "ViT-B-16",
    num_frames: int = 8,
    num_classes: int | None = None,
    head: dict | None = None,
    **options,
) -> VideoClassifier:
    """Build a VideoClassifier with fresh weights; requires_grad is set as the method's recipe says.

    method: the name of a file in i2v/methods. backbone: a name of open_clip's (geometry only, with OpenAI's quick_gelu) or
    timm's, a folder of Hugging Face's, or a dict with the fields of ViTSpec (i2v/trunks.py); a method with a trunk of its own
    has its own names and Spec.
    num_classes: None: 400, or of factors all combinations. head: {"type": "linear", "dropout": 0.5, "init_std": 0.02};
    {"type": "factors", "factors": {"verb": 97, "noun": 300}}, with the same options (FactorsHead); or {"type": "text",
    "class_names": [...], "templates": [...], "text_features": (num_classes, embed_dim)}, each optional: what is not given must
    be loaded or set before the forward pass (TextHead). options: keyword arguments of the method's build(). Raises ValueError
    on a wrong value, TypeError on an unknown option.
    """
    config = complete_config(method, backbone, num_frames, num_classes, head, **options)
    spec, options = spec_of(method, config["backbone"]), {name: config[name] for name in config if name not in OWN}
    trunk = method_module(method).build(spec, num_frames, **options)
    head, num_classes = dict(config["head"]), config["num_classes"]
    kind = head.pop("type")
    if kind == "text":
        if not hasattr(spec, "embed_dim"):
            raise ValueError(f"a text head needs the features of a CLIP, and those of {method!r} are none: use a linear head")
        ends_there = not isinstance(trunk, VisionTransformer) or trunk.proj is not None  # in the joint space
        projection = "none" if ends_there else spec.projection
        classifier = TextHead(trunk.feature_dim, spec.embed_dim, projection, num_classes, **head)
        del config["head"]["text_features"]  # in the state dict
    else:
        classifier = HEADS[kind](trunk.feature_dim, num_classes, **head)
    return VideoClassifier(trunk, classifier, config)


def complete_config(
    method: str, backbone: str | dict, num_frames: Count, num_classes: Count | None, head: dict | None, **options
) -> dict:
    """create_model's arguments as a plain dict, with the defaults of all options that are not given; raises as it does."""
    check(complete_config, {"num_frames": num_frames, "num_classes": num_classes}, "{name} must be {rule}, got {value}")
    build = method_module(method).build
    options = _with_defaults(build, options, f"method {method!r}")
    check(build, options, "{name} must be {rule}, got {value}")
    kind, head_options = _head_options(head, method)
    of_factors = math.prod(head_options["factors"].values()) if kind == "factors" else None
    if of_factors and num_classes not in (None, of_factors):
        sizes = " x ".join(f"{size} of {name}" for name, size in head_options["factors"].items())
        raise ValueError(f"num_classes is {num_classes}, but the head's factors make {of_factors} ({sizes}): leave it out")
    num_classes = num_classes or of_factors or 400
    return {
        "method": method,
        "backbone": plain(spec_of(method, backbone)),
        "num_frames": num_frames,
        "num_classes": num_classes,
        "head": {"type": kind, **head_options},
        **options,
    }


def _head_options(head, method):
    """(type, options completed with their defaults) of create_model's `head`."""
    head = {} if head is None else head
    kind = head_kind(head) if isinstance(head, dict) else None
    if kind not in HEADS:
        raise ValueError(
            f"head {head!r} is unknown: use a dict such as {{'type': 'linear', 'dropout': 0.5}}, "
            "{'type': 'factors', 'factors': {'verb': 97, 'noun': 300}} or {'type': 'text', 'class_names': [...]}"
        )
    given = {name: value for name, value in head.items() if name != "type"}
    if kind == "text":
        given.setdefault("templates", getattr(method_module(method), "TEMPLATES", TEMPLATES))
    if kind == "factors":
        check_factors(given.get("factors"))
    check(HEADS[kind].__init__, given, "head {name} must be {rule}, got {value}")
    return kind, _with_defaults(HEADS[kind], given, f"head {kind!r}")


def head_kind(head: dict) -> str:
    """Which head it is, if it does not say so by its options."""
    told = {"class_names": "text", "text_features": "text", "factors": "factors"}
    return head.get("type", next((told[name] for name in head if name in told), "linear"))


def merge_adapters(model: VideoClassifier) -> VideoClassifier:
    """A plain model without adapters and with the same logits; ValueError for a method that has none."""
    module = method_module(model.method)
    if not hasattr(module, "merge"):
        raise ValueError(
            f"a {model.method!r} model cannot be merged: only adapters that are linear in each token fold "
            "into CLIP's own layers, and this method has no such merge"
        )
    return module.merge(model)


def method_module(method: str):
    """The module i2v.methods.<method>; ValueError names the methods there are."""
    names = sorted(module.name for module in pkgutil.iter_modules(methods.__path__))
    if method not in names:
        raise ValueError(f"method {method!r} is unknown{_nearest(method, names)}: use one of {', '.join(names)}")
    return importlib.import_module(f"i2v.methods.{method}")


def spec_of(method: str, backbone: str | dict, weights: str | None = None):
    """What `backbone` means to a method: a ViTSpec, or the Spec of its own file, of a name, a dict with the fields of Spec,
    or both: {"name": "tiny", "image_size": 160}. weights: as for backbone_spec. Raises ValueError."""
    module = method_module(method)
    if not hasattr(module, "Spec"):
        return backbone_spec(backbone, weights)
    if not isinstance(backbone, (str, dict)):
        raise ValueError(f"backbone must be a name or a dict, got {type(backbone).__name__}")
    given = {"name": backbone} if isinstance(backbone, str) else dict(backbone)
    if "name" in given:
        given = asdict(module.named(given.pop("name"))) | given
    return module.Spec(**checked(given, module.Spec))


def _with_defaults(function, options, owner):
    """The options completed with the function's defaults, tuples as lists; TypeError names the accepted ones."""
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise TypeError(
            f"{owner} has no option {', '.join(map(repr, unknown))}{_nearest(unknown[0], defaults)}: "
            f"accepted are {', '.join(defaults) or 'none'}"
        )
    return {name: _plain(value) for name, value in {**defaults, **options}.items()}


def _plain(value):
    """As JSON can hold it: no tuples, no numbers of numpy."""
    if isinstance(value, tuple):
        return list(value)
    return value.item() if isinstance(value, numbers.Number) and hasattr(value, "item") else value


def _nearest(name, names):
    close = difflib.get_close_matches(str(name), list(names), n=1)
    return f" (nearest: {close[0]!r})" if close else ""
