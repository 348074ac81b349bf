"""Folders of Hugging Face's transformers: the ViTSpec that a config.json describes, and tensors under timm's names.

CLIP's towers, DINOv2 with and without registers, DINOv3 and SigLIP, of which SigLIP 2 at fixed sizes is one. CLIP's own names
are in i2v/foreign.py; the others' become timm's, so that what is done to timm's tensors (i2v/timm_towers.py) is done to them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from i2v.vit import ViTSpec

# ---- config.json -----------------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "num_channels": 3}
DINOV2 = SIZES | {"patch_size": 14, "mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
DEFAULTS = {  # of transformers' classes by model_type: a config.json may leave out what is so
    "clip_vision_model": SIZES
    | {"patch_size": 32, "intermediate_size": 3072, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 512},
    "siglip_vision_model": SIZES
    | {"patch_size": 16, "intermediate_size": 3072, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2 | {"patch_size": 16, "num_register_tokens": 4},
    "dinov3_vit": SIZES
    | {"hidden_size": 384, "num_attention_heads": 6, "patch_size": 16, "intermediate_size": 1536, "hidden_act": "gelu"}
    | {"layer_norm_eps": 1e-5, "rope_theta": 100.0},
}
DINO = {"patch_bias": True, "ln_pre": False, "projection": "none"}
DINO |= {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FIXED = {  # what of a ViTSpec the family decides
    "clip_vision_model": {},
    "siglip_vision_model": {"class_token": False, "patch_bias": True, "ln_pre": False, "pool": "attention"}
    | {"projection": "none", "mean": (0.5,) * 3, "std": (0.5,) * 3},
    "dinov2": DINO,
    "dinov2_with_registers": DINO,
    "dinov3_vit": DINO | {"positions": False},
}
WHOLE = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # beside a text tower, under vision_config
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def folder_spec(folder: str | Path, image_size: int | None = None) -> ViTSpec:
    """ViTSpec of a folder that save_pretrained wrote; its colours are those of preprocessor_config.json if that is there.

    image_size: instead of the folder's. Raises ValueError, one sentence.
    """
    config = _read(folder, "config.json")
    kind = config.get("model_type")
    if kind in WHOLE:
        whole, kind = config, WHOLE[kind]
        config = whole.get("vision_config") or {}
        config = config | {"projection_dim": whole["projection_dim"]} if "projection_dim" in whole else config
    if kind not in DEFAULTS:
        if "architecture" in config:
            raise ValueError(f"backbone {folder} is timm's: give timm/{config['architecture']} and the folder as weights")
        known = ", ".join([*WHOLE, *DEFAULTS])
        raise ValueError(
            f"backbone {folder} holds a model of type {kind!r}, which is no image model known here: known are {known}"
        )
    try:
        return _spec(kind, DEFAULTS[kind] | config, image_size, _colours(folder))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"backbone {folder}: its config.json describes no trunk that can be built here ({error})") from error


def _read(folder, name) -> dict:
    path = Path(folder, name)
    if not path.is_file():
        what = f"has no {name}, which says what it is" if path.parent.is_dir() else "is no open_clip name and no folder here"
        raise ValueError(f"backbone {folder} {what}: give a folder as Hugging Face's save_pretrained writes it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no section of settings: download it again")
    return content


def _colours(folder) -> dict:
    found = _read(folder, "preprocessor_config.json") if Path(folder, "preprocessor_config.json").is_file() else {}
    return {ours: found[name] for ours, name in {"mean": "image_mean", "std": "image_std"}.items() if found.get(name)}


def _spec(kind, config, image_size, colours) -> ViTSpec:
    width, patch_size = config["hidden_size"], _side(config["patch_size"])
    gated = bool(config.get("use_swiglu_ffn") or config.get("use_gated_mlp"))
    activation = "swiglu" if gated else ACTIVATIONS.get(config["hidden_act"])
    for fine, what in {
        "num_channels": config["num_channels"] == 3,
        "vision_use_head": config.get("vision_use_head", True),
        "hidden_act": activation and (not config.get("use_gated_mlp") or config["hidden_act"] == "silu"),
    }.items():
        if not what:
            raise ValueError(f"{fine} is {config[fine]!r}")
    hidden = config["intermediate_size"] if "intermediate_size" in config else int(width * config["mlp_ratio"])
    if config.get("use_swiglu_ffn"):  # as wide as two thirds of a plain MLP
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    grid = (image_size or _side(config["image_size"])) // patch_size
    return ViTSpec(
        image_size or grid * patch_size,  # 384 pixels hold 27 patches of 14: 378 are read
        patch_size,
        width,
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config.get("projection_dim", width) if kind == "clip_vision_model" else width,
        activation=activation,
        mlp_width=None if hidden == 4 * width else hidden,
        norm_eps=config["layer_norm_eps"],
        registers=config.get("num_register_tokens", 0) if kind in ("dinov2_with_registers", "dinov3_vit") else 0,
        rotary=_rotary(config["rope_theta"], grid) if "rope_theta" in DEFAULTS[kind] else None,
        **FIXED[kind] | colours,
    )


def _side(size) -> int:
    """Of a square: a number, or the same one twice."""
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"{size} is no square")
    return sides[0]


def _rotary(base, grid) -> dict:
    """Centres of patches from -1 to 1, in turns."""
    step = 4 * math.pi / grid
    return {"base": float(base), "first": step / 2 - 2 * math.pi, "step": step, "axes": "yx", "pairs": "halves"}


# ---- names -----------------------------------------------------------------------------------------------------------

FAMILIES = {  # what only a family's image tower has; before it stands what its names begin with
    "embeddings.patch_embeddings.projection.weight": "Hugging Face's DINOv2",
    "embeddings.patch_embeddings.weight": "Hugging Face's DINOv3",
    "embeddings.patch_embedding.bias": "Hugging Face's SigLIP",
}
OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.position_embedding.weight": "pos_embed",
    "head.probe": "attn_pool.latent",
    "head.attention.in_proj_weight": "attn_pool.attn.in_proj_weight",
    "head.attention.in_proj_bias": "attn_pool.attn.in_proj_bias",
}
PARTS = {  # with a weight and a bias each, within a block and outside; transformers 5 has other names in memory than in files
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.patch_embeddings": "patch_embed.proj",
    "embeddings.patch_embedding": "patch_embed.proj",
    "layernorm": "norm",
    "post_layernorm": "norm",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1",
    "head.mlp.fc2": "attn_pool.mlp.fc2",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "attention.attention.query": "attn.q_proj",
    "attention.attention.key": "attn.k_proj",
    "attention.attention.value": "attn.v_proj",
    "attention.output.dense": "attn.proj",
    "attention.q_proj": "attn.q_proj",
    "attention.k_proj": "attn.k_proj",
    "attention.v_proj": "attn.v_proj",
    "attention.o_proj": "attn.proj",
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.out_proj": "attn.proj",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "mlp.down_proj": "mlp.fc2",
}
GATED = {"mlp.gate_proj": "mlp.fc1_g", "mlp.up_proj": "mlp.fc1_x"}
PLAIN = {"mlp.up_proj": "mlp.fc1"}  # where there is no gate
BLOCK = re.compile(r"(?:encoder\.|model\.)?layers?\.(\d+)\.(.+)")


def family_of(state: Mapping) -> str | None:
    """Whose names they are, of FAMILIES; None: others'."""
    return next((family for end, family in FAMILIES.items() if any(name.endswith(end) for name in state)), None)


