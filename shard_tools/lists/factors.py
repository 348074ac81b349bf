"""Labels of several factors, such as a verb and a noun: the names of each, and the combination that every row stands for."""

from i2v.pipelines.index import BETWEEN, Factors, combinations, combined
from i2v.shard_tools.lists.labels import MOST_CLASSES, indices, names_that_occur, readable, refuse_alike, remarks
from i2v.shard_tools.lists.source import Row
from i2v.shard_tools.paths import SourceError


def resolve(
    rows: list[Row], own: dict[str, list[str] | None], given: Factors | None, source: str, where: object, notes: list[str]
) -> tuple[list[int], Factors]:
    """The label of every row, and the factors with their names: given, else the data set's own, else those that occur.

    given: from `where`, with the same factors. A factor's labels are all names, or all integers from 0. Raises SourceError.
    """
    if given is not None and list(given) != list(own):
        raise SourceError(
            f"{where} has the factors {', '.join(given)}, and {source} {', '.join(own)}: give another class list."
        )
    factors, parts = {}, []
    for place, (factor, names) in enumerate(own.items()):
        column = [row._replace(label=row.label[place]) for row in rows]
        empty = next((row for row in column if row.label is None), None)
        if empty is not None:
            raise SourceError(f"{empty.where} of {source} has no {factor}: label all videos with all factors or with none.")
        names = given[factor] if given is not None else names
        column = readable(column, set(names or ()), source, notes)
        factors[factor] = names or names_that_occur(column, source)
        refuse_alike(factors[factor], source)
        parts.append(indices(column, factors[factor], source, f"{where} for {factor}"))
        notes += remarks(parts[-1], factors[factor], f"classes of {factor}")
    _refuse_impossible(factors, source)
    return [combined(labels, factors) for labels in zip(*parts)], factors


def _refuse_impossible(factors: Factors, source: str) -> None:
    if len(factors) < 2:
        raise SourceError(
            f"{', '.join(factors)} is the only factor of {source}: call its column label, as factors are several."
        )
    names = combinations(factors)
    if len(names) > MOST_CLASSES:
        raise SourceError(f"{source} has {len(names):,} combinations of its factors, more than {MOST_CLASSES:,}: use fewer.")
    if len(set(names)) < len(names):
        raise SourceError(
            f"Names of factors of {source} hold {BETWEEN!r}, so combinations have the same name: write them else."
        )
