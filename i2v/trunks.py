"""Trunks by name: which ViTSpec a name means, and where its weights are.

ViT-B-16                       open_clip's; with one of its tags the activation and the normalisation are the tag's
timm/vit_base_patch14_dinov2   timm's DINOv2, DINOv3, SigLIP, PE-Core, EVA-02 and other plain ViTs
/a/folder                      of Hugging Face's transformers: what its config.json says
{name: ..., image_size: 224}   the same for pictures of another size; activation: what weights in a file were trained with
{image_size: ..., ...}         the fields of ViTSpec
"""

from __future__ import annotations

import difflib
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

import torch

from i2v.huggingface import folder_spec
from i2v.timm_towers import spec_of_timm
from i2v.vit import ViTSpec

TIMM = "timm/"
DEFAULT_TAG = "openai"  # of model.weights
KEYS = ("quick_gelu", "mean", "std")  # what a tag of open_clip's says of how weights were trained


def backbone_spec(backbone: str | dict, weights: str | None = None) -> ViTSpec:
    """ViTSpec of a name, of a dict with a name and what of it is otherwise, or of one with the fields of ViTSpec.

    weights: the tag of open_clip or timm that will be loaded, which decides what was trained with it; with anything else, such
    as a path, it is what all published weights of that name have, else OpenAI's. Raises ValueError for what is not a plain
    ViT, with the reason.
    """
    if isinstance(backbone, str):
        return _named(backbone, weights)
    if not isinstance(backbone, dict):
        raise ValueError(f"backbone must be an open_clip or timm name or a dict, got {type(backbone).__name__}")
    if "name" in backbone:
        if not set(backbone) <= {"name", "image_size", "activation"}:
            raise ValueError(
                f"the backbone dict has a name: beside it there are image_size and activation and nothing else, got {backbone}"
            )
        spec = _named(backbone["name"], weights, backbone.get("image_size"))
        return replace(spec, activation=backbone.get("activation", spec.activation))
    return ViTSpec(**checked(backbone, ViTSpec))


def checked(backbone: dict, kind: type) -> dict:
    """The dict, if its keys are fields of the spec and none that has no default is missing; else raises ValueError."""
    accepted = {field.name: field.default for field in fields(kind)}
    unknown = sorted(map(str, set(backbone) - set(accepted)))
    missing = [name for name, default in accepted.items() if name not in backbone and default is MISSING]
    if unknown or missing:
        wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(f"the backbone dict {' and '.join(wrong)}: its keys are {', '.join(accepted)}")
    return backbone


