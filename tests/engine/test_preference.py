"""DPO, IPO, ORPO and KTO in fp32 against TRL's trainers on transformers + PEFT."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rescoldo.engine import preference
from rescoldo.engine.config import LINEARS
from rescoldo.engine.model import LoraModel, log_probabilities
from rescoldo.engine.objective import Objective
from rescoldo.engine.prefix import group_by_prefix
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import Example, Judged, LoraConfig, Pair
from tests.engine.common import VOCABULARY, distance, peft_parameters, peft_twin, tiny_lora

torch.set_num_threads(1)
LORA = LoraConfig(rank=4, alpha=8, dropout=0.0, targets=LINEARS)


def _tokens(n: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).randrange(5, VOCABULARY) for _ in range(n))


def _answer(prompt: tuple[int, ...], length: int, seed: int) -> Example:
    return Example((*prompt, *_tokens(length, seed)), len(prompt))


def _pair(n_prompt: int, good: int, bad: int, seed: int, prefix: tuple[int, ...] = ()) -> Pair:
    prompt = (*prefix, *_tokens(n_prompt, seed))
    chosen, rejected = _answer(prompt, good, seed + 100), _answer(prompt, bad, seed + 200)
    return Pair(chosen.tokens, len(prompt), rejected=rejected)


COMMON = _tokens(20, 77)
PAIRS = [  # a common beginning, a prompt that is the beginning of another, answers of one token, a lone prompt
    _pair(4, 9, 7, seed=1, prefix=COMMON),
    _pair(6, 5, 12, seed=2, prefix=COMMON),
    _pair(30, 1, 8, seed=3),
    _pair(2, 17, 1, seed=4),
]


def _judged(lengths: Sequence[int]) -> list[Judged]:
    """Answers of which every other one is bad, each with the answer before it as its mismatched one."""
    prompts = [(*COMMON, *_tokens(3 + k, 300 + k)) for k in range(len(lengths))]
    answers = [_tokens(n, 400 + k) for k, n in enumerate(lengths)]
    return [
        Judged((*p, *a), len(p), good=k % 2 == 0, mismatched=Example((*p, *answers[k - 1]), len(p)))
        for k, (p, a) in enumerate(zip(prompts, answers, strict=True))
    ]


def _referred(model: LoraModel, examples: Sequence[Example]) -> list[Example]:
    """With the log-probabilities of the base model."""
    with model.without_adapter():
        sums = log_probabilities(model, [one for example in examples for one in example.scored])
    return preference.with_reference(examples, sums)


def _ours(
    model: LoraModel, examples: Sequence[Example], objective: Objective, parts: Sequence[Sequence[int]]
) -> tuple[float, dict[str, torch.Tensor]]:
    step = GradientStep(model, examples, step=0, seed=1, objective=objective)
    loss = sum(step.micro_batch(part) for part in parts)
    return loss / step.total, step.finish()


def _trainer(kind: str, theirs: Any, folder: Path, **settings: Any) -> Any:
    """TRL's trainer around the twin; batches are put in by hand."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="t0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="t1", pad_token="t0", unk_token="t0")
    common = {"output_dir": str(folder), "report_to": [], "use_cpu": True, "bf16": False, "max_length": None}
    common |= {"gradient_checkpointing": False, **settings}
    rows: dict[str, list[Any]] = {"prompt": ["t5 t6", "t7 t8"]}
    if kind == "dpo":
        rows |= {"chosen": [" t7", " t9"], "rejected": [" t8", " t10"]}
        config, trainer = trl.DPOConfig(**common), trl.DPOTrainer
    else:
        rows |= {"completion": [" t7", " t8"], "label": [True, False]}
        config, trainer = trl.KTOConfig(train_sampling_strategy="sequential", **common), trl.KTOTrainer
    ours = {name: p.detach().clone() for name, p in peft_parameters(theirs).items()}
    with torch.no_grad():  # the adapter that the trainer is given is its reference: the base model
        for name, p in peft_parameters(theirs).items():
            p.mul_(0.0 if name.endswith("lora_B") else 1.0)
    made = trainer(model=theirs, args=config, processing_class=tokenizer, train_dataset=Dataset.from_dict(rows))
    with torch.no_grad():
        for name, p in peft_parameters(theirs).items():
            p.copy_(ours[name])
    return made


def _their_gradient(trainer: Any, theirs: Any, rows: list[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    batch = trainer.data_collator(rows)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    found = {name: p.grad for name, p in peft_parameters(theirs).items() if p.grad is not None}
    return float(loss.detach()), found


def _equal(ours: tuple[float, dict[str, torch.Tensor]], theirs: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], abs=2e-5)
    assert ours[1].keys() == theirs[1].keys()
    assert max(float(g.abs().max()) for g in theirs[1].values()) > 1e-4  # or the comparison would say nothing
    assert distance(ours[1], theirs[1]) < 1e-4
    for name, one in theirs[1].items():
        assert (ours[1][name] - one).abs().max() < 1e-6 + 1e-4 * one.abs().max(), name


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[2, 0], [3, 1]]], ids=str)
@pytest.mark.parametrize(("objective", "loss_type"), [(preference.dpo, "sigmoid"), (preference.ipo, "ipo")])
def test_dpo_and_ipo_equal_trl(
    tmp_path: Path, parts: list[list[int]], objective: Callable[[float], Objective], loss_type: str
) -> None:
    model = tiny_lora("llama", lora=LORA)
    pairs = _referred(model, PAIRS)
    ours = _ours(model, pairs, objective(0.3), parts)
    theirs = peft_twin(model, "llama")
    trainer = _trainer("dpo", theirs, tmp_path, beta=0.3, loss_type=[loss_type])
    rows = [
        {
            "prompt_ids": list(pair.tokens[: pair.n_prompt]),
            "chosen_ids": list(pair.tokens[pair.n_prompt :]),
            "rejected_ids": list(pair.rejected.tokens[pair.n_prompt :]),
        }
        for pair in PAIRS
    ]
    _equal(ours, _their_gradient(trainer, theirs, rows))


