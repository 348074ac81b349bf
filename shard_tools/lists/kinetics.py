"""Kinetics: label,youtube_id,time_start,time_end,split; the clips are {youtube_id}_{start:06d}_{end:06d}.mp4."""

from i2v.shard_tools.lists.ids import Videos, clip_name, tell_missing
from i2v.shard_tools.lists.source import Row, Source
from i2v.shard_tools.lists.tables import are_parts, part, read_header
from i2v.shard_tools.paths import SourceError


def fits(source: Source) -> bool:
    columns = read_header(source.first)
    return "path" not in columns and "id" in columns and are_parts(columns)


def read(source: Source) -> list[Row]:
    """Files that are named without their times hold the clip, or the whole video of which the clip is cut."""
    columns = read_header(source.lines[0][1])
    if "id" not in columns or not are_parts(columns):
        raise SourceError(f"{source} has no header with youtube_id, time_start and time_end: use another layout.")
    columns.pop("path", None)
    clips, videos = source.below_header(columns), Videos(source.root)
    rows, untimed, missing = [], [], []  # the last two: places in rows
    for where, cells in clips:
        if cells["id"] is None:
            raise SourceError(f"{where} of {source} has no youtube_id.")
        start, end = part(f"{where} of {source}", cells)
        if end is None:
            raise SourceError(f"{where} of {source} has no time_end.")
        clip = clip_name(cells["id"], start, end)
        row = Row(where, clip, source.label_of(cells), listed=clip)
        path = videos.one(videos.clips[clip], row)
        if path is None:
            path = videos.one(videos.named[cells["id"]], row)
            (untimed if path else missing).append(len(rows))
            row = row._replace(start=start, end=end)
        rows.append(row._replace(path=path or f"{clip}.mp4"))
    tell_missing(source, [rows[i].path for i in missing], len(rows))
    trimmed = videos.are_trimmed([rows[i] for i in untimed])
    if untimed:
        source.notes.append(
            f"{len(untimed):,} videos of {source} are named without their times and last "
            + ("about as long as their part: they are taken whole." if trimmed else "longer: their part is cut out.")
        )
    whole = untimed + missing if trimmed else missing
    if trimmed or len(untimed) + len(missing) < len(rows):  # else those that are fetched later will be cut, too
        for i in whole:
            rows[i] = rows[i]._replace(start=0.0, end=None)
    return rows
