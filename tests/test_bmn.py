"""The boundary-matching network computes what its authors' does: maps, labels, losses and gradients."""

import math

import numpy as np
import pytest
import torch

from i2v.bmn import BMN, MASK, ground_truth, losses, sampling_matrix
from tests.references import tensors

CASES = ("bmn-1", "bmn-2")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}


def network(config, found, classes=None):
    kinds = dict(zip(("verb", "noun"), classes)) if classes else None
    model = BMN(
        config["NUM_INPUT_CHANNELS"],
        kinds,
        steps=config["TEMPORAL_SCALE"],
        durations=config["DURATION_SCALE"],
        width_1d=config["DIM1D"],
        width_2d=config["DIM2D"],
        width_3d=config["DIM3D"],
        samples=config["NUM_SAMPLE"],
        points=config["NUM_SAMPLE_PERBIN"],
        boundary_ratio=config["BOUNDARY_RATIO"],
        regression=config.get("USE_BMN_REGRESSION", False),
        class_maps=bool(classes),
    )
    model.load_state_dict(parts(found, "weight/"))  # strictly: all but the mask is there, and no more
    return model


def parts(found, prefix):
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


@pytest.mark.parametrize("name", CASES)
def test_labels_are_the_authors(name):
    found, config = tensors(f"{name}.safetensors")
    wanted = parts(found, "labels/")
    for clip, (segments, labels) in enumerate(zip(config["ground_truth_seconds"], config["ground_truth_verb_noun"])):
        durations = config["DURATION_SCALE"] if config["DURATION_SCALE"] > 0 else config["TEMPORAL_SCALE"]
        made = ground_truth(segments, config["window_seconds"], config["TEMPORAL_SCALE"], durations, labels)
        assert made.keys() == wanted.keys()
        for key, value in made.items():
            assert value.dtype == wanted[key].dtype
            assert torch.allclose(value.double(), wanted[key][clip].double(), rtol=0, atol=1e-6), key


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_maps_losses_and_gradients_are_the_authors(name, dtype):
    found, config = tensors(f"{name}.safetensors")
    model = network(config, found, config["NUM_CLASSES"]).to(dtype)
    output, wanted = model(found["input"].to(dtype)), parts(found, "output/")
    assert output.keys() == wanted.keys()
    for key, value in output.items():
        assert value.shape == wanted[key].shape and value.dtype == dtype
        assert torch.allclose(value, wanted[key].to(dtype), rtol=0, atol=TOLERANCE[dtype]), key
    draws = found["draws/pem_reg_mid"], found["draws/pem_reg_low"]
    made = losses(output, parts(found, "labels/"), draws, kinds=("verb", "noun") if config["NUM_CLASSES"] else ())
    wanted = parts(found, "loss/")
    assert made.keys() == wanted.keys()
    for key, value in made.items():
        assert abs(value.item() - wanted[key].item()) < TOLERANCE[dtype], key
    loss = made["tem"] + 10 * made["pem_reg"] + sum(made[key] for key in made.keys() - {"tem", "pem_reg"})
    assert abs(loss.item() - found["loss"].item()) < TOLERANCE[dtype]
    loss.backward()
    wanted = parts(found, "grad/")
    for key, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(gradient, wanted.pop(key).to(dtype), rtol=0, atol=TOLERANCE[dtype]), key
    assert not wanted


@pytest.mark.parametrize("name", CASES)
def test_the_sparse_matrix_is_the_authors_mask(name):
    found, config = tensors(f"{name}.safetensors")
    model = network(config, found, config["NUM_CLASSES"])
    n, d, t = config["NUM_SAMPLE"], model.durations, model.steps
    dense = model.sampling.to_dense().view(d, t, n, t).permute(3, 2, 0, 1).reshape(t, n * d * t)
    assert torch.allclose(dense, found[f"weight/{MASK}"], rtol=0, atol=1e-6)
    assert "sampling" not in model.state_dict() and MASK not in model.state_dict()


