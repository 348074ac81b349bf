"""Class names from a file, in whatever form it has them, and what it was taken for."""

import csv
import json
import os
import re
from typing import NamedTuple

from i2v.pipelines.index import Factors
from i2v.shard_tools.lists.class_lines import Found, are_numbers, either_in_order, from_columns, from_text, integers, unquoted
from i2v.shard_tools.paths import SourceError, exists, is_folder, join, read_text

FORMS = (
    "one name per line, numbered lines as classInd.txt has, a CSV file with a header as index,name, shards or their "
    "manifest.json, or JSON: a list of names, {name: index}, {index: name}, a list of {id, name} or {factors: {name: list}}"
)
WRAPPERS = ("classes", "categories", "names", "labels", "class_names")  # keys of a JSON object that hold the list


class ClassList(NamedTuple):
    """Class names, and how their file was understood."""

    names: list[str] | Factors  # in order: a class's label is its place; or those of each factor
    note: str  # a sentence to print


def read_class_list(path: str | os.PathLike) -> ClassList:
    """Class names in order, from a file in any of FORMS, in UTF-8 or UTF-16 with a mark, or from shards' folder.

    Numbers beside the names decide the order, not the file; they begin at 0 or 1 and none is left out. Names of a
    manifest.json are taken as they are; others lose the white space around them. Of JSON with `factors`, as the manifest of a
    factored data set has, come the names of each factor. Raises SourceError.
    """
    path = os.fspath(path)
    if is_folder(path):
        folder, path = path, join(path, "manifest.json")
        if not exists(path):
            raise SourceError(f"{folder} is a folder without a manifest.json: give shards, or a file of class names.")
    text = read_text(path, utf16=True).replace("\ufeff", "")  # files that were joined have a mark inside
    is_json = path.lower().endswith(".json") or re.match(r'\s*[\[{]\s*(["\'\[{]|[0-9]+\s*:)', text)
    try:
        names, how = _from_json(text) if is_json else from_text(text)
        if isinstance(names, dict):
            return ClassList(names, f"class names are those of {path}, {how}.")
        if not names:
            raise ValueError("it is empty, without any class name")
        if not all(names):
            raise ValueError(f"class {names.index('')} (from 0) has no name")
        _refuse_repeats(names)
    except (ValueError, RecursionError, csv.Error) as error:
        raise SourceError(f"the class list {path} cannot be used: {error}.") from error
    return ClassList(names, f"class names are those of {path}: {len(names):,} {'names' if len(names) > 1 else 'name'}, {how}.")


def _from_json(text: str) -> Found | tuple[Factors, str]:
    try:
        data = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    ours = isinstance(data, dict) and {"classes", "shards"} <= data.keys()
    while isinstance(data, dict):
        if data.get("factors"):
            return _from_factors(data["factors"])
        inner = next((data[key] for key in WRAPPERS if isinstance(data.get(key), (list, dict))), None)
        if inner is None:
            return _from_object(data)
        data = inner
    if isinstance(data, list) and data and all(isinstance(each, dict) for each in data):
        header, rows = list(data[0]), []
        for number, each in enumerate(data, 1):
            rows.append((f"entry {number}", ["" if each.get(key) is None else str(each[key]).strip() for key in header]))
        return from_columns(header, rows)
    names = [" ".join(each) if _is_words(each) else each for each in data] if isinstance(data, list) else [None]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"it is none of these: {FORMS}")
    return [name if ours else name.strip() for name in names], "in listed order"


def _from_factors(factors) -> tuple[Factors, str]:
    if not isinstance(factors, dict) or len(factors) < 2:
        raise ValueError("its factors are not several, each with a list of names")
    for factor, names in factors.items():
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"its factor {factor} is no list of names")
        _refuse_repeats(names)
    return factors, " and ".join(f"{len(names):,} of {factor}" for factor, names in factors.items())


def _is_words(data) -> bool:
    """Diving48's names are lists of four words."""
    return isinstance(data, list) and all(isinstance(word, str) for word in data)


def _from_object(data: dict) -> Found:
    """{name: index} or {index: name}."""
    keys, values, readings = list(data), list(data.values()), []
    if all(_is_index(value) for value in values):
        readings.append((integers(values), [unquoted(key) for key in keys]))
    if are_numbers(keys) and all(isinstance(value, str) for value in values):
        readings.append((integers(keys), [value.strip() for value in values]))
    if not data or not readings:
        raise ValueError(f"it is none of these: {FORMS}")
    return either_in_order([repr(key) for key in keys], readings)


def _is_index(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) or isinstance(value, str) and are_numbers([value])


def _without_repeats(pairs: list[tuple]) -> dict:
    _refuse_repeats([key for key, _ in pairs])
    return dict(pairs)


def _refuse_repeats(names: list[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names {twice!r} more than once")
