"""The comparison from flags to reports: fake servers, DSPy programs over them, and our engine."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from rescoldo.cli.main import app, run_app
from rescoldo.engine.types import Sampling
from rescoldo.errors import RescoldoError
from rescoldo.evaluation import Parts, compare
from rescoldo.evaluation.comparison import by_example
from rescoldo.evaluation.open import Opener
from rescoldo.models.engine_chat import EngineChat
from rescoldo.models.predictor import ChatPredictor
from rescoldo.models.server import ServerOptions
from rescoldo.role import get_role
from tests.data.examples import record, write
from tests.evaluation.fake_server import FakeServer, fake_server, good

ROLE = get_role("ba")
RECORDS = [record(i) for i in range(4)]
TWO = Parts("baseline", finetuned="finetuned")
SAMPLING = Sampling(max_new_tokens=50)
QUICK = ServerOptions(2, 5, 0)
SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_ba_models.py"


def oracle(body: dict[str, Any], times: int) -> tuple[int, Any]:
    """Knows the answer to each concept."""
    text = body["messages"][-1]["content"]
    return 200, good(next(ROLE.target(one) for one in RECORDS if one["concept"] in text))


def poor(body: dict[str, Any], times: int) -> tuple[int, Any]:
    return 200, good("title: A title that is long enough")


@pytest.fixture
def val(tmp_path: Path) -> Path:
    return write(tmp_path / "val.jsonl", *RECORDS)


def spec(server: FakeServer) -> str:
    return f"openai:m@{server.address}/v1"


def test_interrupted_and_repeated_it_asks_nothing_twice(val: Path, tmp_path: Path) -> None:
    output = tmp_path / "c.json"
    down = False

    def dies(body: dict[str, Any], times: int) -> tuple[int, Any]:
        return (401, {}) if down else oracle(body, times)

    with fake_server(poor) as m1, fake_server(dies) as m3:
        models = {"baseline": spec(m1), "finetuned": spec(m3)}

        def go(**more: Any) -> dict[str, Any]:
            return compare(models, val, TWO, output=output, sampling=SAMPLING, server=QUICK, **more)

        down = True
        with pytest.raises(RescoldoError):
            go()
        assert (len(m1.requests), not output.exists()) == (4, True)
        time.sleep(0.5)  # one that was on its way when the first was refused may still arrive
        down = False
        asked = len(m3.requests)
        first = go()
        assert (len(m1.requests), len(m3.requests) - asked) == (4, 4)
        assert not list(tmp_path.glob("*partial*"))
        again = go()
        assert (len(m1.requests), len(m3.requests) - asked) == (4, 4), "what the document has is not asked again"
        assert again["models"] == first["models"]
        elsewhere = tmp_path / "other.json"
        compare(models, val, TWO, output=elsewhere, sampling=SAMPLING, server=QUICK, reuse=[output])
        assert (len(m1.requests), len(m3.requests) - asked) == (4, 4)
        compare(models, val, TWO, output=output, sampling=Sampling(max_new_tokens=51), server=QUICK)
        assert len(m1.requests) == 8, "another sampling is another question"
    decision = first["comparison"]["decision"]
    assert decision["adopt"]
    assert decision["sentence"].startswith("Adopt finetuned: it scores 100.0%")
    assert first["models"]["finetuned"]["spec"] == models["finetuned"]
    assert {path.suffix for path in tmp_path.glob("c.*")} == {".json", ".md", ".html"}


def test_one_failure_is_a_zero_with_its_reason(val: Path, tmp_path: Path) -> None:
    broken = True

    def answer(body: dict[str, Any], times: int) -> tuple[int, Any]:
        if broken and RECORDS[2]["concept"] in body["messages"][-1]["content"]:
            return 500, {"error": {"message": "out of memory"}}
        return oracle(body, times)

    with fake_server(poor) as m1, fake_server(answer) as m3:
        models = {"baseline": spec(m1), "finetuned": spec(m3)}
        document = compare(models, val, TWO, output=tmp_path / "c.json", sampling=SAMPLING, server=QUICK)
        rows = document["models"]["finetuned"]["predictions"]
        assert [row["score"] for row in rows] == [1.0, 1.0, 0.0, 1.0]
        assert rows[2]["error"] == "HTTP 500: out of memory"
        assert document["models"]["finetuned"]["warnings"] == [
            "1 of 4 answers failed and count as 0 (HTTP 500: out of memory)"
        ]
        (warning,) = document["comparison"]["decision"]["warnings"]
        assert "without the inputs that a model failed to answer (1)" in warning
        assert "the decision would be to adopt finetuned" in warning
        broken, before = False, len(m3.requests)
        document = compare(models, val, TWO, output=tmp_path / "c.json", sampling=SAMPLING, server=QUICK)
        assert len(m3.requests) == before + 1, "only what failed is asked again"
        assert document["models"]["finetuned"]["scores"]["mean"] == 1.0


def test_a_model_that_answers_nothing_is_not_compared(val: Path, tmp_path: Path) -> None:
    with fake_server(lambda body, n: (400, {"error": {"message": "no room"}})) as m1, fake_server(oracle) as m3:
        models = {"baseline": spec(m1), "finetuned": spec(m3)}
        with pytest.raises(
            RescoldoError, match=r"baseline: none of 4 answers could be had \(HTTP 400: no room\)"
        ) as found:
            compare(models, val, TWO, output=tmp_path / "c.json", sampling=SAMPLING, server=QUICK)
    assert found.value.exit_code == 1
    assert not (tmp_path / "c.json").exists()


def test_repeats_have_seeds_of_their_own_and_are_averaged(val: Path, tmp_path: Path) -> None:
    def by_seed(body: dict[str, Any], times: int) -> tuple[int, Any]:
        return oracle(body, times) if body["seed"] != 43 else (200, good("no"))

    sampling = Sampling(temperature=0.7, max_new_tokens=50)
    with fake_server(oracle) as m1, fake_server(by_seed) as m3:
        document = compare({"baseline": spec(m1), "finetuned": spec(m3)}, val, TWO, sampling=sampling, repeats=3,
                           server=QUICK)  # fmt: skip
    assert sorted({request["seed"] for request in m3.requests}) == [42, 43, 44]
    part = document["models"]["finetuned"]
    assert [(row["example"], row["repeat"]) for row in part["predictions"]] == [
        (e, r) for r in range(3) for e in range(4)
    ]
    assert part["scores"]["mean"] == pytest.approx(2 / 3)
    assert by_example(part["predictions"]) == pytest.approx([2 / 3] * 4)
    test = document["comparison"]["statistical_tests"]["finetuned - baseline"]
    assert test["n"] == 4, "the concepts are what is independent, not their repeats"
    assert document["comparison"]["decision"]["rule"] == "worse"


def test_the_training_set_beside_the_score(val: Path, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", *RECORDS[:3])
    with fake_server(oracle) as m1, fake_server(oracle) as m3:
        models = {"baseline": spec(m1), "finetuned": spec(m3)}
        document = compare(models, val, TWO, output=tmp_path / "c.json", sampling=SAMPLING, server=QUICK,
                           train_set=train, train_limit=2)  # fmt: skip
        asked = len(m3.requests)
        assert asked == 4, "the same concepts with the same sampling are the same questions"
    assert (document["metadata"]["train_score"], document["metadata"]["train_score_examples"]) == (1.0, 2)
    assert document["training"]["scores"]["mean"] == 1.0
    assert "finetuned scores 100.0% on its training set" in document["comparison"]["decision"]["reasons"]
    assert document["models"]["finetuned"]["diagnostics"]["answers_copying"] is not None


def test_a_program_a_run_and_its_base(base: Path, run: Path, val: Path, tmp_path: Path) -> None:
    """M1, M2, M3 and a fourth: base, program over the base, run; one copy of the weights."""
    pytest.importorskip("dspy")
    from rescoldo.optimize.config import OptimizeConfig
    from rescoldo.optimize.optimizer import optimize

    train = write(tmp_path / "train.jsonl", *(record(i) for i in range(5, 9)))
    program = tmp_path / "program"
    config = OptimizeConfig(
        str(base), str(train), "labeled", shots=1, temperature=0, max_new_tokens=4, quantization="fp32"
    )
    optimize(config, program)
    models = {
        "baseline": str(base),
        "named": f"{program}@{base}",
        "optimized": str(program),
        "finetuned": str(run),
    }
    output = tmp_path / "c.json"
    parts = Parts("baseline", "optimized", "finetuned")
    short = Sampling(max_new_tokens=5)
    document = compare(models, val, parts, output=output, sampling=short, limit=2)
    assert list(document["models"]) == list(models)
    assert len(document["comparison"]["statistical_tests"]) == 6
    part = document["models"]["optimized"]
    assert (part["demos"], part["model"]["base_model"]) == (1, str(base))
    assert part["model"]["quantization"] == "fp32", "the base in the precision of the run that it is compared with"
    assert [row["text"] for row in part["predictions"]] == [
        row["text"] for row in document["models"]["named"]["predictions"]
    ]
    assert document["comparison"]["decision"]["winner"] == "optimized"
    opener = Opener(ROLE, specs=list(models.values()))
    chats = [opener.predictor(text, name).chat for name, text in models.items()]  # type: ignore[attr-defined]
    assert len({id(chat.loaded) for chat in chats}) == 1
    assert [chat.adapter for chat in chats] == [False, False, False, True]


def test_memory_is_given_back(base: Path, run: Path) -> None:
    opener = Opener(ROLE, specs=[str(base), str(run)])
    first, second = (opener.predictor(text, "x") for text in (str(base), str(run)))
    assert isinstance(first, ChatPredictor)
    assert isinstance(first.chat, EngineChat)
    loaded = first.chat.loaded
    assert loaded._model is None, "headers only"
    _ = loaded.model
    opener.release(first, [second])
    assert loaded._model is not None
    opener.release(second, [])
    assert loaded._model is None


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], application: typer.Typer,
            *args: Any) -> tuple[int, str, str]:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["x", *map(str, args)])
    code = run_app(application)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def script() -> typer.Typer:
    found = importlib.util.spec_from_file_location("compare_ba_models", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    application: typer.Typer = module.app
    return application


def test_the_scripts_own_command_line(
    val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The contract's flags, with three servers; then as JSON."""
    output = tmp_path / "fase8" / "3way_comparison.json"
    with fake_server(poor) as m1, fake_server(poor) as m2, fake_server(oracle) as m3:
        flags = ["--baseline", spec(m1), "--optimized", spec(m2), "--finetuned", spec(m3), "--dataset", val,
                 "--output", output]  # fmt: skip
        code, out, err = command(monkeypatch, capsys, script(), *flags)
        assert (code, err) == (0, "")
        assert {(r["temperature"], r["max_tokens"], r["seed"]) for r in m1.requests} == {(0.7, 2048, 42)}
        assert "Keep optimized for now: finetuned has learned the form" in " ".join(out.split())
        assert str(output.with_suffix(".html")) in out
        code, out, err = command(monkeypatch, capsys, script(), *flags, "--json", "--greedy", "--max-new-tokens", 9)
    assert code == 0
    document = json.loads(out)
    assert document["models"]["optimized"]["sampling"]["temperature"] == 0
    assert json.loads(output.read_text())["comparison"] == document["comparison"]
    assert set(document["comparison"]) == {"ranking", "statistical_tests", "effect_sizes", "decision"}


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(monkeypatch, capsys, app, "compare", "--help")
    assert code == 0
    assert " compare --baseline" in " ".join(out.split()).partition("Example: ")[2]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("openai:m@http://127.0.0.1:9/v1", "--model other=openai:m@http://127.0.0.1:9/v1 --dataset"),
        ("{program}", "this is a DSPy program"),
        ("", "the name is empty"),
    ],
)
def test_eval_says_what_it_does_not_take(
    model: str, message: str, val: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "program.json").write_text("{}")
    code, _, err = command(
        monkeypatch, capsys, app, "eval", model.format(program=tmp_path / "program.json"), "--dataset", val
    )
    assert code == 2
    assert message in err


