"""A run that was interrupted, however and however often, ends as one that was not."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import read_json
from rescoldo.run.layout import INFO_FILE, list_checkpoints
from rescoldo.training import checkpoint as checkpoints
from rescoldo.training.checkpoint import FORMAT
from rescoldo.training.start import train
from tests.training.fake import PARTS, FakeStep, Silent, config, evaluate_loss

RESULTS = ("adapter_model.safetensors", "adapter_config.json", "metrics.jsonl")


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def results(output: Path) -> dict[str, bytes]:
    return {name: (output / name).read_bytes() for name in RESULTS}


def undisturbed(tmp_path: Path, **fields) -> dict[str, bytes]:
    assert train(config(tmp_path, tmp_path / "calm", **fields), parts=PARTS, reporter=Silent()).status == "finished"
    return results(tmp_path / "calm")


def counting_parts(act):
    """PARTS that call `act(kind)` before each micro-batch, finish and evaluation."""

    class Step(FakeStep):
        def micro_batch(self, indices):
            act("micro-batch")
            return super().micro_batch(indices)

        def finish(self):
            act("finish")
            return super().finish()

    def evaluate(model, examples):
        act("evaluate")
        return evaluate_loss(model, examples)

    return replace(PARTS, gradient_step=Step, evaluate_loss=evaluate)


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch):
    """Its writer costs more than these runs do; the tests that look at logs/ are elsewhere."""
    from rescoldo.training.metrics import TensorBoard

    monkeypatch.setattr(TensorBoard, "__init__", lambda self, *_: setattr(self, "_writer", None))


SETTINGS = [
    {},
    {"batch_size": 1, "grad_accum": 4, "lora_targets": "all"},
    {"max_steps": 5, "warmup": 2, "early_stopping": 1, "epochs": 4},
    {"batch_size": 3, "grad_accum": 1, "shuffle": False},
]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("fields", SETTINGS)
def test_killed_anywhere_any_number_of_times(tmp_path, seed, fields):
    """Kills at random points, checkpoints at random intervals (0: after each micro-batch)."""
    calm = undisturbed(tmp_path, seed=seed, **fields)
    dice, kills = random.Random(f"{seed}{fields}"), 0
    output = tmp_path / "stormy"
    while True:
        left = dice.randint(1, 12)

        def act(kind):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        minutes = dice.choice([0.0, 0.0, 1e-5, 5.0])
        if kills > 40:
            minutes = 0.0
        try:
            run = config(tmp_path, output, seed=seed, checkpoint_minutes=minutes, **fields)
            result = train(run, parts=counting_parts(act), reporter=Silent())
            break
        except Killed:
            kills += 1
    assert result.status == "finished"
    assert results(output) == calm
    assert kills > 0
    assert len(result.info["resumptions"]) <= kills
    assert not list(output.glob(".*"))
    assert [path.name for path in output.iterdir() if "rolling" in path.name or "eval" in path.name] == []


@pytest.mark.parametrize("at", range(1, 26, 2))
def test_a_signal_costs_no_work(tmp_path, at):
    """SIGTERM during any piece of work: the run stops behind it, and nothing is computed twice."""
    calm = undisturbed(tmp_path)
    work: list[str] = []

    def act(kind):
        work.append(kind)
        if len(work) == at:
            os.kill(os.getpid(), signal.SIGTERM)

    output, reporter = tmp_path / "out", Silent()
    first = train(config(tmp_path, output), parts=counting_parts(act), reporter=reporter)
    if first.status == "interrupted":
        assert first.signal == signal.SIGTERM
        assert "The same command again resumes" in reporter.text
        assert train(config(tmp_path, output), parts=counting_parts(act), reporter=reporter).status == "finished"
        assert "Resuming from checkpoint-" in reporter.text
    assert results(output) == calm
    pieces = work.count("micro-batch"), work.count("evaluate")
    assert pieces == (14, 6)  # two epochs of 7 micro-batches; 2 chunks of validation examples after each and before


def test_a_damaged_checkpoint_is_named_and_the_last_good_one_used(tmp_path):
    calm, dice = undisturbed(tmp_path), random.Random(0)
    for trial in range(12):
        output, reporter = tmp_path / f"run{trial}", Silent()
        left = 6 + trial % 5

        def act(kind):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        run = config(tmp_path, output, checkpoint_minutes=0.0)
        with pytest.raises(Killed):
            train(run, parts=counting_parts(act), reporter=reporter)
        newest = list_checkpoints(output)[0]
        victim = dice.choice(sorted(path for path in newest.iterdir() if path.stat().st_size))
        data = bytearray(victim.read_bytes())
        if trial % 3 == 0:
            data = data[: len(data) // 2]
        else:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        victim.unlink() if trial == 11 else victim.write_bytes(data)
        train(run, parts=PARTS, reporter=reporter)
        assert f"{newest.name} is damaged" in reporter.text
        assert "the last good one" in reporter.text
        assert results(output) == calm


def test_all_checkpoints_damaged_is_an_error_with_a_way_out(tmp_path):
    output = tmp_path / "out"
    train(config(tmp_path, output), parts=PARTS, reporter=Silent())
    (output / "training_info.json").unlink()
    for path in list_checkpoints(output):
        (path / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(RescoldoError, match="--restart"):
        train(config(tmp_path, output), parts=PARTS, reporter=Silent())
    train(config(tmp_path, output), parts=PARTS, reporter=Silent(), restart=True)
    assert (tmp_path / "out.old-1" / "checkpoint-7").is_dir()
    assert not (tmp_path / "out.old-1" / "run.lock").exists()


@pytest.mark.parametrize("first_failure", [0, 1, 5, 12, 30])
def test_a_full_disk_while_checkpointing_does_not_stop_the_run(tmp_path, monkeypatch, first_failure):
    calm = undisturbed(tmp_path)
    real, calls = checkpoints._write, 0

    def write(path, data):
        nonlocal calls
        calls += 1
        if first_failure <= calls < first_failure + 40:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, data)

    monkeypatch.setattr(checkpoints, "_write", write)
    monkeypatch.setattr("rescoldo.training.loop.WAIT_SECONDS", 0.01)
    reporter = Silent()
    train(config(tmp_path, tmp_path / "out", checkpoint_minutes=0.0), parts=PARTS, reporter=reporter)
    assert "no checkpoint was written (No space left on device); the run continues" in reporter.text
    assert results(tmp_path / "out") == calm


def test_a_full_disk_at_the_end_loses_nothing(tmp_path, monkeypatch):
    from rescoldo.training import info

    calm, real = undisturbed(tmp_path), info.write_adapter

    def write_adapter(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "adapter_model.safetensors")

    monkeypatch.setattr(info, "write_adapter", write_adapter)
    output = tmp_path / "out"
    with pytest.raises(RescoldoError, match="No space left on device") as caught:
        train(config(tmp_path, output), parts=PARTS, reporter=Silent())
    assert caught.value.exit_code == EXIT_FAILURE
    assert "it finishes from checkpoint-14" in str(caught.value)
    assert not (output / "training_info.json").exists()
    monkeypatch.setattr(info, "write_adapter", real)

    def act(kind):
        raise AssertionError("nothing is left to compute")

    train(config(tmp_path, output), parts=counting_parts(act), reporter=Silent())
    assert results(output) == calm


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_disk_that_is_really_full(tmp_path, monkeypatch):
    """It stays full to the end: the run holds on to its result until there is room."""
    import threading

    from rescoldo.training import loop

    monkeypatch.setattr(loop, "WAIT_SECONDS", 0.05)
    calm = undisturbed(tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no mount here")
    try:
        filler, output, reporter = disk / "filler", disk / "out", Silent()
        count = 0

        def act(kind):
            nonlocal count
            count += 1
            if count == 4:
                with pytest.raises(OSError, match="No space"):
                    filler.write_bytes(b"x" * 300_000)

        def make_room():
            while "waiting for space" not in reporter.text:
                time.sleep(0.05)
            assert not (output / "adapter_model.safetensors").exists()
            filler.unlink()

        helper = threading.Thread(target=make_room, daemon=True)
        helper.start()
        train(config(tmp_path, output, checkpoint_minutes=0.0), parts=counting_parts(act), reporter=reporter)
        helper.join()
        assert "no checkpoint was written" in reporter.text
        assert results(output) == calm
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_a_finished_run_says_so_and_trains_nothing(tmp_path):
    output, reporter = tmp_path / "out", Silent()
    train(config(tmp_path, output), parts=PARTS, reporter=Silent())
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}

    def no_model(*_, **__):
        raise AssertionError("the model was loaded")

    result = train(config(tmp_path, output), parts=replace(PARTS, load_model=no_model), reporter=reporter)
    assert result.status == "already finished"
    assert result.info["best_epoch"]
    assert "This run is finished" in reporter.text
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"lr": 0.1}, "lr: 0.05 → 0.1"),
        ({"seed": 7}, "seed: 42 → 7"),
        ({"lora_targets": "mlp"}, "lora_targets: q_proj, k_proj, v_proj, o_proj → gate_proj, up_proj, down_proj"),
        ({"quantization": "bf16"}, "quantization: fp32 → bf16"),
        ({"threads": 2}, "threads: 1 → 2"),
        ({"train_limit": 12}, "training examples: 13, "),
        ({"val_limit": 5}, "validation examples: 6, "),
        ({"max_steps": 3}, "max_steps: none → 3"),
    ],
)
def test_other_settings_are_refused_with_the_differences(tmp_path, fields, line, finished):
    output = tmp_path / "out"
    train(config(tmp_path, output), parts=PARTS, reporter=Silent())
    if not finished:
        (output / "training_info.json").unlink()
    with pytest.raises(RescoldoError) as caught:
        train(config(tmp_path, output, **fields), parts=PARTS, reporter=Silent())
    assert line in str(caught.value)
    assert "--restart" in str(caught.value)
    result = train(config(tmp_path, output, **fields), parts=PARTS, reporter=Silent(), restart=True)
    assert result.status == "finished"
    assert (tmp_path / "out.old-1" / "adapter_model.safetensors").exists()


def test_another_base_model_is_refused_and_what_may_change_may(tmp_path, monkeypatch):
    from tests.training.fake import FakeBase

    output = tmp_path / "out"
    train(config(tmp_path, output), parts=PARTS, reporter=Silent())
    moved = tmp_path / "elsewhere.txt"
    shutil.copy(tmp_path / "train.txt", moved)
    same = config(tmp_path, output, base_model="the/same", checkpoint_minutes=1.0, keep_checkpoints=5)
    same = same.model_copy(update={"train": moved})
    assert train(same, parts=PARTS, reporter=Silent()).status == "already finished"
    monkeypatch.setattr(FakeBase, "fingerprint", lambda self: "e" * 64)
    with pytest.raises(RescoldoError, match=r"base model: f+ → e+"):
        train(same, parts=PARTS, reporter=Silent())


def test_auto_is_settled_once(tmp_path, monkeypatch):
    """threads and precision left to the program stay what they were at the start."""
    from rescoldo.training import prepare

    output = tmp_path / "out"
    auto = config(tmp_path, output, threads=None, quantization="auto")
    monkeypatch.setattr(prepare, "available_threads", lambda: 1)
    train(auto, parts=PARTS, reporter=Silent())
    (output / "training_info.json").unlink()
    monkeypatch.setattr(prepare, "available_threads", lambda: 64)
    assert train(auto, parts=PARTS, reporter=Silent()).info["config"]["threads"] == 1


def test_not_finite_names_the_example_and_keeps_the_checkpoint(tmp_path):
    class Step(FakeStep):
        def micro_batch(self, indices):
            nats = super().micro_batch(indices)
            bad = [i for i in indices if self.examples[i].tokens[0] == 15]  # the sixth example
            return float("nan") if bad and self.step >= 4 else nats

    output = tmp_path / "out"
    with pytest.raises(RescoldoError, match="loss is not a finite number") as caught:
        train(config(tmp_path, output, batch_size=1), parts=replace(PARTS, gradient_step=Step), reporter=Silent())
    assert caught.value.where == "train.txt:6"
    assert caught.value.exit_code == EXIT_FAILURE
    assert "the last good checkpoint is checkpoint-13" in caught.value.fix


def test_gradient_not_finite_finds_the_example(tmp_path):
    class Step(FakeStep):
        def finish(self):
            bad = any(example.tokens[0] == 15 for example in self.examples)
            return {key: tensor * (float("inf") if bad else 1.0) for key, tensor in self.sums.items()}

    with pytest.raises(RescoldoError, match="gradient is not a finite number") as caught:
        train(config(tmp_path, tmp_path / "out"), parts=replace(PARTS, gradient_step=Step), reporter=Silent())
    assert caught.value.where == "train.txt:6"


def test_best_epoch_is_the_adapter(tmp_path):
    """Validation losses 3.5, then 3, 1, 2: the second epoch's weights are saved; with patience 1 the run stops."""
    from rescoldo.adapter import read_adapter

    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(model, examples):
        if len(examples) == 4:  # the first chunk of an evaluation
            seen.append({key: tensor.clone() for key, tensor in model.parameters.items()})
        return [([3.5, 3.0, 1.0, 2.0, 0.5][len(seen) - 1], 1) for _ in examples]

    run = config(tmp_path, tmp_path / "out", epochs=4, early_stopping=1)
    reporter = Silent()
    result = train(run, parts=replace(PARTS, evaluate_loss=evaluate), reporter=reporter)
    assert result.info["best_epoch"] == 2
    assert result.info["stopped_early"] is True
    assert [losses["val_loss"] for losses in result.info["losses"]] == [3.0, 1.0, 2.0]
    saved = read_adapter(tmp_path / "out").parameters
    assert all(torch.equal(saved[key], seen[2][key]) for key in saved)
    assert "Stopped early" in reporter.text


