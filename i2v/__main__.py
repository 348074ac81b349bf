"""The console command: `i2v train --config ...` is `python -m i2v.train --config ...`."""

from __future__ import annotations

import difflib
import importlib
import sys

from i2v.console import version

COMMANDS = {  # what is typed: the program, and what it does
    "doctor": ("i2v.doctor", "what this machine has, what will therefore be used, and clips/s in ten seconds"),
    "shards": ("i2v.shard_tools.make_shards", "videos -> shards, once"),
    "shards describe": ("i2v.shard_tools.describe", "what is in shards: lengths, sizes, classes"),
    "shards verify": ("i2v.shard_tools.verify", "whether shards are whole"),
    "shards relabel": ("i2v.shard_tools.relabel", "rename, merge or correct the classes of shards"),
    "shards preview": ("i2v.pipelines.preview", "clips as the model will see them, as a picture"),
    "train": ("i2v.train", "teach an adapter on a frozen CLIP"),
    "sweep": ("i2v.sweep", "trainings over lists of values: one table, one sheet of curves"),
    "probe": ("i2v.probe", "linear heads on a frozen CLIP's features, many at once, in minutes"),
    "evaluate": ("i2v.evaluate", "score a checkpoint, every video once"),
    "predict": ("i2v.predict", "name what videos show"),
    "features": ("i2v.features", "one vector per video or window"),
    "localise": ("i2v.localise", "what happens when in long videos, from their features"),
    "convert": ("i2v.convert", "released weights -> ours; fold adapters away"),
    "report": ("i2v.report", "one page about one or several runs"),
    "push": ("i2v.push", "a run's model to the Hugging Face hub, or to a folder of that layout"),
    "export": ("i2v.export", "a model for other programs: torch.export, ONNX, AOTInductor"),
    "complexity": ("i2v.complexity", "parameters and MACs of a configuration"),
}

HELP = """\
usage: i2v COMMAND [arguments]

Teach frozen CLIP image transformers to understand video.

{commands}

the way from videos to predictions
  i2v doctor
  i2v shards videos/train --out shards/train
  i2v shards videos/val --out shards/val --classes shards/train/manifest.json
  i2v train --config st_adapter/k400_vit-b16_8f data.train=shards/train data.val=shards/val out=runs/mine
  i2v evaluate --checkpoint runs/mine/best.safetensors
  i2v predict --checkpoint runs/mine/best.safetensors video.mp4

`i2v COMMAND --help` explains each. --config is a YAML file or the name of one that is installed with this program.
On several GPUs: torchrun --nproc-per-node 8 -m i2v train --config ...
"""


def main() -> None:
    """Run the program that the first words name, as if it had been started itself; nothing else is imported."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        lines = [f"  {name:16} {what}" for name, (_, what) in COMMANDS.items()]
        print(HELP.format(commands="\n".join(["commands", *lines])), end="")
        return
    if words[0] in ("-V", "--version"):
        print(f"i2v {version()}")
        return
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), None)
    if name is None:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "`i2v --help` lists the commands."
        sys.exit(f"i2v: there is no command {words[0]!r}: {hint}")
    module = COMMANDS[name][0]
    sys.argv = [f"i2v {name}", *words[len(name.split()) :]]
    sys.exit(importlib.import_module(module).main())


if __name__ == "__main__":
    main()
