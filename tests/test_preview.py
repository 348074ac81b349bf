"""Preview: the picture has a row for every clip or view, in its true colours, and shows what the loader delivers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2v.pipelines import build_loader
from i2v.pipelines import preview as command
from i2v.pipelines.preview import MARGIN, TITLE, read_options, read_rows
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.sources import Video
from tests.videos import moving, solid, write_video

COLOURS = {"red": (220, 30, 40), "green": (20, 180, 60), "blue": (40, 50, 210)}
SIDE = 96


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Shards of three videos, each of one colour, which is its class."""
    root, videos = tmp_path_factory.mktemp("preview"), []
    for label, (name, colour) in enumerate(COLOURS.items()):
        write_video(root / f"{name}.mp4", solid(colour, 20, 96, 128), options={"crf": "5"})
        videos.append(Video(str(root / f"{name}.mp4"), label, name, f"{name}.mp4"))
    make_shards(videos, list(COLOURS), root / "shards", EncodeSettings(short_side=SIDE))
    return root / "shards"


def frames(picture, row, count):
    """The frames of a row of the sheet."""
    top = MARGIN + row * (TITLE + SIDE + MARGIN) + TITLE
    for column in range(count):
        left = MARGIN + column * (SIDE + MARGIN)
        yield picture[top : top + SIDE, left : left + SIDE]


def draw(data, out, *arguments):
    assert command.main([str(data), "--out", str(out), f"size={SIDE}", *map(str, arguments)]) == 0
    return np.asarray(Image.open(out).convert("RGB")).astype(int)


def test_geometry_and_colours(colours, tmp_path):
    sheet = draw(colours, tmp_path / "x.png", "--split", "val", "--clips", 3, "num_frames=5")
    assert sheet.shape[0] == MARGIN + 3 * (TITLE + SIDE + MARGIN) and sheet.shape[1] >= MARGIN + 5 * (SIDE + MARGIN)
    rows = read_rows(build_loader(colours, "val", {"num_frames": 5, "size": SIDE}, 1, "cpu"), 3, 16)
    for row, (title, _) in enumerate(rows):
        colour = COLOURS[title.split()[0]]
        for frame in frames(sheet, row, 5):
            assert np.abs(frame - colour).max() <= 6
        left_of, above = sheet[:, : MARGIN - 1], sheet[MARGIN + row * (TITLE + SIDE + MARGIN) :][:TITLE]
        assert (left_of == 255).all() and above.min() < 100  # letters


def test_rows_are_what_the_loader_delivers(tmp_path):
    write_video(tmp_path / "a.mp4", moving(20, 96, 128))
    make_shards([Video(str(tmp_path / "a.mp4"), 0, "a", "a.mp4")], ["a"], tmp_path / "d", EncodeSettings(short_side=SIDE))
    options = {"num_frames": 6, "size": SIDE, "flip": 1}
    loader = build_loader(tmp_path / "d", "train", options, 1, "cpu", seed=3, start=2)
    ((title, shown),) = read_rows(loader, 1, 3)
    (clip,) = next(iter(loader)).clips  # (3, T, H, W)
    of_clip = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    mean, std = (np.array(x).reshape(3, 1, 1, 1) for x in of_clip)
    expected = ((clip.numpy() * std + mean) * 255).clip(0, 255)[:, [0, 2, 5]]
    assert np.abs(np.moveaxis(expected, 0, -1) - shown).max() <= 0.51
    wanted = ", ".join(str(i) for i in loader.plan[2].frames[[0, 2, 5]])
    assert f"frames {wanted} " in title and "mirrored" in title and title.startswith("a ") and "000000-000000" in title


def test_views_are_rows(colours, tmp_path):
    sheet = draw(colours, tmp_path / "x.png", "--split", "test", "--clips", 2, "clips=2", "crops=3", "num_frames=4")
    assert sheet.shape[0] == MARGIN + 2 * 6 * (TITLE + SIDE + MARGIN)
    first, last = next(frames(sheet, 0, 1)), next(frames(sheet, 11, 1))
    assert first.std(axis=(0, 1)).max() < 3 and np.abs(first.mean(axis=(0, 1)) - last.mean(axis=(0, 1))).max() > 30