def test_what_is_kept(tmp_path):
    """Every epoch's end stays, the newest few between, and half-written ones of a killed process go."""
    left = 12

    def act(kind):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    output = tmp_path / "out"
    run = config(tmp_path, output, checkpoint_minutes=0.0, keep_checkpoints=3, batch_size=1)
    with pytest.raises(Killed):
        train(run, parts=counting_parts(act), reporter=Silent())
    assert len(list_checkpoints(output)) == 3
    (output / ".checkpoint-99-rolling.tmp").mkdir()
    train(run, parts=PARTS, reporter=Silent())
    assert sorted(path.name for path in output.glob("*checkpoint-*")) == ["checkpoint-13", "checkpoint-26"]
    assert not list(output.glob(".*"))


def test_a_checkpoint_of_another_format_is_not_read(tmp_path):
    import hashlib

    output = tmp_path / "out"
    train(config(tmp_path, output), parts=PARTS, reporter=Silent())
    (output / "training_info.json").unlink()
    for path in list_checkpoints(output):
        text = (path / "manifest.json").read_text().replace(f'"format": {FORMAT}', '"format": 99')
        (path / "manifest.json").write_text(text)
        (path / "manifest.sha256").write_text(hashlib.sha256(text.encode()).hexdigest())
    reporter = Silent()
    with pytest.raises(RescoldoError, match="--restart"):
        train(config(tmp_path, output), parts=PARTS, reporter=reporter)
    assert f"it has format 99: expected {FORMAT}" in reporter.text


