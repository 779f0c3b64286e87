"""A task: which records, which recipe, which keys; and how the records it joins are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from fabric.errors import InvalidInput, Reason, nearest
from sanitize import risk
from sanitize.reading import read_whole
from sanitize.recipe import Column, Recipe
from sanitize.sources import Source

MAX_JOINED_BYTES = 1 << 30

Rights = Mapping[str, tuple[pa.Array, pa.Table]]
"""For each records that are joined in, its key and its columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be sanitized, and how.

    Attributes:
        hold_back: share of the rows, from 0 to less than 1, that is sealed apart.
        seed: changes the order of rows; the records' own bytes are its secret part.
        secret: 32 bytes of the fabric's own, from which the keys of subjects and purposes are derived.
        limits: what the risk of the whole must keep to; the recipe can only make it stricter.
        earlier: quasi-identifiers of earlier releases of these records: measured together with this one's, not sealed.
        surrogates: gives random surrogates for values of a column, the same for a value that was seen before.
        chunk_rows: rows in each sealed chunk.
    """

    recipe: Recipe
    sources: Mapping[str, Source]
    hold_back: float
    seed: int
    secret: bytes = field(repr=False)
    limits: risk.Limits
    earlier: tuple[Column, ...] = ()
    surrogates: Callable[[str, Sequence[str]], Sequence[int]]
    chunk_rows: int = 65_536

    def __post_init__(self) -> None:
        if not 0 <= self.hold_back < 1:
            raise InvalidInput(Reason.CONFIG_INVALID, "hold_back is not a share", "use 0 to less than 1")
        if self.seed < 0:
            raise InvalidInput(Reason.CONFIG_INVALID, "the seed is negative", "use 0 or more")

    @property
    def main(self) -> Source:
        """Return the records that the recipe starts from."""
        return self.sources[self.recipe.records]


def wanted(task: Task) -> dict[str, list[str]]:
    """Return the columns to read, by records."""
    recipe = task.recipe
    read = [*recipe.reads(), *(s for c in task.earlier for s in (c.source, *c.also_reads))]
    found: dict[str, dict[str, None]] = {name: {} for name in recipe.sources}
    for column in read:
        records, _, inner = column.partition(".")
        if records in recipe.joins and inner in task.sources[records].columns:
            found[records][inner] = None
        else:
            found[recipe.records][column] = None
    for name, join in recipe.joins.items():
        found[recipe.records][join.left] = None
        found[name][join.right] = None
    return {name: list(columns) for name, columns in found.items()}


def rights_of(task: Task) -> dict[str, tuple[pa.Array, pa.Table]]:
    """Return, for each records that are joined in, its key and its columns, in memory."""
    rights, main = {}, task.main
    for name, join in task.recipe.joins.items():
        source = task.sources[name]
        for key, columns, of in ((join.left, main.columns, main), (join.right, source.columns, source)):
            if key not in columns:
                message = f"the join with {name!r} needs the column {key!r}, which {of.name!r} does not have"
                raise InvalidInput(Reason.COLUMN_MISSING, message, nearest(key, columns))
        table = read_whole(source, wanted(task)[name]).table.combine_chunks()
        if table.nbytes > MAX_JOINED_BYTES:
            raise InvalidInput(
                Reason.RECORDS_UNREADABLE,
                f"records {name!r} are too large to be joined in ({table.nbytes:,} bytes)",
                "join them beforehand, or let the recipe start from the larger records",
            )
        rights[name] = (_key(task, name, table.column(join.right)), table)
    return rights


def joined(task: Task, rights: Rights, block: pa.Table, unmatched: dict[str, int]) -> pa.Table:
    """Return the block with the columns of the joined records; rows without a match are counted and have nulls."""
    left = block
    for name, (key, table) in rights.items():
        keys = block.column(task.recipe.joins[name].left)
        if keys.type != key.type:
            keys = keys.cast(pa.string())
        index = pc.index_in(keys, value_set=key, skip_nulls=True)
        unmatched[name] += int(index.null_count)
        for column in table.column_names:
            left = left.append_column(f"{name}.{column}", table.column(column).take(index))
    return left


def _key(task: Task, name: str, offered: pa.ChunkedArray) -> pa.Array:
    (first, *_) = task.main.read(0, [task.recipe.joins[name].left])
    if first.column(0).type != offered.type:
        offered = offered.cast(pa.string())
    if pc.count_distinct(offered).as_py() != len(offered) - offered.null_count:
        raise InvalidInput(
            Reason.RECORDS_UNREADABLE,
            f"records {name!r}: the key {task.recipe.joins[name].right!r} occurs more than once",
            "join on a column whose values are unique",
        )
    return offered.combine_chunks()