def test_a_view_is_of_the_frames_and_the_box_in_its_title(tmp_path):
    write_video(tmp_path / "a.mp4", moving(20, 96, 128))
    make_shards([Video(str(tmp_path / "a.mp4"), -1, None, "a.mp4")], [], tmp_path / "d", EncodeSettings(short_side=SIDE))

    def rows(crops):
        options = {"num_frames": 4, "size": SIDE, "clips": 2, "crops": crops}
        return read_rows(build_loader(tmp_path / "d", "test", options, 1, "cpu"), 1, 9)

    for (title, pixels), (other_title, other_pixels) in zip(rows(1), rows(3)[2:4]):  # the middle crop
        assert title.split("   view")[0] == other_title.split("   view")[0] and title.startswith("not labelled")
        assert np.abs(pixels.astype(int) - other_pixels).max() <= 1
    titles = [title for title, _ in rows(3)]
    assert len(titles) == len(set(titles)) == 6 and all("box 0, 32, 96, 128" in title for title in titles[4:])


def test_epoch_start_and_seed_move_in_the_stream(colours, tmp_path):
    def shown(*arguments):
        sheet = draw(colours, tmp_path / "x.png", "--clips", 1, "num_frames=2", *arguments)
        return sheet[MARGIN + TITLE + 5, MARGIN + 5]

    def colour(position, seed=0):
        loader = build_loader(colours, "train", {"num_frames": 2, "size": SIDE}, 1, "cpu", seed=seed, start=position)
        return COLOURS[loader.shards.classes[int(next(iter(loader)).labels[0])]]

    for arguments, expected in (
        ((), colour(0)),
        (("--start", 1), colour(1)),
        (("--epoch", 2, "--start", 1), colour(7)),
        (("--seed", 5), colour(0, 5)),
    ):
        assert np.abs(shown(*arguments) - expected).max() <= 6


def test_options_of_a_configuration(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("model: {backbone: ViT-L-14-336, num_frames: 16}\nclips: {sampling: stride, stride: 4}\n")
    assert read_options(config, ["stride=2", "flip=0"]) == {
        "sampling": "stride",
        "stride": 2,
        "num_frames": 16,
        "size": 336,
        "flip": 0,
    }
    sizes = {
        "ViT-B-16": 224,
        "ViT-B-16-plus-240": 240,
        "ViT-L-14-336-quickgelu": 336,
        "timm/vit_base_patch16_siglip_384.v2_webli": 384,
        "{image_size: 32}": 32,
        "{name: timm/vit_base_patch14_dinov2, image_size: 224}": 224,
        "{name: ViT-B-16-SigLIP-512, activation: gelu}": 512,
    }
    for backbone, size in sizes.items():
        config.write_text(f"model: {{backbone: {backbone}}}\n")
        assert read_options(config, []) == {"size": size}
    for backbone in ("timm/vit_base_patch14_dinov2", "/models/dinov2-base"):
        config.write_text(f"model: {{backbone: {backbone}}}\n")
        assert read_options(config, ["size=518"]) == {"size": 518}
        with pytest.raises(ValueError, match="c.yaml does not say how large its pictures are: give size=..., as in size=224.$"):
            read_options(config, [])


@pytest.mark.parametrize("name", ["starter", "configs/starter.yaml", "st_adapter/k400_vit-b16_8f"])
def test_configurations_that_come_with_the_program_are_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_options(Path(name), [])["num_frames"] == 8
    own = tmp_path / name
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("model: {num_frames: 3}")
    assert read_options(Path(name), []) == {"num_frames": 3, "size": 224}  # one's own comes first


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["num_fram=3"], "num_frames"),
        (["--clips", "0"], "--clips"),
        (["flip"], "name=value"),
        (["crops=2"], "crops is 2"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--split", "val", "--start", "3"], "3 videos"),
        (["a=[b"], "YAML"),
        (["--out", "."], "--out is the folder ."),
    ],
)
def test_wrong_use_ends_with_2(colours, tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        command.main([str(colours), "--out", str(tmp_path / "x.png"), *arguments])
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_no_data_set_ends_with_1(tmp_path, capsys):
    assert command.main([str(tmp_path), "--out", str(tmp_path / "x.png")]) == 1
    assert "make_shards" in capsys.readouterr().err
