"""The training loop, resumable after any number of interruptions.

Nothing here depends on the clock, or on when and how often the run was interrupted: the order of examples, dropout and
initial weights are functions of the seed and the position, and a checkpoint holds everything else, including the
gradients of an unfinished optimizer step. So a run that was killed ends with the same bytes as one that was not.

Not supported: full fine-tuning, packing of examples. For several machines see nodes/, which replaces `parts`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict

from rescoldo.base.damage import damaged_tensor
from rescoldo.engine.memory import layers_to_keep
from rescoldo.engine.preference import with_reference
from rescoldo.engine.types import Example
from rescoldo.engine.weights import Tensors
from rescoldo.errors import EXIT_FAILURE, RescoldoError
from rescoldo.run.guard import MemoryGuard
from rescoldo.run.layout import list_checkpoints
from rescoldo.run.monitor import Monitor
from rescoldo.run.signals import Interruption
from rescoldo.training.checkpoint import Checkpoint, EpochLosses, Position, mean_loss, write_checkpoint
from rescoldo.training.metrics import MetricsLog, Timings
from rescoldo.training.objectives import objective_of
from rescoldo.training.optimizer import clip, lr_factor, warmup_steps
from rescoldo.training.parts import Losses, Model, NoLosses, Parts, Step
from rescoldo.training.plan import Plan
from rescoldo.training.prepare import Prepared
from rescoldo.training.progress import Bar, Reporter, Speed, Topic
from rescoldo.training.tracking import Trackers
from rescoldo.units import clock

EVALUATION_CHUNK = 4  # validation examples per machine between two points where the run can stop
EVALUATED_SHARE = 0.4  # approximate cost of an evaluated token relative to a trained one
WAIT_SECONDS = 2.0  # between attempts when only disk space is missing
RETRY_SECONDS = 60.0  # after a checkpoint that could not be written


class Loop:
    """A run in memory: model, optimizer, position, logs."""

    def __init__(
        self,
        prepared: Prepared,
        parts: Parts,
        reporter: Reporter,
        model: Model,
        checkpoint: Checkpoint | None,
        monitor: Monitor,
        timings: Timings,
    ) -> None:
        self.prepared, self.parts, self.reporter, self.model = prepared, parts, reporter, model
        self.monitor, self.timings = monitor, timings
        self.config = config = prepared.config
        self.objective = objective_of(config)
        self.examples, self.val = prepared.train.examples, prepared.val.examples
        self.plan = Plan(config, len(self.examples))
        self.warmup = warmup_steps(config.warmup, self.plan.total_steps)
        self.optimizer = parts.optimizer(model.trained, config.weight_decay, config.lora_plus or 1.0)
        self.position = checkpoint.position if checkpoint else Position()
        self.gradients: Tensors = checkpoint.gradients if checkpoint else {}  # of the step that was interrupted
        self.best: Tensors = checkpoint.best if checkpoint else {}
        origin = prepared.origin.adapter.parameters if prepared.origin else None
        begin = checkpoint.adapter if checkpoint else origin
        if begin is not None:
            for key, parameter in model.parameters.items():
                parameter.data.copy_(begin[key])
            model.sync()
        if checkpoint:
            self.optimizer.load_state(checkpoint.optimizer)
        if self.position.micro and not parts.resumable_steps:
            self.restart_step()
        self.metrics = MetricsLog(config.output, checkpoint.metrics if checkpoint else "", reporter.warn)
        facts = {"role_name": prepared.role.name, "train_examples": len(self.examples), "steps": self.plan.total_steps}
        self.board = Trackers(config, facts, self.position.step, reporter.say, reporter.warn)
        self.interruption = Interruption()
        self.speed, self.evaluation_speed = Speed(), Speed()
        self.expected_rate = parts.expected_rate(config)  # tokens per second of training, measured by a plan
        self.saved_at = time.monotonic()
        self.unsaved = False  # whether the last checkpoint could not be written

    def fit(self) -> bool:
        """Train until done; False if a signal came first (the run is saved then)."""
        at, config = self.position, self.config
        if self.objective and self.objective.reference and not self.measure_reference():
            return False
        if not at.batches and not at.losses and not self.evaluate_before():
            return False
        self.monitor.update(val_loss_before=at.loss_before, val_loss=at.losses[-1].val_loss if at.losses else None)
        self.progress()
        while at.epoch < self.plan.epochs and not at.stopped_early:
            if not at.evaluated and not self.train_epoch():
                return False
            if not self.evaluate(at.evaluated, "Evaluating:"):
                return False

            val_loss = mean_loss(at.evaluated)
            at.losses.append(EpochLosses(at.epoch + 1, at.epoch_nats / at.epoch_targets, val_loss))
            if not self.best or val_loss < at.losses[at.best_epoch - 1].val_loss:
                at.best_epoch = at.epoch + 1
                self.best = {key: tensor.detach().clone() for key, tensor in self.model.parameters.items()}
            at.stopped_early = (
                config.early_stopping is not None and at.epoch + 1 - at.best_epoch >= config.early_stopping
            )
            self.metrics.append(
                {
                    "epoch": at.epoch + 1,
                    "step": at.step,
                    **asdict(at.losses[-1]),
                    "best_epoch": at.best_epoch,
                    **self.figures(at.evaluated),
                }
            )
            self.monitor.update(val_loss=val_loss)
            self.board.add(at.step, loss__validation=val_loss, loss__epoch=at.losses[-1].train_loss)
            if shown := self.figures(at.evaluated):
                self.reporter.say(f"  validation: {', '.join(f'{k[4:]} {v:.3f}' for k, v in shown.items())}")

            at.epoch, at.epoch_nats, at.epoch_targets, at.evaluated = at.epoch + 1, 0.0, 0, []
            self.save(epoch_end=True)
            if self.interruption.received and at.epoch < self.plan.epochs and not at.stopped_early:
                return self.stopped()
        if at.stopped_early:
            self.reporter.say(f"Stopped early: no better validation loss since epoch {at.best_epoch}")
        return self.wait_for_disk()

    def train_epoch(self) -> bool:
        """Train on the rest of the epoch; False if a signal came first."""
        at, config, plan = self.position, self.config, self.plan
        groups = plan.groups(at.epoch)
        total = sum(len(plan.batches(group)) for group in groups)
        before = at.epoch * plan.batches_per_epoch
        self.monitor.update(now=True, phase="training", epoch=at.epoch + 1, epochs=plan.epochs, steps=plan.total_steps)
        with self.reporter.bar(f"Epoch {at.epoch + 1}/{plan.epochs}:", total, at.batches - before) as bar:
            for group in groups[at.step - at.epoch * plan.steps_per_epoch :]:
                examples = [self.examples[i] for i in group]
                targets = self.total(examples)
                batches = plan.batches(group)
                began = mark = self.monitor.clock.now()
                step = self.gradient_step(examples, at.step)
                whole = not at.micro  # whether this process does all of the step
                if at.micro:
                    step.load_state(self.gradients)
                self.gradients = {}

                for batch in batches[at.micro :]:
                    tokens = sum(examples[i].n_tokens for i in batch)
                    bound_memory(self.monitor.guard, self.model, tokens)
                    nats = step.micro_batch(batch)
                    if not math.isfinite(nats):
                        raise self.not_finite("loss", [group[i] for i in batch])
                    mark = self.timed(tokens, mark)
                    at.micro, at.batches, at.step_nats = at.micro + 1, at.batches + 1, at.step_nats + nats
                    at.tokens += tokens
                    if self.parts.resumable_steps and self.should_save():
                        self.gradients = step.state()
                        self.save()
                        if self.interruption.received:
                            return self.stopped()
                    if self.parts.resumable_steps and at.micro < len(batches):
                        so_far = self.total(examples[: batch[-1] + 1])
                        self.show(bar, at.step_nats / so_far, milestone=False)

                gradients = step.finish()
                at.step_nats += getattr(step, "nats_elsewhere", 0.0)  # from other machines
                norm = clip(gradients, config.max_grad_norm)
                if not math.isfinite(norm):
                    raise self.not_finite("gradient", self.culprits(group))
                lr = config.lr * lr_factor(at.step, self.warmup, plan.total_steps, config.lr_schedule)
                self.optimizer.update(gradients, lr, at.step + 1)
                self.model.sync()

                loss = at.step_nats / targets
                at.epoch_nats, at.epoch_targets = at.epoch_nats + at.step_nats, at.epoch_targets + targets
                at.step, at.micro, at.step_nats = at.step + 1, 0, 0.0
                at.targets += sum(example.n_targets for example in examples)
                line = {"step": at.step, "epoch": at.epoch + 1, "loss": loss, "lr": lr, "grad_norm": norm}
                self.metrics.append({**line, "tokens": at.tokens})
                seconds = self.timed(0, mark) - began
                rate = self.speed.tokens_per_second
                self.timings.event("step", step=at.step, seconds=round(seconds, 3), tokens_per_second=round(rate, 2))
                if whole:
                    self.monitor.step_done(at.step, sum(example.n_tokens for example in examples), seconds)
                self.monitor.update(step=at.step, loss=loss)
                self.board.add(at.step, loss__train=loss, lr=lr, grad_norm=norm, tokens_per_second=rate)
                self.show(bar, loss)
                if (
                    not self.parts.resumable_steps
                    and self.should_save()
                    and at.step < plan.steps_per_epoch * (at.epoch + 1)
                ):
                    self.save()
                    if self.interruption.received:
                        return self.stopped()
        return True

    def restart_step(self) -> None:
        """Discard the unfinished step of an earlier process if it cannot be continued."""
        at = self.position
        group = self.plan.groups(at.epoch)[at.step - at.epoch * self.plan.steps_per_epoch]
        done = [group[i] for batch in self.plan.batches(group)[: at.micro] for i in batch]
        at.tokens -= sum(self.examples[i].n_tokens for i in done)
        at.batches -= at.micro
        at.micro, at.step_nats, self.gradients = 0, 0.0, {}

    def timed(self, tokens: int, since: float) -> float:
        """Count work done since `since` on the monitor's clock; returns the current time."""
        now = self.monitor.clock.now()
        self.speed.add(tokens, now - since)
        return now

    def evaluate_before(self) -> bool:
        """Measure the validation loss before training, to show later whether training improved it; False if a signal
        came first."""
        at = self.position
        self.monitor.update(now=True, epochs=self.plan.epochs, steps=self.plan.total_steps)
        kept = self.known_losses()
        known = kept.read() if not at.baseline else None
        if known:
            at.baseline += known
            text = "known from an earlier run on this base model and these examples"
            self.reporter.say(f"Validation loss before training: {at.loss_before:.4f}, {text}", Topic.SETUP)
        elif self.evaluate(at.baseline, "Validation loss before training:"):
            kept.write(at.baseline)
        else:
            return False
        loss = at.loss_before
        if not self.metrics.text:  # a checkpoint within the first step has the line already
            self.metrics.append({"epoch": 0, "step": 0, "val_loss": loss, **self.figures(at.baseline)})
        if loss is not None:
            self.board.add(0, loss__validation=loss)
        return True

    def known_losses(self) -> Losses:
        """Where the losses before the training are kept for other runs, if they depend on the base model and the
        examples alone."""
        if self.objective or self.parts.machines > 1:
            return NoLosses()
        return self.parts.losses_before(self.prepared.base, self.model, self.val)

    def gradient_step(self, examples: list[Example], step: int) -> Step:
        """The gradient of one optimizer step, with the run's objective."""
        objective = {"objective": self.objective} if self.objective else {}
        return self.parts.gradient_step(self.model, examples, step=step, seed=self.config.seed, **objective)

    def total(self, examples: list[Example]) -> float:
        """The divisor of these examples' summed loss."""
        return self.objective.total(examples) if self.objective else sum(one.total_weight for one in examples)

    def figures(self, evaluated: list[tuple[float, ...]]) -> dict[str, float]:
        """The means of what the objective measures in addition to the loss: "val_accuracy" → …"""
        names = self.objective.figures if self.objective else ()
        return {f"val_{k}": sum(row[2 + i] for row in evaluated) / len(evaluated) for i, k in enumerate(names)}

    def measure(self, examples: Sequence[Example]) -> list[float]:
        """The log-probability of each example's answer, in nats."""
        return [-nats for nats, *_ in self.parts.evaluate_loss(self.model, list(examples))]

    def measure_reference(self) -> bool:
        """Measure the answers' log-probabilities before training, which the objective uses as reference; False if a
        signal came first."""
        found = self.position.reference
        sequences = [one for example in (*self.examples, *self.val) for one in example.scored]
        if len(found) < len(sequences):
            self.monitor.update(now=True, phase="evaluating")
            with self.reporter.bar("Measuring the reference model:", len(sequences), len(found)) as bar:
                while len(found) < len(sequences):
                    chunk = sequences[len(found) : len(found) + 2 * EVALUATION_CHUNK]
                    found += self.measure(chunk)
                    bar.advance(len(chunk), f"{len(found)} of {len(sequences)} answers")
                    if self.should_save():
                        self.save()
                        if self.interruption.received:
                            return self.stopped()
        places = sum(len(example.scored) for example in self.examples)
        self.examples = with_reference(self.examples, found[:places])
        self.val = with_reference(self.val, found[places:])
        return True

    def evaluate(self, evaluated: list[tuple[float, ...]], description: str) -> bool:
        """Fill `evaluated` (summed loss, target tokens, figures) for all validation examples; False if a signal came
        first."""
        examples = self.val
        self.monitor.update(now=True, phase="evaluating")
        with self.reporter.bar(description, len(examples), len(evaluated)) as bar:
            while len(evaluated) < len(examples):
                begin, mark = len(evaluated), self.monitor.clock.now()
                chunk = examples[begin : begin + EVALUATION_CHUNK * self.parts.machines]
                losses: Sequence[tuple[float, ...]] = (
                    self.objective.evaluate(self.measure, chunk)
                    if self.objective and self.objective.evaluate
                    else self.parts.evaluate_loss(self.model, chunk)
                )
                for offset, (nats, *_) in enumerate(losses):
                    if not math.isfinite(nats):
                        name = self.prepared.val.names[begin + offset]
                        raise damaged_tensor(self.prepared.base) or RescoldoError(
                            f"the validation loss is {nats}", where=name, fix=self.remedy(), exit_code=EXIT_FAILURE
                        )
                evaluated += losses
                tokens = sum(example.n_tokens for example in chunk)
                self.evaluation_speed.add(tokens, self.monitor.clock.now() - mark)
                mean = mean_loss(evaluated)
                left = self.progress()
                bar.advance(len(losses), f"loss {mean:.4f} | {'?' if left is None else clock(left)} left in all")
                if len(evaluated) < len(examples) and self.should_save():
                    self.save()
                    if self.interruption.received:
                        return self.stopped()
        return True

    def should_save(self) -> bool:
        """Whether a signal has come, or the checkpoint interval has passed."""
        return (
            self.interruption.received is not None
            or time.monotonic() - self.saved_at >= 60 * self.config.checkpoint_minutes
        )

    def save(self, epoch_end: bool = False) -> None:
        """Write a checkpoint. A full disk is reported and does not stop the run, which soon tries again."""
        self.board.flush()
        checkpoint = Checkpoint(
            self.position,
            self.prepared.identity,
            self.metrics.text,
            adapter=self.model.parameters,
            optimizer=self.optimizer.state(),
            best=self.best,
            gradients={} if epoch_end else self.gradients,
            frozen=self.model.frozen_state(),
        )
        self.gradients = {}
        self.saved_at = time.monotonic()
        try:
            path = write_checkpoint(
                self.config.output, checkpoint, epoch_end=epoch_end, keep=self.config.keep_checkpoints
            )
        except OSError as error:
            again, self.unsaved = self.unsaved, True
            self.monitor.update(now=True, checkpoint_error=error.strerror or str(error))
            retry = min(RETRY_SECONDS, 60 * self.config.checkpoint_minutes)
            self.saved_at += retry - 60 * self.config.checkpoint_minutes
            if not again:
                self.reporter.warn(
                    f"no checkpoint was written ({error.strerror}); the run continues and retries every {retry:.0f} s"
                )
        else:
            if self.unsaved:
                self.reporter.say(f"  {path.name} is written: there is free space again")
            self.unsaved = False
            self.monitor.update(now=True, last_checkpoint=path.name, checkpoint_error="")
            self.timings.event("checkpoint", step=self.position.step, batches=self.position.batches)
            self.parts.write_report(self.config.output, self.reporter.warn)

    def wait_for_disk(self) -> bool:
        """After training, wait until the last checkpoint can be written to disk; False if a signal came first."""
        if self.unsaved:
            self.reporter.warn(
                f"training finished, but the disk of {self.config.output} is full: waiting for space there "
                "(Ctrl-C quits, and loses what came after the last checkpoint)"
            )
        while self.unsaved:
            if self.interruption.received:
                return self.stopped()
            time.sleep(WAIT_SECONDS)
            self.save(epoch_end=True)
        return True

    def stopped(self) -> bool:
        """Print how to resume. Always returns False."""
        newest = next(iter(list_checkpoints(self.config.output)), None)
        self.timings.event("stop")
        self.monitor.update(now=True, phase="stopped", signal=int(self.interruption.received or 0))
        signal = self.interruption.received.name if self.interruption.received else "stopped"
        saved = f"saved as {newest.name}" if newest else "nothing could be saved"
        self.reporter.say(f"{signal}: {saved} in {self.config.output}. The same command again resumes.")
        return False

    def show(self, bar: Bar, loss: float, milestone: bool = True) -> None:
        """Advance the bar by a micro-batch."""
        at = self.position
        left = self.progress()
        detail = (
            f"step {at.step}/{self.plan.total_steps} | loss {loss:.4f} | {self.speed.tokens_per_second:.0f} tokens/s"
            f" | {'?' if left is None else clock(left)} left"
        )
        self.monitor.update(tokens_per_second=round(self.speed.tokens_per_second, 2))
        bar.advance(at.batches - at.epoch * self.plan.batches_per_epoch - bar.done, detail, milestone)

    def progress(self) -> float | None:
        """Update the run's progress in state.json. Returns the seconds left, None while the speed is unknown."""
        at, train, val = self.position, self.prepared.train, self.prepared.val
        epochs = self.plan.total_steps / self.plan.steps_per_epoch  # of the whole run; the last one may be partial
        evaluations = self.plan.epochs + (1 if at.baseline or not at.batches else 0)
        done = at.epoch + (len(at.baseline) + len(at.evaluated)) / len(val.examples)
        to_train = max(0.0, epochs * train.tokens - at.tokens)
        to_evaluate = max(0.0, evaluations - done) * val.tokens
        rate, evaluation_rate = self.speed.tokens_per_second, self.evaluation_speed.tokens_per_second
        rate = rate or EVALUATED_SHARE * evaluation_rate or self.expected_rate or 0.0
        evaluation_rate = evaluation_rate or rate / EVALUATED_SHARE
        left = to_train / rate + to_evaluate / evaluation_rate if rate else None
        whole = epochs * train.tokens + EVALUATED_SHARE * evaluations * val.tokens
        share = 1.0 - (to_train + EVALUATED_SHARE * to_evaluate) / whole
        self.monitor.update(seconds_left=left, share=round(min(1.0, max(0.0, share)), 4))
        return left

    def culprits(self, group: list[int]) -> list[int]:
        """The examples of a step whose gradient alone is not finite; all of them if there is none."""
        guilty = []
        for i in group:
            step = self.gradient_step([self.examples[i]], self.position.step)
            nats = step.micro_batch([0])
            gradients = step.finish()  # even if the loss is not finite: other machines wait for this one's part
            nats += getattr(step, "nats_elsewhere", 0.0)
            if not math.isfinite(nats) or not all(bool(g.isfinite().all()) for g in gradients.values()):
                guilty.append(i)
        return guilty or group

    def not_finite(self, what: str, guilty: list[int]) -> RescoldoError:
        """The error about a loss or gradient that is not finite."""
        base = damaged_tensor(self.prepared.base)
        if base:
            return base
        names = ", ".join(self.prepared.train.names[i] for i in guilty)
        return RescoldoError(
            f"the {what} is not a finite number at optimizer step {self.position.step + 1}",
            where=names,
            fix=self.remedy(),
            exit_code=EXIT_FAILURE,
        )

    def remedy(self) -> str:
        """What to do about numbers that are not finite."""
        newest = next(iter(list_checkpoints(self.config.output)), None)
        kept = f"the last good checkpoint is {newest.name}; " if newest else ""
        return f"{kept}inspect that example; then start over with --restart and a lower --lr, or --quantization fp32"


def bound_memory(guard: MemoryGuard, model: Model, tokens: int) -> None:
    """Set `model.keep_layers` for a pass over `tokens` rows, if the model has it."""
    config, dtype = getattr(model, "config", None), getattr(model, "dtype", None)
    if config is not None and dtype is not None and hasattr(model, "keep_layers"):
        model.keep_layers = guard.before_pass(
            layers_to_keep(config, dtype.itemsize, tokens, getattr(model, "lora", None))
        )
