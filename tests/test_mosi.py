"""MoSI: the authors' clips bit for bit, the same from shards on any number of devices, and a run that goes on from it."""

import itertools
import pkgutil
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import i2v
from i2v import evaluate as evaluation
from i2v import features, methods, predict
from i2v.checkpoint import load_checkpoint
from i2v.config import load_config
from i2v.curves import read_log
from i2v.distributed import World
from i2v.pipelines import build_loader, preview
from i2v.pipelines.augment import AugmentOptions, draw_color
from i2v.pipelines.boxes import square_box
from i2v.pipelines.decode import decode_clip
from i2v.pipelines.mosi import MOTIONS, SPEEDS, Draws, draw_motion
from i2v.pipelines.moving import moving_crops
from i2v.pipelines.options import ClipOptions
from i2v.pipelines.resize import crop_and_resize, looked_at
from i2v.pipelines.shards import ShardSet
from i2v.session import open_session
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.sources import Video
from i2v.train import run
from tests.experiments import write_experiment
from tests.references import tensors
from tests.test_loader import damage
from tests.test_precision import METHODS
from tests.test_train import assert_same, result
from tests.trunks import trunk_of

GEOMETRY = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "heads": 4, "embed_dim": 32}
OPTIONS = {"pretext": "mosi", "num_frames": 4, "size": 32, "mosi_size": 48, "threads": 1, "device": "cpu"}
GREY = {"mean": (0.45,) * 3, "std": (0.225,) * 3}
CPU = World(0, 1, torch.device("cpu"))


class Replayed:
    """The authors' draws, in their order and within their bounds."""

    def __init__(self, drawn):
        self.drawn = [each for each in drawn if each[:3] != ["uniform", 1, 1]]  # of sizes that do not vary

    def randint(self, low, high):
        kind, *bounds, value = self.drawn.pop(0)
        assert (kind, bounds) == ("randint", [low, high])
        return value

    def uniform(self, low, high):
        if low == high == 1:
            return 1.0
        kind, *bounds, value = self.drawn.pop(0)
        assert (kind, bounds) in (("uniform", [low, high]), ("flip.random", []))
        return value


@pytest.mark.parametrize("name", ["mosi-1", "mosi-3"])
def test_clips_are_the_authors_bit_for_bit(name):
    golden, config = tensors(f"{name}.safetensors")
    frames = golden["video"] if "video" in golden else golden["image"][None]
    options = ClipOptions(
        num_frames=config["num_frames"],
        size=config["crop_size"],
        mosi_size=config["STANDARD_SIZE"],
        mosi_distance=config["DISTANCE_JITTER"],
        mosi_mask=config["MASK_SIZE_RATIO"],
    )
    draws, stills, motions, side = Replayed(config["random_draws_in_order"]), [], [], options.still_size
    for label in golden["labels"].tolist():
        frame = frames[draws.randint(0, len(frames) - 1)].numpy()
        box = square_box(frame.shape[1], frame.shape[0], side, side, lambda slack, axis: draws.randint(0, slack))
        stills.append(torch.from_numpy(crop_and_resize(frame[None], box[None].astype(np.float32), side, "floor", False)[0, 0]))
        motions.append(draw_motion(label, options, config["split"] == "train", draws))
    assert not draws.drawn
    assert torch.equal(torch.stack(stills), golden["standardized_frames"])
    crops = np.stack([np.stack([motion.left, motion.top], axis=-1) for motion in motions])
    assert np.array_equal(crops, golden["crop_xy"]) and np.array_equal(SPEEDS, golden["speed_xy"])
    clips = moving_crops(torch.stack(stills), motions, options.size, config["MEAN"], config["STD"])
    assert torch.equal(clips, golden["clip"])


