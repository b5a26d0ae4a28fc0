"""Each kind of adapter out of the house: PEFT loads and merges it, llama.cpp runs what its format can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rescoldo.base.gguf_header import read_header
from rescoldo.engine.config import LINEARS
from rescoldo.engine.kinds import KINDS
from rescoldo.engine.types import LoraConfig
from rescoldo.errors import RescoldoError
from rescoldo.export import export_run
from rescoldo.models.loaded import load_for_inference
from tests.base.make_models import tiny_gguf, tiny_hf
from tests.export.common import CONCEPTS, make_run
from tests.export.test_llama_cpp import TINY, check, follow, prompts

SIZES: dict[str, Any] = {"max_position_embeddings": 4096, "intermediate_size": 96, "num_hidden_layers": 3}


def _lora(**more: Any) -> LoraConfig:
    return LoraConfig(**{"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": LINEARS, **more})


SHAPES = {
    **{kind: _lora(kind=kind) for kind in KINDS},
    "ranks": _lora(ranks={"q_proj": 2, "down_proj": 9}, alphas={"k_proj": 3.0}, layers=(1, 2)),
    "rslora-ranks": _lora(kind="rslora", ranks={"up_proj": 9}),
    "dora-some": _lora(kind="dora", layers=(0, 2), targets=("q_proj", "down_proj"), ranks={"q_proj": 2}),
}


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
@pytest.mark.parametrize("shape", SHAPES)
def test_peft_loads_it_and_merges_to_the_same_model(tmp_path: Path, shape: str, architecture: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = tiny_hf(tmp_path / "base", architecture, **SIZES)
    lora = SHAPES[shape]
    if architecture == "phi3":
        if lora.ranks:
            pytest.skip("names linears that Phi has as one")
        lora = _lora(kind=lora.kind, targets=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"))
    run = make_run(tmp_path / "run", str(base), lora=lora, size=0.3)
    tokens = torch.arange(3, 60)
    ours = load_for_inference(str(run)).model.logits(tokens)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(run))
    export_run(run, "merged", dtype="F32")
    merged = AutoModelForCausalLM.from_pretrained(run / "export/merged", dtype=torch.float32)
    with torch.no_grad():
        found = theirs(tokens[None]).logits[0]
        torch.testing.assert_close(ours, found, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(merged(tokens[None]).logits[0], found, atol=1e-4, rtol=1e-4)
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        assert (plain(tokens[None]).logits[0] - found).abs().max() > 0.1, "the adapter hardly does anything"
        whole = theirs.merge_and_unload().state_dict()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", ["rslora", "ranks", "rslora-ranks"])
def test_llama_cpp_runs_the_adapter(tmp_path: Path, shape: str) -> None:
    pytest.importorskip("xllamacpp")
    from tests.base.llama_cpp import LlamaCpp

    base = tiny_gguf(tmp_path / "base.gguf", "llama", **TINY, num_hidden_layers=3)
    run = make_run(tmp_path / "run", str(base), lora=SHAPES[shape], size=0.1)
    mine = load_for_inference(str(run))
    asked = prompts(mine.tokenizer, CONCEPTS[:1])
    export_run(run, "gguf-adapter")
    on_top = LlamaCpp(base, lora=run / "export/gguf-adapter/adapter-F32.gguf", context=4096)
    check(follow(mine.model, on_top, asked, 12), "F32")
    with mine.model.without_adapter():
        assert follow(mine.model, on_top, asked, 12).largest_difference > 0.2, "the adapter hardly does anything"


def test_the_adapter_format_says_what_it_cannot_hold(tmp_path: Path) -> None:
    """DoRA goes out as a whole model, to Ollama by itself."""
    base = tiny_gguf(tmp_path / "base.gguf", "llama", **TINY)
    run = make_run(tmp_path / "run", str(base), lora=_lora(kind="dora"), size=0.3)
    with pytest.raises(RescoldoError, match="cannot hold the magnitudes of DoRA") as error:
        export_run(run, "gguf-adapter")
    assert "--to merged-gguf" in error.value.fix
    export_run(run, "ollama", dtype="F16")
    assert "FROM ./model-F16.gguf" in (run / "export/ollama/Modelfile").read_text()
    assert "ADAPTER" not in (run / "export/ollama/Modelfile").read_text()
    export_run(run, "merged-gguf", dtype="F32")
    merged = run / "export/merged-gguf/model-F32.gguf"
    assert "blk.0.attn_q.weight" in read_header(merged).tensors
    tokens = torch.arange(3, 60)
    ours = load_for_inference(str(run), "fp32").model.logits(tokens)
    torch.testing.assert_close(load_for_inference(str(merged), "fp32").model.logits(tokens), ours, atol=1e-4, rtol=1e-4)
