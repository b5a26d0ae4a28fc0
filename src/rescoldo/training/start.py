"""Starting, resuming and ending a training run: `train(config, parts)` runs in the process that writes it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rescoldo.adapter import BIN_FILE, write_bin
from rescoldo.engine.types import CALIBRATION_EXAMPLES
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.files import allow_cache_near, read_json
from rescoldo.invocation import program
from rescoldo.role import keep_role
from rescoldo.run.detach import follow_move
from rescoldo.run.guard import cap_after_kill
from rescoldo.run.layout import INFO_FILE, LOG_FILE, RUN_FILE, list_checkpoints
from rescoldo.run.lock import LOCK_FILE, RunLock, representative
from rescoldo.run.monitor import Monitor
from rescoldo.run.signals import EndAtOnce, EndedBySignal, Interruption
from rescoldo.run.state import read_state
from rescoldo.run.status import Status, read_status
from rescoldo.run.streams import unfailing
from rescoldo.system.awake import can_suspend
from rescoldo.system.memory import memory_errors_in_words
from rescoldo.training.checkpoint import Checkpoint, EpochLosses, clean, prune, read_latest
from rescoldo.training.config import RunConfig
from rescoldo.training.extend import extends
from rescoldo.training.identity import (
    changed,
    move_aside,
    refuse_if_different,
    refuse_if_foreign,
    surrounding_differences,
    write_run_file,
)
from rescoldo.training.info import write_results
from rescoldo.training.loop import Loop
from rescoldo.training.metrics import Timings, worsened
from rescoldo.training.parts import Parts, lora_config
from rescoldo.training.prepare import Prepared, prepare
from rescoldo.training.progress import Reporter, Topic
from rescoldo.training.tracking import check_trackers
from rescoldo.units import clock, count

COMPLETED = "✅ Fine-tuning completed!"


@dataclass(frozen=True)
class RunResult:
    """How a call of `train` ended.

    Attributes:
        status: "finished", "already finished" or "interrupted"; "followed": another machine has the result.
        signal: the number of the signal that interrupted it, otherwise 0.
        info: the content of training_info.json if finished, {} if interrupted.
    """

    status: str
    output: Path
    info: dict[str, Any] = field(default_factory=dict)
    signal: int = 0

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the run before it was finished."""
        return self.signal != 0

    def summary(self) -> dict[str, Any]:
        """The JSON that `--json` prints."""
        return {"status": self.status, "output": str(self.output), "signal": self.signal or None, "info": self.info}


def train(
    config: RunConfig,
    parts: Parts,
    *,
    restart: bool = False,
    adapter_bin: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
) -> RunResult:
    """Start the run that `config` describes, resume it, or recognize it as finished.

    Args:
        config: the settings; fields that were not given are filled by its preset.
        parts: engine and data modules: `assemble.real_parts()`.
        restart: move the content of the output directory aside and start over.
        adapter_bin: also write adapter_model.bin.
        force: start even if the checks of `rescoldo doctor` fail.
        reporter: for messages (default: standard output).

    Raises:
        RescoldoError: whatever the user can fix. Existing files on disk are kept.
    """
    reporter = reporter or Reporter()
    allow_cache_near(config.output)
    with unfailing(config.output / LOG_FILE):
        return _train(config, parts, reporter, restart=restart, adapter_bin=adapter_bin, force=force)


def _train(
    config: RunConfig, parts: Parts, reporter: Reporter, *, restart: bool, adapter_bin: bool, force: bool
) -> RunResult:
    output = config.output
    check_trackers(config)
    before = read_status(output)  # how the last process ended; must be read before this one updates the state
    try:
        with EndAtOnce(), ExitStack() as stack:  # a default handler would leave the lock behind, like a killed run
            lock = RunLock(output)
            if output.is_dir():
                stack.enter_context(lock)
            prepared = prepare(config, parts, reporter, restart=restart)
            parts.preflight(prepared, reporter, force)
            if not output.is_dir():  # created only after all settings have been checked
                stack.enter_context(lock)
            elif restart and any(path.name not in (LOCK_FILE, LOG_FILE) for path in output.iterdir()):
                aside = move_aside(output)
                lock.path = aside / LOCK_FILE
                reporter.say(f"the old run is now {aside}")
                lock.release()
                stack.enter_context(RunLock(output))
                follow_move(output, aside)
            return _run(prepared, parts, reporter, adapter_bin, before)
    except EndedBySignal as ended:
        reporter.say(f"{ended.signal.name}: nothing was lost in {output}. The same command resumes.")
        return RunResult("interrupted", output, signal=int(ended.signal))
    except OSError as error:
        raise RescoldoError(
            f"{error.strerror or error}: {error.filename or output}",
            fix="fix that and repeat the command: it resumes from the last checkpoint",
            exit_code=EXIT_FAILURE,
        ) from error
    finally:
        state = read_state(output)
        if (
            state is not None and (state.pid, state.start) == representative() and state.broken_off
        ):  # after the lock is released, so that the page shows the right status
            parts.write_report(output, reporter.warn)


