"""The compute thread: it admits waiting requests into the batch between two decoding steps."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from rescoldo.engine.generate import Decoder
from rescoldo.engine.types import Constraint, Sampling

if TYPE_CHECKING:
    from rescoldo.engine.model import LoraModel

_LOG = logging.getLogger("uvicorn.error")
Reason = Literal["stop", "length", "timeout", "error", "stopping", "constraint"]


class BusyError(Exception):
    """The queue of waiting requests is full."""


class StoppingError(Exception):
    """The server is stopping and accepts no more requests."""


@dataclass(frozen=True)
class Job:
    """A request for the engine.

    Attributes:
        adapter: whether to use the adapter, or the base model alone.
        prompt: token ids.
        deadline: time.monotonic() at which it is stopped.
        constraint: which tokens may be chosen.
        emit: called with each token id, and finally with the reason for the end. Called from the scheduler's thread;
            not called after a cancel.
    """

    key: int
    adapter: bool
    prompt: Sequence[int]
    sampling: Sampling
    deadline: float
    emit: Callable[[int | Reason], None]
    constraint: Constraint | None = None


@dataclass
class _Lane:
    """The rows that share a prefix and a model, with their Decoder."""

    decoder: Decoder
    jobs: dict[int, Job] = field(default_factory=dict)


class Scheduler:
    """Decodes jobs together, up to `rows` at a time; up to `waiting` more are queued.

    Args:
        model: with or without adapter.
        stop_ids: tokens that end an answer.
        prefixes: common beginnings of prompts (token ids), which are computed once and kept.
        has_adapter: whether the model has an adapter that can be switched off.
        threads: for the matrix products of this thread.
    """

    def __init__(
        self,
        model: LoraModel,
        stop_ids: frozenset[int],
        *,
        prefixes: Sequence[Sequence[int]] = (),
        has_adapter: bool,
        rows: int,
        waiting: int,
        threads: int | None = None,
    ) -> None:
        self._model, self._stop_ids, self._has_adapter = model, stop_ids, has_adapter
        self._prefixes = sorted((tuple(prefix) for prefix in prefixes if prefix), key=len, reverse=True)
        self._rows, self._limit, self._threads = rows, waiting, threads
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._cancelled: set[int] = set()
        self._stopping = False
        self._lanes: dict[tuple[bool, tuple[int, ...]], _Lane] = {}
        self._alone = contextlib.ExitStack()  # open while the adapter is switched off
        self._adapter_on = has_adapter
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            BusyError, StoppingError: it is refused.
        """
        with self._changed:
            if self._stopping:
                raise StoppingError
            if len(self._waiting) >= self._limit:
                raise BusyError
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, key: int) -> None:
        """Remove a job from the queue or the batch; does nothing if it has ended."""
        with self._changed:
            self._cancelled.add(key)
            self._changed.notify()

    def load(self) -> tuple[int, int]:
        """The current number of (decoding, queued) requests."""
        return sum(len(lane.jobs) for lane in list(self._lanes.values())), len(self._waiting)

    def give_up(self) -> None:
        """Accept no more jobs, and cancel the others after the current step; they end with the reason "stopping"."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def stop(self) -> None:
        """Cancel all jobs, and wait for the thread to end."""
        self.give_up()
        self._thread.join()

    def _active(self) -> int:
        return sum(len(lane.jobs) for lane in self._lanes.values())

    def _run(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)  # OpenMP counts per thread
        while True:
            with self._changed:
                while not (self._stopping or self._waiting or self._cancelled or self._active()):
                    self._changed.wait()
                if self._stopping:
                    break
                cancelled, self._cancelled = self._cancelled, set()
                self._waiting = deque(job for job in self._waiting if job.key not in cancelled)
            for lane in self._lanes.values():
                self._leave(lane, cancelled & set(lane.jobs))
            self._expire()
            for adapter in (self._adapter_on, not self._adapter_on):  # at most one switch of the adapter per round
                self._admit(adapter)
                for (with_adapter, _), lane in self._lanes.items():
                    if with_adapter == adapter and lane.jobs:
                        self._step(adapter, lane)
        for job in [*self._waiting, *(job for lane in self._lanes.values() for job in lane.jobs.values())]:
            job.emit("stopping")
        self._alone.close()

    def _leave(self, lane: _Lane, keys: set[int]) -> None:
        if keys:
            lane.decoder.cancel(keys)
            for key in keys:
                del lane.jobs[key]

    def _expire(self) -> None:
        now = time.monotonic()
        for lane in self._lanes.values():
            late = [job for job in lane.jobs.values() if job.deadline <= now]
            self._leave(lane, {job.key for job in late})
            for job in late:
                job.emit("timeout")
        with self._changed:
            late = [job for job in self._waiting if job.deadline <= now]
            for job in late:
                self._waiting.remove(job)
        for job in late:
            job.emit("timeout")

    def _use(self, adapter: bool) -> None:
        """Switch the model's adapter on or off."""
        if self._has_adapter and adapter != self._adapter_on:
            if adapter:
                self._alone.close()
            else:
                self._alone.enter_context(self._model.without_adapter())
            self._adapter_on = adapter

    def _admit(self, adapter: bool) -> None:
        """Admit queued jobs for one model into the batch. While others are decoding, only one per round, because a
        prefill takes as long as many steps."""
        while True:
            with self._changed:
                job = next((one for one in self._waiting if one.adapter == adapter), None)
                if job is None or self._active() >= self._rows:
                    return
                self._waiting.remove(job)
            others = self._active()
            self._use(adapter)
            try:
                lane = self._lane(job)
                lane.decoder.admit(job.key, job.prompt, job.sampling, job.constraint)
                lane.jobs[job.key] = job
            except Exception as error:  # usually out of memory; in any case the thread must continue
                _LOG.error("The engine could not start a request: %r", error)
                job.emit("error")
            if others:
                return

    def _lane(self, job: Job) -> _Lane:
        prompt = tuple(job.prompt)
        prefix = next((p for p in self._prefixes if len(prompt) > len(p) and prompt[: len(p)] == p), ())
        key = (job.adapter, prefix)
        if key not in self._lanes:
            self._lanes[key] = _Lane(Decoder(self._model, self._stop_ids, prefix))
        return self._lanes[key]

    def _step(self, adapter: bool, lane: _Lane) -> None:
        self._use(adapter)
        try:
            steps = lane.decoder.step()
        except Exception as error:
            _LOG.error("The engine could not continue with %d requests: %r", len(lane.jobs), error)
            jobs = list(lane.jobs.values())
            self._leave(lane, set(lane.jobs))
            for job in jobs:
                job.emit("error")
            return
        for step in steps:
            job = lane.jobs.pop(step.key) if step.last else lane.jobs[step.key]
            if step.token is not None:
                job.emit(step.token)
            if step.last:
                job.emit("constraint" if step.error else "length" if step.token is not None else "stop")
