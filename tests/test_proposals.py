"""From the features of a video to its detections, as the authors' code comes to them, and their mean average precision."""

import json

import numpy as np
import pytest
import torch

from i2v.average_precision import Truth, mean_average_precision
from i2v.bmn import cells
from i2v.proposals import ClassScores, Detections, best_labels, detect, join_classes, join_windows, likely, propose, soft_nms
from i2v.windows import Cut
from tests.references import find, tensors
from tests.test_bmn import network

KINDS = ("verb", "noun")


@pytest.fixture(scope="module")
def golden():
    found, config = tensors("bmn-3.safetensors")
    cut = Cut(config["TEMPORAL_SCALE"], config["DURATION_SCALE"], 2, config["CLIP_INTERVAL"] / config["TARGET_FPS"])
    return found, config, cut, network(config | {"NUM_CLASSES": None}, found).double()


def windows_of(golden, video):
    """(first row, the number that the golden file has) of each window of a video."""
    _, config, cut, _ = golden
    name, seconds, _ = config["videos"][video]
    numbers = [n for n, (whose, _) in enumerate(config["windows"]) if whose == name]
    firsts = cut.firsts(seconds)
    begins = [config["windows"][n][1][0] for n in numbers]
    assert [first * cut.row_seconds for first in firsts] == pytest.approx(begins, abs=1e-5)
    return list(zip(firsts, numbers))


def close(made, wanted, atol=1e-6):
    made = made if isinstance(made, torch.Tensor) else torch.from_numpy(made)
    return made.shape == wanted.shape and torch.allclose(made.double(), wanted.double(), rtol=0, atol=atol)


@pytest.mark.parametrize("video", [0, 1])
def test_every_stage_is_the_authors(golden, video):
    found, config, cut, model = golden
    assert config["BOUNDARY_RATIO"] == 0.5 and cut.seconds == pytest.approx(5.3333332, abs=1e-5)
    rows = found[f"video{video}/features"].double().numpy()
    scores = [found[f"video{video}/{kind}_scores"].double().numpy() for kind in KINDS]
    mask, looks, outputs, places, logits = cells(cut.steps, cut.durations)[2], ClassScores(cut.steps, cut.durations), [], [], []
    for first, number in windows_of(golden, video):
        wanted = {name.rpartition("/")[2]: value for name, value in found.items() if name.startswith(f"window{number}/")}
        x = cut.window(rows[first : first + cut.rows])
        assert close(x, wanted["video"], 1e-5)
        with torch.no_grad():
            output = {name: value[0].numpy() for name, value in model(x[None]).items()}
        assert close(output["start"], wanted["start"]) and close(output["end"], wanted["end"])
        assert close(output["confidence_map"] * mask, wanted["confidence_map"])
        outputs.append(output)
        places.append(cut.place(first, len(rows)))
        assert list(places[-1]) == wanted["feat_mask_in_global"][::2].nonzero().flatten().tolist()
        cut_scores = [cut.window(each[first : first + cut.rows]) for each in scores]
        for kind, each in zip(KINDS, cut_scores):
            assert close(each, wanted[f"{kind}_cls_data"], 1e-5)
        logits.append([each.T.reshape(cut.steps, 3, -1) for each in cut_scores])

    maps = join_windows(outputs, places, mask, cut.grid(len(rows)))
    for name, value in maps.items():
        assert close(value, found[f"video{video}/fused_{name}"]), name

    proposals = propose(maps)
    wanted = found[f"video{video}/proposals"]
    assert close(proposals.segments, wanted[:, :2])
    for column, name in enumerate(("start", "end", "by_class", "by_overlap"), 2):
        assert close(getattr(proposals, name), wanted[:, column]), name

    def probabilities(window, cells):
        return [looks.of(each, cells) for each in logits[window]]

    classes = join_classes(probabilities, places, proposals.cells, mask, (config["verbs"], config["nouns"]))
    d, s = proposals.cells.T
    for kind, each in zip(KINDS, classes):
        name = f"video{video}/fused_{kind}_map"
        if name in found:
            assert close(each, found[name][:, d, s].T)
    labels, products = best_labels(classes, (10, 30), 5)
    assert torch.equal(torch.from_numpy(labels), found[f"video{video}/proposal_verb_noun_top5"])
    assert close(products, found[f"video{video}/proposal_score_top5"][..., 2])

    seconds = config["videos"][video][1]
    taken, values = soft_nms(proposals.segments, proposals.scores(), int(seconds) + 1)
    made = detect(proposals, taken, values, labels[taken], products[taken], seconds)
    wanted = found[f"video{video}/detections"]
    assert close(np.column_stack([made.segments, made.scores, made.labels]), wanted, 1e-5)


