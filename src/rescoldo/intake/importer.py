"""A source's rows as a dataset file: all rows, or none if one has a fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rescoldo.data.fix import refuse_existing, unwritable
from rescoldo.errors import RescoldoError
from rescoldo.files import write_atomic
from rescoldo.intake.columns import Plan, fitting_role, make_plan
from rescoldo.intake.source import Row, Source
from rescoldo.role import Role, get_role
from rescoldo.units import count

LOOKED_AT = 200  # the first rows, from which the columns are recognized
SHOWN = 5  # faults in a message
KEPT = 100  # faults that are kept
_LATER = ("meaning", "unknown-key")  # faults for which `train` may refuse a record that is imported unchanged


@dataclass
class Imported:
    """The result of an import.

    Attributes:
        records: number written (in a dry run: that would be written).
        rows: number read, without blank ones.
        faults: (where, what) of rows left out; at most KEPT of them.
        unread: the same for records that are imported although `train` would refuse them unchanged.
    """

    records: int = 0
    rows: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)
    unread_records: int = 0


@dataclass(frozen=True)
class Preview:
    """A source's first rows and the records made from them; rows with faults have no record."""

    plan: Plan
    columns: list[str]
    rows: list[Row]
    records: list[dict[str, Any]]


def preview(
    source: Source, role: str | None = None, given: Mapping[str, str] | None = None, without: Sequence[str] = ()
) -> Preview:
    """Read the first rows and map the columns. With `role` None the role is derived from the columns.

    Raises:
        RescoldoError: nothing can be read, or no columns for input and answer were recognized.
    """
    with source.read() as (rows, _):
        first = list(islice(rows, LOOKED_AT))
    readable = [row for row in first if row.values is not None]
    columns = list(dict.fromkeys(name for row in readable for name in row.values or ()))
    if not columns:
        _refuse_unreadable(source, first)
    the_role: Role = get_role(role or fitting_role(columns, given or {}))
    plan = make_plan(the_role, columns, source.tabular, given or {}, without, str(source.path))
    records = [record for row in readable if not (made := plan.record(row))[1] for record in [made[0]] if record]
    return Preview(plan, columns, first, records)


def _refuse_unreadable(source: Source, rows: Sequence[Row]) -> None:
    for row in rows:
        for column, what in row.faults:
            raise RescoldoError(what, where=_place(row, column), fix="correct it there")
    raise RescoldoError("holds no rows", where=str(source.path), fix="a header and at least one row are expected")


def import_rows(
    source: Source,
    plan: Plan,
    output: Path | None,
    *,
    drop: bool = False,
    progress: Callable[[int, float], None] = lambda rows, share: None,
) -> Imported:
    """Write all rows as JSON Lines, or only check them if `output` is None. Memory use is independent of the number of
    rows.

    Args:
        drop: leave out rows with faults instead of refusing the file.
        progress: called with the number of rows read and the fraction of the file.

    Raises:
        RescoldoError: a row has faults (the first ones are named), or no row is left; in this case nothing is written.
    """
    if output is None:
        result = _run(source, plan, None, progress)
        _refuse(source, result, drop)
        return result
    refuse_existing(output)
    done: list[Imported] = []

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            done.append(_run(source, plan, file, progress))
        _refuse(source, done[0], drop)

    try:
        write_atomic(output, write)
    except OSError as error:
        raise unwritable(output, error) from None
    return done[0]


def _run(source: Source, plan: Plan, file: IO[bytes] | None, progress: Callable[[int, float], None]) -> Imported:
    result = Imported()
    with source.read() as (rows, share):
        for row in rows:
            result.rows += 1
            record, faults = ({}, row.faults) if row.values is None else plan.record(row)
            faults = [*row.faults, *faults] if row.values is not None else faults
            if not faults and not record:
                faults = [("", "has no value in any column that is read")]
            found = [(_place(row, column), what) for column, what in faults]
            wrong, unread = ([], []) if found else _checked(plan, row, record)
            found += wrong
            if found:
                result.faults += found if len(result.faults) < KEPT else []
            else:
                result.records += 1
                if unread:
                    result.unread_records += 1
                    result.unread += unread if len(result.unread) < KEPT else []
                if file is not None:
                    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            progress(result.rows, share())
    return result


def _checked(plan: Plan, row: Row, record: dict[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The faults of a record, and what `train` would refuse in it."""
    try:
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return [(row.where, "holds half of a surrogate pair")], []
    except (ValueError, TypeError, RecursionError) as error:
        return [(row.where, f"cannot be written as JSON ({error})")], []
    wrong: list[tuple[str, str]] = []
    unread: list[tuple[str, str]] = []
    columns = {target: column for column, target in plan.targets.items() if target}
    if plan.carried:
        missing = [field for field in plan.carried if field not in record]
        return [(_place(row, columns.get(field, field)), "is missing") for field in missing], []
    for fault in plan.role.check(record, str(row.where), row.number):
        if fault.level != "error":
            continue
        column = columns.get(fault.field, fault.field)
        said = (_place(row, column), fault.what)
        (unread if fault.code in _LATER else wrong).append(said)
    return wrong, [] if wrong else unread


def _place(row: Row, column: str) -> str:
    return f"{row.where}, {column}" if column else row.where


def _refuse(source: Source, result: Imported, drop: bool) -> None:
    """Raise RescoldoError if the result must not be written."""
    bad = result.rows - result.records
    if bad and (not drop or not result.records):
        where, what = result.faults[0]
        others = "".join(f"\n  {place}: {other}" for place, other in result.faults[1:SHOWN])
        more = f"\n{count(bad, 'row')} of {result.rows:,} cannot be imported{'; also' if others else ''}{others}"
        fix = "fix the rows there, or leave them out with --drop: each is named"
        if not result.records:
            fix = "are these the right columns (--map) and the right --role?"
        raise RescoldoError(what + more, where=where, fix=fix)
    if not result.rows:
        raise RescoldoError("holds no rows", where=str(source.path))


def first_lines(records: Sequence[Mapping[str, Any]], number: int, width: int) -> Iterator[str]:
    """The first records as lines of the output file, cut to a width."""
    for record in records[:number]:
        text = json.dumps(record, ensure_ascii=False)
        yield text if len(text) <= width else text[: width - 1] + "…"
