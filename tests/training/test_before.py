"""The validation loss before the training: measured once, kept, shown, and what is said when it has risen."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from rescoldo.doctor.verify import verify
from rescoldo.files import read_json
from rescoldo.report.run_page import render
from rescoldo.run.layout import INFO_FILE, METRICS, list_checkpoints, read_json_lines
from rescoldo.run.state import read_state
from rescoldo.run.status import read_status
from rescoldo.training.checkpoint import MANIFEST, SEAL, read_checkpoint
from rescoldo.training.metrics import worsened
from rescoldo.training.start import train
from tests.training.fake import PARTS, FakeStep, Silent, config, evaluate_loss


def loss_checks(output):
    return [check for check in verify(output) if check.name == "loss"]


def test_it_is_the_untrained_models_loss_and_shown_everywhere(tmp_path):
    output, reporter = tmp_path / "out", Silent()
    models = []
    parts = replace(PARTS, load_model=lambda *a, **k: models.append(PARTS.load_model(*a, **k)) or models[-1])
    info = train(config(tmp_path, output), parts=parts, reporter=reporter).info
    again = PARTS.load_model(None, "fp32", models[0].lora, seed=42, frozen_state=models[0].frozen_state())
    val = PARTS.read_dataset(tmp_path / "val.txt", None, None, 2048, None).examples  # type: ignore[arg-type]
    losses = evaluate_loss(again, val)  # type: ignore[arg-type]
    expected = sum(nats for nats, _ in losses) / sum(n for _, n in losses)
    assert info["val_loss_before"] == pytest.approx(expected, rel=1e-6)
    assert read_json_lines(output / METRICS)[0] == {"epoch": 0, "step": 0, "val_loss": info["val_loss_before"]}
    assert f"({info['val_loss_before']:.4f} before training)" in reporter.text
    assert "✅ Fine-tuning completed!" in reporter.text
    (check,) = loss_checks(output)
    assert check.ok
    assert f"{info['val_loss_before']:.4f} before training" in render(output)
    order = ["Starting training...", "Validation loss before training: 6/6", "Epoch 1/2", "Evaluating: 6/6", "Saving"]
    places = [reporter.text.index(part) for part in order]
    assert places == sorted(places)


def test_a_training_that_made_the_model_worse_is_not_celebrated(tmp_path):
    output, reporter = tmp_path / "out", Silent()
    info = train(config(tmp_path, output, lr=1.0), parts=PARTS, reporter=reporter).info
    assert info["losses"][info["best_epoch"] - 1]["val_loss"] > info["val_loss_before"]
    assert "✅" not in reporter.text
    assert "⚠️  Fine-tuning completed, and the model got worse" in reporter.text
    assert "lower --lr (now 1)" in reporter.text
    (check,) = loss_checks(output)
    assert not check.ok
    assert any("got worse" in trouble["what"] for trouble in read_status(output).state["troubles"])


def test_worsened():
    assert worsened(2.0, 2.001) == worsened(None, 5.0) == worsened(2.0, 1.0) == ""
    assert "2.1000 after training, 2.0000 before" in worsened(2.0, 2.1)


def test_a_run_begun_by_a_version_that_did_not_measure_it_goes_on_without(tmp_path):
    output = tmp_path / "out"
    count = 0

    class Step(FakeStep):
        def micro_batch(self, indices):
            nonlocal count
            count += 1
            if count == 10:
                raise KeyboardInterrupt
            return super().micro_batch(indices)

    settings = config(tmp_path, output, checkpoint_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        train(settings, parts=replace(PARTS, gradient_step=Step), reporter=Silent())
    for path in list_checkpoints(output):
        manifest = json.loads((path / MANIFEST).read_bytes())
        del manifest["position"]["baseline"]
        text = json.dumps(manifest).encode()
        (path / MANIFEST).write_bytes(text)
        (path / SEAL).write_text(hashlib.sha256(text).hexdigest(), encoding="ascii")
        assert read_checkpoint(path).position.loss_before is None
    reporter = Silent()
    train(settings, parts=PARTS, reporter=reporter)
    assert "✅ Fine-tuning completed!" in reporter.text
    assert (read_json(output / INFO_FILE) or {})["val_loss_before"] is None
    assert loss_checks(output) == []


def test_the_time_left_is_known_before_the_first_step(tmp_path):
    output, seen = tmp_path / "out", []

    class Step(FakeStep):
        def micro_batch(self, indices):
            seen.append(read_state(output))
            return super().micro_batch(indices)

    train(config(tmp_path, output), parts=replace(PARTS, gradient_step=Step), reporter=Silent())
    assert seen[0].step == 0
    assert seen[0].seconds_left > 0
    assert 0 < seen[0].share < 0.3
    assert seen[0].val_loss_before is not None


def test_a_plans_figure_gives_the_time_left_while_the_weights_are_made_ready(tmp_path):
    output, seen = tmp_path / "out", []

    def evaluate(model, examples):
        seen.append(read_state(output))
        return evaluate_loss(model, examples)

    train(
        config(tmp_path, output),
        parts=replace(PARTS, evaluate_loss=evaluate, expected_rate=lambda config: 10.0),
        reporter=Silent(),
    )
    tokens = sum(len(line.split()) for line in (tmp_path / "train.txt").read_text(encoding="utf-8").splitlines())
    assert seen[0].seconds_left > 2 * tokens / 10.0  # two epochs and three evaluations


def test_the_page_of_a_run_that_failed_says_so(tmp_path):
    from rescoldo.report.run_page import write_report

    output = tmp_path / "out"

    class Step(FakeStep):
        def micro_batch(self, indices):
            raise RuntimeError("a fault of the engine")

    parts = replace(PARTS, gradient_step=Step, write_report=write_report)
    with pytest.raises(RuntimeError, match="a fault"):
        train(config(tmp_path, output), parts=parts, reporter=Silent())
    page = (output / "report.html").read_text(encoding="utf-8")
    assert 'class="state failed"' in page
    assert "a fault of the engine" in page