def test_class_maps_of_a_window_are_the_authors(golden):
    found, _, cut, _ = golden
    every = np.mgrid[: cut.durations, : cut.steps].reshape(2, -1).T
    looks, mask = ClassScores(cut.steps, cut.durations), cells(cut.steps, cut.durations)[2]
    for kind in KINDS:
        scores = found[f"window0/{kind}_cls_data"].double().T.reshape(cut.steps, 3, -1)
        made = looks.of(scores, every).T.reshape(-1, cut.durations, cut.steps) * mask
        assert close(made, found[f"window0/{kind}_map"])
    dense = looks.matrix.to_dense().view(cut.durations, cut.steps, 6, cut.steps).permute(3, 2, 0, 1).reshape(cut.steps, -1)
    assert close(dense, found["interp_mask_cls"])


def evaluation():
    given = json.loads(find("tal_eval-1.json").read_text())
    truth = {
        video: Truth(
            np.array([a["segment"] for a in its["annotations"]]),
            np.array([list(map(int, a["label"].split(","))) for a in its["annotations"]]),
        )
        for video, its in given["ground_truth"]["database"].items()
        if its["subset"] == "validation"
    }
    found = {
        video: Detections(
            np.array([d["segment"] for d in its], dtype=np.float64),
            np.array([d["score"] for d in its]),
            np.array([[d["verb"], d["noun"]] for d in its]),
        )
        for video, its in given["detections"]["results"].items()
    }
    return truth, found, given


def test_mean_average_precision_is_the_authors():
    truth, found, given = evaluation()
    made = mean_average_precision(truth, found, KINDS, given["tiou"])
    assert made.keys() == given["result"].keys()
    for kind, precision in made.items():
        wanted = given["result"][kind]
        assert precision.mean == pytest.approx(wanted["mAP"], abs=1e-9)
        assert precision.mean.mean() == pytest.approx(wanted["average_mAP"], abs=1e-9)
        names = [tuple(map(int, name.split(","))) if kind == "action" else name for name in wanted["classes"]]
        assert list(precision.classes) == names
        for name, each in zip(names, wanted["AP"]):
            assert precision.classes[name] == pytest.approx(each, abs=1e-9)


def test_perfect_detections_have_precision_1_and_none_have_0():
    truth, _, _ = evaluation()
    perfect = {video: Detections(its.segments, np.ones(len(its.labels)), its.labels) for video, its in truth.items()}
    assert all((each.mean == 1).all() for each in mean_average_precision(truth, perfect, KINDS).values())
    assert all((each.mean == 0).all() for each in mean_average_precision(truth, {}, KINDS).values())
    with pytest.raises(ValueError, match="no segments to score against"):
        mean_average_precision({}, perfect, KINDS)


def test_soft_nms_lowers_what_overlaps_and_takes_the_only_one():
    segments = np.array([[0.0, 0.5], [0.0, 0.5], [0.6, 0.9], [0.95, 1.0]])
    taken, scores = soft_nms(segments, np.array([0.9, 0.8, 0.5, 0.1]), 9)
    assert taken.tolist() == [0, 2, 3] and scores == pytest.approx([0.9, 0.5, 0.1])  # the twin, at 0.8 * exp(-2.5), is left
    assert soft_nms(segments[:1], np.array([0.9]), 9)[0].tolist() == [0]
    assert soft_nms(segments[:0], np.array([]), 9)[0].tolist() == []
    assert soft_nms(segments, np.array([0.9, 0.8, 0.5, 0.1]), 2)[0].tolist() == [0, 2]


def test_scores_of_several_classes_are_each_for_itself():
    """Of scores that do not change, every segment has the sigmoid, as another model's has the softmax."""
    scores, some = torch.tensor([[-3.0, -2.0, 1.0]]).expand(8, 1, 3), np.array([[0, 0], [3, 2]])
    for several, expected in ((True, scores[0].sigmoid()), (False, scores[0].softmax(-1))):
        found = torch.from_numpy(ClassScores(8, 8, several).of(scores, some))
        torch.testing.assert_close(found, expected.expand(2, 3))


def test_peaks_and_high_scores_are_likely():
    assert likely(np.array([0.9, 0.1, 0.2, 0.1, 0.5, 0.6, 0.6, 0.1])).tolist() == [0, 0, 1, 0, 1, 1, 1, 0]
    assert likely(np.array([0.9])).tolist() == [0] and likely(np.array([0.9, 0.8])).tolist() == [0, 0]


def test_a_single_kind_has_its_likeliest_classes():
    labels, products = best_labels([np.array([[0.1, 0.7, 0.2]])], (10,), 2)
    assert labels.tolist() == [[[1], [2]]] and products == pytest.approx(np.array([[0.7, 0.2]]))
