"""What a step does does not grow unseen: products, bytes kept for the backward pass and kernels, on a tiny geometry."""

import pytest
import torch

from benchmarks.anatomy import anatomy
from benchmarks.curves import METHODS
from i2v.config import ModelConfig

OPTIONS = METHODS | {"st_adapter": {"adapter_width": 16}}
TINY = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "heads": 2, "embed_dim": 32}
LIMITS = {  # per clip: MMACs forward and of the step, KB kept one by one and compiled; kernels one by one and compiled
    "st_adapter": (17.58, 31.97, 550.48, 407.03, 257, 148),
    "aim": (26.10, 54.18, 1091.82, 931.05, 411, 296),
    "zeroi2v": (19.57, 41.07, 885.71, 704.97, 513, 379),
    "dist": (25.66, 49.72, 896.09, 807.99, 781, 560),
    "tada": (12.15, 41.21, 971.79, 840.77, 860, 553),
}


@pytest.mark.parametrize("method", OPTIONS)
def test_a_step_does_no_more_than_before(method):
    config = ModelConfig(method, TINY, "random", num_frames=8, head={"type": "linear"}, options=OPTIONS[method])
    found = anatomy(config, 2, torch.device("cpu"))
    eager, compiled = found["eager"], found["compiled"]
    figures = (
        found["forward_gmacs"] * 1e3,
        found["step_gmacs"] * 1e3,
        eager["kept_mb"] * 1e3,
        compiled["kept_mb"] * 1e3,
        eager["kernels"],
        compiled["kernels"],
    )
    shown = tuple(round(figure, 2) for figure in figures)
    # Compilers differ a little from version to version.
    assert all(figure <= 1.02 * limit for figure, limit in zip(shown, LIMITS[method])), f"{method} now: {shown}"