@pytest.mark.parametrize(
    "steps, durations, samples, points, ratio", [(25, 7, 5, 2, 0.5), (9, 9, 6, 3, 0.0), (13, 4, 3, 1, 1.3)]
)
def test_the_sparse_matrix_is_what_the_paper_says_point_by_point(steps, durations, samples, points, ratio):
    made = sampling_matrix(steps, durations, samples, points, ratio).to_dense().view(durations, steps, samples, steps)
    for d in range(durations):
        for t in range(steps):
            wanted = np.zeros((samples, steps))
            margin = ratio * (d + 1)
            for i, place in enumerate(np.linspace(t - margin, t + d + margin, samples * points) if t + d < steps else []):
                share, below = math.modf(place)  # towards 0, as the authors do
                for step, weight in ((int(below), 1 - share), (math.ceil(place), share)):
                    if place > -1 and 0 <= step < steps:
                        wanted[i // points, step] += weight / points
            assert np.allclose(made[d, t], wanted, atol=1e-6)


def test_sampling_after_the_convolution_is_sampling_before_it():
    """And the features sampled are the authors' own."""
    found, config = tensors("bmn-1.safetensors")
    model = network(config, found).double()
    x = model.head["x_1d_p"](model.backbone["conv_layer"](found["input"].double()))
    sampled = (x @ found[f"weight/{MASK}"].double()).view(len(x), -1, config["NUM_SAMPLE"], model.durations, model.steps)
    assert torch.allclose(sampled[0], found["inter/boundary_matching"].double(), rtol=0, atol=1e-6)
    assert torch.allclose(model.head["x_3d_p"](sampled).squeeze(2), model.look_at_segments(x), rtol=0, atol=1e-6)


def test_at_the_real_size_the_matrix_is_small_and_the_work_a_thirteenth():
    """What the published form costs: 6.229 M parameters, and 9.2 GMACs of the authors' 124.2."""
    model = BMN(6912)
    entries, cells = model.sampling._nnz(), model.durations * model.steps
    assert entries < 2_000_000  # of 128 million in the dense mask
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(6.229e6, abs=500)
    places = {1: model.steps, 2: cells, 3: model.steps}  # at which a convolution over so many dimensions is computed
    modules = [m for m in model.modules() if isinstance(m, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d))]
    macs = sum(m.weight.numel() * places[m.weight.ndim - 2] for m in modules) + 512 * entries
    over_samples = model.head["x_3d_p"][0].weight.numel()
    dense = macs - 512 * entries + over_samples * (cells - model.steps) + 256 * model.steps * 32 * cells
    assert macs == pytest.approx(9.2e9, abs=0.1e9) and dense == pytest.approx(124.2e9, abs=0.05e9)


def degenerate():
    """Windows in which something that the authors divide by is nothing."""
    t, d = 12, 6
    usual = ground_truth([[1.0, 4.0], [5.0, 9.0]], 12.0, t, d)
    nothing = {name: torch.zeros_like(value) if name != "mask" else value for name, value in usual.items()}
    low = usual | {"iou_map": usual["iou_map"] * 0.2}
    full = {name: torch.ones_like(value) for name, value in usual.items()}
    return {"no actions": nothing, "low overlaps only": low, "nothing but positives": full, "short": usual}


@pytest.mark.parametrize("case, labels", degenerate().items())
def test_no_batch_makes_a_loss_or_gradient_that_is_not_finite(case, labels):
    model = BMN(8, steps=12, durations=6, width_1d=8, width_2d=8, width_3d=8, samples=4)
    batch = {name: value[None] for name, value in labels.items()}
    output = model(torch.randn(1, 8, 12))
    made = losses(output, batch, (torch.rand(1, 6, 12), torch.rand(1, 6, 12)))
    sum(made.values()).backward()
    assert all(value.isfinite() for value in made.values())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    if case == "no actions":
        assert all(value == 0 for value in made.values())
    if case == "low overlaps only":
        assert made["pem_reg"] == made["pem_cls"] == 0 and made["tem"] > 0
    if case == "short":
        assert all(value > 0 for value in made.values())


def test_saturated_scores_make_finite_losses():
    labels = {name: value[None] for name, value in degenerate()["short"].items()}
    for value in (0.0, 1.0):
        maps = {"start": (1, 12), "end": (1, 12), "confidence_map": (1, 2, 6, 12)}
        output = {name: torch.full(shape, value, requires_grad=True) for name, shape in maps.items()}
        made = losses(output, labels, (torch.rand(1, 6, 12), torch.rand(1, 6, 12)))
        sum(made.values()).backward()
        assert all(part.isfinite() for part in made.values()) and all(map.grad.isfinite().all() for map in output.values())


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"steps": 2}, "steps is 2: it must be"),
        ({"durations": 0}, "durations is 0: it must be from 1 to steps"),
        ({"durations": 201}, "durations is 201: it must be from 1 to steps"),
        ({"groups": 3}, "3 groups do not divide"),
        ({"class_maps": True}, "no classes are known"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        BMN(8, **wrong)


def test_a_window_without_actions_is_no_training_window():
    with pytest.raises(ValueError, match="without actions"):
        ground_truth(np.zeros((0, 2)), 10.0, 12, 6)
