"""Seeded damage: to source videos, and to the files of a sharded data set."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import av
import numpy as np

from tests.videos import ffmpeg, moving, noise, solid, write_audio, write_video

# ---- sources ---------------------------------------------------------------------------------------------------------


def damaged_videos(folder, count: int = 200, seed: int = 0) -> list[Path]:
    """Write at least `count` damaged or strange files, named after what was done to them; the seed decides all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    good = _good_videos(folder / "good")
    files = _no_videos(folder / "good") | _swapped(good) | _strange(folder / "good")
    files |= _lying_mp4s(good["h264.mp4"]) | _lying_webms(good["vp9.webm"])
    kinds, names = list(DAMAGE), list(good)
    while len(files) < count:
        name, kind = names[len(files) % len(names)], kinds[rng.integers(len(kinds))]
        stem, suffix = name.split(".")
        files[f"{len(files):03d}-{kind}-{stem}.{suffix}"] = DAMAGE[kind](rng, good[name])
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def cut(rng, data: bytes) -> bytes:
    return data[: rng.integers(len(data))]


def headless(rng, data: bytes) -> bytes:
    return data[rng.integers(1, len(data)) :]


def flip_bits(rng, data: bytes, most: int = 8) -> bytes:
    return flip_bits_between(rng, data, 0, len(data), most)


def flip_bits_in_header(rng, data: bytes) -> bytes:
    return flip_bits_between(rng, data, 0, min(len(data), 600), 4)


def flip_bits_in_last_part(rng, data: bytes) -> bytes:
    return flip_bits_between(rng, data, max(0, len(data) - 800), len(data), 4)  # a plain mp4 has its header there


def flip_bits_between(rng, data: bytes, start: int, end: int, most: int) -> bytes:
    data = bytearray(data)
    for _ in range(rng.integers(1, most + 1)):
        data[rng.integers(start, end)] ^= 1 << rng.integers(8)
    return bytes(data)


def zero_block(rng, data: bytes) -> bytes:
    start, size = _block(rng, data)
    return data[:start] + bytes(size) + data[start + size :]


def repeat_block(rng, data: bytes) -> bytes:
    start, size = _block(rng, data)
    return data[: start + size] + data[start:]


def remove_block(rng, data: bytes) -> bytes:
    start, size = _block(rng, data)
    return data[:start] + data[start + size :]


def overwrite_block(rng, data: bytes) -> bytes:
    start, size = _block(rng, data)
    return data[:start] + rng.bytes(size) + data[start + size :]


def _block(rng, data: bytes) -> tuple[int, int]:
    start = int(rng.integers(len(data)))
    return start, int(min(rng.integers(1, 400), len(data) - start))


DAMAGE = {
    "cut": cut,
    "headless": headless,
    "flip": flip_bits,
    "flip-head": flip_bits_in_header,
    "flip-tail": flip_bits_in_last_part,
    "zero": zero_block,
    "repeat": repeat_block,
    "remove": remove_block,
    "overwrite": overwrite_block,
}


