"""Rules: a value that keeps them passes, any other is told what it must be."""

from typing import Annotated

import numpy as np
import pytest

from i2v.rules import ODD, Count, at_least, between, broken, check, more_than, one_of

NAN, INF = float("nan"), float("inf")
CASES = [
    (int, [0, -3, np.int64(2)], [True, 1.0, "1", None], "a whole number"),
    (float, [0, 1.5, np.float32(2), -1], [NAN, INF, True, "1", None], "a finite number"),
    (bool, [True, False], [0, 1, "yes", None], "true or false"),
    (str, ["", "x"], [1, None, ["x"]], "text"),
    (list, [[], [1]], [(1,), "x", None], "a list"),
    (tuple[float, float], [(1, 2), [1, 2]], ["ab", 1], "a list"),
    (dict, [{}], [[], None], "a section"),
    (int | None, [None, 3], [1.5, "x"], "a whole number or null"),
    (Count, [1, 9], [0, -1, 1.5, True, NAN], "a whole number, at least 1"),
    (Count | None, [1, None], [0], "a whole number, at least 1 or null"),
    (Annotated[int, at_least(1), ODD], [1, 3], [2, 0, -1, 1.0], "a whole number, at least 1, odd"),
    (Annotated[float, more_than(0)], [0.1, 3], [0, -1, NAN, INF], "a finite number, more than 0"),
    (Annotated[float, between(0, 1)], [0, 0.5, 1], [-0.1, 1.1, NAN], "a finite number, from 0 to 1"),
    (Annotated[float, between(0, 1, below=True)], [0, 0.5], [1, -0.1, NAN], "a finite number, at least 0 and below 1"),
    (Annotated[str, one_of("a", "b", "c")], ["a", "c"], ["d", 1, None], "a, b or c"),
    (Annotated[int, one_of(1, 3)], [1, 3], [2, True, 1.0], "1 or 3"),
    (object, [1, None, "x"], [], ""),
]


@pytest.mark.parametrize("hint, good, bad, words", CASES, ids=[f"{i} {case[-1]}" for i, case in enumerate(CASES)])
def test_what_a_value_must_be(hint, good, bad, words):
    assert [broken(hint, value) for value in good] == [None] * len(good)
    assert [broken(hint, value) for value in bad] == [words] * len(bad)


def test_the_first_wrong_value_is_named():
    def build(spec, *, width: Count = 3, ratio: Annotated[float, between(0, 1)] = 0.5, name=None):
        pass

    check(build, {"width": 3, "ratio": 1, "name": object(), "unknown": 1}, "{name}{value}{rule}")
    with pytest.raises(ValueError, match="^ratio is '2': it must be a finite number, from 0 to 1.$"):
        check(build, {"width": 3, "ratio": "2"}, "{name} is {value}: it must be {rule}.")
