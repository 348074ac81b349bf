"""Put a run's model on the Hugging Face hub, or into a folder of its layout.

    python -m i2v.push runs/mine org/name --dry-run      # what would go up, and the model card
    python -m i2v.push runs/mine org/name                # huggingface_hub's login or HF_TOKEN says who you are
    python -m i2v.push runs/mine org/name --out folder   # the folder alone: look at it, or copy it elsewhere

i2v.load("org/name") and i2v.load(folder) open it again. Only what was trained goes up, unless --include-backbone; the
accuracy in the card is that of RUN/scores.npz (i2v.evaluate --scores), else of the validation while training.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from i2v.console import as_sentence
from i2v.hub import CARD, find_model, make_folder
from i2v.runs import Run, read_run
from i2v.session import add_flags, command, parse


def upload(folder: Path, name: str, private: bool) -> str:
    """Send a folder; returns where it is. Raises OSError, one sentence."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="A model of i2v"))
    # The first are what its HTTP library raises, which is another one from version to version.
    except (*HfHubHTTPError.__bases__, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise OSError(
            f"{name} cannot be written on the hub ({reason:.200}): see to the network, the name and `hf auth login`."
        ) from error


def main() -> None:
    parser = command("i2v.push", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or a checkpoint")
    parser.add_argument("name", metavar="ORG/NAME", help="of the repository")
    parser.add_argument("--dry-run", action="store_true", help="say what would go up, and send nothing")
    parser.add_argument("--out", type=Path, help="write the folder here, and send nothing")
    parser.add_argument("--private", action="store_true", help="a repository that only you see, if it is new")
    parser.add_argument("--include-backbone", action="store_true", help="all weights, so that no other file is needed")
    add_flags(parser, "--weights")
    args = parse(parser)
    try:
        if args.name.count("/") != 1 or not all(args.name.split("/")):
            raise ValueError(f"{args.name!r} is no name of a repository: write org/name.")
        if not args.run.exists():
            raise ValueError(f"{args.run} does not exist: give the folder of a run, or a checkpoint.")
        checkpoint = find_model(args.run)
        run = read_run(args.run) if args.run.is_dir() else Run(args.run.stem)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            place = args.out or Path(folder)
            make_folder(checkpoint, run, place, args.name, args.include_backbone, args.weights)
            files = sorted(path for path in place.iterdir() if path.is_file())
            for path in files:
                print(f"{path.stat().st_size / 1e6:9.2f} MB  {path.name}")
            if args.dry_run:
                print(f"\n{(place / CARD).read_text(encoding='utf-8')}\nnothing was sent")
            elif args.out:
                print(f"wrote {args.out}; nothing was sent")
            else:
                print(f"sent to {upload(place, args.name, args.private)}")
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"i2v.push: {as_sentence(error)}")


if __name__ == "__main__":
    main()
