"""A video classifier is a method's backbone and a head; create_model builds one from plain values."""

import difflib
import importlib
import inspect
import numbers
import pkgutil
from dataclasses import MISSING, asdict, fields

import torch
from torch import nn

from i2v import methods
from i2v.heads import TEMPLATES, LinearHead, TextHead
from i2v.rules import Count, check
from i2v.vit import VisionTransformer, ViTSpec

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
    num_classes: int = 400,
    head: dict | None = None,
    **options,
) -> VideoClassifier:
    """Build a VideoClassifier with fresh weights; requires_grad is set as the method's recipe says.

    method: the name of a file in i2v/methods. backbone: an open_clip name (geometry only, with OpenAI's quick_gelu)
    or a dict with the fields of ViTSpec; a method with a trunk of its own has its own names and Spec.
    head: {"type": "linear", "dropout": 0.5, "init_std": 0.02}, or {"type": "text", "class_names": [...], "templates":
    [...], "text_features": (num_classes, embed_dim)}, each optional: what is not given must be loaded or set before the
    forward pass (TextHead). options: keyword arguments of the method's
    build(). Raises ValueError on a wrong value, TypeError on an unknown option.
    """
    config = complete_config(method, backbone, num_frames, num_classes, head, **options)
    spec, options = spec_of(method, config["backbone"]), {name: config[name] for name in config if name not in OWN}
    trunk = method_module(method).build(spec, num_frames, **options)
    head = dict(config["head"])
    if head.pop("type") == "linear":
        classifier = LinearHead(trunk.feature_dim, num_classes, **head)
    elif not hasattr(spec, "embed_dim"):
        raise ValueError(f"a text head needs the features of a CLIP, and those of {method!r} are none: use a linear head")
    else:
        project = isinstance(trunk, VisionTransformer) and trunk.proj is None  # the others end in CLIP's joint space
        classifier = TextHead(trunk.feature_dim, spec.embed_dim, project, num_classes, **head)
        del config["head"]["text_features"]  # in the state dict
    return VideoClassifier(trunk, classifier, config)


def complete_config(
    method: str, backbone: str | dict, num_frames: Count, num_classes: Count, head: dict | None, **options
) -> dict:
    """create_model's arguments as a plain dict, with the defaults of all options that are not given; raises as it does."""
    check(complete_config, {"num_frames": num_frames, "num_classes": num_classes}, "{name} must be {rule}, got {value}")
    build = method_module(method).build
    options = _with_defaults(build, options, f"method {method!r}")
    check(build, options, "{name} must be {rule}, got {value}")
    kind, head_options = _head_options(head, method)
    return {
        "method": method,
        "backbone": {name: _plain(value) for name, value in asdict(spec_of(method, backbone)).items()},
        "num_frames": num_frames,
        "num_classes": num_classes,
        "head": {"type": kind, **head_options},
        **options,
    }


def _head_options(head, method):
    """(type, options completed with their defaults) of create_model's `head`."""
    head = {} if head is None else head
    implied = "text" if isinstance(head, dict) and {"class_names", "text_features"} & set(head) else "linear"
    kind = head.get("type", implied) if isinstance(head, dict) else None
    if kind not in ("linear", "text"):
        raise ValueError(
            f"head {head!r} is unknown: use a dict such as {{'type': 'linear', 'dropout': 0.5}} or "
            "{'type': 'text', 'class_names': [...]}"
        )
    given = {name: value for name, value in head.items() if name != "type"}
    if kind == "text":
        given.setdefault("templates", getattr(method_module(method), "TEMPLATES", TEMPLATES))
    head = LinearHead if kind == "linear" else TextHead
    check(head.__init__, given, "head {name} must be {rule}, got {value}")
    return kind, _with_defaults(head, given, f"head {kind!r}")


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


def spec_of(method: str, backbone: str | dict):
    """What `backbone` means to a method: a ViTSpec, or the Spec of its own file, of a name, a dict with the fields of Spec,
    or both: {"name": "tiny", "image_size": 160}. Raises ValueError."""
    module = method_module(method)
    if not hasattr(module, "Spec"):
        return backbone_spec(backbone)
    if not isinstance(backbone, (str, dict)):
        raise ValueError(f"backbone must be a name or a dict, got {type(backbone).__name__}")
    given = {"name": backbone} if isinstance(backbone, str) else dict(backbone)
    if "name" in given:
        given = asdict(module.named(given.pop("name"))) | given
    return module.Spec(**_checked(given, module.Spec))


def backbone_spec(backbone: str | dict) -> ViTSpec:
    """ViTSpec of a dict with its fields, or of an open_clip name such as "ViT-B-16" or "ViT-L-14-336-quickgelu"."""
    if isinstance(backbone, str):
        return _open_clip_spec(backbone)
    if not isinstance(backbone, dict):
        raise ValueError(f"backbone must be an open_clip name or a dict, got {type(backbone).__name__}")
    return ViTSpec(**_checked(backbone, ViTSpec))


def _checked(backbone, kind):
    """The dict, if its keys are fields of the spec and none is missing."""
    accepted = {field.name: field.default for field in fields(kind)}
    unknown = sorted(map(str, set(backbone) - set(accepted)))
    missing = [name for name, default in accepted.items() if name not in backbone and default is MISSING]
    if unknown or missing:
        wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(f"the backbone dict {' and '.join(wrong)}: its keys are {', '.join(accepted)}")
    return backbone


def _open_clip_spec(name):
    import open_clip  # three seconds to import, and only needed for names

    base = name.removesuffix("-quickgelu")
    names = open_clip.list_models()
    if base not in names:
        vits = [n for n in names if n.startswith("ViT-") and not n.endswith("-quickgelu")]
        raise ValueError(
            f"backbone {name!r} is not an open_clip model{_nearest(base, vits)}: use a name such as "
            "ViT-B-32, ViT-B-16 or ViT-L-14, or a dict with the geometry"
        )
    config = open_clip.get_model_config(base)
    vision = dict(config["vision_cfg"])
    width, layers, head_width = vision.pop("width", 768), vision.pop("layers", 12), vision.pop("head_width", 64)
    image_size, patch_size = vision.pop("image_size", 224), vision.pop("patch_size", 16)
    if vision or not isinstance(layers, int):  # what is left (timm_model_name, mlp_ratio, pool_type, ...) is not CLIP's
        raise ValueError(
            f"backbone {name!r} is not a plain CLIP transformer ({', '.join(vision) or 'a ResNet'}): use "
            "a name such as ViT-B-32, ViT-B-16 or ViT-L-14"
        )
    return ViTSpec(image_size, patch_size, width, layers, width // head_width, config["embed_dim"])


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
