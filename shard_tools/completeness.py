"""What the bytes of a file say about being whole, for formats of which FFmpeg plays a part and says nothing.

Matroska, AVI and ASF files say at the beginning how long they are; a GIF ends with a trailer, an Ogg file with a page
marked as the last; a transport stream consists of packets of one size.
"""

from __future__ import annotations

from collections.abc import Callable

HEAD = 1024  # bytes at the beginning that are looked at
SLOPPY = 8  # bytes that a header may claim too much
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # the object that holds the file's size
OGG_PAGE = 27 + 255 + 255 * 255  # bytes of the largest
TRANSPORT = {188: 0, 192: 4, 204: 0}  # bytes of a packet, and of what comes before its sync byte

Read = Callable[[int, int], bytes]  # (first byte, number of bytes): fewer where the file ends


def what_is_missing(read: Read, size: int) -> str | None:
    """Why a file of `size` bytes cannot be whole, a short sentence without a full stop; None: nothing says so."""
    if size == 0:
        return "the file is empty"
    head = read(0, HEAD)
    if head[:4] == b"GIF8":
        return _gif(read(0, size))
    if head[:4] == b"OggS":
        return _ogg(read(max(0, size - OGG_PAGE), OGG_PAGE))
    end = _claimed_end(head)
    if end > size + SLOPPY:
        return f"the file is cut short: it has {size} of {end} bytes"
    return _transport(head, size)


def _claimed_end(head: bytes) -> int:
    """How many bytes the file says it has; 0: it does not."""
    if head[:4] == b"RIFF":
        end = 8 + int.from_bytes(head[4:8], "little")
        return 0 if end == 8 + 0xFFFFFFFF else end
    if head[:4] == b"\x1a\x45\xdf\xa3" and len(head) > 16:  # EBML header, then the segment, which holds everything
        start, length = _ebml_size(head, 4)
        start += length
        if head[start : start + 4] == b"\x18\x53\x80\x67" and len(head) >= start + 12:
            return sum(_ebml_size(head, start + 4))
    at = head.find(ASF_PROPERTIES)
    if head[:4] == b"\x30\x26\xb2\x75" and 0 <= at <= len(head) - 92 and not head[at + 88] & 1:  # 1: live, size unknown
        return int.from_bytes(head[at + 40 : at + 48], "little")
    return 0


def _ebml_size(data: bytes, at: int) -> tuple[int, int]:
    """Where the number at `at` ends, and the number; 0 where that says unknown."""
    length = 9 - data[at].bit_length()
    bits = 7 * length
    value = int.from_bytes(data[at : at + length], "big") & ((1 << bits) - 1)
    return at + length, 0 if value == (1 << bits) - 1 else value


def _gif(data: bytes) -> str | None:
    """Walks over the blocks; each says where the next one begins."""
    frames = 0
    try:
        at = 13 + _gif_colors(data[10])
        while data[at] != 0x3B:  # the trailer
            if data[at] == 0x21:  # an extension
                at = _gif_end(data, at + 2)
            elif data[at] == 0x2C:  # a picture
                at = _gif_end(data, at + 11 + _gif_colors(data[at + 9]))
                frames += 1
            else:
                return f"the file is damaged after {frames} frames"
    except IndexError:
        return f"the file is cut short after {frames} frames"
    return None


def _gif_colors(flags: int) -> int:
    """Bytes of the table of colours."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _gif_end(data: bytes, at: int) -> int:
    """The end of a chain of sub-blocks."""
    while data[at]:
        at += 1 + data[at]
    return at + 1


def _ogg(tail: bytes) -> str | None:
    at = tail.rfind(b"OggS\0")
    if at < 0 or len(tail) < at + 27:
        return "the file is cut short or damaged: it does not end with a page"
    lacing = tail[at + 27 : at + 27 + tail[at + 26]]
    if len(tail) < at + 27 + tail[at + 26] + sum(lacing):
        return "the file is cut short: its last page is not whole"
    if not tail[at + 5] & 4:
        return "the file is cut short: its last page is not marked as the last"
    return None


def _transport(head: bytes, size: int) -> str | None:
    for length, before in TRANSPORT.items():
        for sync in range(length):
            if len(head) > 4 * length and set(head[sync::length]) == {0x47}:
                rest = (size - sync + before) % length
                return f"the file is cut short: its last packet has {rest} of {length} bytes" if rest else None
    return None
