"""Kinetics: label,youtube_id,time_start,time_end,split, whose clips are {youtube_id}_{start:06d}_{end:06d}.mp4."""

from __future__ import annotations

from i2v.shard_tools.lists.ids import Videos, clip_name, tell_missing
from i2v.shard_tools.lists.source import Row, Source, Table
from i2v.shard_tools.lists.tables import are_parts, part, read_header
from i2v.shard_tools.paths import SourceError


def fits(source: Source) -> bool:
    columns = read_header(source.lines[0][1])
    return "path" not in columns and "id" in columns and are_parts(columns)


def read(source: Source) -> Table:
    """Files that are named without their times hold the clip, or the whole video of which the clip is cut."""
    place, columns = source.place, read_header(source.lines[0][1])
    if "id" not in columns or not are_parts(columns):
        raise SourceError(f"{place} has no header with youtube_id, time_start and time_end: use another layout.")
    columns.pop("path", None)
    clips, videos = source.below_header(columns), Videos(source.root)
    rows, times, untimed, missing = [], [], [], []  # the last two: places in rows
    for where, cells in clips:
        name = cells["id"]
        if name is None:
            raise SourceError(f"{where} of {place} has no youtube_id.")
        start, end = part(f"{where} of {place}", cells)
        if end is None:
            raise SourceError(f"{where} of {place} has no time_end.")
        clip = clip_name(name, start, end)
        row = Row(where, clip, cells.get("label"), listed=clip)
        path = videos.one(videos.timed[name, int(start), int(end)], row)
        if path is None:
            path = videos.one(videos.named[name], row)
            (untimed if path else missing).append(len(rows))
        rows.append(row._replace(path=path or f"{clip}.mp4"))
        times.append({"start": start, "end": end})
    tell_missing(source, [rows[i].path for i in missing], len(rows))
    if untimed:
        trimmed = videos.are_trimmed([rows[i]._replace(**times[i]) for i in untimed])
        source.notes.append(
            f"{len(untimed):,} videos of {place} are named without their times and last "
            + ("about as long as their part: they are taken whole." if trimmed else "longer: their part is cut out.")
        )
        if len(untimed) + len(missing) == len(rows):
            untimed += missing  # so will be those that are fetched later
        for i in [] if trimmed else untimed:
            rows[i] = rows[i]._replace(**times[i])
    return source.table(rows)
