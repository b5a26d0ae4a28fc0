"""The plan against what it foretells."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from rescoldo.doctor import energy as counters
from rescoldo.doctor.energy import energy, unreadable
from rescoldo.doctor.measure import Line, Pieces, distinct_rows, line, measure, slice_of, sub_model
from rescoldo.doctor.plan import shortened
from rescoldo.doctor.rate import expected_rate
from rescoldo.engine.memory import table_bytes
from rescoldo.engine.model import LoraModel
from rescoldo.engine.precisions import is_calibrated
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import LoraConfig
from rescoldo.run.layout import read_timings
from rescoldo.system.cgroup import available_threads
from tests.engine.common import example, tiny_base
from tests.engine.test_families import GEMMA4
from tests.run.common import rescoldo, tiny_run

DATA = Path(__file__).parents[2] / "artifacts" / "synthetic"


def test_line():
    assert line({4: 10.0, 2: 6.0}) == Line(2.0, 2.0)
    assert line({4: 10.0}) == Line(0.0, 2.5)
    assert line({4: 10.0, 2: 11.0}).layer == 0.0  # noise must not make layers free of charge twice over
    assert Line(2.0, 2.0).at(30) == 62.0


def test_layers_that_differ_cost_by_their_weights() -> None:
    """A model whose upper layers are larger than those measured; one whose layers are alike is left as it is."""
    two = Line(1.0, 2.0)
    pieces = Pieces("int8", two, 3.0, two, two, two, two, rows=100, layers=2, watts=None)
    assert pieces.of_mean_layer(tiny_base("llama").config) == pieces
    config = tiny_base("gemma4_text", **GEMMA4).config
    share = config.linear_weights / 8 / (config.layer_weights(0) + config.layer_weights(1)) * 2
    assert share > 1.1
    found = pieces.of_mean_layer(config)
    assert found.row.layer == pytest.approx(2 * share)
    assert found.row.fixed == 1.0
    assert found.calibrate_row == pytest.approx(3 * share)


def test_a_slice_computes_what_the_first_layers_compute():
    base = tiny_base("llama", num_hidden_layers=4)
    lora = LoraConfig(4, 8, 0.0, ("q_proj", "down_proj"))
    whole = LoraModel.load(slice_of(base, 3), "fp32", lora, seed=1)
    part = sub_model(whole, 2)
    same = LoraModel.load(slice_of(base, 2), "fp32", lora, seed=1)
    one = example(10, 10, seed=5)
    gradients = []
    for model in (part, same):
        step = GradientStep(model, [one], step=0, seed=0)
        step.micro_batch([0])
        gradients.append(step.finish())
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_layers_memory_is_not_the_vocabularys(precision, monkeypatch):
    """Embeddings and head are paid once, not for each layer of the model."""
    base = tiny_base("llama", num_hidden_layers=4, tie_word_embeddings=False)
    examples = [example(20, 30, seed=i) for i in range(2)]
    tables, layer = table_bytes(base.config, precision, mapped=False), 1000
    held = itertools.chain([0], itertools.repeat(tables + 2 * layer))  # before loading two layers, and from then on
    monkeypatch.setattr("rescoldo.doctor.measure.own_memory", lambda: next(held))
    memory = measure(base, precision, LoraConfig(4, 8, 0.1), examples[:1], examples[1:], layers=2).memory
    assert (memory.fixed, memory.layer) == (tables, layer)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
def test_pieces_are_there_in_each_precision(precision):
    base = tiny_base("llama", num_hidden_layers=4, hidden_size=64, intermediate_size=128)
    examples = [example(20, 30, seed=i) for i in range(3)]
    pieces = measure(base, precision, LoraConfig(4, 8, 0.1), examples[:2], examples[2:], layers=3)
    assert pieces.layers == 3
    assert pieces.rows == distinct_rows(examples[:2])
    assert pieces.row.at(4) > 0
    assert pieces.evaluate_row.at(4) > 0
    assert is_calibrated(precision) or pieces.calibrate_row == 0  # a difference of two times: noise may leave nothing


def test_a_shortened_example_still_has_targets():
    for prompt, targets in ((10, 10), (1000, 5), (5, 1000), (300, 300)):
        short = shortened(example(prompt, targets, seed=1), 256)
        assert 0 < short.n_targets <= targets
        assert len(short.tokens) <= 256


def test_energy_counts_through_a_wrap(tmp_path, monkeypatch):
    folder = tmp_path / "intel-rapl:0"
    folder.mkdir()
    (folder / "max_energy_range_uj").write_text("9999999\n")
    (folder / "energy_uj").write_text("9000000\n")
    monkeypatch.setattr(counters, "POWERCAP", tmp_path)
    with energy() as joules:
        (folder / "energy_uj").write_text("1000000\n")
    assert joules() == pytest.approx(2.0)
    assert unreadable() == ""
    with energy() as joules:
        pass
    assert joules() is None  # it stands still


@pytest.mark.parametrize("why", ["absent", "forbidden", "broken", "no number"])
def test_energy_that_cannot_be_read_says_why(tmp_path, monkeypatch, why):
    folder = tmp_path / "intel-rapl:0"
    monkeypatch.setattr(counters, "POWERCAP", tmp_path)
    if why != "absent":
        folder.mkdir()
        (folder / "max_energy_range_uj").write_text("9999999\n")
        (folder / "energy_uj").write_text("none\n")
    if why == "broken":
        (folder / "energy_uj").unlink()
        (folder / "energy_uj").mkdir()
    if why == "forbidden":
        read = Path.read_text

        def forbidden(self, *given, **named):  # for root nothing is forbidden
            if self.name == "energy_uj":
                raise PermissionError(13, "Permission denied", str(self))
            return read(self, *given, **named)

        monkeypatch.setattr(Path, "read_text", forbidden)
    with energy() as joules:
        pass
    assert joules() is None
    said = unreadable()
    assert said.startswith("not readable here: ")
    words = {
        "absent": "no counters",
        "forbidden": "sudo chmod a+r",
        "broken": "Is a directory",
        "no number": "counters",
    }
    assert words.get(why, "no readable counters") in said


@pytest.mark.slow
def test_the_command_and_what_a_run_takes_from_it(tmp_path, monkeypatch):
    flags = [*tiny_run(tmp_path), f"--output={tmp_path / 'out'}", "--preset=original"]
    assert "changes that would shorten it" in rescoldo(tmp_path, "plan", *flags, "--only").stdout
    done = rescoldo(tmp_path, "plan", *flags, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {one["precision"] for one in found["forecasts"]} == {"fp32", "bf16", "int8", "nf4"} - (
        {"nf4"} if 96 % 64 else set()
    )
    assert [row["t"] for row in found["timeline"]] == sorted(row["t"] for row in found["timeline"])
    assert found["timeline"][-1]["what"] == "adapter saved, done"
    assert not (tmp_path / "out").exists()
    changes = [change["what"] for change in found["changes"]]
    assert any(what.startswith("2 machines like this one") for what in changes)
    assert (found["energy"] == "") == (found["forecasts"][0]["kilowatt_hours"] is not None)
    from rescoldo.training.config import make_config

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = {flag.split("=")[0].strip("-").replace("-", "_"): flag.split("=")[1] for flag in flags}
    assert expected_rate(make_config(given)) == pytest.approx(found["forecasts"][0]["tokens_per_second"], rel=1e-3)


@pytest.mark.slow
def test_a_plan_is_of_the_size_of_the_run(tmp_path):
    """How near it comes, `benchmarks.plan` measures: a test that is timed fails wherever the machine has other work."""
    data = [f"--train={DATA / 'ba_train_v2_fixed.jsonl'}", f"--val={DATA / 'ba_val_v2_fixed.jsonl'}"]
    limits = ["--train-limit=2", "--val-limit=1", "--max-steps=1", "--grad-accum=2", f"--threads={available_threads()}"]
    flags = [*data, *limits, "--base-model=sample:smollm2", "--quantization=int8", f"--output={tmp_path / 'out'}"]
    done = rescoldo(tmp_path, "plan", *flags, "--only", "--json", timeout=280)
    assert done.returncode == 0, done.stderr
    (forecast,) = json.loads(done.stdout)["forecasts"]
    run = rescoldo(tmp_path, "train", *flags, timeout=280)
    assert run.returncode == 0, run.stderr
    (real,) = [line["seconds"] for line in read_timings(tmp_path / "out") if line["event"] == "step"]
    assert real / 4 < forecast["step"] < real * 4
