"""What a value may be, said once, beside the field or the argument that holds it:

    stride: Annotated[int, at_least(1)] = 16
    drop_path: Annotated[float, between(0, 1, below=True)] = 0.0

The ground floor: every room may stand on it, it stands on nothing.
"""

from __future__ import annotations

import math
import numbers
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """words: what comes after "it must be", after those of the type (alone: instead of those)."""

    words: str
    holds: Callable[[typing.Any], bool]
    alone: bool = False


def at_least(least: float) -> Rule:
    return Rule(f"at least {least}", lambda value: value >= least)


def more_than(least: float) -> Rule:
    return Rule(f"more than {least}", lambda value: value > least)


def between(least: float, most: float, below: bool = False) -> Rule:
    """From `least` to `most`; below: without `most` itself."""
    if below:
        return Rule(f"at least {least} and below {most}", lambda value: least <= value < most)
    return Rule(f"from {least} to {most}", lambda value: least <= value <= most)


def multiple_of(step: int) -> Rule:
    return Rule(f"a multiple of {step}", lambda value: value > 0 and value % step == 0)


def one_of(*values) -> Rule:
    names = [str(value) for value in values]
    words = " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
    return Rule(words, lambda value: value in values, alone=True)


def different(words: str, holds: Callable[[float], bool]) -> Rule:
    """Of a list: one or more numbers, no two alike, and each as it should be; words: all there is to say."""

    def fine(values: list) -> bool:
        return all(is_finite(value) and holds(value) for value in values) and 0 < len(values) == len(set(values))

    return Rule(words, fine, alone=True)


Count = typing.Annotated[int, at_least(1)]
ODD = Rule("odd", lambda value: value % 2 == 1)


def counts(number: int) -> Rule:
    """So many whole numbers, each at least 1."""
    fine = lambda value: len(value) == number and all(is_whole(each) and each >= 1 for each in value)  # noqa: E731
    return Rule(f"{number} whole numbers, each at least 1", fine)


def is_whole(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_finite(value) -> bool:
    """Whether it is a number that a float can hold: whole numbers have no limit of their own."""
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


COLOURS = Rule("three numbers", lambda value: len(value) == 3 and all(map(is_finite, value)))

TYPES: dict[object, tuple[str, Callable]] = {
    int: ("a whole number", is_whole),
    float: ("a finite number", is_finite),
    str: ("text", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    list: ("a list", lambda value: isinstance(value, list)),
    tuple: ("a list", lambda value: isinstance(value, (list, tuple))),
    dict: ("a section", lambda value: isinstance(value, dict)),
    type(None): ("null", lambda value: value is None),
}


def broken(hint, value) -> str | None:
    """What the value must be, in words, if it is not that; hint: a type, `Annotated` with rules, or several with |."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        wanted = [broken(part, value) for part in typing.get_args(hint)]
        return None if None in wanted else " or ".join(wanted)
    base, *rules = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    rules = [rule for rule in rules if isinstance(rule, Rule)]
    words, fits = TYPES.get(typing.get_origin(base) or base, ("", lambda _: True))
    if fits(value) and all(rule.holds(value) for rule in rules):
        return None
    alone = [rule.words for rule in rules if rule.alone]
    return alone[0] if alone else ", ".join([words, *(rule.words for rule in rules)])


def check(owner, values: dict, sentence: str) -> None:
    """Raises ValueError for the first of the values that breaks the rule of its field or argument of `owner`.

    sentence: with {name}, {value} and {rule}.
    """
    hints = typing.get_type_hints(owner, include_extras=True)
    for name, value in values.items():
        rule = broken(hints[name], value) if name in hints else None
        if rule is not None:
            raise ValueError(sentence.format(name=name, value=repr(value), rule=rule))
