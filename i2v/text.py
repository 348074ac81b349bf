"""Class names -> embeddings of the text tower that was trained with the trunk, for the text head.

The tower is read from the same checkpoint as the trunk. CLIP's tokeniser comes with open_clip, so nothing is downloaded for a
checkpoint that is there; SigLIP and some others have tokenisers of their own, which come from the hub or its cache.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from i2v.heads import TEMPLATES, check_templates
from i2v.trunks import TIMM, backbone_file, backbone_spec
from i2v.weights import read_state_dict


def text_features(
    class_names: list[str],
    backbone: str | dict,
    weights: str | Path | Mapping,
    templates: list[str] = TEMPLATES,
    activation: str | None = None,
) -> torch.Tensor:
    """(K, embed_dim) float32: per class the mean of its prompts' unit embeddings, as a unit vector.

    backbone: as for create_model. weights: a CLIP checkpoint with its text tower (path or state dict), or an open_clip
    tag for a backbone with a name. templates: prompts with one {} each. activation: of the trunk that was trained with them,
    which is the tower's, too; None: what backbone and tag say. Raises ValueError if there is no such tower.
    """
    check_templates(list(templates))
    name = backbone if isinstance(backbone, str) else backbone.get("name")
    is_tag = isinstance(weights, str) and name is not None and not Path(weights).exists()
    spec = backbone_spec(backbone, weights if is_tag else None)
    activation = activation or spec.activation
    if is_tag:
        weights = backbone_file(backbone, weights, activation)
    state = weights if isinstance(weights, Mapping) else read_state_dict(weights)
    where = "the state dict" if isinstance(weights, Mapping) else str(weights)
    if name is not None and name.startswith(TIMM):
        raise ValueError(f"{name} has no text tower: take open_clip's model with this trunk, or a linear head")
    if name is not None and any(key.startswith("text.") for key in state):
        tower, tokenise = named_tower(name, activation, state, where)
    else:
        tower = text_tower(state, activation, where)
        tokenise = partial(clip_tokens, tower=tower, where=where)
    if tower.output_dim != spec.embed_dim:
        raise ValueError(
            f"{where} embeds texts in {tower.output_dim} dimensions but the backbone's embed_dim is "
            f"{spec.embed_dim}: give the checkpoint of the same CLIP"
        )
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    features = encode(tower, tokenise(prompts)).unflatten(0, (len(class_names), len(templates)))
    return F.normalize(F.normalize(features, dim=-1).mean(dim=1), dim=-1)  # (K, templates, E) -> (K, E)


def text_tower(state: Mapping, activation: str, where: str = "the state dict"):
    """open_clip's TextTransformer with the text tower of a CLIP state dict; its sizes are those of the tensors."""
    from open_clip.transformer import QuickGELU, TextTransformer  # three seconds to import

    marker = "token_embedding.weight"
    prefix = next((name.removesuffix(marker) for name in state if name.endswith(marker)), None)
    if prefix is None:
        raise ValueError(
            f"{where} has no text tower ({marker} is missing): give a full CLIP checkpoint, or compute "
            "text_features elsewhere and pass them to the head"
        )
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    try:
        (context, width), vocabulary = state["positional_embedding"].shape, len(state[marker])
        layers = len([name for name in state if name.startswith("transformer.") and name.endswith(".ln_1.weight")])
        tower = TextTransformer(
            context,
            vocabulary,
            width,
            width // 64,
            layers,
            output_dim=state["text_projection"].shape[1],
            act_layer=QuickGELU if activation == "quick_gelu" else torch.nn.GELU,
        )
        tower.load_state_dict({name: state[name].float() for name in tower.state_dict()})
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{where} holds no text tower of CLIP's kind ({reason}): give OpenAI's or open_clip's checkpoint of a plain CLIP"
        ) from error
    return tower.eval()


def named_tower(name: str, activation: str, state: Mapping, where: str):
    """The text tower of an open_clip model whose checkpoints keep it under "text." (SigLIP, CLIPA, EVA, PE), and its
    tokeniser: a function of prompts."""
    import open_clip
    from open_clip.model import _build_text_tower

    config = open_clip.get_model_config(name.removesuffix("-quickgelu"))
    try:
        tower = _build_text_tower(config["embed_dim"], config["text_cfg"], activation == "quick_gelu")
        tower.load_state_dict({key: state["text." + key].float() for key in tower.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{where} does not hold the text tower of {name} ({' '.join(str(error).split())}): give its checkpoint"
        ) from error
    except (ImportError, OSError) as error:  # towers of Hugging Face's transformers
        raise ValueError(f"the text tower of {name} cannot be made here ({error}): give text_features to the head") from error
    try:
        return tower.eval(), open_clip.get_tokenizer(name)
    except Exception as error:  # of the hub, transformers or sentencepiece
        raise OSError(f"the tokeniser of {name} is neither here nor on the hub: give text_features to the head") from error


def clip_tokens(prompts, tower, where):
    """CLIP's byte-pair encoding -> (prompts, context) integers."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=tower.context_length)
    if tokenizer.vocab_size != tower.vocab_size:
        raise ValueError(
            f"the text tower of {where} has {tower.vocab_size} tokens, CLIP's tokeniser "
            f"{tokenizer.vocab_size}: compute text_features with its own tokeniser, pass them to the head"
        )
    return tokenizer(prompts)


@torch.no_grad()
def encode(tower, tokens):
    """(N, context) -> (N, E), not normalised; 64 texts at a time, for memory."""
    return torch.cat([tower(part) for part in tokens.split(64)])
