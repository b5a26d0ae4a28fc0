"""A decoder wrapped together with a vision tower: opened, said, and its adapter loaded by PEFT on the wrapper."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from rescoldo.adapter import CONFIG_FILE, read_adapter, write_adapter
from rescoldo.base import open_base
from rescoldo.engine.model import LoraModel
from rescoldo.engine.types import LoraConfig
from tests.base.make_models import tiny_config
from tests.engine.common import randomize
from tests.engine.test_families import GEMMA4

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
PROJECTOR = "multi_modal_projector, vision_tower"


def _wrapped(path: Path, wrapper: str, decoder: str, **overrides: Any) -> Any:
    """A random model of the wrapper's class, saved to `path`."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    kinds = {"mistral3": "pixtral", "gemma3": "siglip_vision_model", "gemma4": "gemma4_vision"}
    vision = {**TINY, "patch_size": 14, "head_dim": 16, "model_type": kinds[wrapper]}
    text = tiny_config(decoder, **overrides).to_dict()
    config = AutoConfig.for_model(
        wrapper, text_config=text, vision_config=vision, tie_word_embeddings=overrides.get("tie_word_embeddings", False)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(path)
    return model.eval()


@pytest.mark.parametrize(
    ("wrapper", "decoder", "overrides", "left_alone"),
    [
        ("mistral3", "ministral3", {"rope": "ministral"}, PROJECTOR),
        ("mistral3", "ministral3", {"rope": "ministral", "tie_word_embeddings": True}, PROJECTOR),
        ("mistral3", "mistral", {}, PROJECTOR),
        ("gemma3", "gemma3_text", {"rope": "kinds", "tie_word_embeddings": True}, PROJECTOR),
        ("gemma4", "gemma4_text", {**GEMMA4, "tie_word_embeddings": True}, "embed_vision, vision_tower"),
    ],
)
def test_peft_loads_the_adapter_on_the_wrappers_class(
    tmp_path: Path, wrapper: str, decoder: str, overrides: dict[str, Any], left_alone: str
) -> None:
    from peft import PeftModel

    theirs = _wrapped(tmp_path / "base", wrapper, decoder, **overrides)
    base = open_base(str(tmp_path / "base"))
    assert base.wrapper == type(theirs).__name__
    assert base.config.architecture == decoder
    assert f"{len(base.left_alone)} tensors of {left_alone} left alone" in base.note()
    assert base.wrapper in base.note()
    lora = LoraConfig(rank=4, alpha=8, dropout=0.0, targets=("q_proj", "v_proj", "down_proj"))
    model = LoraModel.load(base, "fp32", lora, seed=1)
    randomize(model, size=0.3)
    tokens = torch.arange(20, 80)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens[None]).logits[0], _plain(model, tokens), rtol=1e-4, atol=1e-4)
    write_adapter(tmp_path / "run", model.parameters, lora, str(tmp_path / "base"), wrapped=bool(base.wrapper))
    again = read_adapter(tmp_path / "run")
    assert again.lora == lora
    assert all(torch.equal(again.parameters[name], tensor) for name, tensor in model.parameters.items())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT's, about keys that are missing or too many
        adapted = PeftModel.from_pretrained(theirs, str(tmp_path / "run"))
    trained = {name for name, _ in adapted.named_parameters() if ".lora_" in name}
    assert len(trained) == len(model.parameters)
    assert not any("vision" in name for name in trained)
    with torch.no_grad():
        torch.testing.assert_close(adapted(tokens[None]).logits[0], model.logits(tokens), rtol=1e-4, atol=1e-4)
    assert (_plain(model, tokens) - model.logits(tokens)).abs().max() > 0.01


def _plain(model: LoraModel, tokens: torch.Tensor) -> torch.Tensor:
    with model.without_adapter():
        return model.logits(tokens)


def test_an_adapter_of_a_plain_decoder_has_plain_names(tmp_path: Path) -> None:
    lora = LoraConfig(rank=1, alpha=1, dropout=0.0, targets=("q_proj",))
    write_adapter(tmp_path, {"model.layers.0.self_attn.q_proj.lora_A": torch.ones(1, 2)}, lora, "x")
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["target_modules"] == ["q_proj"]
