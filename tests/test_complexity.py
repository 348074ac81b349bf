"""What models cost: equal to fvcore's count, to the authors' code, to their tables, and to the document."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape

from i2v import complexity
from i2v.complexity import PUBLISHED, cells, costs, count_macs, every_token
from i2v.model import create_model
from tests.processes import call
from tests.trunks import trunk_of

ROOT = Path(__file__).parent.parent
TINY = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "heads": 4, "embed_dim": 32}
SMALL_ROUTES = {"reduction": 1, "route_head_dim": 16}


def document():
    """The lines of docs/complexity.md by configuration, as cells."""
    lines = (ROOT / "docs/complexity.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {name: tuple(values) for name, *values in table[2:]}


DOCUMENT = document()


def fvcore_macs(model, clip):
    """fvcore's count, with the two operators that it does not know or does not count."""

    def attention(inputs, outputs):
        q, k, v = map(get_shape, inputs[:3])
        return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])

    def tap(inputs, outputs):
        shapes = [get_shape(value) or () for value in inputs]
        return math.prod(get_shape(outputs[0])) if any(len(shape) == 1 for shape in shapes) else 0

    counter = FlopCountAnalysis(model.eval(), clip).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counter.set_op_handle("aten::scaled_dot_product_attention", attention, "aten::mul", tap)
    return counter.total()


MODELS = [
    ("clip", 2, "text", {}),
    ("aim", 4, "linear", {"temporal_adapters": 2}),
    ("st_adapter", 4, "linear", {"adapter_width": 8, "positions": ["pre_attn", "pre_mlp"]}),
    ("st_adapter", 4, "linear", {"adapter_width": 8, "kernel_size": [3, 3, 3]}),
    ("zeroi2v", 4, "linear", {"shift_div": 4}),
    ("zeroi2v", 4, "linear", {"merged": True}),
    ("lora", 4, "linear", {"targets": ["q", "out", "fc2"]}),
    ("attentive", 4, "linear", {"heads": 4}),
    ("dist", 4, "text", {"integration_dim": 64, "temporal_dim": 16}),
    ("tada", 4, "linear", SMALL_ROUTES),
    ("tada", 4, "linear", SMALL_ROUTES | {"temporal_enhance": True, "double": True}),
    ("tada2d", 4, "linear", {}),
    ("tadaconvnext", 4, "linear", {}),
]


@pytest.mark.parametrize("method, frames, head, options", MODELS)
def test_every_operator_of_every_method_counts_as_in_fvcore(method, frames, head, options):
    def build():
        return create_model(method, trunk_of(method, TINY), frames, 5, {"type": head}, **options)

    model = build()
    if head == "text":
        model.head.set_text_features(torch.ones(5, 32))
    with torch.device("meta"):
        ours = count_macs(build())
    with every_token():
        assert sum(ours.values()) == fvcore_macs(model, torch.zeros(1, 3, frames, 32, 32))


def test_shifted_products_count_as_the_convolution_they_are():
    with torch.device("meta"):
        model = create_model("st_adapter", TINY, 4, 5, adapter_width=8)
    convolution = 4 * 16 * 8 * 3  # frames, patches, channels, taps
    assert count_macs(model)["mul"] == 2 * convolution * 17 / 16  # in both layers, and on the class token as well


