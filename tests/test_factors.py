"""Labels of two factors: the head equals two heads, a run goes the whole way from EPIC's own list to the challenge's file."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from i2v import evaluate
from i2v.checkpoint import load_checkpoint
from i2v.config import ConfigError, load_config
from i2v.convert import verify_merge
from i2v.heads import FactorsHead
from i2v.losses import clip_losses
from i2v.mixing import Mix, mix
from i2v.model import create_model, merge_adapters
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.joined import JoinedShards
from i2v.pipelines.shards import ShardSet
from i2v.predictor import load
from i2v.report import make_report
from i2v.rows import class_kinds
from i2v.runs import read_run
from i2v.scores import VideoScores, ensemble, load_scores
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.describe import measure
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.output import OutputError
from i2v.shard_tools.relabel import main as relabel
from i2v.shard_tools.sources import read_sources
from i2v.shard_tools.verify import main as verify
from i2v.tally import Labels, Tally
from i2v.train import run
from i2v.weights import load_weights
from tests import references
from tests.experiments import write_experiment
from tests.lists import write
from tests.processes import call
from tests.test_train import CPU, GEOMETRY, assert_continues, result, train
from tests.videos import moving, write_video

VERBS, NOUNS = ["take", "wash", "cut"], ["plate", "knife", "pan", "cup"]
HEADER = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,verb,verb_class,noun,noun_class\n"


# ---- the authors' numbers


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_one_layer_is_the_authors_two_heads(dtype, tolerance):
    golden, config = references.tensors("vivit-1.safetensors")
    verbs, nouns = config["num_classes"]
    model = create_model(
        "clip", GEOMETRY | {"embed_dim": 32}, 2, head={"factors": {"verb": verbs, "noun": nouns}, "dropout": 0}
    )
    head = model.head.to(dtype)
    names = ("weight/head.linear1.{}", "weight/head.linear2.{}")
    for part in ("weight", "bias"):
        getattr(head.fc, part).data = torch.cat([golden[name.format(part)] for name in names]).to(dtype)
    assert model.config["num_classes"] == verbs * nouns
    logits = head(golden["features"].to(dtype))
    expected = [golden[f"logits/{name}"].to(dtype) for name in ("verb_class", "noun_class")]
    joint = expected[0].log_softmax(-1)[:, :, None] + expected[1].log_softmax(-1)[:, None, :]
    torch.testing.assert_close(logits, joint.flatten(1), atol=tolerance, rtol=0)
    labels = golden["labels/verb_class"] * nouns + golden["labels/noun_class"]
    loss = F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, golden["loss"].to(dtype), atol=tolerance, rtol=0)
    loss.backward()
    for part in ("weight", "bias"):
        wanted = torch.cat([golden[f"grad/head.linear{i}.{part}"] for i in (1, 2)]).to(dtype)
        torch.testing.assert_close(getattr(head.fc, part).grad, wanted, atol=tolerance, rtol=0)
    shown = head(golden["test/features"].to(dtype)).softmax(-1).view(verbs, nouns)
    for axis, name in ((1, "verb_class"), (0, "noun_class")):
        torch.testing.assert_close(shown.sum(axis), golden[f"test/probs/{name}"][0].to(dtype), atol=tolerance, rtol=0)


def test_mixed_and_smoothed_targets_are_those_of_two_heads():
    golden, config = references.tensors("epic_mix-1.safetensors")
    flipped = torch.tensor([3, 2, 1, 0])  # the authors' partners
    for batch, draws in enumerate(config["draws"]):
        verbs, nouns = (golden[f"{batch}/labels/{name}"] for name in ("verb_class", "noun_class"))
        wanted = [golden[f"{batch}/targets/{name}"] for name in ("verb_class", "noun_class")]
        sizes = [each.shape[1] for each in wanted]
        share = next(draw[-1] for draw in draws if draw[0] == "beta")
        where = [(draw[-1] + 0.5) / draw[2] for draw in draws if draw[0] == "randint"]
        drawn = Mix(share, tuple(where) if where else None)
        clips, targets = mix(golden[f"{batch}/input"], verbs * sizes[1] + nouns, sizes[0] * sizes[1], drawn, flipped)
        torch.testing.assert_close(clips, golden[f"{batch}/output"], atol=1e-5, rtol=0)
        heads = [torch.randn(4, size, requires_grad=True) for size in sizes]
        logs = [each.log_softmax(-1) for each in heads]
        joint = (logs[0][:, :, None] + logs[1][:, None, :]).flatten(1)
        ours = clip_losses(joint, targets, False, smoothing=0.2).mean()
        theirs = sum((-target * log).sum(-1).mean() for target, log in zip(wanted, logs))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        for one, other in zip(torch.autograd.grad(ours, heads, retain_graph=True), torch.autograd.grad(theirs, heads)):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_views_are_averaged_and_counted_as_the_authors_do():
    golden, config = references.tensors("epic_score-1.safetensors")
    verb, noun = golden["probs/verb_class"].double(), golden["probs/noun_class"].double()  # (12, 4, V), (12, 4, N)
    joint = (verb[..., None] * noun[:, :, None]).flatten(2).mean(1)  # what the softmax of our logits, averaged over views, is
    torch.testing.assert_close(4 * joint, golden["scores/action_sum"].double(), atol=1e-6, rtol=0)
    labels = golden["labels/verb_class"] * noun.shape[-1] + golden["labels/noun_class"]
    tally = Tally(Labels(joint.shape[1], {"verb": verb.shape[-1], "noun": noun.shape[-1]}), torch.device("cpu"))
    tally.add(joint, labels, torch.ones(12, dtype=torch.bool))
    found, said = tally.scores(12).summary(), config["metrics"]
    for ours, theirs in (("", "action_class_ind_pred"), ("verb_", "verb_class"), ("noun_", "noun_class")):
        for k in (1, 5):
            assert f"{100 * found[f'{ours}top{k}']:.2f}" == said[f"top_{theirs}_acc_{k}"]
    factors = {"verb": [f"v{i}" for i in range(verb.shape[-1])], "noun": [f"n{i}" for i in range(noun.shape[-1])]}
    names = [f"{v} / {n}" for v in factors["verb"] for n in factors["noun"]]
    videos = VideoScores(torch.arange(12), labels, joint.float(), [""] * 12, [""] * 12, names, 12, factors=factors)
    for name in factors:
        shown = 4 * videos.of_factor(name).probabilities
        torch.testing.assert_close(shown, golden[f"scores/{name}_class"], atol=1e-5, rtol=0)
    assert videos.scores().summary() == pytest.approx(found, abs=1e-6) and tally.confusion is None


# ---- the head


def test_three_factors_count_the_last_one_fastest():
    head = FactorsHead(8, 24, {"a": 2, "b": 3, "c": 4}, dropout=0)
    features = torch.randn(5, 8)
    a, b, c = (part.softmax(-1) for part in head.fc(features).split([2, 3, 4], -1))
    joint = torch.einsum("na,nb,nc->nabc", a, b, c).flatten(1)
    torch.testing.assert_close(head(features).softmax(-1), joint)
    low = head.to(torch.bfloat16)(features.to(torch.bfloat16))
    assert low.dtype == torch.float32 and torch.allclose(low.exp().sum(-1), torch.ones(5), atol=1e-5)


@pytest.mark.parametrize(
    "head, classes, message",
    [
        ({"type": "factors"}, None, "head factors must be names with numbers of classes, .* got None"),
        ({"type": "factors", "factors": {"verb": 97}}, None, "must be names with numbers of classes"),
        ({"type": "factors", "factors": {"verb": 97, "noun": 0}}, None, "must be names with numbers of classes"),
        ({"type": "factors", "factors": [97, 300]}, None, "must be names with numbers of classes"),
        ({"type": "factors", "factors": {"verb": 3, "noun": 4}}, 7, r"num_classes is 7, .* make 12 \(3 of verb x 4 of noun\)"),
        ({"type": "factors", "factors": {"verb": 3, "noun": 4}, "dropout": 2}, 12, "head dropout must be"),
    ],
)
def test_what_is_no_head_of_factors_is_refused(head, classes, message):
    with pytest.raises(ValueError, match=message):
        create_model("clip", GEOMETRY, 2, classes, head)


def test_a_merged_model_has_the_same_factors():
    model = create_model("zeroi2v", GEOMETRY, 2, head={"factors": {"verb": 3, "noun": 4}}).eval()
    for parameter in model.trainable_parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    merged = merge_adapters(model).eval()
    assert merged.config["head"]["factors"] == {"verb": 3, "noun": 4}
    verify_merge(model, merged)


# ---- lists


def epic(folder, rows, name="EPIC_100_train.csv", classes=True):
    lines = [f"P01_01_{i},P01,P01_01,00:00:0{start},00:00:0{stop},x,v,{verb},n,{noun}" for i, (start, stop, verb, noun) in rows]
    if classes:
        for factor, names in (("verb", VERBS), ("noun", NOUNS)):
            table = [f"{i},{each},\"['{each}', '{each}s']\",kind" for i, each in enumerate(names)]
            write(folder / f"EPIC_100_{factor}_classes.csv", "id,key,instances,category\n" + "\n".join(table))
    return write(folder / name, HEADER + "\n".join(lines) + "\n")


ROWS = list(enumerate([("0.00", "0.50", 0, 0), ("0.50", "1.00", 2, 3), ("0.25", "0.75", 1, 1), ("0.25", "0.75", 1, 2)]))


def test_epic_kitchens_own_lists(tmp_path):
    videos = tmp_path / "videos"
    write(videos / "P01" / "P01_01.MP4", "x"), write(videos / "P01_01_1.MP4", "x")  # the second was cut before
    found, classes, _ = read_sources(epic(tmp_path, ROWS), videos)
    assert classes == {"verb": VERBS, "noun": NOUNS}
    assert [video.label for video in found] == [0, 2 * 4 + 3, 4 + 1, 4 + 2]
    assert [video.class_name for video in found] == ["take / plate", "cut / cup", "wash / knife", "wash / pan"]
    assert [video.source for video in found] == ["P01_01_0", "P01_01_1", "P01_01_2", "P01_01_3"]
    assert [(video.start, video.end) for video in found] == [(0, 0.5), (0, None), (0.25, 0.75), (0.25, 0.75)]
    assert [video.path.removeprefix(f"{videos}/") for video in found] == ["P01/P01_01.MP4", "P01_01_1.MP4"] + 2 * [
        "P01/P01_01.MP4"
    ]
    test = write(
        tmp_path / "EPIC_100_test_timestamps.csv",
        re.sub(r",[^,]*,[^,]*,[^,]*,[^,]*,[^,]*\n", "\n", epic(tmp_path, ROWS).read_text()),
    )
    found, classes, _ = read_sources(test, videos)
    assert [video.label for video in found] == [-1] * 4 and found[0].source == "P01_01_0" and classes == []
    manifest = write(tmp_path / "manifest.json", {"classes": ["x"], "factors": {"verb": VERBS, "noun": NOUNS}, "shards": []})
    assert read_sources(test, videos, manifest)[1] == {"verb": VERBS, "noun": NOUNS}


def test_without_files_of_names_classes_are_numbers_of_which_there_are_97_and_300(tmp_path):
    write(tmp_path / "P01_01.MP4", "x")
    found, classes, notes = read_sources(epic(tmp_path, ROWS, classes=False))
    assert {name: len(each) for name, each in classes.items()} == {"verb": 97, "noun": 300}
    assert [video.label for video in found] == [0, 2 * 300 + 3, 301, 302] and found[1].class_name == "2 / 3"
    assert any("EPIC_100_noun_classes.csv is not beside" in note for note in notes)


def test_any_columns_can_be_factors(tmp_path):
    source = write(tmp_path / "l.csv", "path,direction,speed\na.mp4,left,slow\nb.mp4,right,fast\nc.mp4,left,fast\n")
    found, classes, _ = read_sources(source, factors=["direction", "speed"])
    assert classes == {"direction": ["left", "right"], "speed": ["fast", "slow"]}
    assert [video.class_name for video in found] == ["left / slow", "right / fast", "left / fast"]
    assert [video.label for video in found] == [1, 2, 0]
    names = write(tmp_path / "c.json", {"factors": {"direction": ["right", "left"], "speed": ["slow", "fast"]}})
    assert [video.label for video in read_sources(source, classes=names, factors=["direction", "speed"])[0]] == [2, 1, 3]
    numbers = write(tmp_path / "n.csv", "path,direction,speed\na.mp4,1,0\n")
    assert read_sources(numbers, classes=names, factors=["direction", "speed"])[0][0].class_name == "left / slow"


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("path,a\nx.mp4,1\n", {"factors": ["a", "b"]}, "has no column b, which is to be a factor: its columns are path, a"),
        ("path,a\nx.mp4,1\n", {"factors": ["a"]}, "a is the only factor"),
        ("path,a,b\nx.mp4,1,\n", {"factors": ["a", "b"]}, "row 2 of .* has no b: label all videos"),
        ("x.mp4,1\ny.mp4,1\n", {"factors": ["a", "b"]}, "has no header: name its columns in a first row: path,a,b"),
        ("path,a,b\nx.mp4,u,v\n", {"factors": ["a", "b"], "multi_label": True}, "neither --multi-label nor --map"),
        ("path,a,b\nx.mp4,u / v,w\ny.mp4,u,v / w\n", {"factors": ["a", "b"]}, "two combinations have one name|hold ' / '"),
        ("path,a,b\nx.mp4,u,v|w\n", {"factors": ["a", "b"]}, "'v|w', which looks like several"),
    ],
)
def test_factors_that_cannot_be_meant_are_refused(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message.replace("|w'", r"\|w'")):
        read_sources(write(tmp_path / "l.csv", text), **options)


def test_a_class_list_must_be_of_the_same_factors(tmp_path):
    source, classes = write(tmp_path / "l.csv", "path,a,b\nx.mp4,u,v\n"), write(tmp_path / "c.txt", "u\nv\n")
    with pytest.raises(ValueError, match="c.txt names classes, but .* is labelled with a and b"):
        read_sources(source, classes=classes, factors=["a", "b"])
    other = write(tmp_path / "c.json", {"factors": {"b": ["v"], "a": ["u"]}})
    with pytest.raises(ValueError, match="has the factors b, a, and .* a, b"):
        read_sources(source, classes=other, factors=["a", "b"])
    with pytest.raises(ValueError, match="class list .* cannot be used: its factor a is no list of names"):
        read_sources(source, classes=write(tmp_path / "d.json", {"factors": {"a": "u", "b": ["v"]}}), factors=["a", "b"])


# ---- the whole way


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """A long video, EPIC's lists of parts of it, and shards of them: train/ (12), test/ (4, without labels)."""
    root = tmp_path_factory.mktemp("kitchen")
    write_video(root / "videos" / "P01_01.MP4", moving(80, 32, 48), fps=10) if (root / "videos").mkdir() is None else None
    rows = [(f"{i % 7}.00", f"{i % 7 + 1}.00", i % 3, i % 4) for i in range(12)]
    source = epic(root, list(enumerate(rows)))
    settings = EncodeSettings(codec="mjpeg", gop=1, short_side=32)
    for name, options in (("train", {}), ("test", {"classes": root / "train" / "manifest.json"})):
        if name == "test":
            text = "\n".join(",".join(line.split(",")[:5]) for line in source.read_text().splitlines()[:5]) + "\n"
            source = write(root / "EPIC_100_test_timestamps.csv", text)
        videos, classes, _ = read_sources(source, root / "videos", **options)
        make_shards(videos, classes, root / name, settings, shard_clips=5)
    return root


