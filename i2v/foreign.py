"""Names of other tools' checkpoints: what wraps them is stripped, Hugging Face's are CLIP's under other words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from i2v.huggingface import family_of

# Where state dicts lie: open_clip, Lightning and mmcv, DiST, ST-Adapter, DeepSpeed, and others
WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model", "module")
DEEPEST = 4  # dicts within dicts that are looked into
# Between the parts of names: DataParallel and AveragedModel, torch.compile, FSDP, activation checkpoints, Fabric
BETWEEN = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
COUNTERS = ("n_averaged", "position_ids")  # AveragedModel's and Hugging Face's: no weights

# What Hugging Face's towers begin with is what stands before these
HF_TOWERS = {"embeddings.patch_embedding.weight": "vision_model", "embeddings.token_embedding.weight": "text_model"}
HF_VISION = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}
HF_TEXT = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
HF_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def unwrap(content, where: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """(name -> tensor with nothing around it, what was done, in sentences). Raises ValueError, one sentence."""
    for _ in range(DEEPEST):
        wrapped = [content[key] for key in WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)]
        content = wrapped[0] if wrapped else content
    names_tensors = isinstance(content, Mapping) and all(isinstance(name, str) for name in content)
    if not names_tensors or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(
            f"{where} holds no tensors by name: expected a state dict, alone or under {', '.join(map(repr, WRAPPERS))}"
        )
    stripped: Counter[str] = Counter()
    state: dict[str, torch.Tensor] = {}
    for name, value in content.items():
        inner = _strip(name, stripped)
        if inner.rpartition(".")[2] in COUNTERS:
            stripped[inner] += 1
        elif inner in state:
            raise ValueError(
                f"{where} has {inner} twice, with and without what other tools put before names: save one state dict alone"
            )
        else:
            state[inner] = value
    notes = [
        f"{part} was taken out of {n} names" if part.endswith(".") else f"{part} was left out" for part, n in stripped.items()
    ]
    towers = {name.removesuffix(end): tower for end, tower in HF_TOWERS.items() for name in state if name.endswith(end)}
    if "vision_model" in towers.values() and family_of(state) is None:
        return _from_hugging_face(state, towers, where), [*notes, "its names are those of Hugging Face's CLIP"]
    return state, notes


def _strip(name: str, stripped: Counter[str]) -> str:
    *path, last = name.split(".")
    stripped.update(f"{part}." for part in set(path) & set(BETWEEN))
    return ".".join([part for part in path if part not in BETWEEN] + [last])


def _from_hugging_face(state: dict[str, torch.Tensor], towers: dict[str, str], where: str) -> dict[str, torch.Tensor]:
    """CLIPModel, CLIPVisionModel or CLIPVisionModelWithProjection -> CLIP's names and shapes.

    towers: what the names of each tower begin with -> which it is.
    """
    whole = "text_model" in towers.values()
    found: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        begin = next((begin for begin in towers if name.startswith(begin)), None)
        tower, inner = towers.get(begin, ""), name.removeprefix(begin or "")
        *_, owner, kind = ["", *name.split(".")]
        if owner in ("visual_projection", "text_projection") and kind == "weight" and getattr(value, "ndim", 0) == 2:
            new = "proj" if owner.startswith("visual") else "text_projection"
            found[f"visual.{new}" if whole and new == "proj" else new] = value.T
            continue
        if kind == "logit_scale":
            inner = kind
        prefix = "visual." if whole and tower == "vision_model" else ""
        known = {"vision_model": HF_VISION, "text_model": HF_TEXT}.get(tower, {})
        found[prefix + known.get(inner, _block_name(inner))] = value
    return _join_qkv(found, where)


def _block_name(name: str) -> str:
    """encoder.layers.3.layer_norm1.bias -> transformer.resblocks.3.ln_1.bias"""
    if not name.startswith("encoder.layers."):
        return name
    _, _, layer, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"transformer.resblocks.{layer}.{HF_BLOCK.get(part, part)}.{kind}"


def _join_qkv(state: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    joined = {}
    for name, value in state.items():
        before, found, kind = name.partition(".self_attn.q_proj.")
        if found and kind in ("weight", "bias"):
            parts = [state.get(f"{before}.self_attn.{x}_proj.{kind}") for x in "qkv"]
            if not all(isinstance(part, torch.Tensor) and part.ndim and part.shape == parts[0].shape for part in parts):
                raise ValueError(f"{where} lacks a part of {before}.self_attn ({kind} of q, k or v): download it again")
            joined[f"{before}.attn.in_proj_{kind}"] = torch.cat(parts)
        elif not name.endswith(tuple(f".self_attn.{x}_proj.{kind}" for x in "kv" for kind in ("weight", "bias"))):
            joined[name] = value
    return joined
