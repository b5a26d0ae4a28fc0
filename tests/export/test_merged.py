"""The merged directory: transformers and PEFT give our logits; what is written is streamed, sharded, complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rescoldo.base import open_base
from rescoldo.data.tokenize import prompt_ids
from rescoldo.export import export_run, merged_hf
from rescoldo.models.loaded import load_for_inference
from rescoldo.role import get_role
from tests.base.make_models import tiny_gguf, tiny_hf
from tests.base.test_quantized import fp8_model
from tests.engine.test_families import GEMMA4, GRANITE
from tests.export.common import CONCEPTS, PHI_LONG, make_run

SIZES: dict[str, Any] = {"max_position_embeddings": 4096, "intermediate_size": 96}


def _prompt(tokenizer: Any) -> list[int]:
    return prompt_ids(get_role("ba").messages({"concept": CONCEPTS[0]}), tokenizer)


def _theirs(directory: Path, tokens: list[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("llama", {"tie_word_embeddings": True, "rope": "llama3"}),
        ("mistral", {"sliding_window": 64}),
        ("qwen2", {}),
        ("qwen3", {"rope": "yarn"}),
        ("granite", GRANITE),
        ("olmo2", {}),
        ("olmo3", {"rope": "yarn-full", "sliding_window": 4096, "num_hidden_layers": 4}),
        ("smollm3", {"num_hidden_layers": 5}),
        ("phi3", {}),
        ("phi3", {**PHI_LONG, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}),
        ("ministral3", {"rope": "ministral"}),
        ("gemma", {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True}),
        ("gemma3_text", {"rope": "kinds", "tie_word_embeddings": True, "sliding_window": 64, "num_hidden_layers": 7}),
        ("gemma2", {"tie_word_embeddings": True, "sliding_window": 64}),
        ("gemma4_text", {**GEMMA4, "tie_word_embeddings": True, "sliding_window": 64}),
    ],
)
def test_of_a_hugging_face_base(tmp_path: Path, architecture: str, overrides: dict[str, Any]) -> None:
    base = tiny_hf(tmp_path / "base", architecture, **{**SIZES, **overrides})
    run = make_run(tmp_path / "run", str(base), size=0.3)
    export_run(run, "merged")
    merged = run / "export/merged"
    mine = load_for_inference(str(run))
    tokens = _prompt(mine.tokenizer)
    ours, theirs = mine.model.logits(torch.tensor(tokens)), _theirs(merged, tokens)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(run))
    with torch.no_grad():
        torch.testing.assert_close(peft(torch.tensor([tokens])).logits[0], theirs, rtol=1e-3, atol=1e-3)
    assert (theirs - _theirs(base, tokens)).abs().max() > 0.5, "the adapter hardly does anything"
    tokenizer = AutoTokenizer.from_pretrained(merged)
    messages = get_role("ba").messages({"concept": CONCEPTS[0]})
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == tokens
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32), str(run))
    assert adapted is not None, "the merged model is a base that PEFT takes"


def test_of_a_base_in_fp8(tmp_path: Path) -> None:
    """What is merged is not quantized, and its config does not say that it is."""
    fp8_model(tmp_path / "base", "one", "weight_scale_inv", max_position_embeddings=4096)
    config = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    run = make_run(tmp_path / "run", str(tmp_path / "base"), size=0.3)
    assert export_run(run, "merged")["dtype"] == "BF16"
    export_run(run, "merged", dtype="F32", force=True)
    mine = load_for_inference(str(run))
    tokens = _prompt(mine.tokenizer)
    theirs = _theirs(run / "export/merged", tokens)
    torch.testing.assert_close(theirs, mine.model.logits(torch.tensor(tokens)), rtol=1e-3, atol=1e-3)


def test_of_a_decoder_wrapped_together_with_a_vision_tower(tmp_path: Path) -> None:
    """The merged directory is the decoder alone, which transformers loads as such."""
    base = tiny_hf(tmp_path / "base", "gemma3_text", **SIZES, rope="kinds", tie_word_embeddings=True)
    state = load_file(base / "model.safetensors")
    wrapped = {f"model.language_model.{name.removeprefix('model.')}": tensor for name, tensor in state.items()}
    save_file({**wrapped, "model.vision_tower.patch": torch.zeros(3)}, base / "model.safetensors")
    text = json.loads((base / "config.json").read_text())
    config = {"model_type": "gemma3", "text_config": text, "architectures": ["Gemma3ForConditionalGeneration"]}
    (base / "config.json").write_text(json.dumps(config))
    run = make_run(tmp_path / "run", str(base), size=0.3)
    export_run(run, "merged")
    mine = load_for_inference(str(run))
    tokens = _prompt(mine.tokenizer)
    theirs = _theirs(run / "export/merged", tokens)
    torch.testing.assert_close(theirs, mine.model.logits(torch.tensor(tokens)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("architecture", "quantization", "overrides"),
    [
        ("llama", "Q4_0", {}),
        ("llama", "F32", {"rope": "linear", "metadata": {"llama.rope.scaling.type": "linear"}}),
        ("qwen2", "Q8_0", {}),
        ("qwen3", "F16", {"tie_word_embeddings": True}),
    ],
)
def test_of_a_gguf_base(tmp_path: Path, architecture: str, quantization: str, overrides: dict[str, Any]) -> None:
    """The config is made from the file's metadata, the weights decoded: transformers sees the model that we see."""
    if "metadata" in overrides:
        overrides["metadata"]["llama.rope.scaling.factor"] = 2.0
    base = tiny_gguf(tmp_path / "base.gguf", architecture, quantization=quantization, **{**SIZES, **overrides})
    run = make_run(tmp_path / "run", str(base), size=0.3)
    document = export_run(run, "merged", dtype="fp32")
    assert document["dtype"] == "F32"
    mine = load_for_inference(str(run))
    tokens = _prompt(mine.tokenizer)
    theirs = _theirs(run / "export/merged", tokens)
    torch.testing.assert_close(theirs, mine.model.logits(torch.tensor(tokens)), rtol=1e-3, atol=1e-3)


