"""What the engine's tests share: tiny models and their transformers and PEFT twins, random adapters and examples."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rescoldo.base import open_base
from rescoldo.base.model import BaseModel
from rescoldo.engine.config import LINEARS
from rescoldo.engine.kinds import KINDS
from rescoldo.engine.model import LoraModel
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import Example, LoraConfig
from tests.base.make_models import tiny_hf, tiny_model

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
ATTENTION = LINEARS[:4]
VOCABULARY = 288
Variant = tuple[str, dict[str, Any]]

# every switch of the decoder family at least once; the tiny models have 4 heads, 2 key/value heads of 16 and hidden 64
VARIANTS: list[Variant] = [
    *((architecture, {}) for architecture in ARCHITECTURES),
    *((architecture, {"tie_word_embeddings": True}) for architecture in ARCHITECTURES),
    *(("llama", {"rope": rope}) for rope in ("linear", "dynamic", "llama3", "yarn")),
    ("qwen3", {"rope": "yarn"}),
    ("llama", {"attention_bias": True}),
    ("llama", {"mlp_bias": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"num_key_value_heads": 4, "head_dim": 32}),
    ("llama", {"num_key_value_heads": 1, "head_dim": 8}),
    ("mistral", {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24}),
    ("mistral", {"sliding_window": 8}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_hidden_layers": 3}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_hidden_layers": 3}),
    ("qwen3", {"attention_bias": True, "head_dim": 32}),
]


def variant_id(variant: Variant) -> str:
    """A readable test name."""
    return "-".join([variant[0], *(f"{key}={value}" for key, value in variant[1].items())])


_FOLDER = tempfile.TemporaryDirectory(prefix="rescoldo-engine-tests-")


@cache
def _base(name: str, architecture: str, overrides: tuple[tuple[str, Any], ...]) -> BaseModel:
    path = tiny_hf(Path(_FOLDER.name) / name, architecture, tokenizer=False, **dict(overrides))
    return open_base(str(path))


def tiny_base(architecture: str, **overrides: Any) -> BaseModel:
    """The tiny model of that architecture, opened from disk; made once."""
    return _base(variant_id((architecture, overrides)), architecture, tuple(overrides.items()))


def tiny_lora(
    architecture: str = "llama",
    precision: str = "fp32",
    lora: LoraConfig | None = None,
    *,
    calibration: Sequence[Example] | None = None,
    **overrides: Any,
) -> LoraModel:
    """A tiny model with a random adapter (B not zero)."""
    lora = lora or LoraConfig(rank=4, alpha=8, dropout=0.0, targets=LINEARS)
    base = tiny_base(architecture, **overrides)
    calibration = list(calibration) if calibration else [example(40, 20, seed=99)]
    model = LoraModel.load(base, precision, lora, seed=7, calibration=calibration)
    randomize(model)
    return model


def randomize(model: LoraModel, *, seed: int = 3, size: float = 0.1) -> None:
    """Give every B random weights, so that A gets gradients too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.parameters.items():
        if name.endswith("lora_B"):
            parameter.normal_(0.0, size, generator=generator)
        elif name.endswith("lora_magnitude_vector"):
            parameter.mul_(1 + size * torch.rand(parameter.shape, generator=generator))
    model.sync()


def peft_twin(model: LoraModel, architecture: str, **overrides: Any) -> Any:
    """transformers' model with PEFT's LoRA and a copy of our adapter's weights, dropout 0."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    assert model.lora is not None
    config = PeftConfig(
        r=model.lora.rank,
        lora_alpha=model.lora.alpha,
        lora_dropout=0.0,
        target_modules=list(model.lora.targets),
        bias="none",
        task_type="CAUSAL_LM",
        **dict.fromkeys(KINDS[model.lora.kind].peft, True),
        rank_pattern=dict(model.lora.ranks),
        alpha_pattern=dict(model.lora.alphas),
        layers_to_transform=None if model.lora.layers is None else list(model.lora.layers),
    )
    theirs = get_peft_model(tiny_model(architecture, **overrides), config).train()
    with torch.no_grad():
        for name, parameter in peft_parameters(theirs).items():
            parameter.copy_(model.parameters[name])
            parameter.requires_grad_(model.lora.trains(name))
    return theirs


def peft_parameters(theirs: Any) -> dict[str, torch.nn.Parameter]:
    """PEFT's trainable tensors under our names."""
    return {
        name.removeprefix("base_model.model.").replace(".default", "").removesuffix(".weight"): parameter
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }


def their_loss(theirs: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Mean cross-entropy over all target tokens of the examples, one sequence at a time."""
    total = torch.zeros(())
    for one in examples:
        logits = theirs(torch.tensor([one.tokens])).logits[0]
        targets = torch.tensor(one.tokens[one.n_prompt :])
        total = total + torch.nn.functional.cross_entropy(logits[one.n_prompt - 1 : -1], targets, reduction="sum")
    return total / sum(one.n_targets for one in examples)


def example(
    n_prompt: int, n_targets: int, *, seed: int, prefix: Sequence[int] = (), vocabulary: int = VOCABULARY
) -> Example:
    """Random tokens behind `prefix` (which counts as prompt, `n_prompt` tokens come after it)."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randint(0, vocabulary, (n_prompt + n_targets,), generator=generator).tolist()
    return Example((*prefix, *own), len(prefix) + n_prompt)


# a common beginning of 20 tokens, one example without it, different lengths
MIXED = [
    example(4, 9, seed=1, prefix=range(20)),
    example(30, 1, seed=2),
    example(2, 17, seed=3, prefix=range(20)),
]


def assert_equal_gradients(
    found: dict[str, torch.Tensor], theirs: Any, *, within: float, whole: float, floor: float = 1e-6
) -> None:
    """Every gradient is PEFT's: none missing, none too small to say anything.

    Args:
        within: difference of an element allowed, relative to the tensor's largest.
        whole: `distance` of the whole gradients allowed.
        floor: what the largest element of each of theirs must exceed.
    """
    expected = {name: p.grad for name, p in peft_parameters(theirs).items() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        assert found[name].shape == one.shape
        assert one.abs().max() > floor, name
        assert (found[name] - one).abs().max() < 1e-6 + within * one.abs().max(), name
    assert distance(found, expected) < whole


def gradient(
    model: LoraModel,
    examples: Sequence[Example],
    parts: Sequence[Sequence[int]] | None = None,
    *,
    step: int = 0,
    seed: int = 42,
) -> tuple[float, dict[str, torch.Tensor]]:
    """(mean loss, gradient by parameter) of one optimizer step, in micro-batches `parts` (default: all at once)."""
    one = GradientStep(model, examples, step=step, seed=seed)
    loss = sum(one.micro_batch(part) for part in (parts or [range(len(examples))]))
    return loss / one.total, one.finish()


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    """The whole gradient as one vector, float64."""
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])


def cosine(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Cosine between two whole gradients."""
    return float(torch.nn.functional.cosine_similarity(flat(a), flat(b), dim=0))


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """‖a - b‖ / ‖b‖ of two whole gradients."""
    return float((flat(a) - flat(b)).norm() / flat(b).norm())