def test_a_still_is_cut_out_of_the_whole_picture_where_its_box_is_of_whole_pixels_too():
    video = np.random.default_rng(0).integers(0, 256, (1, 20, 40, 3), dtype=np.uint8)
    box = square_box(40, 20, 40, 40, lambda slack, axis: slack // 4)
    assert box.tolist() == [0, 5, 20, 25] and looked_at(box[None], "floor") == (slice(None), slice(None))
    still = crop_and_resize(video, box[None].astype(np.float32), 40, "floor", False)[0, 0]
    resized = torch.nn.functional.interpolate(torch.from_numpy(video).permute(0, 3, 1, 2).float(), (40, 80), mode="bilinear")
    assert np.array_equal(still, resized.byte()[0, :, :, 10:50].permute(1, 2, 0).numpy())


@given(
    label=st.integers(0, 8),
    size=st.integers(4, 24),
    more=st.integers(1, 20),
    frames=st.integers(2, 9),
    low=st.floats(0.05, 1),
    masked=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_crop_stays_in_the_still_and_goes_where_its_label_says(label, size, more, frames, low, masked, training, seed):
    mask = (0.3, 0.5) if masked else None
    options = ClipOptions(num_frames=frames, size=size, mosi_size=size + more, mosi_distance=(low, 1), mosi_mask=mask)
    rng = np.random.default_rng(seed)
    motion = draw_motion(label, options, training, Draws(rng.random(12)))
    for path, speed in zip((motion.left, motion.top), SPEEDS[label]):
        assert path.min() >= 0 and path.max() <= more
        assert (np.diff(path) * np.sign(speed) >= 0).all() and (speed or len(set(path)) == 1)
        if not training or low == 1:
            assert abs(int(path[-1]) - int(path[0]) - more * speed / 2) <= 1
    stills = torch.from_numpy(rng.integers(0, 256, (1, size + more, size + more, 3), dtype=np.uint8))
    (clip,) = moving_crops(stills, [motion], size, **GREY)
    assert clip.shape == (3, frames, size, size) and clip.permute(1, 2, 3, 0).is_contiguous()
    top, left, bottom, right = motion.moving
    around = torch.ones(size, size, dtype=torch.bool)
    around[top:bottom, left:right] = False
    assert around.any() == masked and (clip[:, :, around] == clip[:, :1, around]).all()


def test_colours_change_from_frame_to_frame_and_grey_does_with_all(shapes):
    clips = {}
    for name, options in {"as they are": {}, "grey": {"grayscale": 1.0}, "jitter": {"color_jitter": (0, 0.5, 0, 0)}}.items():
        loader = build_loader(shapes / "vp9", batch_size=9, mosi_mask=None, **OPTIONS, **GREY, **options)
        clips[name] = next(iter(loader)).clips * 0.225 + 0.45
    luma = (clips["as they are"] * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(clips["grey"], luma.expand(-1, 3, -1, -1, -1), atol=1e-5, rtol=0)
    # Each frame of the still ones moves about its own mean grey by a factor of its own
    before, after = clips["as they are"][8], clips["jitter"][8]
    spread = ((after - after.mean((2, 3), keepdim=True)) / (before - before.mean((2, 3), keepdim=True))).nanmedian(-1)[0]
    factors = spread.nanmedian(-1)[0][0]
    assert len(factors.unique()) == 4 and ((factors > 0.5) & (factors < 1.5)).all()
    color = draw_color(AugmentOptions(color_jitter=(0, 0.5, 0, 0)), (0, 0, 1, 0, 0, 1))
    assert np.allclose(color, np.hstack([1.5 * np.eye(3), np.full((3, 1), -0.5)]))


@pytest.mark.parametrize("codec", ["vp9", "mjpeg"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_what_the_loader_gives_is_what_the_plan_says_of_the_decoded_frame(shapes, codec, split):
    loader = build_loader(shapes / codec, split, batch_size=9, seed=3, **OPTIONS, **GREY)
    shards = ShardSet(shapes / codec)
    assert len(loader.plan) == 9 * len(shards)
    for batch in itertools.islice(loader, 3):
        specs = [loader.plan[int(position)] for position in batch.positions]
        assert batch.labels.tolist() == list(range(9)) and len({spec.id // 9 for spec in specs}) == 1
        assert len(batch.frames.unique()) == 1 and batch.frames.shape == (9, 4)  # one frame makes all nine
        stills = []
        for spec in specs:
            picture = decode_clip(*shards.read(spec.id // 9, spec.frames[:1]))
            stills.append(torch.from_numpy(crop_and_resize(picture, spec.boxes, 48, "floor", False)[0, 0]))
        clips = moving_crops(torch.stack(stills), [spec.motion for spec in specs], 32, *GREY.values())
        assert torch.equal(batch.clips, clips) and len(batch.clips.unique(dim=0)) == 9
        assert any(spec.flip for spec in specs) or split != "train" or batch.samples_seen > 9


def stream(shapes, count, world=1, start=0, batch_size=12, split="train", seed=0):
    """(clips, labels, ids) of `count` positions, as so many devices see them together."""
    parts = []
    for rank in range(world):
        options = {"batch_size": batch_size // world, "rank": rank, "world_size": world, "start": start, "seed": seed}
        loader = build_loader(shapes / "vp9", split, **options, **OPTIONS)
        parts.append([(b.clips, b.labels, b.ids) for b in itertools.islice(loader, count // batch_size)])
    in_order = [of_rank[step] for step in range(count // batch_size) for of_rank in parts]
    return [torch.cat(each) for each in zip(*in_order)]


def test_draws_depend_on_the_place_in_the_stream_only(shapes):
    whole = stream(shapes, 48)
    for world, batch_size in ((1, 48), (2, 24), (3, 12), (4, 4)):
        assert all(map(torch.equal, stream(shapes, 48, world, batch_size=batch_size), whole))
    assert all(torch.equal(a, b[24:]) for a, b in zip(stream(shapes, 24, 2, start=24), whole))
    assert not torch.equal(stream(shapes, 48, seed=1)[0], whole[0])
    once = [stream(shapes, 144, split="val", batch_size=batch, seed=seed) for batch, seed in ((144, 0), (12, 1))]
    assert all(map(torch.equal, *once))  # an evaluation has no seed


def test_epochs_hold_each_still_once_and_differ(shapes):
    loader = build_loader(shapes / "vp9", **OPTIONS)
    plan, n = loader.plan, len(loader.plan)
    rounds = [[plan[p] for p in range(epoch * n, (epoch + 1) * n)] for epoch in range(2)]
    for specs in rounds:
        assert sorted(spec.id for spec in specs) == list(range(n))
        assert all(len({spec.id // 9 for spec in specs[i : i + 9]}) == 1 for i in range(0, n, 9))
    by_id = [{spec.id: spec for spec in specs} for specs in rounds]
    assert len({int(by_id[0][i].frames[0]) for i in range(n)}) > 3
    assert any((by_id[0][i].motion.left != by_id[1][i].motion.left).any() for i in range(n))
    shards = [loader.shards.clips["shard"][plan[position].id] for position in range(5, 105)]
    assert plan.shards_ahead(5, 100) == list(dict.fromkeys(shards))


def test_a_mirrored_motion_keeps_its_label_unless_it_is_told_the_other(shapes):
    options = {"batch_size": 36, "flip": 1.0, **OPTIONS}
    theirs, swapped = (
        next(iter(build_loader(shapes / "vp9", flip_labels=pairs, **options))) for pairs in ((), ((0, 3), (1, 2)))
    )
    assert theirs.labels.tolist() == 4 * list(range(9)) and torch.equal(theirs.clips, swapped.clips)
    assert swapped.labels.tolist() == 4 * [3, 2, 1, 0, 4, 5, 6, 7, 8]


def test_stills_need_no_labels_and_no_kind_of_them(shapes, tmp_path):
    paths = sorted((shapes / "val").rglob("*.mp4"))[:2]
    for name, labels in {"unlabelled": {}, "several": {"label": (0, 1)}}.items():
        videos = [Video(str(path), source=path.name, **labels) for path in paths]
        make_shards(videos, ["a", "b"] if labels else [], tmp_path / name, EncodeSettings(short_side=48))
        batch = next(iter(build_loader(tmp_path / name, batch_size=9, **OPTIONS)))
        assert batch.labels.tolist() == list(range(9)) and batch.weights.sum() == 9


@pytest.mark.parametrize("decoder_only", [False, True])
def test_a_bad_video_is_one_in_quarantine_and_nine_clips_that_do_not_count(shapes, tmp_path, decoder_only):
    shutil.copytree(shapes / "vp9", tmp_path / "data")
    damage(tmp_path / "data", 5, decoder_only)
    options = {"batch_size": 24, "quarantine": tmp_path / "q.csv", **OPTIONS}
    good = list(build_loader(shapes / "vp9", "val", **options | {"quarantine": None}))
    loader = build_loader(tmp_path / "data", "val", **options)
    found = list(loader)
    weights = torch.cat([batch.weights for batch in found])
    assert weights.nonzero().flatten().tolist() == [i for i in range(9 * 24) if i // 9 != 5] and list(loader.bad) == [5]
    assert [clip for clip in range(9 * 24) if loader.quarantine.reason(clip)] == list(range(9 * 5, 9 * 6))
    for mine, theirs in zip(found, good):
        assert torch.equal(mine.clips[mine.weights > 0], theirs.clips[mine.weights > 0])


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(shapes, tmp_path):
    """9 clips of each of 24 videos, 12 steps an epoch."""
    model = {"method": "st_adapter", "backbone": GEOMETRY, "weights": "random", "num_frames": 4}
    recipe = {"epochs": 1, "batch_size": 18, "lr": 1e-3, "log_every": 1, "seed": 2}
    clips = {"pretext": "mosi", "mosi_size": 48, "color_jitter": [0.5, 0.5, 0.5, 0.25], "grayscale": 0.3}
    return write_experiment(tmp_path, shapes, model | {"options": {"adapter_width": 16}}, recipe, clips=clips)


def train(config, out, *overrides):
    assert run(load_config(config, [f"out={out}", *overrides]), CPU)
    return result(out)


def test_stopped_and_continued_equals_uninterrupted(config, tmp_path):
    common = ("data.val=null", "model.head={type: linear, dropout: 0.0}")
    whole = train(config, tmp_path / "whole", "train.max_steps=4", *common)
    train(config, tmp_path / "stopped", "train.max_steps=2", *common)
    assert_same(train(config, tmp_path / "stopped", "train.max_steps=4", *common), whole)
    _, log = train(config, tmp_path / "passes", "train.max_steps=4", "train.micro_batch=3", *common)
    losses = [[record["loss"] for record in records] for records in (log, whole[1])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    with pytest.raises(ValueError, match="clips.pretext = 'mosi', this one has None"):
        train(config, tmp_path / "whole", "clips.pretext=null", *common)


NAMES = [module.name for module in pkgutil.iter_modules(methods.__path__)]


@pytest.mark.parametrize("method", NAMES)
def test_every_method_takes_a_step_with_it(config, tmp_path, method):
    geometry, options = trunk_of(method, GEOMETRY), METHODS.get(method, {})
    train(
        config,
        tmp_path / method,
        "train.max_steps=1",
        "train.batch_size=9",
        "data.val=null",
        f"model.method={method}",
        f"model.backbone={geometry}",
        f"model.options={options}",
    )
    tensors, meta = load_checkpoint(tmp_path / method)
    assert meta.classes == MOTIONS and meta.clips["pretext"] == "mosi" and meta.progress["step"] == 1
    assert any(tensor.shape[:1] == (9,) for name, tensor in tensors.items() if name.startswith("head."))


def test_what_can_be_done_with_the_checkpoint(config, shapes, tmp_path, monkeypatch, capsys):
    out = tmp_path / "pretrained"
    train(config, out, "train.max_steps=3")
    (told,) = [record for record in read_log(out / "log.jsonl") if "top1" in record]
    assert told["counted"] == told["expected"] == 9 * 16

    def called(program, *arguments):
        monkeypatch.setattr(sys, "argv", ["program", "--checkpoint", str(out), *map(str, arguments)])
        program.main()

    scores = tmp_path / "scores.json"
    called(evaluation, "--json", scores, "--device", "cpu", "--batch-size", 7)  # the same figures, its motions by name
    found = yaml.safe_load(scores.read_text())
    assert [found[name] for name in ("top1", "cross_entropy", "counted")] == [
        told[name] for name in ("top1", "cross_entropy", "counted")
    ]
    assert list(found["per_class"]) == MOTIONS and "a still with each motion" in capsys.readouterr().out

    video = next((shapes / "val").rglob("*.mp4"))
    for refused in (lambda: called(predict, video, "--device", "cpu"), lambda: i2v.load(out, device="cpu")):
        with pytest.raises((SystemExit, ValueError), match=r"tells how a crop moves over a still .* from there \(model.init\)"):
            refused()
    # Of the videos' clips
    called(features, "--data", shapes / "vp9-val", "--out", tmp_path / "features", "--device", "cpu", "--batch-size", 16)
    views = open_session(SimpleNamespace(checkpoint=out, weights=None)).views()
    assert "pretext" not in views["options"] and build_loader(shapes / "vp9-val", **views).plan[0].frames.shape == (4,)

    tuned = tmp_path / "tuned"
    train(config, tuned, f"model.init={out}", "clips={flip: 0}", "train.max_steps=1", "train.batch_size=8")
    meta = load_checkpoint(tuned)[1]
    assert meta.classes == ShardSet(shapes / "vp9").classes and "pretext" not in meta.clips
    assert "fresh are head." in capsys.readouterr().err
    called(predict, video, "--device", "cpu", "--checkpoint", tuned)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["train.class_weights=1"], "train.class_weights is on, but clips.pretext is mosi, whose labels are nine motions"),
        (["train.mixup=0.8"], "train.mixup is on, but clips.pretext is mosi"),
        (["train.cutmix=1"], "train.cutmix is on, but clips.pretext is mosi"),
        (["model.head={type: text}"], "model.head is a text head, not a linear one, but clips.pretext is mosi"),
        (["model.head={type: factors}"], "model.head is a factors head, not a linear one, but clips.pretext is mosi"),
        (["model.head={class_names: [a, b]}"], "model.head is a text head"),
        (["train.best=map"], "train.best is 'map', but the videos have one class each"),
        (["data.order={balance: 1.0}"], "clips.pretext is mosi, which looks at no labels: leave out data.order.balance"),
        (["clips.randaugment=rand-m7"], "clips.randaugment is not for its crops"),
        (["clips.erasing=0.5"], "clips.erasing is not for its crops"),
        (["clips.erasing_fill=3"], "clips.erasing_fill is not for its crops: leave it out; color_jitter, "),
        (["clips.pretext=moco"], "pretext is 'moco': it must be mosi"),
        (["clips.mosi_size=32"], "mosi_size is 32: it must be larger than size, or test_size"),
        (["clips.mosi_distance=[0, 1]"], r"mosi_distance is \[0, 1\]: it must be two numbers from 0.01 to 1"),
        (["clips.mosi_mask=[0.5]"], r"mosi_mask is \[0.5\]: it must be two numbers from 0.01 to 1"),
        (["clips.flip_labels=[[0, 9]]"], "flip_labels has 9, but there are 9 classes"),
        (["model.num_classes=5"], "unknown key model.num_classes: classes come from the data"),
    ],
)
def test_what_does_not_go_with_it_is_one_sentence(config, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        train(config, tmp_path / "out", *overrides)
    assert "\n" not in str(caught.value)


def test_single_frames_have_no_windows(shapes):
    with pytest.raises(ValueError, match="single frames: they have no windows"):
        build_loader(shapes / "vp9", "windows", **OPTIONS)
    assert ClipOptions(size=112).still_size == 320 and ClipOptions(size=224).still_size == 640  # the authors' 320 for 112
    assert len(build_loader(shapes / "vp9", "test", clips=3, crops=3, **OPTIONS).plan) == 9 * 24  # views are of clips


def test_the_preview_draws_the_moving_crops(shapes, tmp_path):
    loader = build_loader(shapes / "vp9", batch_size=1, mosi_mask=None, flip=0, **OPTIONS)
    for (title, frames), label in zip(preview.read_rows(loader, 9, 16), range(9)):
        assert title.startswith(f"{MOTIONS[label]}   ") and frames.shape == (4, 32, 32, 3)
        assert (frames[0] == frames[-1]).all() == (label == 8)