def test_the_manifest_has_the_factors_and_everything_reads_them(kitchen, tmp_path, capsys):
    shards, test = ShardSet(kitchen / "train"), ShardSet(kitchen / "test")
    assert shards.manifest["factors"] == shards.factors == {"verb": VERBS, "noun": NOUNS} == test.factors
    assert shards.classes[1 * 4 + 2] == "wash / pan" and len(shards.classes) == 12
    assert sorted(shards.clips["label"].tolist()) == list(range(12)) and set(test.clips["label"]) == {-1}
    assert {shards.metadata(i)["source"] for i in range(12)} == {f"P01_01_{i}" for i in range(12)}
    assert verify([str(kitchen / "train")]) == 0 and measure(shards, [])["clips_per_class"]["cut / cup"] == 1
    assert JoinedShards([shards, shards]).factors == shards.factors
    damaged = dict(shards.manifest) | {"factors": {"verb": VERBS, "noun": NOUNS[::-1]}}
    damaged.pop("crc32")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (kitchen / "train").iterdir():
        (copy / file.name).symlink_to(file) if file.name != "manifest.json" else write(copy / file.name, damaged)
    with pytest.raises(ShardError, match="damaged .factors is missing or wrong."):
        ShardSet(copy)
    with pytest.raises(OutputError, match="does not have the factors of this list"):
        videos = read_sources(kitchen / "EPIC_100_train.csv", kitchen / "videos")[0]
        make_shards(videos, {"verb": VERBS, "noun": [*NOUNS[:3], "spoon"]}, kitchen / "train", made(kitchen), append=True)
    assert (
        relabel([str(kitchen / "train"), "--out", str(tmp_path / "new"), "--map", str(write(tmp_path / "m.csv", "a,b\n"))]) == 2
    )
    assert "labelled with factors, whose names a map cannot change" in capsys.readouterr().err
    names = write(tmp_path / "n.json", {"factors": {"verb": VERBS, "noun": [*NOUNS, "spoon"]}})
    assert relabel([str(kitchen / "train"), "--out", str(tmp_path / "new"), "--classes", str(names)]) == 0
    assert ShardSet(tmp_path / "new").factors["noun"][-1] == "spoon"


