"""Who may import whom (DESIGN: the house), read from the source."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("i2v", "pipelines", "shard_tools")
FILES = sorted(p.relative_to(ROOT) for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
GROUND = ("i2v.atomic", "i2v.colours", "i2v.console", "i2v.experiments", "i2v.rules")  # what every room may stand on
ENTRY_POINTS = {
    "i2v.train",
    "i2v.sweep",
    "i2v.probe",
    "i2v.evaluate",
    "i2v.predict",
    "i2v.features",
    "i2v.localise",
    "i2v.convert",
    "i2v.complexity",
    "i2v.doctor",
    "i2v.export",
    "i2v.report",
    "i2v.push",
    "i2v.__main__",
    "i2v.shard_tools.make_shards",
    "i2v.shard_tools.verify",
    "i2v.shard_tools.describe",
    "i2v.shard_tools.relabel",
    "i2v.pipelines.preview",
}


def imports(path, top_level_only=False):
    """Modules that a file imports, as dotted names."""
    tree = ast.parse((ROOT / path).read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(names):
    return {name for name in names if name.split(".")[0] == "i2v"}


def others(names):
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"i2v"}


def module(path):
    """The dotted name by which a file is imported: pipelines and shard_tools live under i2v."""
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    return name if name.startswith("i2v") else f"i2v.{name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nobody_imports_an_entry_point(path):
    assert not ENTRY_POINTS & set(imports(path))


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "pipelines"], ids=str)
def test_pipelines_know_nothing_of_models_or_tools(path):
    assert all(name.startswith(("i2v.pipelines", *GROUND)) for name in ours(imports(path)))
    if path.name != "graph.py":
        assert "nvidia" not in others(imports(path))  # the only file that builds DALI nodes
    assert "nvidia" not in others(imports(path, top_level_only=True))  # and lazily


PLAN = {"plan", "options", "order", "frames", "boxes", "augment", "mosi", "philox"}


@pytest.mark.parametrize("name", sorted(PLAN))
def test_the_plan_needs_numpy_only(name):
    path = Path(f"pipelines/{name}.py")
    assert others(imports(path)) <= {"numpy"}
    allowed = ("i2v.rules", *(f"i2v.pipelines.{name}" for name in PLAN))
    assert all(name.startswith(allowed) for name in ours(imports(path)))


READING = {  # file -> those of its room that it may stand on
    "shards": ("files", "index", "store"),
    "index": ("store",),
    "files": ("staging", "store"),
    "staging": ("cache", "store"),
    "cache": ("store",),
}


def test_reading_shards_needs_numpy_only():
    for name, below in READING.items():
        path = Path(f"pipelines/{name}.py")
        assert others(imports(path)) <= ({"numpy"} if name in ("shards", "index") else set())
        assert all(module.startswith(tuple(f"i2v.pipelines.{name}" for name in below)) for module in ours(imports(path)))


def test_only_the_store_knows_fsspec_and_only_when_there_is_a_url():
    store = Path("pipelines/store.py")
    assert others(imports(store)) == {"fsspec"} and not others(imports(store, top_level_only=True))
    assert not [path for path in FILES if path != store and "fsspec" in others(imports(path))]
    assert all(name.startswith("i2v.atomic") for name in ours(imports(store)))


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "i2v"], ids=str)
def test_inside_i2v_only_entry_points_import_the_data_side(path):
    feeders = {"annotate", "continuation", "extraction", "feed", "filmstrips", "mirror"}
    feeders |= {"predictor", "segments", "told", "watch"}
    if module(path) not in {*ENTRY_POINTS, *(f"i2v.{name}" for name in feeders)}:
        assert not {name for name in ours(imports(path)) if name.startswith(("i2v.pipelines", "i2v.shard_tools"))}


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[:2] == ("i2v", "methods") and p.name != "__init__.py"], ids=str)
def test_methods_know_the_vit_and_not_each_other(path):
    assert others(imports(path)) <= {"torch", "einops"}
    allowed = ("i2v.batchnorm", "i2v.colours", "i2v.rules", "i2v.vit", "i2v.video", "i2v.tadaconv")
    assert all(name.startswith(allowed) for name in ours(imports(path)))


def test_the_vit_needs_torch_only():
    path = Path("i2v/vit.py")
    assert others(imports(path)) == {"torch"}
    assert all(name.startswith(("i2v.colours", "i2v.rules")) for name in ours(imports(path)))


@pytest.mark.parametrize("name", GROUND)
def test_the_ground_floor_stands_on_nothing(name):
    path = Path(*name.split(".")).with_suffix(".py")
    assert not others(imports(path)) and not ours(imports(path))


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "shard_tools"], ids=str)
def test_shard_tools_know_the_format_only(path):
    names = {name for name in ours(imports(path)) if not name.startswith("i2v.shard_tools")}
    allowed = (*GROUND, "i2v.pipelines.index", "i2v.pipelines.shards", "i2v.pipelines.store")
    assert all(name.startswith(allowed) for name in names)


PROGRAMS = [path for path in sorted((ROOT / "benchmarks").glob("*.py")) if '__name__ == "__main__"' in path.read_text()]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_a_benchmark_that_is_run_as_a_file_finds_the_repository(path):
    """In a fresh clone nothing else has put it on the path before the first of its modules is imported."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Expr) and ast.unparse(node).startswith("sys.path.insert(0, "):
            return
        assert not (isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("benchmarks", "i2v", "tests"))
