"""From source videos to shards: `python shard_tools/make_shards.py --help`.

As a library: sources.load_sources (which videos), encode.encode_video (one video), writer.make_shards (a folder).
"""
