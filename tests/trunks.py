"""Small trunks of the methods that have their own, for tests that go over all methods; models that are not fresh."""

import torch

TRUNKS = {
    "tada2d": {"depths": [1, 2, 1, 1], "dims": [8, 16, 32, 32, 48], "image_size": 32},
    "tadaconvnext": {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32], "image_size": 32},
}


def trunk_of(method: str, vit: dict) -> dict:
    """The method's own, or the transformer."""
    return TRUNKS.get(method, vit)


def randomised(model, std: float = 0.2):
    """The model with all that trains drawn anew: no adapter is at zero, where it begins."""
    for parameter in model.trainable_parameters().values():
        torch.nn.init.normal_(parameter, std=std)
    return model.eval()
