"""Labels by probability: the model's own probability of each label, scaled by a temperature so that it can be believed.

A label's score is the log-probability of the whole answer, its end included, given the prompt. The scores' softmax over
the labels is a distribution; temperature scaling (Guo et al., On Calibration of Modern Neural Networks, 2017) divides
them by one number, which is fitted on other records by the likelihood of their answers. It changes no decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rescoldo.data import read_records
from rescoldo.errors import RescoldoError
from rescoldo.evaluation.labels import classes_of, figures, label_of
from rescoldo.role import Role
from rescoldo.role.conversation import Conversation

if TYPE_CHECKING:
    from rescoldo.models.engine_chat import EngineChat

BINS = 10  # of the expected calibration error
COLDEST, HOTTEST = 0.02, 50.0  # temperatures that are tried
Array = npt.NDArray[np.float64]


def choices_part(
    chat: EngineChat, role: Role, records: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The probabilities of the dataset's labels for each record.

    Args:
        others: records to fit the temperature on; where there are none, each half of `records` is scaled by the
            temperature of the other half.

    Returns:
        labels; temperature (two where halves are scaled); accuracy, macro_f1; nll (mean of -ln p of the record's own
        answer) and ece (expected calibration error, 10 bins), each also as it was before scaling (`_raw`);
        probabilities: for each record, of each label.

    Raises:
        RescoldoError: the records' answers are no labels.
    """
    labels = refuse_other_than_labels(role, records)
    scores, right = label_scores(chat, role, records, labels), indices(role, records, labels)
    fitting = [record for record in others if label_of(role.target(record)) in labels]
    if fitting:
        found = fit_temperature(label_scores(chat, role, fitting, labels), indices(role, fitting, labels))
        temperatures, scaled = [found], scores / found
    else:
        halves = np.arange(len(records)) % 2
        temperatures = [fit_temperature(scores[halves != half], right[halves != half]) for half in (0, 1)]
        scaled = scores / np.asarray(temperatures)[halves][:, None]
    raw, p = softmax(scores), softmax(scaled)
    named = [labels[i] for i in right]
    decided = figures(labels, named, [labels[i] for i in p.argmax(axis=1)])
    return {
        "labels": labels,
        "temperature": temperatures[0] if fitting else temperatures,
        "accuracy": decided["accuracy"],
        "macro_f1": decided["macro_f1"],
        "nll": negative_log_likelihood(p, right),
        "nll_raw": negative_log_likelihood(raw, right),
        "ece": calibration_error(p, right),
        "ece_raw": calibration_error(raw, right),
        "probabilities": [dict(zip(labels, map(float, row), strict=True)) for row in p],
    }


def refuse_other_than_labels(role: Role, records: Sequence[dict[str, Any]]) -> list[str]:
    """The labels that the records' answers are.

    Raises:
        RescoldoError: they are none.
    """
    labels = classes_of(role, records)
    if not labels:
        raise RescoldoError(
            "the dataset's answers are not labels: a few short answers that come up again are expected",
            where="--choices",
            fix="leave --choices out",
        )
    return labels


def label_scores(chat: EngineChat, role: Role, records: Sequence[dict[str, Any]], labels: Sequence[str]) -> Array:
    """(records, labels): the log-probability of each label as the answer to each record."""
    from rescoldo.data.teaching import LAST
    from rescoldo.data.tokenize import Ending, conversation_examples

    tokenizer = chat.loaded.tokenizer
    ending = Ending.of(tokenizer)
    examples = []
    for record in records:
        asked = role.messages(record)
        tools = tuple(getattr(asked, "tools", ()))
        for label in labels:
            whole = Conversation((*asked, {"role": "assistant", "content": label}), (len(asked),), tools)
            examples += conversation_examples(whole, tokenizer, LAST, ending)
    nats = [-loss for loss, _ in chat.losses(examples)]
    return np.asarray(nats).reshape(len(records), len(labels))


def indices(role: Role, records: Sequence[dict[str, Any]], labels: Sequence[str]) -> npt.NDArray[np.int64]:
    """The place of each record's own answer among the labels."""
    return np.asarray([labels.index(label_of(role.target(record))) for record in records])


def softmax(scores: Array) -> Array:
    """Probabilities of log-scores, by row."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def negative_log_likelihood(p: Array, right: npt.NDArray[np.int64]) -> float:
    """The mean of -ln of the probability of the right label."""
    return float(-np.log(np.maximum(p[np.arange(len(right)), right], 1e-300)).mean())


def calibration_error(p: Array, right: npt.NDArray[np.int64]) -> float:
    """Expected calibration error: |share of right decisions - mean probability of the decisions| in bins of that
    probability of equal width, weighted by their size."""
    confidence, hit = p.max(axis=1), p.argmax(axis=1) == right
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(float((hit[bins == i] - confidence[bins == i]).sum())) for i in range(BINS)]
    return sum(gaps) / len(right)


def fit_temperature(scores: Array, right: npt.NDArray[np.int64]) -> float:
    """The temperature under which the right labels are most likely; 1 where there is nothing to go by.

    The negative log-likelihood is convex in 1 / temperature, so a golden-section search finds its minimum.
    """
    if not len(right):
        return 1.0
    return 1.0 / _minimum(
        lambda inverse: negative_log_likelihood(softmax(scores * inverse), right), 1 / HOTTEST, 1 / COLDEST
    )


def _minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a convex function is smallest between two positive numbers, to a relative 1e-6."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = math.log(low), math.log(high)
    while b - a > 1e-6:
        one, other = b - ratio * (b - a), a + ratio * (b - a)
        if function(math.exp(one)) <= function(math.exp(other)):
            b = other
        else:
            a = one
    return math.exp((a + b) / 2)


def fitting_records(
    info: dict[str, Any], role: Role, dataset: Path, records: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The run's own validation records, to fit the temperature on; [] where they are those that are evaluated, or are
    not there any more. `records` are those of `dataset` that are evaluated, which are left out."""
    path = Path(str(info.get("val_dataset") or ""))
    if not path.is_file() or path.resolve() == dataset.resolve():
        return []
    try:
        asked = {role.question(record) for record in records}
        return [record for record in read_records(path, role) if role.question(record) not in asked]
    except RescoldoError:
        return []
