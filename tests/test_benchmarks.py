"""The benchmarks run on a CPU, their figures belong together, and the documents hold what was measured."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from benchmarks import contenders, floor_plan, gpu, index, kernels, keys, loader, overhead, predicting, report, sharding, videos
from benchmarks.measure import shown_command
from i2v.pipelines.shards import ClipError, ShardSet
from i2v.shard_tools.encode import EncodeSettings
from tests.processes import LIMIT, call
from tests.videos import moving, write_video

ROOT = Path(__file__).parent.parent


@pytest.mark.process
def test_throughput_of_the_tiny_preset(tmp_path):
    command = [sys.executable, "benchmarks/throughput.py", "--preset", "tiny", "--rounds", "2", "--seconds", "0.2"]
    done = subprocess.run([*command, "--json", str(tmp_path / "r.json")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    rates = result["clips_per_s"]
    assert all(r["min"] <= r["median"] <= r["max"] for r in rates.values())
    slower = min(("loader", "model"), key=lambda name: rates[name]["median"])
    assert result["bound_by"] == slower
    assert result["end_to_end_of_ceiling"] == rates["end_to_end"]["median"] / rates[slower]["median"]
    assert result["machine"]["cores"] >= 1 and "throughput.py --preset tiny" in result["command"]
    # forward and input gradient of the trunk, and the adapters': 4 layers of width 192, 17 tokens, 8 frames
    forward = 2 * 8 * 17 * 4 * 12 * 192**2
    assert 1.5 * forward < result["training_gflop_per_clip"] * 1e9 < 3 * forward


@pytest.mark.process
def test_a_wrong_config_is_one_sentence():
    command = [sys.executable, "benchmarks/throughput.py", "--config", "none.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "none.yaml cannot be read" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.process
def test_the_gpu_script_runs_where_there_is_none(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--quick", "--json", str(tmp_path / "r.json"), "--only", "facts"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "facts: {" in done.stdout, done.stderr
    assert "libnvcuvid.so.1" in json.loads((tmp_path / "r.json").read_text())["facts"]["libraries"]


@pytest.mark.process
def test_a_question_that_takes_too_long_costs_no_other(monkeypatch):
    args = SimpleNamespace(end=time.monotonic(), quick=True)
    monkeypatch.setattr(gpu, "AFTER_THE_END", LIMIT)
    assert gpu.asked("facts", args) == {"error": "not asked: the time was over (--minutes)"}
    monkeypatch.setattr(gpu, "AFTER_THE_END", 0)
    assert gpu.asked("facts", args) == {"error": "it ended with code -9"}


def test_what_is_asked_of_a_device_is_answered_on_a_cpu():
    questions = kernels.questions("cpu", 2)
    for name in (
        "memory",
        "product bf16",
        "q, k, v as products: 3",
        "attention over frames, default",
        "the same, 2 in one, default",
    ):
        found = gpu.answer(questions[name])
        assert found["ms"] > 0 and found.get("difference", 0) < 0.05, name


# ---- the data side ---------------------------------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch):
    """Measures in this process what would have one of its own, and lets it have all its cores again."""
    cores = os.sched_getaffinity(0)
    for module in (index, loader, sharding):
        monkeypatch.setattr(module, "in_fresh_process", lambda function, *arguments: function(*arguments))
    yield
    os.sched_setaffinity(0, cores)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmarks")


def run(monkeypatch, module, *options):
    call(monkeypatch, module, *options)
    return json.loads(Path(options[-1]).read_text())


@pytest.fixture(scope="module")
def four_videos(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(videos, "DRAWN_FRAMES", 12)
        return videos.make_videos(cache, 4, 1, None)[0]


def test_all_contenders_make_the_same_clips(four_videos):
    shards = videos.shard_videos(four_videos, EncodeSettings(crf=4))
    sampling = loader.SAMPLINGS["TSN-8"]
    plan = contenders.loader_of(shards, sampling).plan
    order = np.argsort([plan[position].id for position in range(4)])  # webdataset reads them as they are stored
    ours = first_batch(contenders.from_shards, shards, shards, sampling)
    torch_made = first_batch(contenders.from_files, four_videos, shards, sampling)
    assert ours.shape == torch_made.shape == (4, 3, 8, 224, 224)
    assert (ours - torch_made).abs().mean() < 0.1  # other codec, other filter; mirrored or backwards it would be 0.5
    for frames_known in (False, True):
        make = partial(contenders.from_webdataset, frames_known=frames_known)
        dali_made = first_batch(make, shards, shards, sampling)
        assert (ours[order.tolist()] - dali_made).abs().mean() < 0.02
    for package, pictures in (("torchcodec", contenders.torchcodec_pictures), ("spdl", contenders.spdl_pictures)):
        if contenders.installed(package):
            others = first_batch(partial(contenders.from_decoder, pictures), four_videos, shards, sampling)
            assert (ours - others).abs().mean() < 0.1


def first_batch(make, data, plan_of, sampling):
    running = make(data, plan_of, sampling, 4)
    made = next(running).clone()
    running.close()
    return made


@pytest.mark.process
def test_the_loader_benchmark_and_its_table(cache, tmp_path, monkeypatch):
    result = run(monkeypatch, loader, "--quick", "--cache", cache, "--json", tmp_path / "loader_speed.json")
    rates, times = result["clips_per_s"]["8x16"], result["times"]["8x16"]
    ours = {"vp9 gop 8", "h264 gop 1", "h264 gop 8", "mjpeg"}
    assert set(rates) == ours | set(result["others"]) == set(result["bytes"]) and set(times) == ours
    assert {"pyav", "webdataset + dali", "webdataset + dali, frames="} <= set(result["others"])
    assert all(0 < rate["min"] <= rate["median"] <= rate["max"] for rate in rates.values())
    for name, of in times.items():
        for base, ratio in of.items():
            assert rates[name]["min"] / rates[base]["max"] <= ratio <= rates[name]["max"] / rates[base]["min"]
    assert 0 < result["had_the_core"] < 1.1
    assert not multiprocessing.active_children()
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    text = report.fill("<!-- loader -->\nold\n<!-- /loader -->")
    assert f"| {rates['mjpeg']['median']:.1f} ({times['mjpeg']['pyav']:.1f} / " in text and "old" not in text


@pytest.mark.process
def test_what_the_loader_costs_besides_decoding(cache, tmp_path, monkeypatch):
    result = run(monkeypatch, overhead, "--quick", "--cache", cache, "--json", tmp_path / "overhead.json")
    constant, decoding = result["constant"], result["decoding"]
    assert set(constant) == {"float32", "uint8"} and set(decoding) == {"mjpeg", "h264 gop 8", "vp9 gop 8"}
    assert all(found["ms"] >= found["asking_ms"] > 0 for found in (*constant.values(), *(of["1"] for of in decoding.values())))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert f"| {constant['uint8']['ms']:.2f} | " in report.fill("<!-- overhead -->\nold\n<!-- /overhead -->")


def test_the_memory_of_the_loader(cache, tmp_path, monkeypatch, here):
    result = run(monkeypatch, loader, "--quick", "--memory", "--cache", cache, "--json", tmp_path / "loader_memory.json")
    assert list(result["training"]["after_batches_mb"]) == ["5", "10"]
    assert result["evaluation"]["views_seen"] == result["evaluation"]["videos"] * 2 * 3 == 12
    assert result["evaluation"]["peak_mb"] >= result["evaluation"]["before_mb"] > 0
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert "after 5 and 10 batches" in report.memory_table()


def test_the_sharding_benchmark_and_its_table(cache, tmp_path, monkeypatch, here):
    result = run(monkeypatch, sharding, "--quick", "--cache", cache, "--json", tmp_path / "sharding.json")
    of = result["codecs"]["mjpeg"]
    assert {"make_shards", "pyav"} <= set(of["videos_per_s"])
    assert of["frames_per_s"]["pyav"]["median"] == pytest.approx(60 * of["videos_per_s"]["pyav"]["median"])  # 2 seconds each
    assert list(result["memory"]["after_percent_mb"]) == [f"{tenth}0" for tenth in range(1, 11)]
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert "| mjpeg | pyav |" in report.sharding_table()


def test_bare_loops_make_what_make_shards_makes(four_videos, tmp_path):
    settings = EncodeSettings("mjpeg")
    clips = ShardSet(videos.shard_videos(four_videos, settings)).clips
    makers = [sharding.by_pyav] + ([sharding.by_ffmpeg] if shutil.which("ffmpeg") else [])
    for make in makers:
        folder = tmp_path / make.__name__
        folder.mkdir()
        make(four_videos, settings, folder)
        made = sorted(folder.glob("*.mp4"))
        assert len(made) == len(clips) == 4
        with av.open(str(made[0])) as container:
            frames = [(frame.width, frame.height) for frame in container.decode(video=0)]
        assert set(frames) == {(clips["width"][0], clips["height"][0])} and len(frames) == clips["frames"][0]


def test_the_index_benchmark_and_its_table(tmp_path, monkeypatch, here):
    result = run(monkeypatch, index, "--quick", "--json", tmp_path / "index.json")
    assert (result["clips"], result["frames"], result["shards"]) == (1000, 300_000, 10)
    assert all(rate["min"] > 0 for rate in result["plans_per_s"].values()) and result["epoch_border_seconds"]["min"] > 0
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert "1,000 clips of 300,000 frames in 10 shards" in report.index_table()


def test_the_synthetic_index_points_to_real_bytes(tmp_path):
    shards = ShardSet(index.make_index(tmp_path, 30, 3))
    assert len(shards) == 30 and len(shards.fragments) == 30 * index.FRAMES
    video, _ = shards.read(0, np.array([0]))
    for clip in (5, 9, 10, 29):  # middles and ends of shards
        data, position = shards.read(clip, np.array([0]))
        assert position == [0] and (data == video).all()
    with pytest.raises(ClipError):
        shards.read(1, np.array([0]))


def test_real_videos_are_cut_or_played_to_and_fro(tmp_path, four_videos):
    folder = tmp_path / "real"
    folder.mkdir()
    for number in range(2):
        frames = moving(40 + number, 240, 320, seed=number)
        write_video(folder / f"{number}.mp4", frames)
    write_video(folder / "short.mp4", moving(4, 240, 320))
    (folder / "broken.mp4").write_bytes(b"nothing")
    made, facts = videos.make_videos(tmp_path / "cache", 3, 2, folder)
    assert facts["made_from"] == "real videos" and facts["of"] == 2 and str(folder) not in json.dumps(facts)
    for path in sorted(made.rglob("*.mp4")):
        with av.open(str(path)) as container:
            sizes = [(frame.width, frame.height) for frame in container.decode(video=0)]
        assert sizes == [(340, 256)] * 60
    with pytest.raises(ValueError, match="holds no video"):
        videos.make_videos(tmp_path / "cache", 3, 2, tmp_path)


def test_the_folder_of_real_videos_is_not_in_the_result(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["loader.py", "--videos", "/home/me/x", "--count", "4", "--videos=/home/me/y"])
    assert shown_command("loader.py") == "python benchmarks/loader.py --videos FOLDER --count 4 --videos=FOLDER"


# ---- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", report.documents(), ids=lambda path: path.name)
def test_the_documents_hold_what_was_measured(path):
    text = path.read_text()
    assert report.fill(text) == text, "run benchmarks/report.py"


def test_what_is_not_measured_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for name in report.TABLES:
        text = report.fill(f"before <!-- {name} -->|1|<!-- /{name} --> after")
        assert text.startswith("before ") and text.endswith(" after") and "|" not in text
        assert "Not measured yet: `python benchmarks/" in text and report.fill(text) == text
    with pytest.raises(ValueError, match="has no <!-- /demo -->"):
        report.fill("<!-- demo -->")


def test_the_floor_plan_is_up_to_date():
    """After a change to imports or to the first line of a docstring: python benchmarks/floor_plan.py"""
    assert floor_plan.PAGE.read_text() == floor_plan.page()


def test_the_reference_of_keys_is_up_to_date():
    """After a change to options, their rules or comments: python benchmarks/keys.py"""
    assert keys.PAGE.read_text() == keys.page()
    assert "| `clips` | `1` | a whole number, from 1 to 1000 | temporal views |" in keys.page()


@pytest.mark.process
def test_predicting_looks_at_every_video_in_every_way(tmp_path, monkeypatch):
    """The ways find the same; one at a time is what the others are compared with."""
    small = ("--count", 2, "--seconds", 1, "--rounds", 1, "--workers", 1, "--device", "cpu", "--cache", tmp_path)
    result = run(monkeypatch, predicting, *small, "--note", "A test.", "--json", tmp_path / "r.json")
    assert result["videos"]["videos"] == 2 and len(result["videos_per_s"]) == 5
    assert result["times"][predicting.ALONE] == 1 and all(rate["median"] > 0 for rate in result["videos_per_s"].values())
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    (tmp_path / "r.json").rename(tmp_path / "predicting.json")
    shown = report.fill("<!-- predicting -->\n<!-- /predicting -->")
    assert f"| {predicting.ALONE} |" in shown and "A test." in shown
