"""A real model as a judge: the sample model in our engine is unfit, and said to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from rescoldo.engine.types import Sampling
from rescoldo.evaluation import Parts, compare
from tests.data.examples import write
from tests.evaluation.fake_server import fake_server, good
from tests.evaluation.test_judge import QUICK, asked, spec

pytestmark = pytest.mark.slow
FEW = [asked(i) for i in range(3)]


def test_the_sample_model_is_unfit(tmp_path: Path) -> None:
    """135 million parameters cannot tell a right answer from a damaged one."""
    val = write(tmp_path / "val.jsonl", *FEW)
    with fake_server(lambda body, times: (200, good(f"answer {len(str(body))}"))) as server:
        models = {"baseline": spec(server, "a"), "finetuned": spec(server, "other")}
        found = compare(
            models, val, Parts("baseline", finetuned="finetuned"), server=QUICK, sampling=Sampling(max_new_tokens=20),
            output=tmp_path / "c.json", judges=["sample:smollm2"],
        )  # fmt: skip
    (one,) = found["judges"]
    assert one["model"] == "sample:smollm2"
    assert one["exam"]["n"] == 12
    assert not one["exam"]["passed"]
    assert one["pairs"] == [], "it is named and not counted"
    assert one["replies"]["asked"] == 24