def to_timm(state: Mapping) -> dict[str, torch.Tensor]:
    """The tensors of a family that family_of knows under timm's names; beside a text tower as in open_clip's models.

    Names that are not known stay as they are.
    """
    prefix = next(name.removesuffix(end) for end in FAMILIES for name in state if name.endswith(end))
    parts = PARTS | (GATED if any(".mlp.gate_proj." in name for name in state) else PLAIN)
    outer = prefix.removesuffix("vision_model.")  # of the whole model
    tower = "visual.trunk." if any(name.startswith(f"{outer}text_model.") for name in state) else ""
    renamed = {}
    for name, value in state.items():
        if not name.startswith(prefix):
            new = name.removeprefix(outer).replace("classifier.", "head.")  # of other data
            renamed[new] = value.reshape(()) if new.startswith("logit_") else value
        elif value.numel():  # DINOv3 without registers has a tensor of none
            new = _timm_name(name.removeprefix(prefix), parts)
            renamed[tower + new] = value[None] if new == "pos_embed" and value.ndim == 2 else value  # (1, L, C)
    return renamed


def _timm_name(name, parts):
    """encoder.layer.3.layer_scale1.lambda1 -> blocks.3.ls1.gamma"""
    if name in OUTSIDE:
        return OUTSIDE[name]
    block = BLOCK.fullmatch(name)
    part, _, kind = (block[2] if block else name).rpartition(".")
    new = f"{parts.get(part, part)}.{'gamma' if kind == 'lambda1' else kind}"
    return f"blocks.{block[1]}.{new}" if block else new.removeprefix(".")