def test_restart_follows_a_link_and_refuses_the_directory_one_is_in(tmp_path, monkeypatch):
    (tmp_path / "disk" / "run").mkdir(parents=True)
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "disk" / "run")
    train(config(tmp_path, link), parts=PARTS, reporter=Silent())
    train(config(tmp_path, link), parts=PARTS, reporter=Silent(), restart=True)
    assert link.is_symlink()
    for name in ("run", "run.old-1"):
        assert (tmp_path / "disk" / name / INFO_FILE).exists()

    monkeypatch.chdir(link)
    with pytest.raises(RescoldoError, match="it is the current directory\n  → cd "):
        train(config(tmp_path, Path(".")), parts=PARTS, reporter=Silent(), restart=True)
    assert (link / INFO_FILE).exists()


def test_restart_without_a_run_just_starts(tmp_path):
    (tmp_path / "out").mkdir()
    train(config(tmp_path, tmp_path / "out"), parts=PARTS, reporter=Silent(), restart=True)
    assert not (tmp_path / "out.old-1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_sigkill_of_a_real_process(tmp_path, seed):
    """A process killed at random moments until one comes through."""
    command = [sys.executable, "-u", "-m", "tests.training.fake", str(tmp_path)]
    subprocess.run([*command, str(tmp_path / "calm"), "0", "5"], check=True, stdout=subprocess.DEVNULL)
    dice, kills, output = random.Random(seed), 0, tmp_path / "stormy"
    while True:
        process = subprocess.Popen([*command, str(output), "0.03", "0"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if "Starting training" in line:
                break
        try:
            process.communicate(timeout=dice.random() * (0.5 + 0.1 * kills))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            kills += 1
            continue
        assert process.returncode == 0
        break
    assert results(output) == results(tmp_path / "calm")
    assert kills > 0
    info = read_json(output / "training_info.json")
    assert info is not None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_to_a_real_process(tmp_path, number):
    command = [sys.executable, "-m", "tests.training.fake", str(tmp_path), str(tmp_path / "out"), "0.1", "5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "Starting training" in line:
            break
    time.sleep(0.5)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "The same command again resumes" in out
    assert list_checkpoints(tmp_path / "out")