# GMACs of the authors' code, as fvcore prints them: reference/st_adapter-aim-zeroi2v.md and dist-tadaconv.md
COUNTED = {
    "st_adapter/k400_vit-b16_8f": 151.78,
    "st_adapter/ssv2_vit-b16_8f": 162.90,
    "aim/k400_vit-b16_8f": 202.32,
    "aim/k400_vit-b16_16f": 405.10,
    "aim/k400_vit-b16_32f": 812.06,
    "aim/ssv2_vit-b16_8f": 207.90,
    "aim/k400_vit-l14_8f": 934.26,
    "aim/k400_vit-l14_16f": 1870.13,
    "aim/k400_vit-l14_32f": 3746.74,
    "zeroi2v/k400_vit-b16_8f": 162.97,
    "zeroi2v/k400_vit-b16_16f": 325.93,
    "zeroi2v/k400_vit-l14_32f": 3008.37,
    "zeroi2v/k400_vit-b16_8f, merged": 140.66,
    "zeroi2v/k400_vit-b16_16f, merged": 281.31,
    "zeroi2v/ucf101_vit-b16_32f, merged": 562.62,
    "zeroi2v/k400_vit-l14_32f, merged": 2594.45,
    "tada/k400_vit-b16_16f": 153.78,
    "tada/ssv2_vit-b16_16f": 187.24,
    "tada/ssv2_vit-b16_32f": 374.49,
    "tada/k400_vit-l14_16f": 703.22,
    "tada/k400_vit-l14_32f": 1406.45,
    "tada/k400_vit-l14_64f": 2812.90,
    "tada/ssv2_vit-l14_16f": 858.45,
    "tada/ssv2_vit-l14_32f": 1716.90,
    "tada2d/k400_resnet50_8f": 43.40,
    "tada2d/k400_resnet50_16f": 86.80,
    "tada2d/ssv2_resnet50_8f": 43.40,
    "tada2d/ssv2_resnet50_16f": 86.80,
    "tadaconvnext/k400_tiny_16f": 47.22,
    "tadaconvnext/k400_tiny_32f": 94.43,
    "tadaconvnext/ssv2_tiny_16f": 47.22,
    "tadaconvnext/k400_small_16f": 91.66,
    "tadaconvnext/k400_small_32f": 183.31,
    "tadaconvnext/k400_base_16f": 161.78,
    "tadaconvnext/k400_base_32f": 323.57,
    # DiST less the patch embedding and ln_pre of the frames that CLIP does not see
    "dist/ssv2_vit-b16_8+16f": 163.07 - 0.93,
    "dist/ssv2_vit-b16_16+32f": 326.13 - 1.86,
    "dist/ssv2_vit-b16_32+64f": 652.25 - 3.72,
    "dist/ssv2_vit-l14_32+64f": 2830.79 - 4.97,
    "dist/k400_vit-b16_8+16f": 164.04 - 0.93,
    "dist/k400_vit-b16_16+32f": 328.08 - 1.86,
    "dist/k400_vit-b16_32+64f": 656.15 - 3.72,
    "dist/k400_vit-l14_32+64f": 2835.84 - 4.97,
}


@pytest.mark.parametrize("name", COUNTED)
def test_models_cost_what_the_authors_code_costs(name):
    class_token = 1.5e-3 if name.startswith(("st_adapter", "tada")) else 1e-4  # is projected as well
    rounding = 0.07 / COUNTED[name]
    assert float(DOCUMENT[name][2]) == pytest.approx(COUNTED[name], rel=class_token + rounding)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures_are_met(name):
    gmacs, views = PUBLISHED[name]
    ours, cell, difference = float(DOCUMENT[name][2]) * views, DOCUMENT[name][5], float(DOCUMENT[name][6].rstrip("% "))
    assert cell == f"{gmacs} ({views})" and difference == pytest.approx(100 * (ours / gmacs - 1), abs=0.01 + 5 * views / gmacs)
    assert abs(difference) <= 0.5 or math.floor(ours) == gmacs  # 153.8 is printed as 153


def test_the_document_has_every_configuration():
    paths = [path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in ("demo", "configs", "bmn")]
    names = {f"{path.parent.name}/{path.stem}" for path in paths}
    assert {name.removesuffix(", merged") for name in DOCUMENT} == names


@pytest.mark.parametrize(
    "name",
    [
        "clip/k400_vit-b16_8f",
        "st_adapter/ssv2_vit-b16_8f",
        "aim/ssv2_vit-b16_8f",
        "zeroi2v/ssv2_vit-b16_8f",
        "dist/ssv2_vit-b16_8+16f",
        "tada/ssv2_vit-b16_16f",
        "aim/k700_vit-l14_32f",
    ],
)
def test_the_document_is_what_the_tool_writes(name):
    for row in costs(str(ROOT / f"configs/{name}.yaml")):
        assert cells(row)[1:] == DOCUMENT[row["config"]]


def test_the_command_prints_a_table_and_writes_json(monkeypatch, capsys, tmp_path):
    demo = ROOT / "configs/demo/st_adapter.yaml"
    call(monkeypatch, complexity, demo, "--classes", 8, "--json", tmp_path / "costs.json")
    head, line = capsys.readouterr().out.splitlines()
    assert head.startswith("config") and line.split()[0] == "demo/st_adapter"
    (row,) = json.loads((tmp_path / "costs.json").read_text())
    assert row["macs"] == sum(row["macs_by_operator"].values()) > 0 and row["views"] == 1 and row["published"] is None
    call(monkeypatch, complexity, demo.parent, "--classes", 8, "--markdown")
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"<!-- python -m i2v.complexity .*configs/demo --classes 8 --markdown -->", lines[0])
    assert "| demo/st_adapter | " + " | ".join(cells(row)[1:]) + " |" in lines


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["configs/demo/st_adapter.yaml"], "file's name does not begin with one of k400, .*: give --classes"),
        (["none.yaml"], "none.yaml cannot be read"),
        (["docs/slurm"], "docs/slurm has no configurations"),
    ],
)
def test_mistakes_end_in_one_sentence(monkeypatch, arguments, text):
    with pytest.raises(SystemExit, match=f"i2v.complexity: .*{text}"):
        call(monkeypatch, complexity, *arguments)
