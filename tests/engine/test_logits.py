"""The decoder against transformers: the plain formulas, the fast path and the adapter as PEFT loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rescoldo.adapter import write_adapter
from rescoldo.base import open_base
from rescoldo.base.sample import find_sample
from rescoldo.engine.config import LINEARS
from rescoldo.engine.model import LoraModel, evaluate_loss
from rescoldo.engine.reference import ReferenceDecoder
from rescoldo.engine.types import LoraConfig
from tests.base.make_models import tiny_hf, tiny_model
from tests.engine.common import (
    VARIANTS,
    VOCABULARY,
    Variant,
    example,
    peft_twin,
    randomize,
    their_loss,
    tiny_base,
    tiny_lora,
    variant_id,
)

torch.set_num_threads(1)


def _tokens(n: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
@torch.no_grad()
def test_logits_equal_transformers(variant: Variant) -> None:
    architecture, overrides = variant
    base = tiny_base(architecture, **overrides)
    theirs = tiny_model(architecture, **overrides)
    fast = LoraModel.load(base, "fp32", None, seed=0)
    plain = ReferenceDecoder(base.config, base.tensors)
    for n in (1, 7, 100):
        expected = theirs(_tokens(n)[None]).logits[0]
        assert expected.std() > 0.1  # or the comparison would say nothing
        assert (plain.logits(_tokens(n)) - expected).abs().max() < 2e-5
        assert (fast.logits(_tokens(n)) - expected).abs().max() < 2e-5


def test_windows_change_the_logits() -> None:
    """The windowed variants above differ from full attention, each in its own layers."""
    tokens = _tokens(60)
    for architecture, layers in (("qwen2", (None, 8, 8)), ("qwen3", (None, 8, 8))):
        overrides = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_hidden_layers": 3}
        windowed = tiny_base(architecture, **overrides)
        assert tuple(windowed.config.window(i) for i in range(3)) == layers
        full = tiny_base(architecture, num_hidden_layers=3)
        ours = [LoraModel.load(base, "fp32", None, seed=0).logits(tokens) for base in (windowed, full)]
        assert (ours[0][:8] - ours[1][:8]).abs().max() < 1e-5
        assert (ours[0][20:] - ours[1][20:]).abs().max() > 0.01


def test_positions_up_to_the_models_limit() -> None:
    """Tables grow with the sequence; the last position a model knows is right as well."""
    for rope in ("default", "llama3", "yarn", "dynamic"):
        overrides = {} if rope == "default" else {"rope": rope}
        model = LoraModel.load(tiny_base("llama", **overrides), "fp32", None, seed=0)
        model.logits(_tokens(3))
        with torch.no_grad():
            expected = tiny_model("llama", **overrides)(_tokens(256)[None]).logits[0]
        assert (model.logits(_tokens(256)) - expected).abs().max() < 5e-5


def test_bfloat16_on_disk_read_as_fp32(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = open_base(str(tiny_hf(tmp_path, "qwen3", dtype=torch.bfloat16, tokenizer=False)))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(_tokens(30)[None]).logits[0]
    assert (LoraModel.load(base, "fp32", None, seed=0).logits(_tokens(30)) - expected).abs().max() < 2e-5


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
@torch.no_grad()
def test_peft_loads_the_adapter_and_gives_the_same_logits(tmp_path: Path, architecture: str) -> None:
    from peft import PeftModel

    model = tiny_lora(architecture, lora=LoraConfig(rank=3, alpha=5.0, dropout=0.1, targets=LINEARS))
    assert model.lora is not None
    write_adapter(tmp_path, model.parameters, model.lora, "somewhere/else")
    theirs = PeftModel.from_pretrained(tiny_model(architecture), str(tmp_path)).eval()
    plain = ReferenceDecoder(model.config, tiny_base(architecture).tensors, model.lora, model.parameters)
    expected = theirs(_tokens(50)[None]).logits[0]
    base_only = tiny_model(architecture)(_tokens(50)[None]).logits[0]
    assert (expected - base_only).abs().max() > 0.1
    assert (model.logits(_tokens(50)) - expected).abs().max() < 2e-5
    assert (plain.logits(_tokens(50)) - expected).abs().max() < 2e-5
    with model.without_adapter():
        assert (model.logits(_tokens(50)) - base_only).abs().max() < 2e-5
    assert (model.logits(_tokens(50)) - expected).abs().max() < 2e-5


def test_evaluation_loss_equals_peft() -> None:
    model = tiny_lora("llama")
    prefix = tuple(range(20))
    examples = [example(5 + i, 10 + i, seed=i, prefix=prefix if i % 2 else ()) for i in range(5)]
    theirs = peft_twin(model, "llama").eval()
    seen: list[int] = []
    ours = evaluate_loss(model, examples, seen.append)
    assert seen == [1, 2, 3, 4, 5]
    with torch.no_grad():
        for one, (loss, n) in zip(examples, ours, strict=True):
            assert n == one.n_targets
            assert loss / n == pytest.approx(float(their_loss(theirs, [one])), abs=1e-5)


def test_a_fresh_adapter_changes_nothing_and_is_a_function_of_the_seed() -> None:
    lora = LoraConfig(rank=4, alpha=8, dropout=0.0, targets=LINEARS)
    load = lambda seed: LoraModel.load(tiny_base("llama"), "fp32", lora, seed=seed)  # noqa: E731
    first, again, other = load(1), load(1), load(2)
    assert all(torch.equal(first.parameters[k], again.parameters[k]) for k in first.parameters)
    for name, parameter in first.parameters.items():
        if name.endswith("lora_A"):
            bound = parameter.shape[1] ** -0.5  # PEFT's: Kaiming with a = sqrt 5
            assert not torch.equal(parameter, other.parameters[name])
            assert parameter.abs().max() <= bound
            assert parameter.std() == pytest.approx(bound / 3**0.5, rel=0.2)
        else:
            assert not parameter.any()
    bare = LoraModel.load(tiny_base("llama"), "fp32", None, seed=0)
    assert (first.logits(_tokens(20)) - bare.logits(_tokens(20))).abs().max() < 1e-5
    randomize(first)
    assert (first.logits(_tokens(20)) - bare.logits(_tokens(20))).abs().max() > 0.1


@pytest.mark.slow
@torch.no_grad()
def test_sample_model_equals_transformers() -> None:
    from transformers import AutoModelForCausalLM

    path = find_sample("smollm2")
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    base = open_base("sample:smollm2")
    tokens = torch.randint(0, base.config.vocab_size, (40,), generator=torch.Generator().manual_seed(0))
    expected = theirs(tokens[None]).logits[0]
    assert (ReferenceDecoder(base.config, base.tensors).logits(tokens) - expected).abs().max() < 1e-4
    assert (LoraModel.load(base, "fp32", None, seed=0).logits(tokens) - expected).abs().max() < 1e-4