def test_a_terminal_in_a_plain_encoding_is_no_reason_to_fail(val: Path) -> None:
    code = "import sys; from rescoldo.cli.main import main; main()"
    with fake_server(poor) as m1, fake_server(oracle) as m2:
        flags = ["--baseline", spec(m1), "--model", f"other={spec(m2)}", "--dataset", str(val)]
        done = subprocess.run(
            [sys.executable, "-c", code, "compare", *flags],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["compare", "optimize"])
def test_ctrl_c_leaves_at_once_and_loses_nothing(kind: str, val: Path, tmp_path: Path) -> None:
    """The server would take a minute for the next answer; who presses Ctrl-C does not wait for it."""
    pytest.importorskip("dspy")
    slow = threading.Event()

    def answer(body: dict[str, Any], times: int) -> tuple[int, Any]:
        if len(server.requests) > 2:
            slow.wait(60)
        return oracle(body, times)

    with fake_server(answer) as server:
        more = ["--finetuned", spec(server), "--baseline", spec(server) + "/", "--dataset", val, "--greedy"]
        if kind == "optimize":
            more = ["--model", spec(server), "--train", val, "--method", "bootstrap", "--dev", 0.7]
        output = tmp_path / "out"
        code = "import sys; from rescoldo.cli.main import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, kind, *map(str, more), "--concurrency", "1", "--output", str(output)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            until = time.monotonic() + 60
            while len(server.requests) < 3:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < until
                time.sleep(0.05)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            pressed = time.monotonic()
            _, err = process.communicate(timeout=30)
        finally:
            slow.set()
            process.kill()
    assert time.monotonic() - pressed < 15
    assert process.returncode == 130, err
    assert "Traceback" not in err
    (partial,) = [*tmp_path.glob("out.partial.jsonl"), *tmp_path.glob("out/*.partial.jsonl")]
    assert len(partial.read_text().splitlines()) >= 2
    assert f"interrupted: the answers so far are in {partial}; the same command resumes" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "two models or more"),
        (["--finetuned", "{good}", "--model", "x"], "'x' is not NAME=MODEL"),
        (["--finetuned", "{good}", "--model", "finetuned=y"], "is taken"),
        (["--finetuned", "{good}", "--samples", "0"], "--samples 0 is not allowed"),
        (["--finetuned", "{good}", "--greedy", "--samples", "2"], "the same every time"),
        (["--finetuned", "{good}", "--timeout", "0"], "--timeout"),
        (["--finetuned", "{good}", "--concurrency", "0"], "--concurrency"),
        (["--finetuned", "{good}", "--temperature", "-1"], "--temperature"),
        (["--optimized", "{good}", "--train-set", "x.jsonl"], "no fine-tuned model"),
        (["--finetuned", "no/such/thing"], "there is no such model, run or program"),
        (["--finetuned", "openai:m"], "write openai:MODEL@URL"),
        (["--finetuned", "{good}", "--reuse", "{dataset}"], "is no evaluation and no comparison"),
        (["--finetuned", "{good}", "--output", "{dataset}"], "exists and is no evaluation"),
        (["--finetuned", "{good}", "--role", "poet"], "no role 'poet'"),
    ],
)
def test_bad_flags(
    arguments: list[str], message: str, val: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = val.read_bytes()
    with fake_server(oracle) as server:
        filled = [text.format(good=spec(server), dataset=val) for text in arguments]
        more = [] if "--output" in filled else ["--output", tmp_path / "out.json"]
        code, out, err = command(
            monkeypatch, capsys, app, "compare", "--baseline", spec(server), "--dataset", val, *filled, *more
        )
        assert not server.requests, "what is wrong is found before the work"
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert val.read_bytes() == before
    assert not (tmp_path / "out.json").exists()


def test_votes_that_cannot_be_read_are_named_before_anything_is_asked(tmp_path: Path) -> None:
    dataset = write(tmp_path / "v.jsonl", *(record(i) for i in range(2)))
    (tmp_path / "c.json.votes.jsonl").mkdir()
    with fake_server(lambda body, times: (200, good("x"))) as server:
        models = dict.fromkeys(("a", "b"), f"openai:m@{server.address}/v1")
        with pytest.raises(RescoldoError, match="not a regular file"):
            compare(
                models, dataset, Parts("a", finetuned="b"), output=tmp_path / "c.json", server=ServerOptions(2, 5, 0)
            )
        assert not server.requests