def plain(spec) -> dict:
    """A spec, a ViTSpec or another, as JSON can hold it."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(spec).items()}


def _named(name, tag, image_size=None):
    if is_folder(name):
        return folder_spec(name, image_size)
    timm = name.startswith(TIMM)
    spec = timm_spec(name.removeprefix(TIMM), tag, image_size) if timm else _open_clip_spec(name, tag)
    if image_size in (None, spec.image_size):
        return spec
    if timm:
        raise ValueError(f"backbone image_size {image_size} is not a multiple of patch_size {spec.patch_size} of {name}")
    if spec.rotary:
        raise ValueError(f"backbone {name} has rotary positions for {spec.image_size} pixels: take its timm/ name")
    return replace(spec, image_size=image_size)


def is_folder(name: str) -> bool:
    """Whether a backbone's name is the path of a folder: no other name has a slash, timm's aside."""
    return "/" in name and not name.startswith(TIMM)


def is_path(weights: str) -> bool:
    """Whether weights are those of a file or folder, not of a tag."""
    return Path(weights).exists() or "/" in weights or bool(Path(weights).suffix)


def shown(backbone: str | dict) -> str:
    """A backbone as configured, in a few words."""
    if not isinstance(backbone, dict):
        return str(backbone)
    if "layers" in backbone:
        return f"{backbone['layers']} layers of width {backbone.get('width')}"
    return ", ".join(f"{key} {value}" for key, value in backbone.items())


def backbone_file(backbone: str | dict, tag: str, activation: str | None = "quick_gelu") -> Path:
    """Path of the pre-trained checkpoint of a backbone with a name ("openai", "laion2b_s34b_b88k", ...), downloaded once.

    activation: the model's; None: it does not matter. Raises ValueError for an unknown pair and for weights trained with
    another activation, and OSError when the download fails.
    """
    import huggingface_hub
    import open_clip  # three seconds to import
    import timm

    name = backbone.get("name") if isinstance(backbone, dict) else backbone
    if name is None:
        raise ValueError(f"weights is {tag!r}, which is no file, and tags need the name of a backbone: give a file.")
    if is_folder(name):
        if tag != DEFAULT_TAG:
            raise ValueError(
                f"{name} has no weights {tag!r} but its own: leave weights out, or give the path of a checkpoint file"
            )
        return Path(name)
    if name.startswith(TIMM):
        tags = [known.partition(".")[2] for known in timm.list_pretrained(name.removeprefix(TIMM) + ".*")]
        config = timm.get_pretrained_cfg(f"{name.removeprefix(TIMM)}.{tag}") if tag in tags else None
    else:
        tags = open_clip.list_pretrained_tags_by_model(name)
        config = open_clip.get_pretrained_cfg(name, tag)
    if not config:
        known = ", ".join(tags) or "(none)"
        raise ValueError(f"{name!r} has no weights {tag!r}: use one of {known}, or give the path of a checkpoint file")
    if activation and not name.startswith(TIMM):  # whose names say it
        trained = "quick_gelu" if trained_with(name, tag)["quick_gelu"] else "gelu"
        if "quick_gelu" in (trained, activation) and trained != activation:
            raise ValueError(
                f"weights {tag!r} of {name!r} were trained with {trained} but the model uses "
                f"{activation}: give the backbone as {{name: {name}, activation: {trained}}}"
            )
    try:
        if isinstance(config, dict):
            return Path(open_clip.download_pretrained(config))
        return Path(huggingface_hub.hf_hub_download(config.hf_hub_id, config.hf_hub_filename or "model.safetensors"))
    except Exception as error:  # the hub, urllib and open_clip raise kinds of their own
        raise OSError(
            f"could not download the weights {tag!r} of {name!r}: give the path of a checkpoint file instead of the tag"
        ) from error


# ---- open_clip -------------------------------------------------------------------------------------------------------


def _open_clip_spec(name, tag):
    import open_clip  # three seconds to import, and only needed for names

    base = name.removesuffix("-quickgelu")
    names = open_clip.list_models()
    if base not in names:
        vits = [n for n in names if n.startswith("ViT-") and not n.endswith("-quickgelu")]
        close = difflib.get_close_matches(base, vits, n=1)
        raise ValueError(
            f"backbone {name!r} is not an open_clip model{f' (nearest: {close[0]!r})' if close else ''}: use a name such as "
            f"ViT-B-32, ViT-B-16 or ViT-L-14, one of timm's such as {TIMM}vit_base_patch14_dinov2, or a dict with the geometry"
        )
    config, trained = open_clip.get_model_config(base), trained_with(name, tag)
    colours = {key: tuple(trained[key]) for key in ("mean", "std") if trained.get(key)}
    vision = dict(config["vision_cfg"])
    if "timm_model_name" in vision:
        return replace(_timm_tower(name, vision, config["embed_dim"]), **colours)
    width, layers, head_width = vision.pop("width", 768), vision.pop("layers", 12), vision.pop("head_width", 64)
    image_size, patch_size = vision.pop("image_size", 224), vision.pop("patch_size", 16)
    ratio, ln_pre = vision.pop("mlp_ratio", 4), not vision.pop("no_ln_pre", False)
    average, after = vision.pop("pool_type", "tok") == "avg", vision.pop("final_ln_after_pool", False)
    if vision or not isinstance(layers, int):  # what is left (attentional_pool, ...) is not a plain ViT's
        raise ValueError(
            f"backbone {name!r} is not a plain ViT ({', '.join(vision) or 'a ResNet'}): use a name such as ViT-B-16"
        )
    return ViTSpec(
        image_size,
        patch_size,
        width,
        layers,
        width // head_width,
        config["embed_dim"],
        activation="quick_gelu" if trained["quick_gelu"] else "gelu",
        mlp_width=None if ratio == 4 else int(width * ratio),
        ln_pre=ln_pre,
        pool=("mean" if after else "normed_mean") if average else "class",
        **colours,
    )


def trained_with(name: str, tag: str | None) -> dict:
    """quick_gelu, mean and std of a tag of open_clip's; without one those that all tags of the name have, and quick_gelu, as
    OpenAI's, where some have it and some do not."""
    tags = published(name)
    found = [tags[tag]] if tag in tags else list(tags.values()) or [unsaid(name)]
    return {"quick_gelu": True} | {key: found[0][key] for key in KEYS if all(each[key] == found[0][key] for each in found)}


