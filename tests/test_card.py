"""make_shards --card: what is said of a data set is what is in it, and other tools can read it."""

import csv
import hashlib
import json
import shutil

import fsspec
import pytest
import yaml

from i2v.pipelines.shards import ShardSet
from i2v.shard_tools.card import COLUMNS, card, croissant
from i2v.shard_tools.join import CLIP_COLUMNS
from i2v.shard_tools.make_shards import main
from tests.making import Stop, stop_publishing


@pytest.fixture(scope="module")
def described(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("described") / "shapes"
    (out.parent / "val").mkdir()
    for video in sorted((shapes / "val").rglob("*.mp4"))[::4]:
        (out.parent / "val" / video.parent.name).mkdir(exist_ok=True)
        shutil.copy(video, out.parent / "val" / video.parent.name)
    arguments = [str(out.parent / "val"), "--out", str(out), "--short-side", "48", "--workers", "1", "--shard-clips", "3"]
    assert main([*arguments, "--card"]) == 0
    return out, arguments


def test_the_metadata_are_those_of_the_files(described):
    out, _ = described
    found, shards = json.loads((out / "croissant.json").read_text()), ShardSet(out)
    files = {file["@id"]: file for file in found["distribution"] if file["@type"] == "cr:FileObject"}
    assert files.keys() == {"clips.csv", *(shard["name"] for shard in shards.manifest["shards"])} and len(files) == 3
    for name, file in files.items():
        data = (out / name).read_bytes()
        assert file["sha256"] == hashlib.sha256(data).hexdigest() and file["contentSize"] == f"{len(data)} B"
    (videos,) = (file for file in found["distribution"] if file["@type"] == "cr:FileSet")
    assert {shard["@id"] for shard in videos["containedIn"]} == files.keys() - {"clips.csv"}
    (records,) = found["recordSet"]
    columns = [field["source"]["extract"]["column"] for field in records["field"]]
    assert columns == CLIP_COLUMNS == list(COLUMNS) and f"{len(shards)} video clips" in found["description"]
    assert found["conformsTo"].endswith("croissant/1.0") and "key" in found["@context"]


def test_the_card_has_every_class_and_its_count(described):
    out, _ = described
    text, manifest = (out / "README.md").read_text(), ShardSet(out).manifest
    front = yaml.safe_load(text.split("---")[1])
    assert front["pretty_name"] == "shapes" and front["size_categories"] == ["n<1K"]
    for name, count in zip(manifest["classes"], manifest["clips_per_class"]):
        assert f"| {name} | {count} |" in text
    many = manifest | {"classes": [f"a|b {i}" for i in range(150)], "clips_per_class": [2] * 150}
    assert "| 50 more | 100 |" in card("many", many) and r"| a\|b 0 | 2 |" in card("many", many)
    assert json.loads(json.dumps(croissant("many", many, {})))["name"] == "many"


def test_a_card_that_somebody_wrote_is_kept(described, capsys):
    out, arguments = described
    before = (out / "README.md").read_text()
    (out / "README.md").write_text("ours\n")
    assert main([*arguments, "--card"]) == 0 and "is kept" in capsys.readouterr().out
    assert (out / "README.md").read_text() == "ours\n"
    (out / "README.md").unlink()
    assert main([*arguments, "--card"]) == 0 and (out / "README.md").read_text() == before


@pytest.mark.parametrize("name", ["croissant.json", "README.md"])
def test_a_writer_that_was_killed_leaves_nothing_to_the_next(described, tmp_path, monkeypatch, name):
    out, arguments = described
    folder = shutil.copytree(out, tmp_path / "killed")
    (folder / "README.md").unlink()
    again = [*arguments[:1], "--out", str(folder), *arguments[3:], "--card"]
    with monkeypatch.context() as patched, pytest.raises(Stop):
        stop_publishing(patched, name, after=False)
        main(again)
    assert main(again) == 0 and {path.name for path in folder.iterdir()} == {path.name for path in out.iterdir()}


def test_an_append_says_that_the_metadata_are_of_what_was_there_before(described, tmp_path, capsys):
    out, arguments = described
    folder = shutil.copytree(out, tmp_path / "grown")
    video = next((out.parent / "val").rglob("*.mp4"))
    (tmp_path / "val" / video.parent.name).mkdir(parents=True)
    shutil.copy(video, tmp_path / "val" / video.parent.name / "another.mp4")
    append = [str(tmp_path / "val"), "--out", str(folder), *arguments[3:], "--append"]
    before = (folder / "croissant.json").read_bytes()
    assert main(append) == 0 and "the same command with --card renews it" in capsys.readouterr().out
    assert (folder / "croissant.json").read_bytes() == before
    assert main([*append, "--card"]) == 0 and "outdated" not in capsys.readouterr().out
    found = json.loads((folder / "croissant.json").read_text())
    assert f"{len(ShardSet(folder))} video clips" in found["description"] and found["version"] == "1.1.0"


def test_a_store_has_them_too(described, tmp_path):
    _, arguments = described
    given = [arguments[0], "--out", "memory://cards/shapes", *arguments[3:], "--staging", str(tmp_path), "--card"]
    assert main(given) == 0
    store = fsspec.filesystem("memory")
    assert b"# shapes" in store.cat("/cards/shapes/README.md")
    assert json.loads(store.cat("/cards/shapes/croissant.json"))["name"] == "shapes"


def test_mlcroissant_reads_them(described):
    mlcroissant = pytest.importorskip("mlcroissant", reason="pip install mlcroissant")
    out, _ = described
    dataset = mlcroissant.Dataset(jsonld=str(out / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    rows = list(dataset.records("clips"))
    with open(out / "clips.csv", newline="") as file:
        expected = list(csv.DictReader(file))
    assert [row["clips/key"].decode() for row in rows] == [row["key"] for row in expected]
    assert [row["clips/frames"] for row in rows] == [int(row["frames"]) for row in expected]