def _good_videos(folder: Path) -> dict[str, bytes]:
    frames = moving(24)
    vp9 = {"deadline": "realtime", "cpu-used": "8", "g": "8"}
    fragmented = folder / "fragmented.mp4"
    fragmented.parent.mkdir(exist_ok=True)
    with av.open(str(fragmented), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "6"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for rgb in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24")))
        container.mux(stream.encode(None))
    paths = [
        fragmented,
        write_video(folder / "h264.mp4", frames, options={"g": "8"}),
        write_video(folder / "vp9.webm", frames, "libvpx-vp9", options=vp9),
        write_video(folder / "mpeg4.avi", frames, "mpeg4"),
        write_video(folder / "mjpeg.avi", frames[:12], "mjpeg"),
        write_video(folder / "h264.mkv", frames, options={"g": "8"}),
    ]
    return {path.name: path.read_bytes() for path in paths}


def _no_videos(folder: Path) -> dict[str, bytes]:
    png = io.BytesIO()
    with av.open(png, "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(solid((9, 9, 9), 1)[0], "rgb24")))
        container.mux(stream.encode(None))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.mp4", bytes(1 << 20))
    return {
        "empty.mp4": b"",
        "empty.avi": b"",
        "one-byte.mp4": b"\0",
        "one-byte.webm": b"\x1a",
        "one-byte.avi": b"R",
        "text.mp4": b"hello, this is no video\n" * 99,
        "page.mp4": b"<!DOCTYPE html><html><body>404</body></html>",
        "data.mp4": b'{"error": "this video is private"}',
        "zeros.mp4": bytes(70_000),
        "picture.mp4": png.getvalue(),
        "archive.mp4": archive.getvalue(),
        "bomb.mp4": gzip.compress(bytes(1 << 22)),
        "random.mp4": b"\x00\x01" * 5000,
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nh264.mp4\n#EXT-X-ENDLIST\n",
        "list.mp4": b"ffconcat version 1.0\nfile 'good/h264.mp4'\n",
        "script.mp4": b"#!/bin/sh\nexit 1\n",
        "subtitles.mp4": b"1\n00:00:00,000 --> 00:00:01,000\nhello\n",
        "sound.mp4": write_audio(folder / "s.mp4").read_bytes(),
        "ftyp.mp4": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2",
        "moov.mp4": b"\0\0\0\x08moov",
        "box.mp4": b"\xff\xff\xff\xffmoov",
        "ebml.webm": b"\x1a\x45\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff",
        "riff.avi": b"RIFF\xff\xff\xff\xffAVI LIST",
    }


def _swapped(good: dict[str, bytes]) -> dict[str, bytes]:
    """Right content under a wrong name, and the beginning of one format before the rest of another."""
    mp4, webm, avi = good["h264.mp4"], good["vp9.webm"], good["mpeg4.avi"]
    return {
        "an-mp4.avi": mp4,
        "a-webm.mp4": webm,
        "an-avi.mkv": avi,
        "ftyp-webm.mp4": mp4[:32] + webm[32:],
        "ebml-mp4.webm": webm[:40] + mp4[40:],
        "riff-mp4.avi": avi[:64] + mp4[64:],
        "two.mp4": mp4 + mp4,
        "two.webm": webm + webm,
        "two.avi": avi + avi,
        "ftyp-gone.mp4": mp4[8:],
        "mp4-then-text.mp4": mp4 + b"end" * 99,
    }


def _lying_mp4s(good: bytes) -> dict[str, bytes]:
    """A header that does not say what the data is. `box`: fourcc; `at`: bytes after it."""

    def edited(box: bytes, at: int, form: str, *values: int) -> bytes:
        place = good.index(box) + 4 + at
        return good[:place] + struct.pack(form, *values) + good[place + struct.calcsize(form) :]

    return {
        "duration-mvhd.mp4": edited(b"mvhd", 16, ">I", 0xFFFFFFFF),
        "duration-mdhd.mp4": edited(b"mdhd", 16, ">I", 0xFFFFFFFF),
        "duration-zero.mp4": edited(b"mdhd", 16, ">I", 0),
        "timescale-zero.mp4": edited(b"mdhd", 12, ">I", 0),
        "timescale-one.mp4": edited(b"mdhd", 12, ">I", 1),
        "timescale-huge.mp4": edited(b"mdhd", 12, ">I", 0xFFFFFFFF),
        "stts-count.mp4": edited(b"stts", 8, ">I", 0xFFFFFFFF),
        "stts-many.mp4": edited(b"stts", 8, ">I", 50_000_000),
        "stts-entries.mp4": edited(b"stts", 4, ">I", 0x0FFFFFFF),
        "stts-zero.mp4": edited(b"stts", 12, ">I", 0),
        "stts-huge.mp4": edited(b"stts", 12, ">I", 0x7FFFFFFF),
        "stts-negative.mp4": edited(b"stts", 12, ">i", -512),
        "stsz-one-size.mp4": edited(b"stsz", 4, ">II", 1, 100_000_000),
        "stsz-count.mp4": edited(b"stsz", 8, ">I", 0x7FFFFFFF),
        "stsz-none.mp4": edited(b"stsz", 8, ">I", 0),
        "stsz-large.mp4": edited(b"stsz", 12, ">I", 0x7FFFFFFF),
        "stsc-samples.mp4": edited(b"stsc", 12, ">I", 0x7FFFFFFF),
        "stco-far.mp4": edited(b"stco", 8, ">I", 0x7FFFFFFF),
        "stss-entries.mp4": edited(b"stss", 4, ">I", 0x0FFFFFFF),
        "ctts-negative.mp4": edited(b"ctts", 12, ">i", -5_000_000),
        "elst-far.mp4": edited(b"elst", 8, ">Ii", 1000, 0x7FFFFFFF),
        "elst-empty.mp4": edited(b"elst", 8, ">Ii", 0x7FFFFFFF, -1),
        "size-tkhd.mp4": edited(b"tkhd", 76, ">II", 0xFFFF0000, 0xFFFF0000),
        "size-stsd.mp4": edited(b"avc1", 24, ">HH", 65535, 65535),
        "size-none.mp4": edited(b"avc1", 24, ">HH", 0, 0),
        "turned-askew.mp4": edited(b"tkhd", 40, ">iii", 46341, 46341, 0),
        "turned-none.mp4": edited(b"tkhd", 40, ">9i", *[0] * 9),
        "codec-unknown.mp4": edited(b"avc1", -4, ">4s", b"xxxx"),
        "codec-wrong.mp4": edited(b"avc1", -4, ">4s", b"vp09"),
        "avcC-cut.mp4": edited(b"avcC", -8, ">I", 9),
        "depth.mp4": b"".join(struct.pack(">I4s", 8 * (500 - i), b"moov") for i in range(500)),
    }


def _lying_webms(good: bytes) -> dict[str, bytes]:
    frame = good.index(b"\x49\x83\x42")  # VP9's start code; three bits of colour and a flag later comes the size

    def sized(width: int, height: int) -> bytes:
        bits = int.from_bytes(good[frame + 3 : frame + 9], "big")
        for shift, value in ((28, width - 1), (12, height - 1)):
            bits = bits & ~(0xFFFF << shift) | value << shift
        return good[: frame + 3] + bits.to_bytes(6, "big") + good[frame + 9 :]

    duration = good.index(b"\x44\x89\x88") + 3  # Duration, eight bytes
    scale = good.index(b"\x2a\xd7\xb1\x83") + 4  # TimestampScale, three bytes

    def timed(seconds: float) -> bytes:
        return good[:duration] + struct.pack(">d", seconds * 1000) + good[duration + 8 :]

    return {
        "size-16384.webm": sized(16384, 16384),
        "size-65536.webm": sized(65536, 65536),
        "size-wide.webm": sized(65536, 2),
        "duration-year.webm": timed(3e7),
        "duration-nan.webm": timed(float("nan")),
        "duration-negative.webm": timed(-5),
        "duration-inf.webm": timed(float("inf")),
        "duration-none.webm": timed(0),
        "duration-minute.webm": timed(60),
        "scale-zero.webm": good[:scale] + bytes(3) + good[scale + 3 :],
        "scale-huge.webm": good[:scale] + b"\xff" * 3 + good[scale + 3 :],
    }


def _strange(folder: Path) -> dict[str, bytes]:
    """Nothing is damaged here, but much is unusual."""
    frames = moving(8)
    still = np.tile(solid((90, 90, 90), 1, 16, 16), (1500, 1, 1, 1))
    many = write_video(folder / "many.mp4", still, options={"preset": "ultrafast"})
    slow = write_video(folder / "slow.mkv", frames, fps=1, options={"bf": "0"})
    fast = write_video(folder / "fast.mp4", frames, fps=50_000)
    narrow = write_video(folder / "narrow.mp4", solid((1, 2, 3), 2, 2, 600))
    tiny = write_video(folder / "tiny.mkv", frames[:, :2, :2], "ffv1")
    one = write_video(folder / "one.mp4", frames[:1])
    long_pixels = write_video(folder / "pixels.mp4", frames, pixel_shape=30_000)
    with av.open(str(folder / "nothing.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with av.open(str(folder / "negative.mkv"), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i, rgb in enumerate(noise(8)):
            frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
            frame.pts = i - 6
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    paths = [many, slow, fast, narrow, tiny, one, long_pixels, folder / "nothing.mp4", folder / "negative.mkv"]
    return {path.name: path.read_bytes() for path in paths}


# ---- real codecs -----------------------------------------------------------------------------------------------------

REAL = {  # file -> how FFmpeg encodes it; a key frame every 12 or 10 frames where there are others
    "mpeg4.mp4": "-c:v mpeg4 -q:v 3 -g 12",
    "mpeg4.avi": "-c:v mpeg4 -q:v 3 -g 12 -bf 2",
    "mpeg4.ts": "-c:v mpeg4 -q:v 3 -g 12",
    "msmpeg4.avi": "-c:v msmpeg4 -q:v 3 -g 12",
    "wmv2.asf": "-c:v wmv2 -q:v 3 -g 12",
    "flv1.flv": "-c:v flv -q:v 3 -g 12",
    "h263.3gp": "-c:v h263 -q:v 3 -g 12",
    "h261.avi": "-c:v h261 -s 176x144 -q:v 3 -g 12",
    "mpeg1.mpg": "-c:v mpeg1video -q:v 3 -g 12",
    "mpeg2.ts": "-c:v mpeg2video -q:v 3 -g 12 -bf 2",
    "h264.mp4": "-c:v libx264 -g 10 -bf 2 -movflags +faststart",
    "h264.mkv": "-c:v libx264 -g 10 -bf 0",
    "h264.ts": "-c:v libx264 -g 10",
    "hevc.mp4": "-c:v libx265 -movflags +faststart -x265-params keyint=10:log-level=none",
    "hevc.ts": "-c:v libx265 -x265-params keyint=10:open-gop=1:log-level=none",
    "vp8.webm": "-c:v libvpx -b:v 1M -g 10",
    "vp9.webm": "-c:v libvpx-vp9 -crf 20 -b:v 0 -g 10 -cpu-used 8",
    "av1.mkv": "-c:v libaom-av1 -crf 20 -g 10 -cpu-used 8",
    "theora.ogv": "-c:v libtheora -q:v 8 -g 12",
    "mjpeg.avi": "-c:v mjpeg -q:v 3",
    "mjpeg.mov": "-c:v mjpeg -q:v 3",
    "prores.mov": "-c:v prores",
    "dnxhd.mov": "-c:v dnxhd -profile:v dnxhr_sq -s 256x144 -pix_fmt yuv422p",
    "ffv1.mkv": "-c:v ffv1 -level 3 -g 12",
    "huffyuv.avi": "-c:v huffyuv -pix_fmt yuv422p",
    "gif.gif": "",
    "raw.y4m": "-pix_fmt yuv420p",
}


def with_a_packet(source: Path, number: int, edit) -> bytes:
    """The file with one packet's bytes replaced by as many others; where they are scattered, 300 in the middle of the file."""
    data = source.read_bytes()
    with av.open(str(source)) as file:
        packet = bytes([packet for packet in file.demux(video=0) if packet.size][number])
    at = data.find(packet)
    if at < 0:
        at, packet = len(data) // 2, bytes(300)
    return data[:at] + edit(packet) + data[at + len(packet) :]


def zeroed(data: bytes) -> bytes:
    return bytes(len(data))


def half_zeroed(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def without_packets(source, target, which: str) -> Path:
    """A copy without the packets that FFmpeg's expression of their number n says."""
    return ffmpeg("-i", source, "-c", "copy", "-bsf:v", f"noise=drop={which}", target)


def damaged_streams(source: Path, folder: Path):
    """Damaged copies of one of the REAL files, each named after what was done."""
    yield without_packets(source, folder / f"begun{source.suffix}", "lt(n\\,5)")
    yield without_packets(source, folder / f"lost{source.suffix}", "eq(n\\,14)")
    data = source.read_bytes()
    copies = {edit.__name__: with_a_packet(source, 14, edit) for edit in (zeroed, half_zeroed)}
    copies |= {f"cut{percent}": data[: len(data) * percent // 100] for percent in (35, 62, 93)}
    for kind, copy in copies.items():
        target = folder / f"{kind}{source.suffix}"
        target.write_bytes(copy)
        yield target


# ---- sharded data sets -----------------------------------------------------------------------------------------------


def damaged_sets(folder, out, count: int = 72, seed: int = 0):
    """Damaged copies of a sharded data set, one after the other.

    Yields (what was done, the copy's folder, the bytes that differ: a list of (file name, first, end)).
    """
    rng = np.random.default_rng(seed)
    shards = sorted(path.name for path in Path(folder).glob("shard-*.tar"))
    indices = sorted(path.name for path in Path(folder).glob("*.npy"))
    cases = [("missing", name) for name in (shards[0], shards[-1], *indices, "manifest.json")]
    cases += [("empty", name) for name in (shards[1], *indices, "manifest.json")]
    cases += [("extended", name) for name in (shards[0], *indices, "manifest.json")]
    cases += [("swapped", shards[0]), ("swapped-indices", indices[0]), ("zeroed", shards[1])]
    kinds = ["flip-mp4"] * 4 + ["zero-mp4"] * 2 + ["flip-json", "flip-index", "flip-manifest"] * 2 + ["cut"]
    cases += [(kinds[i % len(kinds)], None) for i in range(count - len(cases))]
    for number, (kind, name) in enumerate(cases):
        copy = Path(out) / f"{number:03d}-{kind}"
        shutil.copytree(folder, copy)
        what = "mp4" if kind.endswith("mp4") else "json" if kind.endswith("json") else None
        if what:
            name = shards[rng.integers(len(shards))]
        elif name is None:
            name = {"flip-index": rng.choice(indices), "flip-manifest": "manifest.json"}.get(kind)
            name = name or rng.choice([*shards, *indices, "manifest.json"])
        yield f"{copy.name} {name}", copy, _damage(rng, copy, name, kind, what, shards)


def _damage(rng, folder: Path, name: str, kind: str, what: str | None, shards: list[str]) -> list[tuple[str, int, int]]:
    path = folder / name
    data = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "zeroed":
        path.write_bytes(bytes(len(data)))
    elif kind == "extended":
        path.write_bytes(data + rng.bytes(700))
    elif kind == "cut":
        path.write_bytes(data[: rng.integers(len(data))])
    elif kind == "swapped":
        other = folder / shards[1]
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif kind == "swapped-indices":
        one, other = sorted(folder.glob("*.npy"))[:2]
        data = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)
    else:
        places, changed = [0, len(data)] if what is None else _member(rng, path, what), []
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(*places))
            size = int(min(rng.integers(1, 200), places[1] - start)) if kind.startswith("zero") else 1
            part = bytes(size) if kind.startswith("zero") else bytes([data[start] ^ 1 << int(rng.integers(8))])
            data = data[:start] + part + data[start + size :]
            changed.append((name, start, start + size))
        path.write_bytes(data)
        return changed
    return [(name, 0, len(data))]


def _member(rng, path: Path, suffix: str) -> list[int]:
    """First byte and end of one of the members with this suffix."""
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.name.endswith(suffix)]
    member = members[rng.integers(len(members))]
    return [member.offset_data, member.offset_data + member.size]
