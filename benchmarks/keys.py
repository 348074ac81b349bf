"""Write docs/keys.md: every key of a configuration, its default, what it may be and what it means, read from the source.

python benchmarks/keys.py           # write it
python benchmarks/keys.py --check   # is it up to date?
"""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import sys
import typing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file: import from the repository

from benchmarks.pages import write_or_check
from i2v import methods
from i2v.bmn import BMNOptions
from i2v.config import DataConfig, ModelConfig, ProbeConfig, TrainConfig
from i2v.localise_config import DetectOptions, FeatureData, LocaliseTraining
from i2v.model import method_module
from i2v.pipelines.augment import AugmentOptions
from i2v.pipelines.graph import GraphOptions
from i2v.pipelines.options import ClipOptions, OrderOptions
from i2v.rules import broken

PAGE = ROOT / "docs" / "keys.md"
HEAD = """\
<!-- python benchmarks/keys.py -->

# Every key of a configuration

A configuration is one YAML file ([configs](../configs)); on the command line `section.key=value` replaces what is in it.
An unknown key, a wrong type or a value out of range is refused with one sentence. This page is drawn from the source.
"""
SECTIONS = {
    "model": (ModelConfig,),
    "data": (DataConfig,),
    "data.order": (OrderOptions,),
    "clips": (ClipOptions, GraphOptions, AugmentOptions),
    "train": (TrainConfig,),
    "probe": (ProbeConfig,),
}
LOCALISE = {"model": BMNOptions, "data": FeatureData, "train": LocaliseTraining, "detect": DetectOptions}
DECIDED = {"clips": ("num_frames", "size", "dtype", "mean", "std", "augment")}  # by the model, or a section of its own


def comments(kind: type) -> dict[str, str]:
    """Field -> the comment on its line, or on the lines before it."""
    found, above = {}, []
    for line in inspect.getsource(kind).splitlines():
        code, _, comment = line.partition("  # ") if not line.strip().startswith("#") else ("", "", line.strip()[2:])
        name = code.partition(":")[0].strip()
        if name in kind.__dataclass_fields__ and line.startswith("    ") and not line.startswith("     "):
            found[name] = " ".join([*above, comment.strip()] if comment else above)
            above = []
        elif not code.strip() and comment and not comment[0].isupper():  # else a heading of several fields
            above.append(comment)
        else:
            above = []
    return found


def rule(hint) -> str:
    """What a value must be, in words."""
    return broken(hint, object()) or "anything"


def written(value) -> str:
    """A default as YAML has it."""
    if isinstance(value, float) and value == int(value) and abs(value) < 1e6:
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(written(round(part, 4) if isinstance(part, float) else part) for part in value)}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def rows(kind: type, left_out: tuple[str, ...]) -> list[str]:
    hints, said = typing.get_type_hints(kind, include_extras=True), comments(kind)
    lines = []
    for field in dataclasses.fields(kind):
        if field.name in left_out:
            continue
        missing = dataclasses.MISSING
        default = field.default if field.default is not missing else field.default_factory
        default = "(needed)" if default is missing else f"`{written(default() if callable(default) else default)}`"
        meaning = said.get(field.name, "").replace("None:", "null:")
        lines.append(f"| `{field.name}` | {default} | {rule(hints[field.name])} | {meaning} |")
    return lines


def options(method: str) -> list[str]:
    """The keyword arguments of a method's build()."""
    build = method_module(method).build
    hints = typing.get_type_hints(build, include_extras=True)
    arguments = [p for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return [f"| `{p.name}` | `{written(p.default)}` | {rule(hints[p.name]) if p.name in hints else ''} |" for p in arguments]


def page() -> str:
    lines = [HEAD]
    for section, kinds in SECTIONS.items():
        lines += [f"## {section}", ""]
        lines += [inspect.getdoc(kinds[0]), ""] if not kinds[0].__doc__.startswith(kinds[0].__name__) else []
        lines += ["| key | default | it must be | what it is |", "| --- | --- | --- | --- |"]
        seen = DECIDED.get(section, ())
        for kind in kinds:
            lines += rows(kind, seen)
            seen = (*seen, *(field.name for field in dataclasses.fields(kind)))
        lines.append("")
    for method in sorted(module.name for module in pkgutil.iter_modules(methods.__path__)):
        if not (table := options(method)):
            continue
        doc = inspect.getdoc(method_module(method).build)
        lines += [f"## model.options of {method}", "", doc, "", "| option | default | it must be |", "| --- | --- | --- |"]
        lines += [*table, ""]
    for section, kind in LOCALISE.items():
        lines += [
            f"## {section} of i2v.localise",
            "",
            "| key | default | it must be | what it is |",
            "| --- | --- | --- | --- |",
        ]
        lines += [*rows(kind, ()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(write_or_check(__doc__, PAGE, page))