def _run(prepared: Prepared, parts: Parts, reporter: Reporter, adapter_bin: bool, before: Status) -> RunResult:
    """Find the run's position, restore the model, train, write the results."""
    config, output = prepared.config, prepared.config.output
    clean(output)
    refuse_if_foreign(output)

    info = read_json(output / INFO_FILE)
    more = info is not None and "identity" in info and changed(info["identity"], prepared.identity) == ["epochs"]
    if info is not None and "identity" in info and not (more and list_checkpoints(output)):
        refuse_if_different(info["identity"], prepared.identity, output, "a finished run")
        if adapter_bin and not (output / BIN_FILE).exists():
            write_bin(output)
        reporter.say(f"This run is finished: the adapter is in {output}. --restart starts it again.")
        return RunResult("already finished", output, info)

    found = read_latest(output, reporter.warn)
    checkpoint = found[0] if found else None
    extended = checkpoint is not None and extends(
        checkpoint.identity, prepared.identity, config, len(prepared.train.examples), checkpoint.position
    )
    if checkpoint is not None and extended:
        had = count(checkpoint.identity["epochs"], "epoch")
        reporter.say(f"This run had {had}; with {config.epochs} it continues exactly as if it had started with them")
        (output / INFO_FILE).unlink(missing_ok=True)  # it is no longer finished
    elif checkpoint is not None:
        refuse_if_different(checkpoint.identity, prepared.identity, output, "an unfinished run")
    if checkpoint is not None:
        for line in surrounding_differences(checkpoint.identity, prepared.identity):
            reporter.warn(f"{line} since the checkpoint: the result may differ in its last bits")
    if checkpoint is None or extended or not (output / RUN_FILE).exists():
        started = (read_json(output / RUN_FILE) or {}).get("started") if extended else None
        started = started or time.strftime("%Y-%m-%dT%H:%M:%S%z")
        keep_role(prepared.role, output)
        write_run_file(
            output,
            config,
            prepared.from_preset,
            prepared.identity,
            started,
            {"train": len(prepared.train.examples), "val": len(prepared.val.examples)},
        )

    cap = None
    if before.killed_for_memory:
        n = prepared.base.config.n_layers
        trained = n - lora_config(config, n).first_layer  # the maximum number of layers that keep activations
        cap = cap_after_kill(before.state.get("keep_layers"), trained)
        reporter.warn(
            f"the last process here was {before.why}: this one keeps activations for at most {cap} of "
            f"{trained} layers (slower, the same result)"
        )
    timings = Timings(output)
    with ExitStack() as stack:
        monitor = stack.enter_context(
            Monitor(output, reporter, cap=cap, expected_rate=parts.expected_rate(config), event=timings.event)
        )
        if not stack.enter_context(parts.stay_awake()) and can_suspend():
            reporter.say(
                "  sleep cannot be prevented on this machine (neither systemd-inhibit nor caffeinate works)",
                Topic.SETUP,
            )
        with memory_errors_in_words():
            return _work(prepared, parts, reporter, adapter_bin, found, monitor, timings)


