"""Fine-tuning from Python in four functions, all exported by `rescoldo`: `train`, `load`, `evaluate`, `compare`.

They have the arguments of the commands of the same names, and do the same. torch and other large packages are imported
at the first call, so that `import rescoldo` takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

if TYPE_CHECKING:
    from rescoldo.engine.types import Sampling
    from rescoldo.models.loaded import Loaded
    from rescoldo.names import ObjectiveName
    from rescoldo.role import Role
    from rescoldo.training.config import Preset, Schedule
    from rescoldo.training.start import RunResult


class TrainSettings(TypedDict, total=False):
    """The settings of a run that have a default: the fields of `training.config.RunConfig`, which documents them and
    their allowed values (so does `rescoldo train --help`)."""

    base_model: str
    role: str
    preset: Preset
    epochs: int
    lr: float
    batch_size: int
    grad_accum: int
    lora_r: int
    lora_alpha: float
    lora_dropout: float
    lora_targets: tuple[str, ...]
    adapter: str
    lora_ranks: Mapping[str, int]
    lora_alphas: Mapping[str, float]
    lora_layers: int | tuple[int, ...] | None
    lora_plus: float | None
    lr_schedule: Schedule
    from_adapter: str | Path | None
    replay: str | None
    loss: Literal["all", "last"]
    thinking: Literal["keep", "drop", "mask"]
    prompt_loss_weight: float
    balance_classes: bool
    text: str | None
    max_length: int
    objective: ObjectiveName
    beta: float
    desirable_weight: float
    undesirable_weight: float
    seed: int
    quantization: str
    train_limit: int | None
    val_limit: int | None
    max_steps: int | None
    warmup: float
    weight_decay: float
    max_grad_norm: float
    early_stopping: int | None
    shuffle: bool
    checkpoint_minutes: float
    keep_checkpoints: int
    threads: int | None
    memory_gb: float | None
    report_to: str | tuple[str, ...]


class SamplingSettings(TypedDict, total=False):
    """How answers are decoded; settings that are not given come from the role (greedy by default).

    temperature: 0 is greedy. top_p: above 0, up to 1. max_new_tokens: maximum length of an answer. seed: of the
        sampling.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """A model's answer to one input.

    Attributes:
        text: the answer as the model wrote it.
        value: the text parsed by the role's serialization (for YAML and JSON: dicts and lists); None if that failed.
        fault: why the text could not be parsed; "" if it could.
        ended: whether the model ended the answer itself; False: it was cut off at `max_new_tokens` or at the end of the
            context.
        tokens: number of generated tokens without the end-of-turn token.
        seconds: from the start of the batch to the end of this answer.
    """

    text: str
    value: Any
    fault: str
    ended: bool
    tokens: int
    seconds: float

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Evaluation:
    """A model's scores on a dataset.

    Attributes:
        score: the mean over all examples, 0..1.
        components: component of the role's metric → its mean, 0..1.
        document: the complete result with predictions, as printed by `rescoldo eval --json` (docs/evaluation.md).
    """

    score: float
    components: dict[str, float]
    document: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Several models on the same dataset, and the decision between them.

    Attributes:
        scores: model ("baseline", "finetuned" …) → mean score, 0..1.
        adopt: whether to use the fine-tuned model: the rule decides on its form, those who judged it on its content.
        sentence: the verdict as text, with what would make it more certain.
        document: the complete result with tests and predictions, as printed by `rescoldo compare --json`.
    """

    scores: dict[str, float]
    adopt: bool
    sentence: str
    document: dict[str, Any]


class Model:
    """A model in memory, made by `load`: a base model, or a run's base with its adapter.

    Attributes:
        role: the role of its prompts: prompt, serialization, sampling.
    """

    def __init__(self, loaded: Loaded, role: Role, role_name: str | None) -> None:
        self.role, self._loaded, self._role_name = role, loaded, role_name

    @property
    def spec(self) -> str:
        """The name it was loaded by: a run's directory or a base model."""
        return self._loaded.spec

    @property
    def precision(self) -> str:
        """The precision of the frozen weights: "fp32", "bf16", "int8" or "nf4"."""
        return self._loaded.precision

    def ask(
        self, record: Mapping[str, Any] | str, *, base: bool = False, **sampling: Unpack[SamplingSettings]
    ) -> Answer:
        """Answer one input, with the role's prompt.

        Args:
            record: the role's input fields, as a line of a dataset has them ({"concept": "A library"}); or the text
                of the role's input field alone.
            base: ask the base model, without the adapter.
            sampling: see SamplingSettings.

        Raises:
            RescoldoError: a field is missing or is not what the role expects, a sampling value is out of range, or the
                prompt is longer than the model's context.
        """
        (answer,) = self.ask_all([record], base=base, **sampling)
        return answer

    def ask_all(
        self,
        records: Iterable[Mapping[str, Any] | str],
        *,
        base: bool = False,
        **sampling: Unpack[SamplingSettings],
    ) -> list[Answer]:
        """Answer several inputs in one batch, which is much faster than one after the other. See ask."""
        from rescoldo.errors import RescoldoError
        from rescoldo.models.engine_chat import EngineChat

        if base and self._loaded.run is None:
            raise RescoldoError("is a base model already", where=self.spec, fix="leave out base=True")
        read = [self._read(record, place) for place, record in enumerate(records, 1)]
        chat = EngineChat(self._loaded, adapter=not base)
        drawn = _sampling(self.role.sampling, sampling)
        answers: dict[int, Answer] = {}
        for place, given in chat.complete([self.role.messages(record) for record in read], drawn):
            if given.error:
                raise RescoldoError(given.error, where=f"input {place + 1}", fix="shorten the input")
            value, fault = self.role.parse(given.text)
            answers[place] = Answer(given.text, value, fault, given.ended, given.tokens, given.seconds)
        return [answers[place] for place in range(len(read))]

    def _read(self, record: Mapping[str, Any] | str, place: int) -> dict[str, Any]:
        """Check an input for the role.

        Raises:
            RescoldoError: with the name of the invalid field.
        """
        from rescoldo.errors import RescoldoError
        from rescoldo.role.fault import errors

        raw = {self.role.input: record} if isinstance(record, str) else dict(record)
        found, whole = self.role.checked(raw, "input", place, answers=False)
        faults = errors(found)
        if faults or whole is None:
            raise RescoldoError(
                "; ".join(fault.what for fault in faults[:3]),
                where=faults[0].where,
                fix=f"the role {self.role.name} is asked with the field {self.role.input!r}",
            )
        return whole


