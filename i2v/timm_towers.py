"""timm's image transformers in our terms: the ViTSpec of a model, and its tensors under CLIP's names."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from i2v.colours import CLIP_MEAN, CLIP_STD
from i2v.vit import VisionTransformer, ViTSpec

PARTS = {  # of timm's names, within a block and outside
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.norm": "attn.norm",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.norm": "mlp.norm",
    "mlp.fc2": "mlp.c_proj",
    "patch_embed.proj": "conv1",
    "norm_pre": "ln_pre",
    "norm": "ln_post",
    "fc_norm": "ln_post",
    "attn_pool.norm": "attn_pool.ln",
    "attn_pool.proj": "attn_pool.attn.out_proj",
    "attn_pool.mlp.fc1": "attn_pool.mlp.c_fc",
    "attn_pool.mlp.fc2": "attn_pool.mlp.c_proj",
}
EMBEDDINGS = {"cls_token": "class_embedding", "reg_token": "register_embedding", "attn_pool.latent": "attn_pool.query"}
LAYER_SCALES = {"ls1.gamma": "attn.proj", "gamma_1": "attn.proj", "ls2.gamma": "mlp.fc2", "gamma_2": "mlp.fc2"}
QKV = (("qkv",), ("q_proj", "k_proj", "v_proj"), ("q", "kv"))  # the linear layers that make queries, keys and values
PATCHES = "patch_embed.proj.weight"  # which all of timm's ViTs have, and no checkpoint of ours
UNUSED = ("mask_token", "head.weight", "head.bias")  # of pre-training, and classifiers of other data
DINOV3_ROTARY = "RotaryEmbeddingDinoV3"


# ---- what a model is -------------------------------------------------------------------------------------------------


def spec_of_timm(model: nn.Module) -> ViTSpec:
    """ViTSpec of a timm model, on any device. Raises ValueError with what it has that no trunk of ours has."""
    reason = _why_not_plain(model)
    if reason:
        raise ValueError(reason)
    spec = _read_spec(model)
    with torch.device("meta"):
        ours = VisionTransformer(spec, project=True).state_dict()
    theirs, _ = from_timm(model.state_dict(), spec)
    differing = sorted(theirs.keys() ^ ours.keys())
    differing += [name for name in theirs.keys() & ours.keys() if theirs[name].shape != ours[name].shape]
    if differing:
        raise ValueError(f"it has parts of its own: {', '.join(differing[:3])}")
    return spec


def _why_not_plain(model) -> str:
    """What of a timm model no field of ViTSpec can say and no name of a parameter tells; "": nothing."""
    from timm.layers import PatchEmbed
    from timm.models.eva import Eva, EvaBlock
    from timm.models.vision_transformer import Block
    from timm.models.vision_transformer import VisionTransformer as TimmViT

    if type(model) not in (TimmViT, Eva):
        return f"a {type(model).__name__}"
    block, rope = model.blocks[0], getattr(model, "rope", None)
    if type(block) not in (Block, EvaBlock):
        return f"blocks of the kind {type(block).__name__}"
    norms = {type(m) for m in model.modules() if "Norm" in type(m).__name__}
    if not all(issubclass(norm, nn.LayerNorm) for norm in norms):
        return "norms that are not LayerNorms"
    if type(model.patch_embed) is not PatchEmbed or not isinstance(model.patch_embed.norm, nn.Identity):
        return "patches that are not one linear layer"
    if _activation(block.mlp) is None:
        return f"an MLP of the kind {type(block.mlp).__name__} with {type(getattr(block.mlp, 'act', None)).__name__}"
    if rope is not None and type(rope).__name__ not in ("RotaryEmbeddingCat", DINOV3_ROTARY):
        return f"rotary positions of the kind {type(rope).__name__}"
    if model.global_pool not in ("token", "avg", "map"):
        return f"pooling {model.global_pool!r}"
    if block.attn.head_dim * block.attn.num_heads != model.embed_dim:
        return "heads of another width"
    return ""


def _activation(mlp) -> str | None:
    """Of an MLP, in ViTSpec's words; None for one that no trunk of ours has."""
    from timm.layers import GluMlp, Mlp, SwiGLU

    if isinstance(mlp, SwiGLU) or (isinstance(mlp, GluMlp) and not mlp.gate_last):
        return "swiglu" if isinstance(mlp.act, nn.SiLU) else None
    if type(mlp) is not Mlp:
        return None
    if isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "tanh":
        return "gelu_tanh"
    return {"QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "GELU": "gelu"}.get(type(mlp.act).__name__)


def _read_spec(model) -> ViTSpec:
    block, patches, width, config = model.blocks[0], model.patch_embed, model.embed_dim, model.pretrained_cfg
    hidden = _mlp_width(block.mlp)
    head = model.head if isinstance(model.head, nn.Linear) else None
    return ViTSpec(
        image_size=patches.grid_size[0] * patches.patch_size[0],  # 384 pixels hold 27 patches of 14: 378 are read
        patch_size=patches.patch_size[0],
        width=width,
        layers=len(model.blocks),
        heads=block.attn.num_heads,
        embed_dim=width if head is None else head.out_features,
        activation=_activation(block.mlp),
        mlp_width=_unless(4 * width, hidden),
        norm_eps=block.norm1.eps,
        class_token=model.cls_token is not None,
        registers=0 if model.reg_token is None else model.reg_token.shape[1],
        positions=model.pos_embed is not None,
        rotary=_read_rotary(model),
        patch_bias=patches.proj.bias is not None,
        ln_pre=_is_there(model.norm_pre),
        attn_norm=_is_there(getattr(block.attn, "norm", None)),
        mlp_norm=_is_there(block.mlp.norm),
        **_read_pool(model, block.attn.num_heads, hidden),
        projection="none" if head is None else "linear" if head.bias is None else "affine",
        mean=tuple(config.get("mean", CLIP_MEAN)),
        std=tuple(config.get("std", CLIP_STD)),
    )


def _mlp_width(mlp) -> int:
    """Channels inside an MLP; of a SwiGLU those of its product, whose two factors timm has in one layer or in two."""
    first = next(module for module in mlp.modules() if isinstance(module, nn.Linear)).out_features
    both = _activation(mlp) == "swiglu" and not hasattr(mlp, "fc1_g")
    return first // 2 if both else first


def _read_pool(model, heads: int, mlp_width: int) -> dict:
    """The fields pool, pool_heads and pool_mlp_width; the last two of attention pooling, if they are not the blocks'."""
    if model.global_pool == "map":
        pool = model.attn_pool
        own = {"pool_heads": _unless(heads, pool.num_heads), "pool_mlp_width": _unless(mlp_width, pool.mlp.fc1.out_features)}
        return {"pool": "attention"} | own
    if model.global_pool == "token":
        return {"pool": "class"}
    return {"pool": "mean" if _is_there(model.fc_norm) else "normed_mean"}


def _read_rotary(model) -> dict | None:
    rope, size = getattr(model, "rope", None), model.patch_embed.grid_size[0]
    if rope is None:
        return None
    if type(rope).__name__ == DINOV3_ROTARY:  # centres of patches from -1 to 1, in turns
        first, step = 2 * torch.pi * (2 * (0.5 + rope.grid_offset) / size - 1), 2 * torch.pi * 2 / size
    else:
        step = rope.ref_feat_shape[0] / size if rope.ref_feat_shape else 1.0
        first = rope.grid_offset * step
    return {
        "base": float(rope.temperature),
        "first": float(first),
        "step": float(step),
        "axes": "yx" if rope.grid_indexing == "ij" else "xy",
        "pairs": "halves" if rope.rotate_half else "adjacent",
    }


def _is_there(module: nn.Module | None) -> bool:
    return module is not None and not isinstance(module, nn.Identity)


def _unless(usual: int, value: int) -> int | None:
    return None if value == usual else value


# ---- its tensors -----------------------------------------------------------------------------------------------------


def is_timm(state: Mapping) -> bool:
    """Whether a state dict has an image tower of timm's, alone or within open_clip's model."""
    return any(name.endswith(PATCHES) for name in state)


def from_timm(state: Mapping, spec: ViTSpec) -> tuple[dict[str, torch.Tensor], list[str]]:
    """timm's tensors of a trunk under CLIP's names and in its shapes, and what was done that is not obvious, in sentences.

    Layer scale is multiplied into the linear layer before it and a key without bias gets one of zeros: the same function.
    Positions for another number of patches are resampled as timm does. What is not known, or has not the form that it should
    have, stays as it is under its own name. Raises ValueError where blocks differ, as they do in no whole model.
    """
    prefix = next(name.removesuffix(PATCHES) for name in state if name.endswith(PATCHES))
    theirs, others = {}, {}
    for name, value in state.items():
        if name.startswith(prefix) and isinstance(value, torch.Tensor):
            theirs[name.removeprefix(prefix)] = value
        else:
            others[name] = value
    _check_blocks(theirs)
    _fold_layer_scales(theirs)
    for owner in {name.partition("attn.")[0] + "attn." for name in theirs if ".attn." in name} | {"attn_pool."}:
        _join_qkv(theirs, owner)
    _join_gates(theirs)
    ours, notes = _embeddings(theirs, spec)
    ours |= {_our_name(name): value for name, value in theirs.items() if name not in UNUSED}
    outer = "visual." if prefix.startswith("visual.") else ""
    return others | {outer + name: value for name, value in ours.items()}, notes


def _check_blocks(theirs):
    """Raises ValueError unless every block has the same tensors, of the same shapes, as the first."""
    blocks: dict[str, dict] = {}
    for name, value in theirs.items():
        if name.startswith("blocks."):
            _, layer, inner = name.split(".", 2)
            blocks.setdefault(layer, {})[inner] = value.shape
    first = next(iter(blocks), None)
    for layer, shapes in blocks.items():
        differing = [name for name in blocks[first] | shapes if blocks[first].get(name) != shapes.get(name)]
        if differing:
            raise ValueError(f"blocks {first} and {layer} differ in {differing[0]}")


def _fold_layer_scales(theirs):
    for name in [name for name in theirs if name.startswith("blocks.")]:
        _, layer, inner = name.split(".", 2)
        if inner in LAYER_SCALES:
            gamma, linear = theirs.pop(name), f"blocks.{layer}.{LAYER_SCALES[inner]}"
            for kind, factor in {"weight": gamma[:, None], "bias": gamma}.items():
                if f"{linear}.{kind}" in theirs:
                    theirs[f"{linear}.{kind}"] = theirs[f"{linear}.{kind}"] * factor


def _join_qkv(theirs, owner):
    """One weight and one bias for queries, keys and values, whose names begin with `owner`, however they are split."""
    layers = next((names for names in QKV if f"{owner}{names[0]}.weight" in theirs), ())
    weights = [f"{owner}{layer}.weight" for layer in layers]
    columns = {theirs[name].shape[1:] if name in theirs else None for name in weights}
    if len(columns) != 1 or len(columns.pop()) != 1:  # they are no matrices, or do not fit together
        return
    weight = torch.cat([theirs[name] for name in weights])
    width = len(weight) // 3
    biases, parts = _biases_of_qkv(theirs, owner, layers, width)
    if set(parts) not in (set(), {"q", "v"}, {"q", "k", "v"}):  # only keys need none, as it would raise all scores alike
        return
    for name in (*weights, *biases):
        del theirs[name]
    inner = "attn_pool.attn." if owner == "attn_pool." else owner
    theirs[f"{inner}in_proj_weight"] = weight
    theirs[f"{inner}in_proj_bias"] = torch.cat([parts.get(part, weight.new_zeros(width)) for part in "qkv"])


def _biases_of_qkv(theirs, owner, layers, width):
    """(the names of the biases that fit, q, k or v -> its bias): those of the layers, or beside a layer without one."""
    covered = {f"{owner}{layer}.bias": layer.removesuffix("_proj") for layer in layers}
    covered |= {f"{owner}{part}_bias": part for part in "qkv"}
    fitting = {name: of for name, of in covered.items() if name in theirs and theirs[name].shape == (len(of) * width,)}
    return list(fitting), {part: bias for name, of in fitting.items() for part, bias in zip(of, theirs[name].split(width))}


def _join_gates(theirs):
    """One layer for the two factors of a SwiGLU."""
    for name in [name for name in theirs if ".mlp.fc1_g." in name]:
        gate, value = theirs.pop(name), theirs.pop(name.replace("fc1_g", "fc1_x"))
        theirs[name.replace("fc1_g", "fc1")] = torch.cat((gate, value))


def _embeddings(theirs, spec):
    """What is no layer is taken out, under our names: learned tokens, positions, the head that is the projection; and what
    was done to them that is not obvious."""
    ours, notes = {}, []
    for name, our_name in EMBEDDINGS.items():
        if name in theirs and theirs[name].ndim == 3:
            value = theirs.pop(name)[0]
            ours[our_name] = value[0] if name == "cls_token" else value
    if "pos_embed" in theirs and theirs["pos_embed"].ndim == 3:
        ours["positional_embedding"] = _positions(theirs.pop("pos_embed")[0], spec, notes)
    if spec.projection != "none" and "head.weight" in theirs:
        ours["proj"] = theirs.pop("head.weight").T
        if "head.bias" in theirs:
            ours["proj_bias"] = theirs.pop("head.bias")
    return ours, notes


def _positions(table, spec, notes):
    """(prefix rows + patches, C) of any grid -> (spec.prefix + grid^2, C); zeros for tokens that have no position."""
    rows = len(table) - math.isqrt(len(table)) ** 2  # of tokens before the patches
    table = resampled(table, rows, spec.grid, notes)
    without = table.new_zeros(max(spec.prefix - rows, 0), table.shape[1])
    return torch.cat((table[:rows], without, table[rows:]))


def resampled(table: torch.Tensor, rows: int, grid: int, notes: list[str]) -> torch.Tensor:
    """Positions (rows + patches, C) of a square of patches -> those of grid x grid of them, as timm and open_clip do it: the
    first rows stay. As it is where it has no such form. notes: gets a sentence if anything is done."""
    if not isinstance(table, torch.Tensor) or table.layout != torch.strided or table.ndim != 2 or not table.is_floating_point():
        return table
    side = math.isqrt(max(len(table) - rows, 0))
    if side in (0, grid) or rows + side**2 != len(table):
        return table
    notes.append(f"positions were resampled from {side} x {side} to {grid} x {grid} patches")
    # In float64: another processor's last digits would be another backbone to a checkpoint (fingerprint).
    patches = table[rows:].double().T.unflatten(1, (side, side))[None]  # (1, C, side, side)
    patches = F.interpolate(patches, (grid, grid), mode="bicubic", antialias=True)
    return torch.cat((table[:rows], patches[0].flatten(1).T.to(table.dtype)))


def _our_name(name):
    """blocks.3.norm1.bias -> transformer.resblocks.3.ln_1.bias"""
    part, _, kind = name.rpartition(".")
    if part.startswith("blocks."):
        _, layer, inner = part.split(".", 2)
        return f"transformer.resblocks.{layer}.{PARTS.get(inner, inner)}.{kind}"
    return f"{PARTS.get(part, part)}.{kind}" if part else name
