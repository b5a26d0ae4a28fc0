"""A spreadsheet's number formats (ECMA-376, 18.8.30), as far as they change what a reader takes a number for.

A workbook holds 0.25 where the sheet shows 25%. Percentages are taken as they are shown; what else a format adds to a
number (a currency, a unit) is not part of the cell's value, and is reported.
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal

# what a format shows as it is ("text", \x), leaves room for (_x) or repeats (*x), and [colours, conditions, currencies]
_LITERAL = re.compile(r'"([^"]*)"|\\(.)|[_*].|\[([^\]]*)\]')
_PERCENT = re.compile(r"-?(?P<whole>[#0?,]+)(?:\.(?P<decimals>[#0?]+))?(?P<space>[ \u00a0\u202f]*)%")
_SIGNS = re.compile(r"[-+()\s]*")
_SCALED = re.compile(r"[#0?],+(?![#0?,])")  # commas behind the last digit divide by 1000 each


def percentage(value: float, number_format: str) -> str | None:
    """The text that a cell with a percentage shows ("25%", "12.5 %"); None where its format is no percentage."""
    if "%" not in number_format:
        return None
    sections = _sections(number_format)
    section = sections[0]
    if value < 0 and len(sections) > 1:
        section = sections[1]
    elif value == 0 and len(sections) > 2:
        section = sections[2]
    bare = _LITERAL.sub("", section).strip()
    if "%" not in bare:
        return None
    found = _PERCENT.fullmatch(bare)
    percent = 100 * Decimal(repr(value))
    if not found or abs(percent) >= 10**15:
        return f"{percent.normalize():f}%"
    decimals = found["decimals"] or ""
    shown = percent.quantize(Decimal(1).scaleb(-len(decimals)), ROUND_HALF_UP)
    text = f"{shown:{',' if ',' in found['whole'] else ''}f}"
    optional = len(decimals) - len(decimals.rstrip("#"))
    if optional:
        text = re.sub(rf"\.?0{{1,{optional}}}$", "", text) if "." in text else text
    return f"{text}{found['space']}%"


def unapplied(number_format: str) -> bool:
    """Whether a format that is no percentage shows more than the number, or another one: a currency, a unit, a number
    of thousands."""
    first = _sections(number_format)[0]
    added = [quoted or escaped or _currency(bracket) for quoted, escaped, bracket in _LITERAL.findall(first)]
    if any(not _SIGNS.fullmatch(text) for text in added):
        return True
    bare = _LITERAL.sub("", first)
    return bool(_SCALED.search(bare)) or any(sign in bare for sign in "$€£¥/")


def _currency(bracket: str) -> str:
    """[$€-407] shows €; [Red], [>100] and [$-409] show nothing."""
    return bracket[1:].partition("-")[0] if bracket.startswith("$") else ""


def _sections(number_format: str) -> list[str]:
    """For positive numbers, negative ones, zero and texts; those that the format has."""
    parts, start = [], 0
    covered = [found.span() for found in _LITERAL.finditer(number_format)]
    for place, sign in enumerate(number_format):
        if sign == ";" and not any(begin <= place < end for begin, end in covered):
            parts.append(number_format[start:place])
            start = place + 1
    return [*parts, number_format[start:]]