def train(
    *,
    train: Path | str,
    val: Path | str,
    output: Path | str,
    restart: bool = False,
    force: bool = False,
    quiet: bool = False,
    **settings: Unpack[TrainSettings],
) -> RunResult:
    """Start a fine-tuning run, resume it, or return the finished one in `output`, as `rescoldo train` does.

    Args:
        train, val: training and validation examples (JSON Lines).
        output: the run's directory. The same call again resumes an interrupted run.
        restart: move the existing content of `output` aside and start over.
        force: start even if the checks of `rescoldo doctor` fail.
        quiet: print nothing. Otherwise progress goes to standard output.
        settings: see TrainSettings.

    Returns:
        How the run ended: `status` ("finished", "already finished" or "interrupted"), `output`, and `info`, the content
        of training_info.json.

    Raises:
        RescoldoError: a setting, a path, the data or the base model is invalid; existing results are kept.
    """
    from rich.console import Console

    from rescoldo.assemble import real_parts
    from rescoldo.nodes.together import train_here
    from rescoldo.training.config import make_config
    from rescoldo.training.progress import Reporter

    config = make_config({"train": train, "val": val, "output": output, **settings})
    reporter = Reporter(Console(quiet=True)) if quiet else Reporter()
    return train_here(config, real_parts(), restart=restart, force=force, reporter=reporter)


def load(model: Path | str, *, role: str | None = None, quantization: str = "auto") -> Model:
    """Load a model for asking it.

    Args:
        model: a run's directory, or a base model: a directory, a GGUF file, a Hub id, ollama:NAME or sample:smollm2.
        role: name or path; by default the run's own, for a base model ba.
        quantization: precision of the frozen weights; "auto" is the run's own, for a base model the best one for this
            machine.

    Raises:
        RescoldoError: there is no such model, it is damaged, or the adapter does not fit its base.
    """
    from rescoldo.evaluation.evaluation import role_for
    from rescoldo.models.loaded import load_for_inference

    spec = str(model)
    the_role = role_for(spec, role)
    return Model(load_for_inference(spec, quantization), the_role, role)


