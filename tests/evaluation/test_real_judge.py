"""A real model as a judge, in our engine and on llama.cpp's server: the sample model is unfit, and said to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rescoldo.engine.types import Sampling
from rescoldo.evaluation import Parts, compare
from rescoldo.models.server import ServerOptions
from tests.data.examples import write
from tests.evaluation.fake_server import fake_server, good
from tests.evaluation.llama_server import llama_server
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


def test_the_sample_model_on_llama_cpps_server_is_unfit_too(tmp_path: Path) -> None:
    """A server is not held to the choices: what is neither 1, 2 nor 0 is counted as refused. Repeated, the comparison
    asks for no reply again. Short texts: two whole requirement documents take this server seconds to read."""
    texts = [{"prompt": f"What of {i}5?", "completion": f"It is {i}5. Topic {i} is {name}. Then {name} again."}
             for i, name in enumerate(("red", "blue", "green"), 1)]  # fmt: skip
    val = write(tmp_path / "val.jsonl", *texts)
    with fake_server(lambda body, times: (200, good(f"answer {len(str(body))}"))) as server, llama_server() as judge:
        models = {"baseline": spec(server, "a"), "finetuned": spec(server, "other")}
        settings: Any = {
            "role": "generic", "server": ServerOptions(2, 300, 0), "sampling": Sampling(max_new_tokens=20),
            "output": tmp_path / "c.json", "judges": [f"openai:smollm2@{judge.url}"], "judge_tokens": 4,
        }  # fmt: skip
        found = compare(models, val, Parts("baseline", finetuned="finetuned"), **settings)
        again = compare(models, val, Parts("baseline", finetuned="finetuned"), **settings)
    (one,) = found["judges"]
    assert one["exam"]["n"] == 12
    assert not one["exam"]["passed"]
    assert one["pairs"] == []
    assert one["replies"]["failed"] == 0
    assert one["replies"]["asked"] == 24
    assert again["judges"] == found["judges"]
    kinds = {evidence["kind"]: evidence["finding"] for evidence in
             found["comparison"]["decision"]["content"]["evidence"]}  # fmt: skip
    assert kinds["judge"] == "unfit"
