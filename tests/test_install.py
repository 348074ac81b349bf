"""The wheel holds all that a user needs, under one name; the console command; what a machine has."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from i2v import doctor
from i2v.__main__ import COMMANDS
from i2v.config import ConfigError, load_config
from i2v.experiments import find_config, installed_configs
from tests import processes
from tests.processes import LIMIT
from tests.test_imports import ENTRY_POINTS
from tests.videos import moving, write_video

ROOT = Path(__file__).parent.parent
TINY = {"image_size": 32, "patch_size": 16, "width": 96, "layers": 1, "heads": 2, "embed_dim": 16}
USER = """
import torch
import i2v
from i2v.pipelines import build_loader

model = i2v.create_model("aim", backbone="ViT-B-16", num_frames=8, num_classes=400)
names: list[str] = i2v.load_weights(model, "clip.pt", layout="clip").loaded
logits: torch.Tensor = i2v.merge_adapters(model).forward_features(torch.zeros(1, 3, 8, 224, 224))
for batch in build_loader("shards", "val"):
    clips: torch.Tensor = batch.clips
wrong: int = i2v.create_model("aim")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which the wheel is installed and nothing else."""
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"
    for name in ("i2v", "pipelines", "shard_tools", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    made = [*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(made, check=True, timeout=LIMIT)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--target", str(target), str(wheel)], check=True, timeout=LIMIT)
    shutil.rmtree(source)
    return target


@pytest.fixture(scope="module")
def call(installed, tmp_path_factory):
    """Run the installed command in a folder that has a package `pipelines` of its own; returns what it did."""
    work = tmp_path_factory.mktemp("work")
    (work / "pipelines").mkdir()
    (work / "pipelines" / "__init__.py").write_text("raise ImportError('somebody else')")
    environment = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{work}", "OMP_NUM_THREADS": "1"}

    def call(*arguments, program=(sys.executable, str(installed / "bin" / "i2v"))):
        command = [*program, *map(str, arguments)]
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=LIMIT)

    call.work = work
    return call


def test_the_wheel_has_one_top_level_name(installed):
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"i2v", "bin"}
    assert all((installed / "i2v" / name).exists() for name in ("py.typed", "page.css", "page.js"))
    shipped = {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml")}
    assert {str(path.relative_to(installed / "i2v/configs")) for path in installed.rglob("*.yaml")} == shipped


@pytest.mark.process
def test_the_installed_command_goes_from_videos_to_a_prediction(installed, call):
    where = call("-c", "import i2v.pipelines.loader as l; print(l.__file__)", program=[sys.executable])
    assert where.stdout.strip() == str(installed / "i2v" / "pipelines" / "loader.py"), where.stderr
    for number, name in enumerate(("left", "right")):
        (call.work / "videos" / name).mkdir(parents=True)
        for seed in range(2):
            write_video(call.work / "videos" / name / f"{seed}.mp4", moving(10, seed=2 * number + seed))
    done = call("shards", "videos", "--out", "shards", "--short-side", 48, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "left" in call("shards", "describe", "shards").stdout
    settings = ["model.weights=random", "data.train=shards", "data.val=shards", "train.batch_size=4", "train.max_steps=1"]
    done = call("train", "--config", "demo/st_adapter", *settings)
    assert done.returncode == 0, done.stderr
    best = call.work / "runs" / "demo" / "st_adapter" / "best.safetensors"
    assert "counted 4 of 4 videos" in call("evaluate", "--checkpoint", best).stdout
    done = call("predict", "--checkpoint", best, "videos/left/0.mp4")
    assert done.returncode == 0 and done.stdout.count(" %  ") == 2


@pytest.mark.process
@pytest.mark.parametrize("arguments, said", [(["trian"], "no command 'trian': did you mean train?"), (["x y"], "--help")])
def test_an_unknown_command_is_one_sentence(call, arguments, said):
    done = call(*arguments)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.process
def test_help_imports_nothing_heavy_and_names_every_command(call):
    code = "import sys; from i2v.__main__ import main; main(); print(sorted({'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    done = call("-c", code, program=[sys.executable])
    assert done.stdout.endswith("[]\n") and all(f"  {name} " in done.stdout for name in COMMANDS)
    done = call("train", "--help")
    assert done.returncode == 0 and "--config" in done.stdout


@pytest.mark.process
def test_types_of_the_public_api_reach_users(installed, call):
    pyright = shutil.which("pyright", path=os.path.dirname(sys.executable)) or shutil.which("pyright")
    if pyright is None or call("--version", program=[pyright]).returncode:
        pytest.skip("pyright is not installed")
    (call.work / "user.py").write_text(USER)
    (call.work / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(installed)], "exclude": ["pipelines"]}))
    done = call("--pythonpath", sys.executable, "--outputjson", "user.py", program=[pyright])
    errors = [each for each in json.loads(done.stdout)["generalDiagnostics"] if each["severity"] == "error"]
    assert len(errors) == 1 and "VideoClassifier" in errors[0]["message"], errors  # the wrong line, and no other


def test_every_program_is_a_command():
    programs = {module for module, _ in COMMANDS.values()}
    assert programs == ENTRY_POINTS - {"i2v.__main__"}


def test_experiments_are_found_by_name_and_a_local_file_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = load_config("st_adapter/k400_vit-b16_8f")
    assert by_name == load_config("configs/st_adapter/k400_vit-b16_8f.yaml")
    assert by_name.out == "runs/st_adapter/k400_vit-b16_8f"
    assert len(installed_configs()) == len(list((ROOT / "configs").rglob("*.yaml")))
    own = Path("configs/st_adapter/k400_vit-b16_8f.yaml")
    own.parent.mkdir(parents=True)
    own.write_text("model: {method: aim}\ndata: {train: a}\ntrain: {epochs: 1, batch_size: 1, lr: 1}")
    assert find_config(own) == own and load_config(str(own)).model.method == "aim"
    with pytest.raises(ConfigError, match="the name of one that is installed, such as st_adapter/k400_vit-b16_8f"):
        load_config("st_adapter/k400_vit-b16_9f")
    assert find_config("/st_adapter/k400_vit-b16_8f") == Path("/st_adapter/k400_vit-b16_8f")


def test_the_doctor_measures_and_says_what_will_be_used(monkeypatch):
    found = doctor.facts()
    assert found["dali"] and "vp9" in found["encoders"] and not doctor.problems(found | {"gpus": []})
    rates = doctor.measure(0, backbone=TINY)
    assert rates["loader"] > 0 and rates["model"] > 0
    shown = doctor.text(found, doctor.choices(found), rates)
    assert "the model runs on" in shown and "clips/s" in shown


@pytest.mark.parametrize(
    "change, said",
    [
        ({"dali": None}, "pip install 'i2v[cuda12]'"),
        (
            {"gpus": ["a GPU"], "nvdec": True, "dali": {"package": "nvidia-dali-cuda130", "cuda": 13}},
            "CUDA 13 and torch for CUDA 12",
        ),
        ({"gpus": ["a GPU"], "nvdec": False, "dali": {"package": "nvidia-dali-cuda120", "cuda": 12}}, "no NVDEC"),
        ({"encoders": ["mjpeg"]}, "--codec mjpeg"),
    ],
)
def test_the_doctor_names_what_is_wrong(change, said):
    (wrong,) = doctor.problems({"cuda": "12.8", "gpus": [], "dali": {"cuda": 12}, "encoders": ["vp9"], "nvdec": True} | change)
    assert said in wrong


@pytest.mark.parametrize("arguments", [["--data", "/none"], ["--json", "/none/x.json", "--seconds", "0"]])
def test_what_the_doctor_cannot_do_is_one_sentence(arguments, monkeypatch):
    with pytest.raises(SystemExit, match="i2v.doctor: .*/none"):
        processes.call(monkeypatch, doctor, *arguments)


def test_the_short_name_of_a_checkout_is_the_same_package():
    import pipelines.plan
    from pipelines import build_loader

    assert pipelines.plan is importlib.import_module("i2v.pipelines.plan")
    assert build_loader is importlib.import_module("i2v.pipelines").build_loader
