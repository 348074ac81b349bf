"""Classifiers on top of a backbone's clip features."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from i2v.rules import at_least, between, is_whole
from i2v.vit import into_joint_space

TEMPLATES = ("a video of {}.", "a video of a person {}.")  # for class names, unless the method's authors used others


class LinearHead(nn.Module):
    """Dropout and a linear layer: (B, D) -> (B, num_classes); weights N(0, init_std), bias 0."""

    def __init__(
        self,
        feature_dim,
        num_classes,
        dropout: Annotated[float, between(0, 1, below=True)] = 0.5,
        init_std: Annotated[float, at_least(0)] = 0.02,
    ):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(feature_dim, num_classes)
        nn.init.normal_(self.fc.weight, std=init_std)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features):
        return self.fc(self.dropout(features))


class FactorsHead(nn.Module):
    """Classes that are combinations of one class of each factor, such as a verb and a noun: (B, D) -> (B, num_classes).

    One dropout and one linear layer for all factors, log-softmax within each, and the sums of their log-probabilities as the
    logits of all combinations, the last factor fastest: of 300 nouns, verb v with noun n is 300 v + n. They are normalised
    already, so their softmax is p(verb) p(noun), and their cross entropy, label smoothing and mixed targets included, is the
    sum of those of separate heads, as EPIC-KITCHENS-100's models have them (Huang et al. 2021, arXiv 2106.05058).
    """

    def __init__(
        self,
        feature_dim,
        num_classes,
        factors: dict | None = None,  # name -> how many classes; needed
        dropout: Annotated[float, between(0, 1, below=True)] = 0.5,
        init_std: Annotated[float, at_least(0)] = 0.02,
    ):
        super().__init__()
        check_factors(factors)
        self.sizes = list(factors.values())
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(feature_dim, sum(self.sizes))  # the factors' classes, one factor after the other
        nn.init.normal_(self.fc.weight, std=init_std)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features):
        logits = self.fc(self.dropout(features))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # sums of bfloat16 would lose their digits
        joint, *others = (part.log_softmax(-1) for part in logits.split(self.sizes, -1))
        for part in others:
            joint = (joint.unsqueeze(-1) + part.unsqueeze(-2)).flatten(-2)  # (B, V), (B, N) -> (B, V * N)
        return joint


class TextHead(nn.Module):
    """exp(logit_scale) * cosine(features, class text), as in CLIP (Radford et al. 2021, fig. 3): (B, D) -> (B, K).

    Nothing here is trained, as in DiST's recipe. `proj` (the trunk's, frozen) brings features of its width into the joint
    image-text space; projection: "linear", "affine", or "none" where the backbone does it or its features lie there.
    `text_features` (num_classes, embed_dim), of any norm, belongs to the state dict; until it is given, loaded or set by
    set_text_features, it holds NaN and forward raises ValueError.
    """

    def __init__(
        self, feature_dim, embed_dim, projection, num_classes, class_names=None, text_features=None, templates=TEMPLATES
    ):
        super().__init__()
        check_names(class_names, num_classes)
        check_templates(templates)
        self.proj = self.proj_bias = None
        if projection != "none":
            self.proj = nn.Parameter(torch.randn(feature_dim, embed_dim) * feature_dim**-0.5, requires_grad=False)
        if projection == "affine":
            self.proj_bias = nn.Parameter(torch.zeros(embed_dim), requires_grad=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(100)), requires_grad=False)  # CLIP's, at its limit
        self.register_buffer("text_features", torch.full((num_classes, embed_dim), float("nan")))
        self.filled = False
        if text_features is not None:
            self.set_text_features(text_features)

    @torch.no_grad()
    def set_text_features(self, text_features):
        """Copy (num_classes, embed_dim) class embeddings in; ValueError on another shape or values not finite."""
        if not isinstance(text_features, torch.Tensor) or text_features.shape != self.text_features.shape:
            shape = tuple(getattr(text_features, "shape", ())) or type(text_features).__name__
            raise ValueError(
                f"text_features is {shape} but the model takes a tensor {tuple(self.text_features.shape)} "
                "(num_classes, embed_dim): give one row per class, and that num_classes"
            )
        if not text_features.is_meta and not text_features.isfinite().all():
            raise ValueError("text_features has values that are not finite: compute them again")
        self.text_features.copy_(text_features)
        self.filled = True

    def forward(self, features):
        self._require_text_features()
        device = "cpu" if features.is_meta else features.device.type
        with torch.autocast(device, enabled=False):  # in bfloat16 a cosine times 100 would be off by some tenths
            features = features.to(torch.promote_types(features.dtype, self.logit_scale.dtype))
            features = into_joint_space(features, self.proj, self.proj_bias)
            cosine = F.normalize(features, dim=-1) @ F.normalize(self.text_features, dim=-1).t()
            return self.logit_scale.exp() * cosine

    def _require_text_features(self):
        # Asks the device until the answer is yes, then never again; a checkpoint fills the buffer unseen.
        if self.filled or torch.compiler.is_compiling() or self.text_features.is_meta:
            return
        if self.text_features.isnan().any():
            raise ValueError(
                "the text head has no text_features yet: load a checkpoint that holds them, or call "
                "model.head.set_text_features(i2v.text.text_features(class_names, backbone, weights))"
            )
        self.filled = True


def check_factors(factors):
    """Raises ValueError unless it is {name: how many classes} of several factors."""
    fine = isinstance(factors, dict) and len(factors) > 1
    if not fine or not all(isinstance(name, str) and is_whole(size) and size > 0 for name, size in factors.items()):
        raise ValueError(
            f"head factors must be names with numbers of classes, such as {{'verb': 97, 'noun': 300}}, got {factors!r:.80}"
        )


def check_names(names, num_classes):
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"head class_names must be a list of texts that are not empty, got {names!r:.80}")
    if len(names) != num_classes:
        raise ValueError(f"head class_names has {len(names)} names but num_classes is {num_classes}: make them agree")


def check_templates(templates):
    texts = isinstance(templates, list) and templates and all(isinstance(t, str) for t in templates)
    if not texts or any(t.count("{}") != 1 for t in templates):
        raise ValueError(
            f"templates must be a list of texts with one {{}} each, where the class name goes, such as "
            f"'a video of {{}}.', got {templates!r}"
        )