def test_llama3_factors_become_llama3(tmp_path: Path) -> None:
    """Llama 3 in GGUF has a tensor of divisors; Hugging Face's config names the formula. There and back again."""
    settings = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    base = tiny_hf(tmp_path / "base", "llama", max_position_embeddings=16384, rope_theta=500000.0)
    content = json.loads((base / "config.json").read_text())
    content["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 500000.0, **settings}
    (base / "config.json").write_text(json.dumps(content))
    export_run(make_run(tmp_path / "one", str(base)), "merged-gguf", dtype="F32")
    gguf = tmp_path / "one/export/merged-gguf/model-F32.gguf"
    assert open_base(str(gguf)).config.rope_scaling["rope_type"] == "factors"
    export_run(make_run(tmp_path / "two", str(gguf)), "merged")
    written = json.loads((tmp_path / "two/export/merged/config.json").read_text())
    assert written["rope_parameters"] == {"rope_type": "llama3", "rope_theta": 500000.0, **settings}


def test_shards_and_dtypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_hf(tmp_path / "base", "llama", **SIZES, sharded=True, dtype=torch.bfloat16)
    run = make_run(tmp_path / "run", str(base), size=0.3)
    whole = export_run(run, "merged", output=tmp_path / "whole")
    assert whole["dtype"] == "BF16", "the base's own"
    monkeypatch.setattr(merged_hf, "SHARD_BYTES", 20_000)
    export_run(run, "merged", output=tmp_path / "parts")
    index = json.loads((tmp_path / "parts/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert len(files) > 3
    modes = {path.stat().st_mode for path in (tmp_path / "parts").iterdir()}
    assert len(modes) == 1, "who may read the index may read the weights"
    one, parts = (open_base(str(tmp_path / name)) for name in ("whole", "parts"))
    for name in one.tensors.names():
        assert torch.equal(one.tensors.get(name), parts.tensors.get(name)), name
        assert one.tensors.get(name).dtype == torch.bfloat16
    export_run(run, "merged", dtype="float16", output=tmp_path / "half")
    assert open_base(str(tmp_path / "half")).tensors.get("model.norm.weight").dtype == torch.float16
    assert _theirs(tmp_path / "parts", [1, 5, 9]).isfinite().all()


def test_matrices_that_the_adapter_leaves_alone_keep_their_blocks(tmp_path: Path) -> None:
    """A quantized base is not rounded a second time where nothing was trained."""
    from rescoldo.engine.types import LoraConfig

    base = tiny_gguf(tmp_path / "base.gguf", "llama", quantization="Q4_1", **SIZES)
    lora = LoraConfig(rank=2, alpha=4.0, dropout=0.0, targets=("q_proj", "down_proj"))
    run = make_run(tmp_path / "run", str(base), lora=lora)
    assert export_run(run, "merged-gguf")["dtype"] == "Q8_0", "a quantized base gives a quantized file"
    before, after = (open_base(str(p)).tensors for p in (base, run / "export/merged-gguf/model-Q8_0.gguf"))
    for name in before.names():
        old, new = before.quantized(name), after.quantized(name)
        if old is None or new is None:
            assert torch.equal(before.get(name), after.get(name))
        elif ".q_proj." in name or ".down_proj." in name:
            assert new.kind == "Q8_0"
        else:
            assert new.kind == "Q4_1"
            assert (new.data == old.data).all()
    export_run(run, "merged-gguf", dtype="f16", output=tmp_path / "plain")
    plain = open_base(str(tmp_path / "plain/model-F16.gguf")).tensors
    assert all(plain.quantized(name) is None for name in plain.names())