def published(name: str) -> dict[str, dict]:
    """tag -> what open_clip's table says of how weights of a name were trained: KEYS."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    return {tag: unsaid(name) | {k: v for k, v in open_clip.get_pretrained_cfg(name, tag).items() if k in KEYS} for tag in tags}


def unsaid(name: str) -> dict:
    """What holds where a tag does not say it: the activation of open_clip's model of that name."""
    import open_clip

    return {"quick_gelu": bool((open_clip.get_model_config(name) or {}).get("quick_gelu"))} | dict.fromkeys(KEYS[1:])


def not_known(backbone: str | dict, weights: str) -> str | None:
    """A line where weights are a file, and nobody said how they were trained, of what published ones differ in."""
    name, said = (backbone, {}) if isinstance(backbone, str) else (backbone.get("name"), backbone)
    if name is None or not is_path(weights) or is_folder(name):
        return None
    if name.startswith(TIMM):
        return _colours_not_known(name, weights)
    tags = published(name)
    other = next((tag for tag, training in tags.items() if not training["quick_gelu"]), None)
    if other is None or "activation" in said or not trained_with(name, weights)["quick_gelu"]:
        return None
    return (
        f"note: {weights} is taken to be trained with quick_gelu, as OpenAI's; if it was with gelu, as {other} and others of "
        f"{name}, write model.backbone: {{name: {name}, activation: gelu}}."
    )


def _colours_not_known(name: str, weights: str) -> str | None:
    import timm

    names = timm.list_pretrained(name.removeprefix(TIMM) + ".*")  # of a name with its tag there are none
    means = {each.partition(".")[2]: timm.get_pretrained_cfg(each).mean for each in names}
    first: dict[tuple, str] = {}  # mean -> the first tag with it
    for tag, mean in means.items():
        first.setdefault(mean, tag)
    if len(first) < 2:
        return None
    taken, *others = first.items()
    said = ", ".join(f"{tag} {mean[0]:.3g}" for mean, tag in others)
    return (
        f"note: {weights} is taken to be trained with colours whose mean is {taken[0][0]:.3g}, as {taken[1]}; other weights of "
        f"{name} have others ({said}): if it is one of those, write model.backbone: {name}.TAG."
    )


def _timm_tower(name, vision, embed_dim):
    """Of an open_clip model whose image tower is timm's."""
    head = embed_dim if vision.get("timm_proj") is None else 0  # else "none": what is pooled lies in the joint space already
    try:
        return timm_spec(vision["timm_model_name"], None, vision.get("image_size"), vision.get("timm_pool"), head)
    except ValueError as error:
        raise ValueError(f"backbone {name!r}: its image tower, {error}") from error


# ---- timm ------------------------------------------------------------------------------------------------------------


def timm_spec(
    name: str, tag: str | None = None, image_size: int | None = None, pool: str | None = None, embed_dim: int = 0
) -> ViTSpec:
    """ViTSpec of a timm model, read off the model itself; ValueError with the reason if it is no plain ViT.

    pool: other than the model's own. embed_dim: of the projection that is its head; 0: it has none.
    """
    import timm

    name, _, own_tag = name.partition(".")
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models("vit_*") + timm.list_models("eva*"), n=1)
        raise ValueError(f"backbone {TIMM}{name} is not a timm model{f' (nearest: {close[0]!r})' if close else ''}")
    known = [known.partition(".")[2] for known in timm.list_pretrained(name + ".*")]
    tag = tag if tag in known else own_tag or (known[0] if known else "")
    given = {"img_size": image_size, "global_pool": pool, "pretrained_cfg": tag}
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=embed_dim, **{key: value for key, value in given.items() if value})
    except TypeError as error:  # only transformers take an img_size
        raise ValueError(
            f"{TIMM}{name} is no image transformer of one kind of block: take another, such as {TIMM}vit_base_patch14_dinov2"
        ) from error
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"backbone {TIMM}{name} cannot be made for image_size {image_size} ({error})") from error
    try:
        return spec_of_timm(model)
    except ValueError as error:
        raise ValueError(
            f"{TIMM}{name} is not a plain ViT ({error}): take another, such as {TIMM}vit_base_patch14_dinov2"
        ) from error
