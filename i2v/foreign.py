"""Names of other tools' checkpoints: what wraps them is stripped, Hugging Face's are CLIP's under other words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

# Where state dicts lie: open_clip, Lightning and mmcv, DiST, ST-Adapter, DeepSpeed, and others
WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model", "module")
# Before names: DataParallel and AveragedModel, torch.compile, Lightning and Hugging Face's tasks
PREFIXES = ("module.", "_orig_mod.", "model.", "clip.", "net.")
COUNTERS = {"n_averaged"}  # of torch.optim.swa_utils.AveragedModel

HF_VISION = {
    "embeddings.class_embedding": "class_embedding", "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding", "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias", "post_layernorm.weight": "ln_post.weight", "post_layernorm.bias": "ln_post.bias",
}  # fmt: skip
HF_TEXT = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding", "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}  # fmt: skip
HF_BLOCK = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
            "mlp.fc2": "mlp.c_proj"}  # fmt: skip


def unwrap(content, where: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """(name -> tensor with nothing around it, what was done, in sentences). Raises ValueError, one sentence."""
    while isinstance(content, Mapping):
        wrapped = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not wrapped:
            break
        content = wrapped[0]
    names_tensors = isinstance(content, Mapping) and all(isinstance(name, str) for name in content)
    if not names_tensors or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{where} holds no tensors by name: expected a state dict, alone or under "
                         f"{', '.join(map(repr, WRAPPERS))}")
    stripped: Counter[str] = Counter()
    state: dict[str, torch.Tensor] = {}
    for name, value in content.items():
        inner = _strip(name, stripped)
        if inner in COUNTERS:
            stripped[inner] += 1
        elif inner in state:
            raise ValueError(f"{where} has {inner} twice, with and without what other tools put before names: "
                             "save one state dict alone")
        else:
            state[inner] = value
    notes = [f"{prefix} was taken out of {count} names" for prefix, count in stripped.items()]
    if any(name.removeprefix("vision_model.") == "embeddings.patch_embedding.weight" for name in state):
        return _from_hugging_face(state, where), [*notes, "its names are those of Hugging Face's CLIP"]
    return state, notes


def _strip(name: str, stripped: Counter[str]) -> str:
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        stripped[prefix] += 1
        name = name.removeprefix(prefix)
    if "._orig_mod." in name:  # a block that was compiled on its own
        stripped["_orig_mod."] += 1
        name = name.replace("._orig_mod.", ".")
    return name


def _from_hugging_face(state: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """CLIPModel, CLIPVisionModel or CLIPVisionModelWithProjection -> CLIP's names and shapes."""
    whole = any(name.startswith("text_model.") for name in state)
    found: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        tower, _, inner = name.partition(".")
        if tower not in ("vision_model", "text_model"):
            tower, inner = ("vision_model" if name.startswith(("embeddings.", "encoder.", "p")) else "", name)
        if inner == "embeddings.position_ids":
            continue
        if name in ("visual_projection.weight", "text_projection.weight"):
            new = "proj" if name.startswith("visual") else "text_projection"
            found[f"visual.{new}" if whole and new == "proj" else new] = value.T
            continue
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
        if found:
            parts = [state.get(f"{before}.self_attn.{x}_proj.{kind}") for x in "qkv"]
            if not all(isinstance(part, torch.Tensor) for part in parts):
                raise ValueError(f"{where} lacks a part of {before}.self_attn ({kind} of q, k or v): download it again")
            joined[f"{before}.attn.in_proj_{kind}"] = torch.cat(parts)
        elif ".self_attn.k_proj." not in name and ".self_attn.v_proj." not in name:
            joined[name] = value
    return joined
