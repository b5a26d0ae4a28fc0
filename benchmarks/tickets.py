"""A small extraction task: a support ticket becomes one line of JSON, by rules that the answers alone show.

What the instruction does not say must be learned: which team has which products, how a number, a date and an amount are
written, when a ticket is urgent. One of three summaries is drawn for each ticket, so the loss has a floor above 0.
All tickets are functions of the seed; no two are the same.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

INSTRUCTION = (
    "You read tickets to the support desk of Larkspur, which sells outdoor equipment, and write what a clerk needs as "
    "one line of JSON with the keys team, issue, order, bought, refund_cents, urgent and summary, in this order. "
    "Teams are named by their codes, issues by the desk's terms. An order number, a date or an amount that the ticket "
    "does not give is null. Add no explanation and no other key."
)
TEAMS = {
    "T-CAMP": ("tent", "sleeping bag", "camping stove", "folding chair", "lantern"),
    "T-FOOT": ("hiking boots", "trail shoes", "sandals", "gaiters"),
    "T-RIDE": ("bike helmet", "pannier bag", "cycling jersey", "repair kit"),
    "T-PACK": ("rucksack", "duffel bag", "hydration bladder", "waist pack"),
    "T-CLIMB": ("climbing harness", "carabiner set", "chalk bag", "rope"),
}
ISSUES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "DEFECT": (
        (
            "The {p} broke on the first trip.",
            "A seam of my {p} came apart.",
            "My new {p} fell to pieces after two days.",
        ),
        ("{p} broken in use", "{p} failed early", "defective {p}"),
    ),
    "LATE": (
        (
            "The {p} still has not arrived.",
            "Where is my {p}?",
            "I have been waiting for the {p} for ages.",
        ),
        ("{p} not delivered yet", "delivery of {p} overdue", "waiting for {p}"),
    ),
    "WRONG_ITEM": (
        (
            "You sent the {p} in the wrong size.",
            "The {p} in the box is not the colour I ordered.",
            "This is not the {p} I chose.",
        ),
        ("wrong {p} delivered", "{p} not as ordered", "other {p} than ordered"),
    ),
    "RETURN": (
        (
            "I would like to send the {p} back.",
            "The {p} does not suit me, how do I return it?",
            "Please take the {p} back.",
        ),
        ("customer returns {p}", "return of {p} wanted", "{p} to be sent back"),
    ),
    "CHARGE": (
        (
            "I was charged twice for the {p}.",
            "The invoice for the {p} is too high.",
            "My card was billed for a {p} I cancelled.",
        ),
        ("billing error for {p}", "{p} charged wrongly", "invoice for {p} disputed"),
    ),
    "QUESTION": (
        (
            "How do I clean the {p}?",
            "Is there a spare part for the {p}?",
            "Does the {p} come with a warranty?",
        ),
        ("question about {p}", "{p}: customer asks", "information on {p} wanted"),
    ),
}  # fmt: skip
DANGER = ("Someone could have been hurt.", "It nearly caused an accident.")
HURRY = ("We leave tomorrow.", "I need it by the weekend.")
CALM = ("No hurry.", "Thanks for your help.", "Kind regards.", "Please let me know.", "")


def tickets(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """So many different conversations, each {"messages": [system, user, assistant]}."""
    draw, seen = random.Random(f"tickets {seed}"), set[str]()
    while len(seen) < count:
        text, answer = _ticket(draw)
        if text not in seen:
            seen.add(text)
            roles = ("system", INSTRUCTION), ("user", text), ("assistant", answer)
            yield {"messages": [{"role": role, "content": content} for role, content in roles]}


def write_tickets(folder: Path) -> tuple[Path, Path]:
    """Write 200 training and 40 validation tickets to `folder`; returns the two files."""
    records = list(tickets(240, 19))
    paths = folder / "tickets_train.jsonl", folder / "tickets_val.jsonl"
    for path, part in zip(paths, (records[:200], records[200:]), strict=True):
        path.write_text("".join(json.dumps(record) + "\n" for record in part), encoding="utf-8")
    return paths


def _ticket(draw: random.Random) -> tuple[str, str]:
    team = draw.choice(sorted(TEAMS))
    product, issue = draw.choice(TEAMS[team]), draw.choice(sorted(ISSUES))
    complaints, summaries = ISSUES[issue]
    sentences = [draw.choice(complaints).format(p=product)]
    order = bought = cents = None
    if draw.random() < 0.7:
        number = draw.randrange(100, 99_999)
        order = f"LK-{number:06d}"
        sentences.append(draw.choice(("Order {0}.", "My order number is {0}.", "It is order no. {0}.")).format(number))
    if draw.random() < 0.7:
        day = date(2024, 1, 1) + timedelta(draw.randrange(730))
        bought = day.isoformat()
        written = draw.choice((f"{day.day} {day:%B} {day.year}", f"{day:%d/%m/%Y}", f"{day:%B} {day.day}, {day.year}"))
        sentences.append(draw.choice(("I bought it on {0}.", "Bought {0}.", "Purchased on {0}.")).format(written))
    if issue in ("DEFECT", "CHARGE", "RETURN") and draw.random() < 0.7:
        cents = draw.randrange(5, 400) * 100 + draw.choice((0, 50, 90, 95, 99))
        euros = f"{cents // 100}.{cents % 100:02d}"
        written = draw.choice((f"{euros} euros", f"€{euros}", f"EUR {euros}"))
        sentences.append(draw.choice(("Please refund {0}.", "I want {0} back.", "It cost {0}.")).format(written))
    urgent = draw.random() < 0.35
    middle = sentences[1:]
    draw.shuffle(middle)
    last = draw.choice(DANGER + HURRY) if urgent else draw.choice(CALM)
    text = " ".join([draw.choice(("Hello.", "Hi,", "Good morning.", "")), sentences[0], *middle, last]).strip()
    answer = {
        "team": team, "issue": issue, "order": order, "bought": bought, "refund_cents": cents, "urgent": urgent,
        "summary": draw.choice(summaries).format(p=product),
    }  # fmt: skip
    return text, json.dumps(answer)
