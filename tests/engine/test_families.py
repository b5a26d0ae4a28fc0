"""Each family against transformers and PEFT on tiny random models, and its GGUF names against the gguf package."""

from __future__ import annotations

import json
import math
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from rescoldo.base import open_base
from rescoldo.base.hf import read_config
from rescoldo.engine.attend import PackedAttention
from rescoldo.engine.config import LAYER_SCALAR, LINEARS
from rescoldo.engine.generate import Decoder, generate
from rescoldo.engine.kernels.attention import Layout
from rescoldo.engine.memory import kept_bytes
from rescoldo.engine.model import LoraModel, evaluate_loss
from rescoldo.engine.reference import ReferenceDecoder
from rescoldo.engine.rope import inverse_frequencies, of_kind
from rescoldo.engine.step import GradientStep
from rescoldo.engine.types import LoraConfig, Sampling
from rescoldo.errors import RescoldoError
from rescoldo.families import FAMILIES
from tests.base.make_models import tiny_config, tiny_hf, tiny_model
from tests.engine.common import (
    MIXED,
    VOCABULARY,
    Variant,
    assert_equal_gradients,
    cosine,
    distance,
    example,
    gradient,
    peft_parameters,
    peft_twin,
    their_loss,
    tiny_base,
    tiny_lora,
    variant_id,
)

torch.set_num_threads(1)

GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.13,
    "logits_scaling": 2.5,
}
WINDOWS = {"sliding_window": 8}
GEMMA4 = {"rope": "gemma4", "kinds": "ssfsfssf", "num_kv_shared_layers": 3, "use_double_wide_mlp": True, **WINDOWS}
CAPS = {"attn_logit_softcapping": 0.7, "final_logit_softcapping": 1.5, "query_pre_attn_scalar": 9}
# each family that is more than llama with switches, and each of its own switches
FAMILY_VARIANTS: list[Variant] = [
    ("granite", GRANITE),
    ("granite", {**GRANITE, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("granite", {"residual_multiplier": 0.4}),
    ("olmo2", {}),
    ("olmo2", {"attention_bias": True, "tie_word_embeddings": True}),
    ("olmo3", {"rope": "yarn-full", **WINDOWS, "num_hidden_layers": 4}),
    ("smollm3", {"num_hidden_layers": 5}),
    ("phi3", {}),
    ("phi3", {"rope": "longrope", "tie_word_embeddings": True, **WINDOWS, "num_hidden_layers": 3}),
    ("phi3", {"rope": "longrope-part", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}),
    ("phi3", {"rope": "part", "num_key_value_heads": 4, "intermediate_size": 160}),
    ("ministral3", {"rope": "ministral"}),
    ("ministral3", {"rope": "ministral", "tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 32}),
    ("gemma", {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}),
    ("gemma2", {**WINDOWS, **CAPS, "tie_word_embeddings": True, "num_hidden_layers": 3}),
    ("gemma2", {**CAPS, "attn_logit_softcapping": None}),
    ("gemma3_text", {"rope": "kinds", "tie_word_embeddings": True, **WINDOWS, "num_hidden_layers": 6}),
    ("gemma3_text", {"rope": "kinds", "query_pre_attn_scalar": 9, "num_attention_heads": 2, "head_dim": 64}),
    ("gemma4_text", {**GEMMA4, "final_logit_softcapping": 1.5, "tie_word_embeddings": True}),
    ("gemma4_text", {**GEMMA4, "kinds": "sff", "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}),
    ("gemma4_text", {**GEMMA4, "kinds": "sfsf", "num_kv_shared_layers": 2, "num_key_value_heads": 1, "head_dim": 64}),
    ("gemma4_text", {"rope": "gemma4", "kinds": "ffff", "num_kv_shared_layers": 3, "attention_bias": True}),
]
ONE_EACH = [
    variant for i, variant in enumerate(FAMILY_VARIANTS) if variant[0] not in {v[0] for v in FAMILY_VARIANTS[:i]}
]
EXAMPLES = [*MIXED, example(1, 12, seed=4)]


def _targets(architecture: str, overrides: dict[str, Any]) -> tuple[str, ...]:
    return tiny_base(architecture, **overrides).config.linears


@pytest.mark.parametrize("variant", FAMILY_VARIANTS, ids=variant_id)
@torch.no_grad()
def test_logits_equal_transformers(variant: Variant) -> None:
    architecture, overrides = variant
    base, theirs = tiny_base(architecture, **overrides), tiny_model(architecture, **overrides)
    assert base.config.total_params == sum(p.numel() for p in theirs.parameters())
    fast = LoraModel.load(base, "fp32", None, seed=0)
    plain = ReferenceDecoder(base.config, base.tensors)
    for n in (1, 70):
        tokens = torch.randint(0, VOCABULARY, (n,), generator=torch.Generator().manual_seed(5))
        expected = theirs(tokens[None]).logits[0]
        assert expected.std() > 0.05  # or the comparison would say nothing
        assert (plain.logits(tokens) - expected).abs().max() < 1e-4
        assert (fast.logits(tokens) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("variant", FAMILY_VARIANTS, ids=variant_id)
def test_loss_and_gradients_equal_peft(variant: Variant) -> None:
    architecture, overrides = variant
    lora = LoraConfig(rank=4, alpha=8, dropout=0.0, targets=_targets(architecture, overrides))
    model = tiny_lora(architecture, lora=lora, **overrides)
    theirs = peft_twin(model, architecture, **overrides)
    loss = their_loss(theirs, EXAMPLES)
    loss.backward()
    for keep in (None, 0):
        model.keep_layers = keep
        ours, gradients = gradient(model, EXAMPLES, [[0, 1], [2], [3]])
        assert ours == pytest.approx(float(loss.detach()), abs=1e-4)
        assert gradients.keys() == model.parameters.keys()
        assert_equal_gradients(gradients, theirs, within=1e-4, whole=1e-4)


@pytest.mark.parametrize("variant", ONE_EACH, ids=variant_id)
@torch.no_grad()
def test_decoding_with_the_cache_gives_transformers_answer(variant: Variant) -> None:
    architecture, overrides = variant
    model = LoraModel.load(tiny_base(architecture, **overrides), "fp32", None, seed=0)
    theirs = tiny_model(architecture, **overrides)
    prompts = [example(n, 1, seed=n, prefix=range(20)).tokens[:-1] for n in (3, 9, 1)]
    for answer in generate(model, prompts, Sampling(max_new_tokens=12), frozenset()):
        tokens = torch.tensor([*prompts[answer.index], *answer.tokens])
        logits = theirs(tokens[None]).logits[0, len(prompts[answer.index]) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        assert (logits.amax(-1) - chosen).max() < 1e-4


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("variant", ONE_EACH, ids=variant_id)
def test_lower_precisions_are_close(variant: Variant, precision: str) -> None:
    architecture, overrides = variant
    lora = LoraConfig(rank=4, alpha=8, dropout=0.0, targets=_targets(architecture, overrides))
    exact, rounded = (tiny_lora(architecture, p, lora, **overrides) for p in ("fp32", precision))
    losses = [sum(loss for loss, _ in evaluate_loss(model, EXAMPLES)) for model in (exact, rounded)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert cosine(gradient(rounded, EXAMPLES)[1], gradient(exact, EXAMPLES)[1]) > (
        0.97 if precision == "int8" else 0.99
    )


def _tensors(saved: object) -> list[torch.Tensor]:
    """All tensors in a tree of dataclasses and tuples."""
    if isinstance(saved, torch.Tensor):
        return [saved]
    parts = saved if isinstance(saved, tuple) else vars(saved).values() if is_dataclass(saved) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


@pytest.mark.parametrize("variant", [("llama", {}), ("qwen3", {}), *ONE_EACH], ids=variant_id)
def test_what_a_layer_keeps_is_what_the_memory_model_says(variant: Variant) -> None:
    """But for the adapters' rows and a number or two for each head, which are small."""
    architecture, overrides = variant
    lora = LoraConfig(rank=1, alpha=8, dropout=0.0, targets=_targets(architecture, overrides))
    model = tiny_lora(architecture, lora=lora, **overrides)
    n = 40
    h, rows = model.embed(torch.arange(n)), model.rows(torch.arange(n))
    if model.layer_embeddings is not None:
        rows.layer_inputs[:] = model.layer_embeddings.rows(torch.arange(n), h)
    _, saved = model.layers[0].forward(h, rows, PackedAttention(Layout((0, n), 0)))
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(saved)}
    expected = kept_bytes(model.config, 4, n)
    assert expected <= sum(storages.values()) < 1.06 * expected


@pytest.mark.parametrize("name", FAMILIES)
def test_gguf_names_are_the_gguf_packages(name: str) -> None:
    family = FAMILIES[name]
    variant = next((v for v in FAMILY_VARIANTS if v[0] == name), (name, {}))
    config = tiny_base(name, **variant[1]).config
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == family.gguf)
    names = gguf.get_tensor_name_map(number, config.n_layers)
    for tensor in config.tensor_shapes():
        scalar = tensor.endswith(LAYER_SCALAR)  # ".weight" is behind its name only in GGUF
        theirs = names.get_name(f"{tensor}.weight" if scalar else tensor, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, tensor
        assert family.to_gguf(tensor) == theirs
        assert family.from_gguf(theirs) == tensor
    assert all(
        family.from_gguf(odd) is None for odd in ("blk.01.attn_q.weight", "blk.0.attn_q.scale", "blk.0.x.weight")
    )


@pytest.mark.parametrize("layers", [(5, 6, 7), (4, 7), (3, 6), (0,)], ids=str)
def test_adapters_on_some_layers_of_a_model_that_shares_keys_and_values(layers: tuple[int, ...]) -> None:
    """Above the layers whose keys and values are shared, on them, and below: PEFT's gradients, in one go and continued
    from the step's state."""
    lora = LoraConfig(rank=4, alpha=8, dropout=0.0, targets=LINEARS, layers=layers)
    model = tiny_lora("gemma4_text", lora=lora, **GEMMA4)
    loss = their_loss(theirs := peft_twin(model, "gemma4_text", **GEMMA4), EXAMPLES)
    loss.backward()
    expected = {name: p.grad for name, p in peft_parameters(theirs).items() if p.grad is not None}
    assert expected.keys() == model.parameters.keys()
    first = GradientStep(model, EXAMPLES, step=0, seed=0)
    ours = first.micro_batch([0, 3])
    second = GradientStep(model, EXAMPLES, step=0, seed=0)
    second.load_state({name: value.clone() for name, value in first.state().items()})
    ours += second.micro_batch([1, 2])
    assert ours / second.total == pytest.approx(float(loss.detach()), abs=1e-4)
    assert distance(second.finish(), expected) < 1e-4


def test_keys_and_values_are_kept_by_the_layers_that_have_them() -> None:
    """In the cache, and of a shared prefix, whose pass ends with the last of them."""
    model = LoraModel.load(tiny_base("gemma4_text", **GEMMA4), "fp32", None, seed=0)
    assert model.config.kv_sources == (0, 1, 2, 3, 4, 3, 3, 4)
    assert model.prefix(range(20)).keys_values.keys() == {0, 1, 2, 3, 4}
    decoder = Decoder(model, frozenset(), range(20))
    decoder.admit(0, range(25), Sampling(max_new_tokens=4))
    widths = [model.config.n_kv_heads * model.config.head_size(i) for i in range(5)]
    assert [cache[0, 0].numel() for cache in decoder._cache.k] == [*widths, 0, 0, 0]
    assert model.config.kv_width == sum(widths)


def test_projections_that_no_layer_uses_are_left_alone(tmp_path: Path) -> None:
    """Published checkpoints have keys' and values' projections and norms in the layers that attend to another's."""
    base = tiny_hf(tmp_path, "gemma4_text", tokenizer=False, **GEMMA4)
    file = base / "model.safetensors"
    extra = {f"model.layers.7.self_attn.{name}.weight": torch.ones(2, 2) for name in ("k_proj", "v_proj", "k_norm")}
    save_file({**load_file(file), **extra}, file)
    opened = open_base(str(base))
    assert opened.note() == ""
    tokens = torch.arange(30)
    expected = LoraModel.load(tiny_base("gemma4_text", **GEMMA4), "fp32", None, seed=0).logits(tokens)
    assert torch.equal(LoraModel.load(opened, "fp32", None, seed=0).logits(tokens), expected)
    save_file({**load_file(file), "model.layers.3.self_attn.v_norm.weight": torch.ones(2)}, file)
    with pytest.raises(RescoldoError, match=r"v_norm\.weight is not part of a gemma4_text decoder"):
        open_base(str(base))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}, "a mixture of experts, as in 26B-A4B"),
        ({"attention_k_eq_v": True}, "values that are the keys, as in 31B"),
        ({"use_bidirectional_attention": "all"}, "attention to later tokens"),
        ({"num_kv_shared_layers": 7}, "the last 7 of 8 layers share keys and values that no earlier layer has"),
        ({"num_kv_shared_layers": 9}, "the last 9 of 8 layers share keys and values that no earlier layer has"),
        ({"vocab_size_per_layer_input": 100}, "vocab_size_per_layer_input is not vocab_size"),
        ({"per_layer_config": {"2": {"head_dim": 32}, "0": {"head_dim": 8}}}, "head sizes must be even, and the same"),
        ({"per_layer_config": {"2": {"intermediate_size": 32}}}, "per_layer_config sets intermediate_size"),
    ],
    ids=str,
)
def test_what_of_gemma4_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    config = {**tiny_config("gemma4_text", **GEMMA4).to_dict(), **values}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RescoldoError, match=message):
        read_config(tmp_path)


def test_gemma4_as_its_own_config_says_it(tmp_path: Path) -> None:
    """E2B's text_config, with the head size of the layers without a window beside the other."""
    config = {
        "model_type": "gemma4_text",
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144,
        "hidden_size": 1536,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": 6144,
        "use_double_wide_mlp": True,
        "num_hidden_layers": 35,
        "num_kv_shared_layers": 20,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "num_global_key_value_heads": None,
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": 512,
        "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7,
        "final_logit_softcapping": 30.0,
        "use_bidirectional_attention": None,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma4", "text_config": config}))
    found = read_config(tmp_path)
    assert found.tied_embeddings
    assert [found.head_size(i) for i in (3, 4)] == [256, 512]
    assert [found.kv_source(i) for i in (13, 14, 15, 19, 34)] == [13, 14, 13, 14, 14]
    assert [found.linear_shape("up_proj", i)[0] for i in (14, 15)] == [6144, 12288]
    assert found.layer_linears(15) == tuple(name for name in LINEARS if name not in ("k_proj", "v_proj"))
    assert 4.6e9 < found.total_params < 5.2e9  # 5.1 billion with the towers
    speeds = inverse_frequencies(of_kind(found, "main"))[0]
    assert len(speeds) == 256
    assert int((speeds > 0).sum()) == 64


def test_weights_of_targets() -> None:
    """Weights anywhere behind the prompt, 0 among them: what transformers' and PEFT's weighted sum says."""
    weights = [(1.0, 0.0, 0.0, 2.5, 0.5, 0.0, 1.0, 0.0, 3.0), None, (0.0,) * 10 + (1.0,) * 7, None]
    examples = [replace(one, weights=weight) for one, weight in zip(EXAMPLES, weights, strict=True)]
    assert [one.n_targets for one in examples] == [5, 1, 7, 12]
    model = tiny_lora("llama")
    theirs = peft_twin(model, "llama")
    total = torch.zeros(())
    for one in examples:
        logits = theirs(torch.tensor([one.tokens])).logits[0, one.n_prompt - 1 : -1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(one.tokens[one.n_prompt :]), reduction="none")
        total = total + (losses * torch.tensor(one.weights or [1.0] * len(losses))).sum()
    mean = total / math.fsum(one.total_weight for one in examples)
    mean.backward()
    ours, gradients = gradient(model, examples, [[0, 1], [2, 3]])
    assert ours == pytest.approx(float(mean.detach()), abs=1e-5)
    expected = {name: p.grad for name, p in peft_parameters(theirs).items() if p.grad is not None}
    assert distance(gradients, expected) < 1e-5
    plain = ReferenceDecoder(model.config, tiny_base("llama").tensors, model.lora, model.parameters)
    first = examples[0]
    with torch.no_grad():
        loss = plain.loss(torch.tensor(first.tokens), first.n_prompt, torch.tensor(first.weights))
    assert evaluate_loss(model, examples)[0] == pytest.approx((float(loss), 8.0), rel=1e-5)
    assert model.config.linears == LINEARS


def test_weights_of_one_are_no_weights() -> None:
    model = tiny_lora("llama")
    ones = [replace(one, weights=(1.0,) * one.n_targets) for one in EXAMPLES]
    (loss, plain), (again, weighted) = gradient(model, EXAMPLES), gradient(model, ones)
    assert loss == pytest.approx(again, rel=1e-6)
    assert distance(weighted, plain) < 1e-6


@pytest.mark.parametrize("weights", [(1.0,), (0.0,) * 9, (-1.0,) * 9, (math.nan,) * 9, (math.inf,) * 9])
def test_bad_weights(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weights"):
        replace(EXAMPLES[0], weights=weights)


def test_an_objective_of_ones_own() -> None:
    """A function of the answers' log-probabilities, as preference objectives are: against autograd through PEFT."""
    from rescoldo.engine.head import Head
    from rescoldo.engine.objective import Objective, Targets

    def loss(head: Head, h: torch.Tensor, targets: Targets, scale: float) -> tuple[float, torch.Tensor]:
        found = head.log_probabilities(h, targets.at, targets.tokens).double()
        sums = torch.zeros(len(targets.examples), dtype=torch.float64).index_add_(0, targets.owner, found)
        margin = 0.1 * (sums[0] - sums[1])
        slope = -0.1 * torch.sigmoid(-margin)  # of -log σ(margin) by the first sum
        weights = torch.where(targets.owner == 0, -slope, slope).float()
        _, dh = head.loss(h, targets.at, targets.tokens, weights, scale)
        assert dh is not None
        return float(-torch.nn.functional.logsigmoid(margin)), dh

    pair = [example(5, 6, seed=1, prefix=range(20)), example(5, 9, seed=2, prefix=range(20))]
    model = tiny_lora("llama")
    step = GradientStep(model, pair, step=0, seed=0, objective=Objective(loss, lambda examples: len(examples) / 2))
    ours = step.micro_batch([0, 1])
    theirs = peft_twin(model, "llama")
    sums = [-their_loss(theirs, [one]) * one.n_targets for one in pair]
    expected_loss = -torch.nn.functional.logsigmoid(0.1 * (sums[0] - sums[1]))
    expected_loss.backward()
    assert ours == pytest.approx(float(expected_loss.detach()), rel=1e-5)
    expected = {name: p.grad for name, p in peft_parameters(theirs).items() if p.grad is not None}
    assert distance(step.finish(), expected) < 1e-4


def test_what_identifies_a_model_does_not_change_with_new_fields() -> None:
    """Fingerprints hash the described config: those of models that need no newer field stay as they were."""
    described = tiny_base("llama").config.described()
    assert list(described)[-1] == "tied_embeddings"
    assert "norm_placement" not in described
    granite = tiny_base("granite", **GRANITE).config
    assert {k: v for k, v in granite.described().items() if k not in described} == {
        "attention_scale": 0.13,
        "embedding_scale": 3.0,
        "residual_scale": 0.4,
        "logits_divisor": 2.5,
    }


OLD_GEMMA3 = {  # as the models' own config.json, written before transformers 5
    "model_type": "gemma3_text",
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window_pattern": 6,
    "sliding_window": 512,
    "query_pre_attn_scalar": 16,
}
OLD_OLMO3 = {
    "model_type": "olmo3",
    "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
    "sliding_window": 512,
    "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 2,
}


@pytest.mark.parametrize(("config", "every"), [(OLD_GEMMA3, 6), (OLD_OLMO3, 4)], ids=["gemma3", "olmo3"])
def test_a_config_in_the_old_style(tmp_path: Path, config: dict[str, Any], every: int) -> None:
    shape = {
        "vocab_size": 288,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    }
    (tmp_path / "config.json").write_text(json.dumps({**shape, **config}))
    found = read_config(tmp_path)
    assert [found.rope(i) for i in range(8)] == ["main" if (i + 1) % every == 0 else "local" for i in range(8)]
    assert [found.window(i) for i in range(8)] == [None if (i + 1) % every == 0 else 512 for i in range(8)]
    assert found.rope_theta == config["rope_theta"]
    assert found.local_rope_theta == config.get("rope_local_base_freq", 500000.0)
    assert found.rope_scaling is not None
    assert found.rope_scaling["factor"] == 8.0
