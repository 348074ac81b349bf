"""timm's image transformers in our terms: the ViTSpec of a model, and its tensors under CLIP's names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
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
PATCHES = "patch_embed.proj.weight"  # which all of timm's ViTs have, and no checkpoint of ours
UNUSED = ("mask_token", "head.weight", "head.bias")  # of pre-training, and classifiers of other data


def spec_of(model: nn.Module) -> ViTSpec:
    """ViTSpec of a timm model, on any device. Raises ValueError with what it has that no trunk of ours has."""
    reason = _not_plain(model)
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


def _not_plain(model) -> str:
    """What of a timm model no field of ViTSpec can say and no name of a parameter tells."""
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
    if not _activation(block.mlp):
        return f"an MLP of the kind {type(block.mlp).__name__} with {type(getattr(block.mlp, 'act', None)).__name__}"
    if rope is not None and type(rope).__name__ not in ("RotaryEmbeddingCat", "RotaryEmbeddingDinoV3"):
        return f"rotary positions of the kind {type(rope).__name__}"
    if model.global_pool not in ("token", "avg", "map"):
        return f"pooling {model.global_pool!r}"
    if block.attn.head_dim * block.attn.num_heads != model.embed_dim:
        return "heads of another width"
    return ""


def _activation(mlp) -> str:
    from timm.layers import GluMlp, Mlp, SwiGLU

    act = mlp.act
    if isinstance(mlp, SwiGLU) or (isinstance(mlp, GluMlp) and not mlp.gate_last):
        return "swiglu" if isinstance(act, nn.SiLU) else ""
    if type(mlp) is not Mlp:
        return ""
    if type(act).__name__ == "QuickGELU":
        return "quick_gelu"
    if type(act).__name__ == "GELUTanh" or (isinstance(act, nn.GELU) and act.approximate == "tanh"):
        return "gelu_tanh"
    return "gelu" if type(act).__name__ in ("GELU",) else ""


def _read_spec(model) -> ViTSpec:
    block, patches, pooling = model.blocks[0], model.patch_embed, getattr(model, "attn_pool", None)
    activation, first = _activation(block.mlp), next(m for m in block.mlp.modules() if isinstance(m, nn.Linear))
    packed = activation == "swiglu" and not hasattr(block.mlp, "fc1_g")
    hidden = first.out_features // (2 if packed else 1)
    width = model.embed_dim
    registers = 0 if model.reg_token is None else model.reg_token.shape[1]
    head = model.head if isinstance(model.head, nn.Linear) else None
    pool = {"token": "class", "map": "attention", "avg": "mean"}[model.global_pool]
    if pool == "mean" and isinstance(model.fc_norm, nn.Identity):
        pool = "normed_mean"
    config = model.pretrained_cfg
    return ViTSpec(
        patches.grid_size[0] * patches.patch_size[0],  # 384 pixels hold 27 patches of 14: 378 are read
        patches.patch_size[0],
        width,
        len(model.blocks),
        block.attn.num_heads,
        width if head is None else head.out_features,
        activation=activation,
        mlp_width=None if hidden == 4 * width else hidden,
        norm_eps=block.norm1.eps,
        class_token=model.cls_token is not None,
        registers=registers,
        positions=model.pos_embed is not None,
        rotary=_read_rotary(model),
        patch_bias=patches.proj.bias is not None,
        ln_pre=not isinstance(model.norm_pre, nn.Identity),
        attn_norm=not isinstance(getattr(block.attn, "norm", nn.Identity()), nn.Identity),
        mlp_norm=not isinstance(block.mlp.norm, nn.Identity),
        pool=pool,
        pool_heads=pooling and (None if pooling.num_heads == block.attn.num_heads else pooling.num_heads),
        pool_mlp_width=pooling and (None if pooling.mlp.fc1.out_features == hidden else pooling.mlp.fc1.out_features),
        projection="none" if head is None else "linear" if head.bias is None else "affine",
        mean=tuple(config.get("mean", CLIP_MEAN)),
        std=tuple(config.get("std", CLIP_STD)),
    )


def _read_rotary(model) -> dict | None:
    rope = getattr(model, "rope", None)
    if rope is None:
        return None
    size = model.patch_embed.grid_size[0]
    if type(rope).__name__ == "RotaryEmbeddingDinoV3":  # centres of patches from -1 to 1, in turns
        first, step = (2 * torch.pi * (2 * (0.5 + rope.grid_offset) / size - 1), 2 * torch.pi * 2 / size)
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


def is_timm(state: Mapping) -> bool:
    """Whether a state dict has an image tower of timm's, alone or within open_clip's model."""
    return any(name.endswith(PATCHES) for name in state)


def from_timm(state: Mapping, spec: ViTSpec) -> tuple[dict[str, torch.Tensor], list[str]]:
    """timm's tensors of a trunk under CLIP's names and in its shapes, and what was done that is not obvious, in sentences.

    Layer scale is multiplied into the linear layer before it and a key without bias gets one of zeros: the same function.
    Positions for another number of patches are resampled as timm does. Names that are not known stay as they are.
    """
    prefix = next(name.removesuffix(PATCHES) for name in state if name.endswith(PATCHES))
    theirs = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    others = {name: value for name, value in state.items() if not name.startswith(prefix)}
    ours, notes = {}, []
    for name in [name for name in theirs if name.endswith((".gamma", ".gamma_1", ".gamma_2"))]:
        block, _, scale = name.removesuffix(".gamma").rpartition(".")
        linear = f"{block}.attn.proj" if scale in ("ls1", "gamma_1") else f"{block}.mlp.fc2"
        gamma = theirs.pop(name)
        for kind, factor in {"weight": gamma[:, None], "bias": gamma}.items():
            if f"{linear}.{kind}" in theirs:
                theirs[f"{linear}.{kind}"] = theirs[f"{linear}.{kind}"] * factor
    for owner in {name.partition("attn.")[0] + "attn." for name in theirs if ".attn." in name} | {"attn_pool."}:
        _join_qkv(theirs, owner)
    for name in [name for name in theirs if ".mlp.fc1_g." in name]:
        gate, value = theirs.pop(name), theirs.pop(name.replace("fc1_g", "fc1_x"))
        theirs[name.replace("fc1_g", "fc1")] = torch.cat((gate, value))
    if "pos_embed" in theirs:
        ours["positional_embedding"] = _positions(theirs.pop("pos_embed")[0], spec, notes)
    if spec.projection != "none" and "head.weight" in theirs:
        ours["proj"] = theirs.pop("head.weight").T
        ours |= {"proj_bias": theirs.pop("head.bias")} if "head.bias" in theirs else {}
    for name, value in theirs.items():
        if name in EMBEDDINGS:
            ours[EMBEDDINGS[name]] = value[0] if name != "cls_token" else value[0, 0]
        elif name not in UNUSED:
            ours[_our_name(name)] = value
    outer = "visual." if prefix.startswith("visual.") else ""
    return others | {outer + name: value for name, value in ours.items()}, notes


def _our_name(name):
    """blocks.3.norm1.bias -> transformer.resblocks.3.ln_1.bias"""
    part, _, kind = name.rpartition(".")
    if part.startswith("blocks."):
        _, layer, inner = part.split(".", 2)
        return f"transformer.resblocks.{layer}.{PARTS.get(inner, inner)}.{kind}"
    return f"{PARTS.get(part, part)}.{kind}" if part else name


def _join_qkv(state, owner):
    """One weight and one bias for query, key and value, whose names begin with `owner`, however they were split."""
    pool = owner == "attn_pool."
    names = ("q", "kv") if pool else ("qkv",) if f"{owner}qkv.weight" in state else ("q_proj", "k_proj", "v_proj")
    if f"{owner}{names[0]}.weight" not in state:
        return
    weight = torch.cat([state.pop(f"{owner}{name}.weight") for name in names])
    bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
    width, begin = len(weight) // 3, 0
    for name in (*names, "q_bias", "k_bias", "v_bias"):
        one = name[:1] + "_bias" == name  # beside a weight without one of its own
        begin = "qkv".index(name[0]) * width
        value = state.pop(f"{owner}{name}" if one else f"{owner}{name}.bias", None)
        if value is not None:
            bias[begin : begin + len(value)] = value
    inner = "attn_pool.attn." if pool else owner
    state[f"{inner}in_proj_weight"], state[f"{inner}in_proj_bias"] = weight, bias


def _positions(table, spec, notes):
    """(prefix rows + patches, C) of any grid -> (spec.prefix + grid^2, C); zeros for tokens that have no position."""
    from timm.layers import resample_abs_pos_embed

    grid = int(len(table) ** 0.5)
    rows = len(table) - grid**2  # of tokens before the patches
    if grid != spec.grid:
        table = resample_abs_pos_embed(table[None], [spec.grid] * 2, [grid] * 2, num_prefix_tokens=rows)[0]
        notes.append(f"positions were resampled from {grid} x {grid} to {spec.grid} x {spec.grid} patches")
    prefix = torch.zeros(max(spec.prefix - rows, 0), table.shape[1], dtype=table.dtype, device=table.device)
    return torch.cat((table[:rows], prefix, table[rows:]))