@pytest.mark.parametrize("lengths", [(9, 4, 7, 1), (3, 12)], ids=str)
def test_kto_equals_trl(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    model = tiny_lora("qwen3", lora=LORA)
    judged = _judged(lengths)
    referred = _referred(model, judged)
    objective = preference.kto(0.2, 1.3, 0.7)
    ours = _ours(model, referred, objective, [[i] for i in range(len(lengths))])
    theirs = peft_twin(model, "qwen3")
    trainer = _trainer(
        "kto", theirs, tmp_path, beta=0.2, desirable_weight=1.3, undesirable_weight=0.7,
        per_device_train_batch_size=len(lengths),
    )  # fmt: skip
    rows = [
        {
            "prompt_ids": list(one.tokens[: one.n_prompt]),
            "completion_ids": list(one.tokens[one.n_prompt :]),
            "KL_completion_ids": list(one.mismatched.tokens[one.n_prompt :]),
            "label": one.good,
        }
        for one in judged
    ]
    _equal(ours, _their_gradient(trainer, theirs, rows))
    assert objective.evaluate is not None
    evaluated = objective.evaluate(partial(log_probabilities, model), referred)
    assert math.fsum(row[0] for row in evaluated) / len(evaluated) == pytest.approx(ours[0], abs=1e-5)


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3]], [[3], [1], [2, 0]]], ids=str)
def test_orpo_equals_trl(parts: list[list[int]]) -> None:
    """The odds ratio as TRL's trainer has it; the first part on the answer alone, by torch's cross-entropy."""
    pytest.importorskip("trl")
    from types import SimpleNamespace

    from trl.experimental.orpo import ORPOTrainer

    model = tiny_lora("llama", lora=LORA)
    ours = _ours(model, PAIRS, preference.orpo(0.4), parts)
    theirs = peft_twin(model, "llama")
    total = torch.zeros(())
    for pair in PAIRS:
        means = []
        for one in pair.passes:
            logits, labels = theirs(torch.tensor([one.tokens])).logits, torch.tensor([one.tokens]).clone()
            labels[:, : one.n_prompt] = -100
            means.append(ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True))
        trainer: Any = SimpleNamespace(beta=0.4, accelerator=SimpleNamespace(device="cpu"))
        total = total - means[0].sum() - ORPOTrainer.odds_ratio_loss(trainer, *means)[0].sum()
    loss = total / len(PAIRS)
    loss.backward()
    found = {name: p.grad for name, p in peft_parameters(theirs).items() if p.grad is not None}
    _equal(ours, (float(loss.detach()), found))


def test_a_pair_computes_its_prompt_once() -> None:
    """Whatever else is in the step, both answers are in one group; a prompt that begins another one does not part
    them."""
    long = _pair(40, 5, 6, seed=9)
    short = _answer(long.tokens[:30], 3, 8)
    examples = [*long.passes, short, Example((*short.tokens[:30], 9, 8), 30), *_pair(3, 4, 5, seed=10).passes]
    groups = group_by_prefix(examples)
    place = {i: g for g, group in enumerate(groups) for i in group.indices}
    assert place[0] == place[1]
    assert place[2] == place[3]
    assert place[4] == place[5]
    assert groups[place[0]].length >= 29


@pytest.mark.parametrize(("objective", "at_first"), [(preference.dpo, math.log(2)), (preference.ipo, 25.0)])
def test_before_the_training_nothing_is_preferred(objective: Callable[[float], Objective], at_first: float) -> None:
    model = tiny_lora("llama", lora=LORA)
    for parameter in model.parameters.values():
        parameter.zero_()
    model.sync()
    pairs = _referred(model, PAIRS)
    evaluate = objective(0.1).evaluate
    assert evaluate is not None
    for loss, n, accuracy, margin in evaluate(partial(log_probabilities, model), pairs):
        assert (n, accuracy) == (1.0, 0.0)
        assert loss == pytest.approx(at_first, rel=1e-5)
        assert margin == pytest.approx(0, abs=1e-6)


def test_an_answer_of_probability_one_does_not_overflow() -> None:
    slope = preference.orpo(0.1).loss.args[0]  # type: ignore[attr-defined]
    for sums in ((0.0, -1e6), (-1e6, 0.0), (0.0, 0.0), (-1e6, -1e6)):
        loss, by_sum = slope(PAIRS[0], sums)
        assert all(math.isfinite(value) for value in (loss, *by_sum))
