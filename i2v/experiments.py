"""The experiments that come with this program, by name."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent


def installed_configs() -> dict[str, Path]:
    """Name, as st_adapter/k400_vit-b16_8f or starter, -> file. Installed they are in the package, in a checkout beside it."""
    folders = [HERE / "configs", HERE.parent / "configs"]
    folder = next((folder for folder in folders if folder.is_dir()), HERE)
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.yaml"))}


def find_config(path: str | Path) -> Path:
    """A file as it is; else the installed experiment of that name, with or without configs/ before and .yaml behind it."""
    path = Path(path)
    known = {} if path.exists() or path.is_absolute() else installed_configs()
    return known.get(str(path).removeprefix("configs/").removesuffix(".yaml"), path)
