"""The BA metric against hand-worked cases and properties."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rescoldo.errors import RescoldoError
from rescoldo.role import get_role
from rescoldo.role.ba import COMPONENTS, LISTS

ROLE = get_role("ba")
INSTRUCTION = str(ROLE.spec.prompt).removesuffix("{{ concept | trim }}")


def item(identifier: str, priority: str = "High") -> dict[str, str]:
    return {"id": identifier, "description": f"What {identifier} says.", "priority": priority}


def answer(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "title": "A title of a product",
        "description": "x" * 100,
        "functional_requirements": [item("FR001"), item("FR002", "Medium"), item("FR003", "Low")],
        "non_functional_requirements": [item("NFR001"), item("NFR002")],
        "constraints": [item("C001"), item("C002")],
    }
    fields.update(changes)
    return {name: value for name, value in fields.items() if value is not Ellipsis}


def text(**changes: Any) -> str:
    return yaml.safe_dump(answer(**changes), sort_keys=False, allow_unicode=True)


def record(**changes: Any) -> dict[str, Any]:
    return {"concept": " A booking system. ", "requirements": answer(**changes)}


def test_perfect_answer_is_one() -> None:
    score = ROLE.score(text())
    assert score.total == 1.0
    assert score.components == dict.fromkeys(COMPONENTS, 1.0)
    assert score.notes == []


THIRD = pytest.approx(1 / 3)
TWO_THIRDS = pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"title": ...}, {"completeness": 0.8, "title": 0.0}),
        ({"title": ""}, {"completeness": 0.8, "title": 0.0}),
        ({"title": None}, {"completeness": 0.8, "title": 0.0}),
        ({"title": "123456789"}, {"title": 0.0}),
        ({"title": "1234567890"}, {}),
        ({"title": "  123456789  "}, {"title": 0.0}),
        ({"title": "t" * 100}, {}),
        ({"title": "t" * 101}, {"title": 0.0}),
        ({"title": "ñandúñandú"}, {}),
        ({"description": "d" * 99}, {"description": 0.0}),
        ({"description": ["d" * 100]}, {"description": 0.0}),
        ({"constraints": ...}, {"completeness": 0.8, "constraints": 0.0}),
        ({"constraints": []}, {"completeness": 0.8, "constraints": THIRD}),
        ({"constraints": "one, two"}, {"constraints": 0.0}),
        ({"constraints": {"C001": "a", "C002": "b"}}, {"constraints": 0.0}),
        ({"constraints": [item("C001")]}, {"constraints": TWO_THIRDS}),
        ({"constraints": ["one", "two"]}, {"constraints": TWO_THIRDS}),
        ({"constraints": [item("C001"), {**item("C002"), "priority": "high"}]}, {"constraints": TWO_THIRDS}),
        ({"constraints": [item("C001"), {**item("C002"), "priority": True}]}, {"constraints": TWO_THIRDS}),
        ({"constraints": [item("C001"), {**item("C002"), "description": " "}]}, {"constraints": TWO_THIRDS}),
        (  # 6 IDs left, all right; the item without one costs a third
            {"constraints": [item("C001"), {**item("C002"), "id": ""}]},
            {"constraints": TWO_THIRDS, "id_format": 1.0},
        ),
        ({"constraints": [{"priority": "Soon"}]}, {"constraints": THIRD, "id_format": 1.0}),
        ({"constraints": [item("C01"), item("C002")]}, {"id_format": pytest.approx(6 / 7)}),
        ({"constraints": [item("FR001"), item("C002")]}, {"id_format": pytest.approx(6 / 7)}),
        ({"constraints": [item("c001"), item("C0002")]}, {"id_format": pytest.approx(5 / 7)}),
        ({"constraints": [item("C001"), item("C001")]}, {"id_format": pytest.approx(5 / 7)}),
        ({"constraints": [item("C\u0661\u0661\u0661"), item("C002")]}, {"id_format": pytest.approx(6 / 7)}),
        ({"constraints": [{**item("C001"), "id": 1}, item("C002")]}, {"id_format": pytest.approx(6 / 7)}),
        ({"constraints": [item("C007"), item("C003")]}, {}),
    ],
)
def test_components_by_hand(changes: dict[str, Any], expected: dict[str, float]) -> None:
    score = ROLE.score(text(**changes))
    wanted = {**dict.fromkeys(COMPONENTS, 1.0), **expected}
    assert score.components == wanted
    assert score.total == pytest.approx(sum(score.components.values()) / 7)
    if any(value != 1.0 for value in score.components.values()):
        assert score.notes


def test_no_ids_at_all_is_zero() -> None:
    lists = {name: [{"description": "d", "priority": "Low"}] * 2 for name in LISTS}
    assert ROLE.score(text(**lists)).components["id_format"] == 0.0


def test_two_digit_ids_of_older_files() -> None:
    short = {name: [item(f"{prefix}01"), item(f"{prefix}02")] for name, prefix in LISTS.items()}
    score = ROLE.score(text(**short))
    assert score.total == pytest.approx(6 / 7)
    assert "id_format: FR01 in functional_requirements[0] is not FR and three digits" in score.notes


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "   ",
        "Sure! Here are your requirements.",
        "- a\n- b\n",
        "null",
        "a: b: c",
        "title: [",
        "{",
        "a: 1\n---\nb: 2\n",
        "🔥" * 9,
    ],
)
def test_what_is_no_mapping_scores_zero(wrong: str) -> None:
    score = ROLE.score(wrong)
    assert score.total == 0.0
    assert score.components == dict.fromkeys(COMPONENTS, 0.0)
    assert len(score.notes) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("```yaml\n", "```"),
        ("```\n", "\n```\n\n"),
        ("\n\n```YAML\n", "```"),
        ("~~~\n", "~~~"),
        ("---\n", "..."),
        ("\ufeff", ""),
    ],
)
def test_one_surrounding_fence_is_taken_off(before: str, after: str) -> None:
    assert ROLE.score(before + text() + after).total == 1.0


@pytest.mark.parametrize(
    ("before", "after"), [("Here it is:\n```yaml\n", "```"), ("```yaml\n", ""), ("```\n```\n", "```\n```")]
)
def test_other_fences_stay(before: str, after: str) -> None:
    assert ROLE.score(before + text() + after).total == 0.0


def test_scalars_count_as_written() -> None:
    dated = text().replace("A title of a product", "2024-01-01")  # ten characters, unquoted: a date to YAML
    assert "title: 2024-01-01" in dated
    assert ROLE.score(dated).total == 1.0
    assert (
        ROLE.score(text().replace("priority: Medium", "priority: Yes")).components["functional_requirements"]
        == TWO_THIRDS
    )
    assert ROLE.score(text().replace("title: A title of a product", "title: " + "9" * 5000)).components["title"] == 0.0


def test_dspy_predictions() -> None:
    fields = answer()
    assert ROLE.score(fields).total == 1.0
    as_yaml = {**fields, **{name: yaml.safe_dump(fields[name]) for name in LISTS}}
    assert ROLE.score(as_yaml).total == 1.0
    fenced = {**fields, "constraints": "```yaml\n" + yaml.safe_dump(fields["constraints"]) + "```"}
    assert ROLE.score(fenced).total == 1.0
    assert ROLE.score({**fields, "constraints": "nothing: [much"}).components["constraints"] == 0.0

    class Prediction:
        def toDict(self) -> dict[str, Any]:
            return fields

    class Model:
        def model_dump(self) -> dict[str, str]:
            return item("C009")

    assert ROLE.score(Prediction()).total == 1.0
    assert ROLE.score({**fields, "constraints": (Model(), item("C002"))}).total == 1.0
    # a model's text has to be a list itself
    assert ROLE.score(yaml.safe_dump(as_yaml)).components["constraints"] == 0.0


@pytest.mark.parametrize(
    "strange", [None, 5, b"title: x", [], {}, {1: 2}, {"title": object()}, {"title": 10**5000}, {"constraints": [[[]]]}]
)
def test_anything_scores(strange: Any) -> None:
    assert ROLE.score(strange).total <= 1 / 7


def nested(levels: int) -> str:
    lines = ["a: &a0 [x, x]"]
    lines += [f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(levels)]
    return "\n".join(lines)


BOMBS = {
    "flow depth": "[" * 200_000,
    "map depth": "{" * 200_000,
    "block depth": "- " * 100_000,
    "complex keys": "? " * 100_000,
    "laughs": nested(12),
    "itself": "title: &a [*a]",
    "merge": "a: &a {x: 1}\nb: {<<: *a}\n",
    "anchors": "".join(f"k{i}: &a{i} v\n" for i in range(9000)),
    "aliases": "a: &a x\nb: [" + "*a," * 50_000 + "]",
    "long": "x" * 1_000_000,
    "lines": "a:\n" * 60_000,
    "quotes": '"' + "\n" * 200_000,
    "spaces in a fence": "```\n" + " " * 200_000 + "```",
    "fences": "`" * 300_000,
    "digits": "title: " + "9" * 200_000,
    "sexagesimal": "title: " + "1:" * 100_000 + "1",
    "date": "title: 9999-99-99",
    "float": "title: 1e999999999",
    "directives": "%YAML 1.1\n" * 9000,
    "tags": "- !!python/object/apply:os.system ['true']",
    "tag of a user": "title: !x y",
    "key that is a list": "? [a, b]\n: c",
    "nul": "title: \0",
    "surrogate": "title: \ud800",
    "binary": "title: !!binary =====",
}


@pytest.mark.alone
@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    started = time.monotonic()
    assert 0.0 <= ROLE.score(BOMBS[name]).total < 0.5
    assert ROLE.score(dict.fromkeys(LISTS, BOMBS[name])).total < 0.5
    assert time.monotonic() - started < 2.0


YAMLISH = st.lists(
    st.sampled_from(
        [
            "title: ",
            "description: ",
            "constraints:",
            "- ",
            "id: C001",
            "priority: High",
            "\n",
            "\n  ",
            "[",
            "]",
            "{",
            "}",
            "&a ",
            "*a",
            ": ",
            "'",
            '"',
            "|",
            ">",
            "!!str ",
            "null",
            "#",
            "%",
            "```",
            "---",
            "x" * 120,
        ]
    )
    | st.text(max_size=5),
    max_size=60,
).map("".join)


@settings(deadline=2000, max_examples=150)
@given(st.text(max_size=300) | YAMLISH)
def test_no_text_makes_it_raise(wild: str) -> None:
    score = ROLE.score(wild)
    assert 0.0 <= score.total <= 1.0
    assert tuple(score.components) == COMPONENTS
    assert all(0.0 <= value <= 1.0 for value in score.components.values())


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=120)
    | st.sampled_from(["High", "FR001", "C001"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*LISTS, "title", "description", "id", "priority"]), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(deadline=2000, max_examples=100)
@given(st.dictionaries(st.sampled_from(["title", "description", *LISTS]), VALUES))
def test_any_mapping_scores_between_zero_and_one(fields: dict[str, Any]) -> None:
    assert 0.0 <= ROLE.score(fields).total <= 1.0


ITEMS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.sampled_from(["FR001", "FR002", "FR1", "NFR001", "C001", "C002", ""]),
            "description": st.sampled_from(["something", ""]),
            "priority": st.sampled_from(["High", "Medium", "Low", "high"]),
        }
    ),
    max_size=5,
)


@settings(max_examples=60)
@given(st.data(), ITEMS, ITEMS, ITEMS)
def test_order_of_items_is_irrelevant(data: st.DataObject, fr: Any, nfr: Any, c: Any) -> None:
    lists = dict(zip(LISTS, (fr, nfr, c), strict=True))
    shuffled = {name: data.draw(st.permutations(items)) for name, items in lists.items()}
    assert ROLE.score(text(**lists)).components == pytest.approx(ROLE.score(text(**shuffled)).components)


@settings(max_examples=60, deadline=None)
@given(
    st.text(
        alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp", "Zs"]), min_size=10, max_size=100
    ),
    st.data(),
)
def test_target_reads_back_and_is_perfect(title: str, data: st.DataObject) -> None:
    words = st.text(alphabet="abc é:#-'\"{[&*!|>%@`,.?0123456789\n", min_size=1, max_size=200)
    lists = {
        name: [{**item(f"{prefix}{i + 1:03d}"), "description": data.draw(words.filter(str.strip))} for i in range(2)]
        for name, prefix in LISTS.items()
    }
    one = record(title=title, **lists)
    target = ROLE.target(one)
    assert yaml.safe_load(target) == one["requirements"]
    assert ROLE.score(target).total == 1.0


def test_target_form() -> None:
    one = record(description="word " * 100 + "end", constraints=yaml.safe_dump([item("C001"), item("C002")]))
    one["requirements"]["functional_requirements"][0]["extra"] = "not to be learned"
    one["requirements"]["more"] = "neither"
    target = ROLE.target(one)
    keys = [line.split(":")[0] for line in target.splitlines() if not line.startswith((" ", "-"))]
    assert keys == ["title", "description", *LISTS]
    assert "extra" not in target
    assert "more" not in target
    assert max(map(len, target.splitlines())) > 500  # nothing is wrapped
    assert len(target.splitlines()) == 5 + 3 * 7
    assert not target.endswith("\n")


def test_prompt_begins_the_same_for_all() -> None:
    (message,) = ROLE.messages(record())
    assert message == {"role": "user", "content": INSTRUCTION + "A booking system."}
    assert ROLE.key(record()) == "A booking system."
    assert 150 <= len(INSTRUCTION.split()) <= 230


def test_records_are_not_changed() -> None:
    one = record(constraints=yaml.safe_dump([item("C001")]))
    before = copy.deepcopy(one)
    ROLE.target(one)
    ROLE.score(one["requirements"])
    assert one == before


def test_unknown_role() -> None:
    with pytest.raises(RescoldoError, match="no role 'xy'"):
        get_role("xy")