def _work(
    prepared: Prepared,
    parts: Parts,
    reporter: Reporter,
    adapter_bin: bool,
    found: tuple[Checkpoint, Path] | None,
    monitor: Monitor,
    timings: Timings,
) -> RunResult:
    """Load the model, train, write the results."""
    config, output = prepared.config, prepared.config.output
    checkpoint = found[0] if found else None
    torch.set_num_threads(config.threads or 1)
    with reporter.bar(
        f"Preparing the weights ({config.quantization}, {config.threads} threads):", 100, topic=Topic.SETUP
    ) as bar:
        model = parts.load_model(
            prepared.base,
            config.quantization,
            lora_config(config, prepared.base.config.n_layers),
            seed=config.seed,
            calibration=prepared.train.examples[:CALIBRATION_EXAMPLES],
            frozen_state=checkpoint.frozen if checkpoint else None,
            on_progress=lambda share: bar.advance(int(100 * share) - bar.done, ""),
        )
    loop = Loop(prepared, parts, reporter, model, checkpoint, monitor, timings)
    reporter.say("Starting training...", Topic.SETUP)
    if found:
        at = loop.position
        reporter.say(
            f"Resuming from {found[1].name}: epoch {at.epoch + 1}, step {at.step} of {loop.plan.total_steps} done"
        )
    loop.progress()
    loop.timings.event("resume" if found else "start", checkpoint=found[1].name if found else None)

    with Interruption() as interruption:
        loop.interruption = interruption
        try:
            if loop.fit():
                return _finish(loop, adapter_bin)
        finally:
            loop.board.close()
    assert interruption.received is not None
    return RunResult("interrupted", output, signal=int(interruption.received))


def _finish(loop: Loop, adapter_bin: bool) -> RunResult:
    """Write the results; the last file marks the run as finished."""
    data, at = loop.prepared, loop.position
    config, reporter = data.config, loop.reporter
    reporter.say(f"Saving LoRA adapters to {config.output}", Topic.RESULT)
    loop.timings.event("finish")
    loop.monitor.update(now=True, phase="saving", share=1.0, seconds_left=0.0)
    best = at.losses[at.best_epoch - 1]
    loop.board.finish(verdict(at.losses, at.best_epoch, at.loss_before))
    try:
        loop.metrics.finish()
        info = write_results(data, at, loop.best, loop.model.frozen_state(), loop.parts, adapter_bin)
    except OSError as error:
        newest = next(iter(list_checkpoints(config.output)), None)
        raise RescoldoError(
            f"the results cannot be written: {error.strerror}",
            where=str(error.filename or config.output),
            fix=f"fix that and repeat the command: it finishes from {newest.name if newest else 'the start'}",
            exit_code=EXIT_FAILURE,
        ) from error
    prune(config.output, 0)
    if worsened(at.loss_before, best.val_loss):
        loop.monitor.file.trouble(worsened(at.loss_before, best.val_loss), worsened_remedy(config))
    loop.monitor.update(now=True, phase="finished")
    loop.parts.write_report(config.output, reporter.warn)
    perplexity = f", perplexity {info['val_perplexity']:.2f}" if "val_perplexity" in info else ""
    before = "" if at.loss_before is None else f" ({at.loss_before:.4f} before training)"
    reporter.say(
        f"  best epoch {at.best_epoch} of {len(at.losses)}: validation loss {best.val_loss:.4f}{before}{perplexity}; "
        f"{clock(info['wall_seconds'])} in all, {count(len(info['resumptions']), 'interruption')}",
        Topic.RESULT,
    )
    worse = worsened(at.loss_before, best.val_loss)
    reporter.say(
        f"⚠️  Fine-tuning completed, and {worse}\n    → {worsened_remedy(config)}" if worse else COMPLETED, Topic.RESULT
    )
    return RunResult("finished", config.output, info)


def verdict(losses: Sequence[EpochLosses], best_epoch: int, before: float | None) -> dict[str, Any]:
    """The run's final results for a tracker."""
    best = losses[best_epoch - 1]
    found = {"best_epoch": best_epoch, "epochs_done": len(losses), "best_val_loss": best.val_loss}
    known = {} if before is None else {"val_loss_before": before}
    return {**found, **known, "verdict": worsened(before, best.val_loss) or "completed"}


def worsened_remedy(config: RunConfig) -> str:
    """What to do if training has made the model worse."""
    return (
        f"keep the base model, or start over with --restart and a lower --lr (now {config.lr:g}); `{program()} watch` "
        "and report.html show the curve"
    )