def evaluate(
    model: Model | Path | str,
    dataset: Path | str,
    *,
    role: str | None = None,
    output: Path | str | None = None,
    limit: int | None = None,
    base: bool = False,
    quantization: str = "auto",
    **sampling: Unpack[SamplingSettings],
) -> Evaluation:
    """Answer a dataset with a model and score the answers with the role's metric, as `rescoldo eval` does.

    Args:
        model: a `Model`, or an argument for `load`.
        dataset: JSON Lines; reference answers are needed only if the role's metric uses them.
        role: name or path; by default the model's own, for a base model ba.
        output: JSON file to write, with a report next to it; the same call again resumes an interrupted one.
        limit: use only the first `limit` records.
        base: for a run: its base model alone.
        quantization: for a model that is loaded here; see load.
        sampling: see SamplingSettings.

    Raises:
        RescoldoError: model, dataset or output is invalid.
    """
    from rescoldo.evaluation.evaluation import evaluate_model, role_for

    spec = str(model) if isinstance(model, str | Path) else model._loaded
    if role is None and isinstance(model, Model):
        role = model._role_name
    drawn = _sampling(role_for(spec, role).sampling, sampling)
    document = evaluate_model(
        spec, dataset, role=role, output=output, limit=limit, base=base, quantization=quantization, sampling=drawn
    )
    (part,) = document["models"].values()
    return Evaluation(float(part["scores"]["mean"]), dict(part["component_scores"]), document)


def compare(
    run: Path | str,
    dataset: Path | str,
    *,
    baseline: str | None = None,
    role: str | None = None,
    output: Path | str | None = None,
    limit: int | None = None,
    quantization: str = "auto",
    constrained: bool = True,
    **sampling: Unpack[SamplingSettings],
) -> Comparison:
    """Compare a fine-tuned run with a baseline on a dataset, and decide whether to use it, as `rescoldo compare` does.

    Args:
        run: a run's directory.
        dataset: JSON Lines.
        baseline: the model to compare with: an argument for `load`, or a server (openai:MODEL@URL); by default the
            run's own base model, which shares its weights in memory with the run.
        constrained: also compare with the baseline constrained to the role's schema, if that is possible.
        role, output, limit, quantization, sampling: see `evaluate`.

    Raises:
        RescoldoError: a model, the dataset or the output is invalid.
    """
    from rescoldo.evaluation.compare import Parts, compare_run
    from rescoldo.evaluation.compare import compare as compare_models
    from rescoldo.evaluation.evaluation import role_for

    drawn = _sampling(role_for(str(run), role).sampling, sampling)
    if baseline is None:
        document = compare_run(
            str(run), dataset, role=role, output=output, limit=limit, quantization=quantization, sampling=drawn,
            constrained=constrained,
        )  # fmt: skip
    else:
        document = compare_models(
            {"baseline": baseline, "finetuned": str(run)},
            dataset,
            Parts("baseline", finetuned="finetuned"),
            role=role,
            output=output,
            limit=limit,
            quantization=quantization,
            sampling=drawn,
            constrained=constrained,
        )
    decision = document["comparison"]["decision"]
    scores = {name: float(part["scores"]["mean"]) for name, part in document["models"].items()}
    return Comparison(scores, decision["verdict_code"] == "adopt", str(decision["verdict"]), document)


def _sampling(of_role: Sampling, given: SamplingSettings) -> Sampling:
    """The role's sampling, overridden by the given settings.

    Raises:
        RescoldoError: a setting is unknown or out of range.
    """
    from rescoldo.errors import RescoldoError

    for name, value in given.items():
        allowed = _SAMPLING.get(name)
        if allowed is None:
            raise RescoldoError("unknown setting", where=name, fix=f"expected one of {', '.join(_SAMPLING)}")
        low, high, kind = allowed
        is_number = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:  # type: ignore[operator]
            text = "a whole number" if kind is int else "a number"
            raise RescoldoError(f"invalid value {value!r}", where=name, fix=f"{text} from {low:g} to {high:g}")
    if given.get("top_p") == 0:
        raise RescoldoError("invalid value 0", where="top_p", fix="a number above 0, up to 1")
    return replace(of_role, **given)


_SAMPLING: dict[str, tuple[float, float, type]] = {
    "temperature": (0, 100, float),
    "top_p": (0, 1, float),
    "max_new_tokens": (1, 1_000_000, int),
    "seed": (0, (1 << 32) - 1, int),
}
