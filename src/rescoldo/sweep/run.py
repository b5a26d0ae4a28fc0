"""A sweep: trial after trial on one base in memory, each a complete run, scored by the role's metric.

OUTPUT/sweep.json has all results and is rewritten after each step; OUTPUT/trial-001 and so on are normal runs. If a
sweep is interrupted, the next call resumes the running trial.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rescoldo.assemble import real_parts
from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.precisions import AUTO
from rescoldo.engine.types import Sampling
from rescoldo.errors import EXIT_USAGE, RescoldoError
from rescoldo.evaluation.evaluation import Console, evaluate_model
from rescoldo.files import read_json, sha256, write_json
from rescoldo.role import Role, get_role
from rescoldo.run.layout import LOG_FILE, read_timings
from rescoldo.run.lock import RunLock
from rescoldo.run.signals import EndAtOnce, EndedBySignal
from rescoldo.run.streams import unfailing
from rescoldo.run.sweep import FILE, of_status
from rescoldo.sweep.report import best_trials, write_report
from rescoldo.sweep.search import Tried, next_params, require_optuna
from rescoldo.sweep.shared import Shared
from rescoldo.sweep.space import Space, Value, extremes, grid, run_fields
from rescoldo.training.config import RunConfig, check_paths
from rescoldo.training.identity import FREE, differences
from rescoldo.training.origin import Origin, read_origin
from rescoldo.training.parts import Parts
from rescoldo.training.preset import apply_preset, check_against_base
from rescoldo.training.progress import Reporter, Topic
from rescoldo.training.start import train

FORMAT = 1


@dataclass(frozen=True)
class SweepResult:
    """How a call of `sweep` ended: the content of sweep.json, and the signal that stopped it (0: none)."""

    document: dict[str, Any]
    signal: int = 0


class _Inner(Reporter):
    """Indents a trial's messages. Of later trials only progress and warnings are shown: their setup is the first one's,
    and the sweep reports their results."""

    def __init__(self, outer: Reporter, *, first: bool) -> None:
        super().__init__(outer.console)
        self._outer, self._first = outer, first

    def say(self, text: str, topic: Topic = Topic.PROGRESS) -> None:
        if self._first or topic is Topic.PROGRESS:
            self._outer.say(f"    {text}", topic)

    def warn(self, text: str) -> None:
        self._outer.warn(text)


def sweep(
    config: RunConfig,
    space: Space,
    *,
    trials: int | None = None,
    limit: int | None = None,
    sampling: Sampling | None = None,
    force: bool = False,
    retry: bool = False,
    reporter: Reporter | None = None,
    console: Console | None = None,
    parts: Parts | None = None,
) -> SweepResult:
    """Start or resume a sweep in config.output.

    Args:
        config: the settings of all trials; lora_alpha follows the rank (with a constant ratio) unless it is given or
            varied.
        space: the settings that vary.
        trials: let Optuna choose this many trials; None: the whole grid.
        limit: score only the first `limit` validation examples.
        sampling: for the scored answers; by default the role's.
        force: start even if the machine's checks fail.
        retry: train failed trials again.
        reporter, console: for messages and for the evaluation's progress.
        parts: engine and data modules (default: this package's).

    Raises:
        RescoldoError: whatever the user can fix, such as another sweep in config.output.
    """
    reporter = reporter or Reporter()
    check_paths(config)
    if trials is None:
        grid(space)  # refuses ranges before anything is done
    else:
        require_optuna()
    config, origin, notes = read_origin(config)
    for note in notes:
        reporter.say(f"  {note}")
    role = get_role(config.role).ready()
    shared = Shared(parts or real_parts())
    base = shared.open_base(config.base_model)
    settings = {"limit": limit, "sampling": asdict(sampling or role.sampling)}
    for params in extremes(space):
        if origin is not None:
            origin.settings(_run_config(config, params), base)  # refuses values that contradict the adapter
        check_against_base(_run_config(config, params), base, frozenset(params))
    config = origin.settings(config, base) if origin else config
    now = _identity(config, space, role, base.fingerprint(), settings, origin)
    with ExitStack() as stack:
        stack.enter_context(unfailing(config.output / LOG_FILE))
        stack.enter_context(RunLock(config.output))
        document = _open(config, now, settings, space, trials)
        if retry:
            for trial in of_status(document["trials"], "failed"):
                trial["status"] = "running"
        if config.quantization == AUTO:
            document.setdefault("quantization", _precision(base))
        sweeping = _Sweep(config, space, role, shared, document, reporter, console, trials, force)
        return sweeping.run(_ratio(config, space, base.config), sampling or role.sampling)


@dataclass
class _Sweep:
    config: RunConfig
    space: Space
    role: Role
    shared: Shared
    document: dict[str, Any]
    reporter: Reporter
    console: Console | None
    trials: int | None
    force: bool
    said: bool = False  # whether a trial has printed its setup

    def run(self, ratio: float | None, sampling: Sampling) -> SweepResult:
        """Run trial after trial until there is nothing left."""
        while trial := self._next():
            name, shown = trial["name"], ", ".join(f"{key}={value}" for key, value in trial["params"].items())
            self.reporter.say(f"{name} ({self._place()}): {shown}")
            signal = 0
            try:
                with EndAtOnce():  # training installs its own handlers inside
                    signal = self._train(trial, ratio)
                    if not signal:
                        self._score(trial, sampling)
            except EndedBySignal as ended:
                signal = int(ended.signal)
            except RescoldoError as error:
                if error.exit_code == EXIT_USAGE and trial["number"] == 1:
                    self.document["trials"].remove(trial)  # a fault of the first trial is a fault of all
                    self._write()
                    raise
                trial.update(status="failed", error=str(error))
                self.reporter.warn(f"{name} failed: {error.what}")
            self._write()
            if signal:
                self.reporter.say(f"stopped in {name}. The same command again resumes.")
                return SweepResult(self.document, signal)
        self.document["finished"] = True
        self._write()
        return SweepResult(self.document)

    def _next(self) -> dict[str, Any] | None:
        known: list[dict[str, Any]] = self.document["trials"]
        open_ = next(iter(of_status(known, "running")), None)
        if open_:
            return open_
        history = [Tried(trial["params"], trial.get("score")) for trial in known]
        params = next_params(self.space, history, self.trials, self.config.seed)
        if params is None:
            return None
        number = len(known) + 1
        trial: dict[str, Any] = {
            "number": number,
            "name": f"trial-{number:03d}",
            "params": params,
            "status": "running",
        }
        known.append(trial)
        self._write()
        return trial

    def _place(self) -> str:
        planned = self.trials or sum(1 for _ in grid(self.space))
        return f"{len(self.document['trials'])} of {max(planned, len(self.document['trials']))}"

    def _config(self, trial: Mapping[str, Any], ratio: float | None) -> RunConfig:
        more: dict[str, Any] = {"output": self.config.output / trial["name"]}
        if ratio is not None:
            more["lora_alpha"] = ratio * trial["params"]["lora_r"]
        if "quantization" in self.document:
            more["quantization"] = self.document["quantization"]
        return _run_config(self.config, trial["params"], **more)

    def _train(self, trial: dict[str, Any], ratio: float | None) -> int:
        """Train or resume the trial; returns the signal that stopped it, 0 if none did."""
        inner = _Inner(self.reporter, first=not self.said)
        self.said = True
        result = train(self._config(trial, ratio), force=self.force, reporter=inner, parts=self.shared.parts())
        if result.signal:
            return result.signal
        info = result.info
        best = info["losses"][info["best_epoch"] - 1]
        trial.update(
            run=str(self.config.output / trial["name"]),
            val_loss=best["val_loss"],
            best_epoch=info["best_epoch"],
            seconds=round(_training_seconds(self.config.output / trial["name"]), 3),
            steps=info["steps"],
            tokens=info["tokens"],
            trainable_params=info["trainable_params"],
        )
        return 0

    def _score(self, trial: dict[str, Any], sampling: Sampling) -> None:
        run = self.config.output / trial["name"]
        began = time.monotonic()
        loaded = self.shared.trained(run)
        document = evaluate_model(
            loaded,
            self.config.val,
            role=self.config.role,
            output=self.config.output / f"{trial['name']}.eval.json",
            sampling=sampling,
            limit=self.document["settings"]["limit"],
            console=self.console,
        )
        (part,) = document["models"].values()
        trial.update(
            status="finished",
            score=part["scores"]["mean"],
            component_scores=part["component_scores"],
            scored_seconds=round(time.monotonic() - began, 1),
        )
        if part.get("perplexity"):
            trial["perplexity"] = part["perplexity"]["perplexity"]
        self.reporter.say(
            f"  score {trial['score']:.1%}, loss {trial['val_loss']:.4f}, trained in {trial['seconds']:.0f} s"
        )

    def _write(self) -> None:
        self.document["best"] = best_trials(self.document["trials"])
        write_json(self.config.output / FILE, self.document)
        write_report(self.document, self.config.output)


def _run_config(config: RunConfig, params: Mapping[str, Value], **more: Any) -> RunConfig:
    """The common settings with one trial's values."""
    return RunConfig.model_validate({**config.model_dump(exclude_unset=True), **run_fields(params), **more})


def _identity(
    config: RunConfig,
    space: Space,
    role: Role,
    fingerprint: str,
    settings: Mapping[str, Any],
    origin: Origin | None,
) -> dict[str, Any]:
    """The common settings of the trials; if they differ, it is another sweep."""
    free = (FREE | {"threads"}) - {"train_limit", "val_limit"}
    given = config.model_dump(mode="json", exclude_unset=True)
    return {
        "role": role.identity,
        "base model": fingerprint[:16],
        "training examples": sha256(config.train)[:16],
        "validation examples": sha256(config.val)[:16],
        **({"old examples": f"{config.replayed[1]:g}, {sha256(config.replayed[0])[:16]}"} if config.replayed else {}),
        **({"parent adapter": origin.digest[:16]} if origin else {}),
        **{name: value for name, value in given.items() if name not in free and name not in space},
        "fields gone over": sorted(space),
        "examples scored": settings["limit"],
        **{f"sampling {name}": value for name, value in settings["sampling"].items()},
    }


def _open(
    config: RunConfig, now: dict[str, Any], settings: dict[str, Any], space: Space, trials: int | None
) -> dict[str, Any]:
    """The sweep on disk if it has the same settings; a new one if there is none.

    Raises:
        RescoldoError: there is another one.
    """
    path: Path = config.output / FILE
    found = read_json(path)
    if path.exists() and (found is None or found.get("format") != FORMAT or not isinstance(found.get("trials"), list)):
        raise RescoldoError("is not a readable sweep", where=str(path), fix="pass another --output")
    wanted = {
        "format": FORMAT,
        "identity": now,
        "settings": settings,
        "space": {
            name: {k: list(v) if k == "values" else v for k, v in asdict(p).items()} for name, p in space.items()
        },
        "trials_planned": trials,
        "finished": False,
    }
    if found is None:
        return {**wanted, "trials": []}
    other = differences(found["identity"], now)
    if other:
        listed = "".join(f"\n    {line}" for line in other)
        raise RescoldoError(
            f"{config.output} holds a sweep with other settings (was → is):{listed}",
            where="--output",
            fix="give the settings it was started with to resume it (values, --trials may change), or another --output",
        )
    return {**found, **wanted}


def _training_seconds(run: Path) -> float:
    """The time of the optimizer steps: the settings' cost without loading, evaluation and lost work."""
    steps = {line["step"]: line["seconds"] for line in read_timings(run) if line.get("event") == "step"}
    return float(sum(steps.values()))


def _ratio(config: RunConfig, space: Space, decoder: DecoderConfig) -> float | None:
    """alpha / rank, to be kept while the rank varies; None if alpha is given or varied, or the rank is not varied."""
    if "lora_r" not in space or "lora_alpha" in space or "lora_alpha" in config.model_fields_set:
        return None
    in_force, _ = apply_preset(config, decoder)
    return in_force.lora_alpha / in_force.lora_r


def _precision(base: Any) -> str:
    """The precision for all trials: chosen once, because another measurement might give another one."""
    from rescoldo.engine.auto import choose_precision

    return str(choose_precision(base.config, stored=base.stored_bytes()).precision)
