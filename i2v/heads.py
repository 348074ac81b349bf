"""Classifiers on top of a backbone's clip features."""

from torch import nn


class LinearHead(nn.Module):
    """Dropout and a linear layer: (B, D) -> (B, num_classes); weights N(0, init_std), bias 0."""

    def __init__(self, feature_dim, num_classes, dropout=0.5, init_std=0.02):
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"head dropout must be in [0, 1), got {dropout!r}")
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(feature_dim, num_classes)
        nn.init.normal_(self.fc.weight, std=init_std)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features):
        return self.fc(self.dropout(features))