def made(kitchen):
    return EncodeSettings(codec="mjpeg", gop=1, short_side=32)


@pytest.fixture(scope="module")
def config(kitchen):
    model = {"method": "st_adapter", "backbone": GEOMETRY, "weights": "random", "options": {"adapter_width": 8}}
    model["head"] = {"type": "factors", "factors": {"verb": 3, "noun": 4}, "dropout": 0.1}
    recipe = {"epochs": 2, "batch_size": 6, "lr": 1e-3, "mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.2}
    recipe |= {"class_weights": 0.5, "eval_every": 1, "save_every": 2}
    data = {"train": str(kitchen / "train"), "val": str(kitchen / "train"), "device": "cpu", "threads": 1}
    return write_experiment(kitchen, kitchen, model, recipe, data=data)


@pytest.fixture(scope="module")
def trained(config, kitchen):
    torch.set_num_threads(1)
    run(load_config(config, [f"out={kitchen / 'run'}"]), CPU)
    return kitchen / "run"


def test_a_run_continues_exactly_and_logs_every_factor(config, trained, tmp_path):
    train(config, tmp_path, "train.max_steps=2")
    assert_continues(config, tmp_path, result(trained), saved=2)
    last = result(trained)[1][-1]
    assert {"top1", "verb_top1", "verb_top5", "noun_top1", "noun_class_mean"} <= last.keys() and last["counted"] == 12
    meta = load_checkpoint(trained)[1]
    assert meta.factors == {"verb": VERBS, "noun": NOUNS} and meta.model["head"]["factors"] == {"verb": 3, "noun": 4}
    assert meta.config["train"]["best"] == "top1"
    assert class_kinds(SimpleNamespace(meta=meta)) == {"verb": list("012"), "noun": list("0123")}


def test_evaluation_prediction_and_report_by_factor(trained, kitchen, tmp_path, monkeypatch, capsys):
    call(monkeypatch, evaluate, "--checkpoint", trained, "--scores", tmp_path / "a.npz", "--json", tmp_path / "a.json")
    out = capsys.readouterr().out
    assert "verb top-1" in out and "noun top-5" in out and re.search(r"^verb +videos", out, re.M)
    found, videos = json.loads((tmp_path / "a.json").read_text()), load_scores(tmp_path / "a.npz")
    assert np.array(found["factors"]["verb"]["confusion"]).shape == (3, 3) and "confusion" not in found
    assert sum(map(sum, found["factors"]["noun"]["confusion"])) == 12 and len(found["per_class"]) == 12
    # of each factor as of a data set that has only this one
    for name in ("verb", "noun"):
        alone = videos.of_factor(name).scores()
        assert found[f"{name}_top1"] == alone.top1 and found["factors"][name]["confusion"] == alone.confusion.tolist()
    call(monkeypatch, evaluate, "--from-scores", tmp_path / "a.npz")
    assert capsys.readouterr().out == out
    assert ensemble([videos, videos], "logits").factors == videos.factors
    page = make_report([read_run(tmp_path / "a.npz"), read_run(trained)])
    assert "a: verb" in page and "noun top-1" in page and "id=per-class-1" in page
    named = load(trained, device="cpu").predict(kitchen / "videos" / "P01_01.MP4", top=3)
    assert all(re.fullmatch(r"(take|wash|cut) / (plate|knife|pan|cup)", each["class"]) for each in named)


def test_the_challenge_gets_every_narration_of_the_list_without_labels(trained, kitchen, tmp_path, monkeypatch, capsys):
    test = ("--checkpoint", trained, "--data", kitchen / "test")
    with pytest.raises(SystemExit, match="has videos without a label: only --scores and --submission"):
        call(monkeypatch, evaluate, *test)
    call(monkeypatch, evaluate, *test, "--scores", tmp_path / "t.npz", "--submission", tmp_path / "t.json")
    content, videos = json.loads((tmp_path / "t.json").read_text()), load_scores(tmp_path / "t.npz")
    assert {key: value for key, value in content.items() if key != "results"} == {
        "version": "0.2",
        "challenge": "action_recognition",
        "sls_pt": 2,
        "sls_tl": 3,
        "sls_td": 3,
    }
    assert content["results"].keys() == {f"P01_01_{i}" for i in range(4)}
    for path, joint in zip(videos.paths, videos.probabilities.view(4, 3, 4)):
        one = content["results"][path]
        assert one["verb"].keys() == {"0", "1", "2"} and one["noun"].keys() == {"0", "1", "2", "3"} and len(one["action"]) == 12
        assert sum(one["verb"].values()) == pytest.approx(1, abs=1e-5)
        assert one["action"] == {f"{v},{n}": joint[v, n].item() for v in range(3) for n in range(4)}
    call(monkeypatch, evaluate, "--from-scores", tmp_path / "t.npz", tmp_path / "t.npz", "--submission", tmp_path / "2.json")
    assert json.loads((tmp_path / "2.json").read_text()) == content
    plain = replace(videos, factors={})
    plain.save(tmp_path / "plain.npz")
    with pytest.raises(SystemExit, match="scores of verb and noun, in this order, but these are of no factors"):
        call(monkeypatch, evaluate, "--from-scores", tmp_path / "plain.npz", "--submission", tmp_path / "3.json")


def test_of_29100_combinations_no_matrix_is_made():
    tally = Tally(Labels(29100, {"verb": 97, "noun": 300}), torch.device("cpu"))
    assert max(total.numel() for total in tally.totals()) == 300 * 300
    tally.add(torch.full((2, 29100), 1 / 29100), torch.tensor([0, 29099]), torch.ones(2, dtype=torch.bool))
    assert tally.scores(2).counted == 2


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.head.factors={verb: 3, noun: 5}", "model.head.factors is .* write .*'verb': 3, 'noun': 4.*, or leave it out"),
        ("train.best=map", "train.best is 'map', but the videos have one class each"),
    ],
)
def test_a_head_for_other_factors_is_refused(config, tmp_path, override, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        run(load_config(config, [f"out={tmp_path}", override]), CPU)


@pytest.mark.parametrize("head", ["{type: factors, factors: {noun: 4, verb: 3}}", "{type: factors}"])
def test_the_data_says_in_which_order_factors_are(config, tmp_path, head):
    run(load_config(config, [f"out={tmp_path}", f"model.head={head}", "train.max_steps=1", "data.val=null"]), CPU)
    assert list(load_checkpoint(tmp_path)[1].model["head"]["factors"].items()) == [("verb", 3), ("noun", 4)]


def test_balance_takes_combinations_for_classes(kitchen):
    loader = build_loader(kitchen / "train", "train", batch_size=4, device="cpu", num_frames=2, size=32, balance=1.0)
    assert len(set(zip(range(8), (int(batch.labels[0]) for batch in loader)))) == 8


METHODS = {"aim": {}, "clip": {}, "dist": {}, "st_adapter": {"adapter_width": 8}, "tada": {"route_head_dim": 8}, "zeroi2v": {}}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_a_head_of_factors(method):
    head = {"type": "factors", "factors": {"verb": 3, "noun": 4}}
    model = create_model(method, GEOMETRY, 4, head=head, **METHODS[method]).eval()
    clips = torch.randn(2, 3, 4, 32, 32)
    logits = model(clips)
    parts = model.head.fc(model.forward_features(clips)).split([3, 4], -1)
    assert logits.shape == (2, 12) and {"head.fc.weight", "head.fc.bias"} <= model.trainable_parameters().keys()
    torch.testing.assert_close(logits.exp().view(2, 3, 4).sum(2), parts[0].softmax(-1))
    again = create_model(**model.config).eval()
    load_weights(again, model.state_dict(), "i2v")
    assert torch.equal(again(clips), logits)
