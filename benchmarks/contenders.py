"""What makes clips in the loader's benchmark: this library, and what people use without it.

All of them: (data, shards whose plan they follow, sampling, batch) -> endless batches (B, 3, T, H, W), normalised; the same
frames and boxes of the same videos.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from i2v.pipelines import build_loader
from i2v.pipelines.batch import normalised
from i2v.pipelines.graph import MEAN, STD
from i2v.pipelines.resize import crop_and_resize

SIZE = 224
AUGMENTATION = {"size": SIZE, "crop": "random_resized", "flip": 0.5}


def installed(package: str) -> bool:
    """Whether a contender that is no dependency of this library can take part."""
    return importlib.util.find_spec(package) is not None


def loader_of(shards: Path, sampling: dict, batch: int = 1):
    return build_loader(shards, "train", sampling | AUGMENTATION, batch, "cpu", threads=1)


def from_shards(data: Path, plan_of: Path, sampling: dict, batch: int) -> Iterator[torch.Tensor]:
    """This library."""
    for made in loader_of(data, sampling, batch):
        yield made.clips


def from_files(data: Path, plan_of: Path, sampling: dict, batch: int) -> Iterator[torch.Tensor]:
    """A DataLoader that decodes whole files with PyAV."""
    yield from DataLoader(WholeFiles(data, plan_of, sampling), batch, sampler=itertools.count(), num_workers=0)


class WholeFiles(Dataset):
    """Clips as the original repositories make them."""

    def __init__(self, folder: Path, plan_of: Path, sampling: dict):
        loader = loader_of(plan_of, sampling)
        self.plan, self.paths = loader.plan, [folder / loader.shards.metadata(i)["source"] for i in range(len(loader.plan))]
        self.mean, self.std = torch.tensor(MEAN) / 255, torch.tensor(STD) / 255

    def __getitem__(self, position: int) -> torch.Tensor:
        clip = self.plan[position]
        with av.open(str(self.paths[clip.id])) as container:
            container.streams.video[0].codec_context.thread_count = 1
            frames = list(container.decode(video=0))
        pixels = torch.from_numpy(np.stack([frames[i].to_ndarray(format="rgb24") for i in clip.frames]))
        pixels = ((pixels.float() / 255 - self.mean) / self.std).permute(3, 0, 1, 2)  # (3, T, H, W)
        top, left, bottom, right = clip.boxes[0].astype(int)
        pixels = F.interpolate(pixels[:, :, top:bottom, left:right], size=(SIZE, SIZE), mode="bicubic", align_corners=False)
        return pixels.flip(-1) if clip.flip else pixels


def from_webdataset(
    data: Path, plan_of: Path, sampling: dict, batch: int, frames_known: bool = False
) -> Iterator[torch.Tensor]:
    """Webdataset reads the shards from front to back; DALI decodes whole videos, or up to the last wanted frame."""
    from nvidia.dali import fn, pipeline_def, types

    samples = _webdataset_samples(data, loader_of(plan_of, sampling).plan)

    @pipeline_def(batch_size=batch, num_threads=1, device_id=None)
    def clips():
        encoded, frames, box, mirror = fn.external_source(
            source=lambda: tuple(map(list, zip(*itertools.islice(samples, batch)))),
            num_outputs=4,
            batch=True,
            dtype=[types.UINT8, types.INT32, types.FLOAT, types.INT32],
            ndim=1,
        )
        if frames_known:
            video = fn.decoders.video(encoded, frames=frames)
        else:
            video = fn.sequence_rearrange(fn.decoders.video(encoded), new_order=frames)
        video = fn.resize(video, size=[SIZE, SIZE], roi_start=box[0:2], roi_end=box[2:4], interp_type=types.INTERP_CUBIC)
        mirror = fn.squeeze(mirror, axes=[0])
        return fn.crop_mirror_normalize(video, mirror=mirror, mean=MEAN, std=STD, dtype=types.FLOAT, output_layout="FHWC")

    pipeline = clips()
    pipeline.build()
    while True:
        (made,) = pipeline.run()
        yield torch.from_dlpack(made.as_tensor()).permute(0, 4, 1, 2, 3)


def _webdataset_samples(shards: Path, plan):
    """Endless: whole videos in the order of the shards, with the frames, box and flip that the plan has for them."""
    import webdataset

    files = sorted(map(str, shards.glob("*.tar")))
    for epoch in itertools.count():
        clips = {clip.id: clip for clip in map(plan.__getitem__, range(epoch * len(plan), (epoch + 1) * len(plan)))}
        for video, sample in enumerate(webdataset.WebDataset(files, shardshuffle=False)):
            clip = clips[video]
            yield np.frombuffer(sample["mp4"], np.uint8), clip.frames, clip.boxes[0], np.array([clip.flip], np.int32)


def from_decoder(pictures_of, data: Path, plan_of: Path, sampling: dict, batch: int) -> Iterator[torch.Tensor]:
    """Another decoder's pictures, pictures_of(path, frames) -> (N, H, W, 3) uint8; the rest as fast as this library does it."""
    loader = loader_of(plan_of, sampling)
    paths = [data / loader.shards.metadata(i)["source"] for i in range(len(loader.plan))]
    for first in itertools.count(0, batch):
        made = torch.empty(batch, sampling["num_frames"], SIZE, SIZE, 3, dtype=torch.uint8)
        for into, clip in zip(made, map(loader.plan.__getitem__, range(first, first + batch))):
            pictures = pictures_of(str(paths[clip.id]), clip.frames.tolist())
            view = torch.from_numpy(crop_and_resize(pictures, clip.boxes, SIZE, "cubic", True)[0])
            into.copy_(view.flip(2) if clip.flip else view)
        yield normalised(made.permute(0, 4, 1, 2, 3))


def torchcodec_pictures(path: str, frames: list[int]) -> np.ndarray:
    """It seeks: of a GOP it decodes what leads to a frame."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
    return decoder.get_frames_at(frames).data.numpy()


def spdl_pictures(path: str, frames: list[int]) -> np.ndarray:
    """It decodes the GOPs in which there are frames that are wanted."""
    import spdl.io

    wanted = sorted(set(frames))
    parts = spdl.io.sample_decode_video(spdl.io.demux_video(path), wanted)
    pictures = spdl.io.to_numpy(spdl.io.convert_frames(parts))
    return pictures[[wanted.index(frame) for frame in frames]]
