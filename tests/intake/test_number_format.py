"""Numbers as a workbook shows them."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescoldo.intake.number_format import percentage, unapplied
from rescoldo.intake.open import open_source


@pytest.mark.parametrize(
    ("value", "shape", "shown"),
    [
        (0.25, "0%", "25%"),
        (0.125, "0%", "13%"),  # as Excel rounds: half away from zero
        (-0.125, "0%", "-13%"),
        (0.285, "0%", "29%"),  # 0.285 is below in binary
        (0.1234, "0.00%", "12.34%"),
        (0.12, "0.00%", "12.00%"),
        (0.12, "0.##%", "12%"),
        (0.1205, "0.0##%", "12.05%"),
        (1, "0%", "100%"),
        (12.5, "#,##0%", "1,250%"),
        (0.25, "0 %", "25 %"),
        (0.25, "0\u00a0%", "25\u00a0%"),
        (0.25, "[Red]0%", "25%"),
        (-0.5, "0%;[Red]-0%", "-50%"),
        (0, "0%;-0%;0.0%", "0.0%"),
        (0.25, "0%_)", "25%"),
        (0.25, "?/? %", "25%"),  # nobody writes this: the number is right all the same
        (1e300, "0%", f"1{'0' * 302}%"),
    ],
)
def test_percentages(value: float, shape: str, shown: str) -> None:
    assert percentage(value, shape) == shown


@pytest.mark.parametrize("shape", ["General", "0", "0.00", "#,##0", '0" %"', "0\\%", "@", "", "0.00E+00"])
def test_what_is_no_percentage(shape: str) -> None:
    assert percentage(0.25, shape) is None
    assert not unapplied(shape) or "%" in shape


@pytest.mark.parametrize(
    "shape",
    ['#,##0.00 "€"', "[$€-407] #,##0.00", "$#,##0", '0" kg"', "0.0,,", "_-* #,##0.00 €_-", "# ?/?", '0.0,"k"', "0\\h"],
)
def test_formats_that_add_something(shape: str) -> None:
    assert unapplied(shape)


@pytest.mark.parametrize(
    "shape", ["General", "0.00", "#,##0", "#,##0.00_);[Red](#,##0.00)", "[>100]0;0.0", "0\\ ", "0.00E+00", "000", "@"]
)
def test_formats_that_add_nothing(shape: str) -> None:
    assert not unapplied(shape)


@given(
    st.text(alphabet='0#?,.%;"\\[]$€_*- aE/()', max_size=20),
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
)
def test_any_format(shape: str, value: float) -> None:
    shown = percentage(value, shape)
    assert shown is None or shown.endswith("%")
    unapplied(shape)


def test_a_sheet_is_imported_as_it_is_shown(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["share", "price", "day", "count"])
    rows: list[list[tuple[Any, str]]] = [
        [(0.25, "0%"), (1234.5, "#,##0.00 €"), (datetime.date(2024, 5, 1), "dd/mm/yyyy"), (3, "General")],
        [(0.125, "0.0 %"), (2, "0.00"), (datetime.date(2024, 5, 2), "mmm yy"), (4.5, "0")],
    ]
    for cells in rows:
        sheet.append([value for value, _ in cells])
        for cell, (_, shape) in zip(sheet[sheet.max_row], cells, strict=True):
            cell.number_format = shape
    book.save(tmp_path / "t.xlsx")
    source = open_source(str(tmp_path / "t.xlsx"))
    with source.read() as (found, _):
        assert [row.values for row in found] == [
            {"share": "25%", "price": 1234.5, "day": "2024-05-01", "count": 3},
            {"share": "12.5 %", "price": 2, "day": "2024-05-02", "count": 4.5},
        ]
    assert [note for note in source.notes if "column" in note] == [
        "column 'price': numbers without their format (#,##0.00 €)"
    ]
