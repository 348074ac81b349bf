"""The report: one page that needs nothing else, says what the scores say, and works in a browser."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from i2v import page, report
from i2v.pipelines.quarantine import Quarantine
from i2v.pipelines.shards import ShardSet
from i2v.runs import read_run
from i2v.scores import VideoScores
from tests.browser import CHROMIUM, Browser
from tests.processes import call
from tests.test_scores import made_up

HOSTILE = "</script><b>&\"'"


def scored(shards, seed, **options):
    """Scores of the videos of shards, as a model that knows something would give them."""
    labels = torch.tensor(np.array(shards.clips["label"], dtype=np.int64))
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(labels), len(shards.classes), generator=generator)
    logits += (2 + seed) * torch.nn.functional.one_hot(labels, len(shards.classes))
    keys = [shards.key(i) for i in range(len(labels))]
    paths = [shards.metadata(i)["source"] for i in range(len(labels))]
    how = {"model": f"seed {seed}", "data": str(shards.root), "views": "1 clips x 1 crops", "options": options, "step": 3}
    ids = torch.arange(len(labels))
    return VideoScores(
        ids, labels, logits.softmax(-1), keys, paths, shards.classes, len(labels), how | {"precision": "float32"}
    )


@pytest.fixture(scope="module")
def runs(shapes, tmp_path_factory):
    """Folders of two runs, as training and evaluation leave them: one with everything, one that is better."""
    root, shards = tmp_path_factory.mktemp("runs"), ShardSet(shapes / "vp9-val")
    for seed, name in enumerate(("first", "second")):
        folder = root / name
        folder.mkdir()
        config = {
            "model": {"method": "aim", "backbone": "ViT-B-16", "weights": HOSTILE, "num_frames": 8},
            "data": {"train": str(shapes / "vp9"), "val": str(shapes / "vp9-val")},
            "train": {"epochs": 4.0, "batch_size": 8, "lr": 0.1},
            "out": str(folder),
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        log = [
            {"step": i, "samples": 8 * i, "epoch": i / 3, "loss": 2 / i, "lr": 0.1, "clips_per_s": 4.0, "data_wait": 0.1}
            for i in range(1, 13)
        ]
        for i, record in enumerate(log):  # goes on with more devices
            record |= {"devices": 1 if i < 4 else 2, "machine": "CPU, 3 cores"}
        log.insert(6, {"step": 6, "epoch": 2.0, "top1": 0.5, "top5": 0.9, "counted": 16, "expected": 16})
        (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
        scored(shards, seed).save(folder / "scores.npz")
    scored(shards, -2, shuffle_frames=True).save(root / "first" / "control.npz")
    Quarantine(root / "first" / "quarantine-train.csv", ShardSet(shapes / "vp9")).add(3, f"damaged {HOSTILE}")
    return root


def test_the_page_says_what_the_scores_say_and_needs_nothing_else(runs, tmp_path, monkeypatch, capsys):
    call(monkeypatch, report, runs / "first", "--out", tmp_path / "r.html")
    assert "wrote" in capsys.readouterr().out
    html = (tmp_path / "r.html").read_text()
    run = read_run(runs / "first")
    assert f'<div class="big">{100 * run.scores.scores().top1:.2f} %</div>' in html
    assert f"{100 * run.shuffled.scores().top1:.1f}" in html and "Without the order of frames" in html
    assert "24 videos of 8 classes, vp9" in html and "12 steps, 96 clips" in html
    assert run.hours() == pytest.approx(96 / 4 / 3600)
    assert run.hours(of_devices=True) == pytest.approx((32 / 4 + 2 * 64 / 4) / 3600)
    assert "1 x CPU, 3 cores, then 2 x CPU, 3 cores" in html and "0.01 device-hours" in html
    assert "damaged &lt;/script&gt;" in html and HOSTILE not in html
    assert html.count("<script") == 2 and html.count("</script>") == 2
    assert not re.search(r'(src|href)="?(https?:|//)|@import|url\(', html)
    data = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])
    wrong = [i for i, (label, guess, *_) in enumerate(data["runs"][0]["videos"]) if label != guess]
    assert sorted(data["runs"][0]["wrong"]) == wrong == sorted(map(int, data["runs"][0]["strips"])) and wrong
    shown = [data["runs"][0]["videos"][i][2] for i in data["runs"][0]["wrong"]]
    assert shown == sorted(shown, reverse=True)


def test_the_best_while_training_is_that_of_the_average_where_that_is_better(runs):
    run = read_run(runs / "first")
    for average, best in ((0.75, "75.00 %"), (0.25, "50.00 %")):
        log = [record | ({"ema_top1": average} if "top1" in record else {}) for record in run.log]
        page = report.make_report([replace(run, scores=None, log=log)])
        assert f'<div class="big">{best}</div><div>best top-1 while training' in page


def test_two_runs_are_compared_on_the_same_videos(runs, tmp_path):
    first, second = read_run(runs / "first"), read_run(runs / "second")
    html = report.make_report([first, second])
    difference = second.scores.scores().top1 - first.scores.scores().top1
    assert f"<b>{100 * difference:+.2f} points</b> on 16 videos" in html and "paired bootstrap" in html
    other = made_up()
    other.save(tmp_path / "other.npz")
    html = report.make_report([first, read_run(tmp_path / "other.npz")])
    assert "They were not scored on the same videos" in html


def test_parts_that_are_not_there_are_left_out_and_said(runs, shapes, tmp_path, monkeypatch, capsys):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "samples": 8, "epoch": 0.5, "loss": 1.0, "lr": 0.1, "clips_per_s": 2}\n')
    call(monkeypatch, report, tmp_path, "--out", tmp_path / "r.html")
    assert "curves only" in capsys.readouterr().out and 'id="confusion"' not in (tmp_path / "r.html").read_text()
    run = read_run(runs / "first")
    run.scores.how["data"] = "/none"
    assert "no frames are shown, as the shards that were scored cannot be read" in report.make_report([run])
    html = report.make_report([read_run(runs / "first")], data=str(shapes / "mjpeg"))
    assert "no frames are shown" not in html  # the same keys
    run = read_run(runs / "first")
    run.scores.keys = [f"other {key}" for key in run.scores.keys]
    assert "has other videos than were scored" in report.make_report([run])


@pytest.mark.parametrize(
    "content, said",
    [
        ({}, "is no run: it has no config.yaml"),
        ({"config.yaml": "a: [", "log.jsonl": ""}, "config.yaml cannot be read"),
        ({"scores.npz": "x"}, "scores.npz holds no scores"),
        ({"last.safetensors": "x"}, "last.safetensors cannot be read as a checkpoint"),
    ],
)
def test_a_folder_that_is_no_run_is_one_sentence(content, said, tmp_path, monkeypatch):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=said):
        call(monkeypatch, report, tmp_path, "--out", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_wrong_arguments_are_one_sentence(runs, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="none does not exist: give the folder"):
        call(monkeypatch, report, tmp_path / "none", "--out", tmp_path / "r.html")
    with pytest.raises(SystemExit, match="none does not exist: --out needs"):
        call(monkeypatch, report, runs / "first", "--out", tmp_path / "none" / "r.html")
    with pytest.raises(SystemExit, match="--data: .*nowhere"):
        call(monkeypatch, report, runs / "first", "--out", tmp_path / "r.html", "--data", tmp_path / "nowhere")
    assert not (tmp_path / "r.html").exists()
    with pytest.raises(SystemExit, match="--strips is -1"):
        call(monkeypatch, report, runs / "first", "--out", tmp_path / "r.html", "--strips", -1)


@pytest.mark.parametrize("low, high", [(0, 1), (0.95, 0.97), (-3, 1e6), (5, 5), (0, 0), (1e-5, 2.3e-4)])
def test_axes_take_in_what_is_drawn(low, high):
    found = page.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 12


def test_a_flat_curve_of_percent_stays_within_them():
    chart = page.line_chart("top-5", [(0, [1.0, 2.0], [90.0, 90.0])], "%")
    marks = [float(text) for text in re.findall(r">(\d+)<", chart)]
    assert 100 in marks and max(marks) == 100 and "polyline" in chart


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1100, 390])
def test_in_a_browser(runs, tmp_path, width):
    (tmp_path / "r.html").write_text(report.make_report([read_run(runs / "first"), read_run(runs / "second")]))
    browser = Browser(tmp_path / "profile", width)
    try:
        browser.open(tmp_path / "r.html")
        assert not browser.errors
        assert all(url.startswith(("file:", "data:")) for url in browser.requests)
        assert browser.run("document.documentElement.scrollWidth") <= width  # nothing sticks out, on a phone neither
        # Sorting: by accuracy, up and then down
        column = "[...document.querySelectorAll('#per-class tbody tr')].map(r => parseFloat(r.cells[2].textContent))"
        head = "document.querySelectorAll('#per-class th')[2].click()"
        up, down = browser.run(f"{head}; {column}"), browser.run(f"{head}; {column}")
        assert up == sorted(up) and down == sorted(down, reverse=True) and up != down
        # Searching
        typed = "const b = document.querySelector('input[data-table]'); b.value = 'clock'; b.dispatchEvent(new Event('input'))"
        rows = browser.run(f"{typed}; [...document.querySelectorAll('#per-class tbody tr')].filter(r => !r.hidden).length")
        classes = read_run(runs / "first").scores.classes
        assert rows >= 2 and rows < len(classes)
        # A click on a cell shows its videos, those of the run that is chosen
        for number, name in enumerate(("first", "second")):
            videos = read_run(runs / name).scores
            browser.run(
                f"const c{number} = document.getElementById('run'); c{number}.selectedIndex = {number};"
                f"c{number}.dispatchEvent(new Event('change'))"
            )
            label, guess = next((a, b) for a, b in zip(videos.labels.tolist(), videos.guesses.tolist()) if a != b)
            cell = f'document.querySelector(\'rect[data-i="{label}"][data-j="{guess}"]\')'
            browser.run(f"{cell}.dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")
            shown = browser.run("[...document.querySelectorAll('#clips .path')].map(e => e.textContent)")
            wanted = [path for path, a, b in zip(videos.paths, videos.labels, videos.guesses) if (a, b) == (label, guess)]
            assert sorted(shown) == sorted(wanted)
            assert browser.run("document.querySelector('#clips img').naturalWidth") > 100
        assert not browser.errors
    finally:
        browser.close()
