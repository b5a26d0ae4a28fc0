"""Tiny random models for tests: as a Hugging Face directory (`tiny_hf`) and as a GGUF file (`tiny_gguf`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġt", "he", "in", "er", "Ġa", "on", "re", "at", "Ġthe", "en", "or", "an", "is", "es", "st", "ti"]
ROPE: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}

ROPE_OF_FAMILIES: dict[str, dict[str, Any]] = {
    "part": {"partial_rotary_factor": 0.5},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.3, 1.5, 1.8, 2.0, 2.5, 3.0],
        "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 30.0, 40.0],
    },
    "longrope-part": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.8, 2.0, 2.2, 2.5, 2.8, 3.0],
        "long_factor": [1.0, 2.0, 4.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 30.0, 40.0],
        "partial_rotary_factor": 0.75,
    },
    "ministral": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 24,
        "max_position_embeddings": 256,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.5,
    },
}
ROPE_BY_KIND: dict[str, dict[str, Any]] = {  # one for each kind of layer
    "kinds": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "yarn-full": {
        "full_attention": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 10000.0,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "gemma4": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 100000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token → id and merges of a byte-level BPE: 3 special tokens, 256 bytes, a few merges (275 tokens in all)."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = SPECIALS + sorted(ByteLevel.alphabet())
    merges = []
    for merged in MERGES:
        left = max((t for t in tokens[3:] if merged.startswith(t) and merged[len(t) :] in tokens), key=len)
        merges.append((left, merged[len(left) :]))
        tokens.append(merged)
    return {token: index for index, token in enumerate(tokens)}, merges


def tiny_tokenizer() -> Any:
    """A byte-level BPE PreTrainedTokenizerFast with a ChatML template; eos <|im_end|> (2), pad <|endoftext|> (0)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = _vocabulary()
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIALS[1:],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def tiny_config(architecture: str, **overrides: Any) -> Any:
    """A transformers config: hidden 64, 2 layers, 4 heads, 2 KV heads, vocabulary 288; `overrides` win.

    `rope="linear"|"dynamic"|…` (see ROPE) sets the RoPE scaling, `kinds="sfs…"` the layers' types; anything else is the
    config's own field (attention_bias, mlp_bias, tie_word_embeddings, sliding_window, use_sliding_window,
    max_window_layers, head_dim …).
    """
    from transformers import AutoConfig

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    wanted = overrides.pop("rope", "default")
    rope = ROPE_BY_KIND[wanted] if wanted in ROPE_BY_KIND else rope | {**ROPE, **ROPE_OF_FAMILIES}.get(wanted, {})
    values: dict[str, Any] = {
        "vocab_size": 288,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rope_parameters": rope,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "initializer_range": 0.1,
    }
    if architecture in ("mistral", "phi3"):
        values["sliding_window"] = None
    if wanted.startswith("longrope"):  # the pretrained context is beside the rotation's parameters
        values["original_max_position_embeddings"] = 128
    if architecture == "qwen2":
        del values["head_dim"]
    if architecture == "gemma4_text":
        values |= {"global_head_dim": 32, "vocab_size_per_layer_input": 288, "hidden_size_per_layer_input": 32}
    if kinds := overrides.pop("kinds", ""):  # "sf": a layer with a sliding window, one with full attention
        values["layer_types"] = [{"s": "sliding_attention", "f": "full_attention"}[kind] for kind in kinds]
        values["num_hidden_layers"] = len(kinds)
    return AutoConfig.for_model(architecture, **{**values, **overrides})


def tiny_model(architecture: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A random transformers model (float32); norms and biases random too, so that a test notices if they are lost."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(architecture, **overrides), dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
                    if architecture == "gemma4_text" and name.endswith(("q_norm.weight", "k_norm.weight")):
                        parameter.mul_(len(parameter) ** -0.25)  # as trained ones do: its scores have no factor
                elif name.endswith(".bias"):
                    parameter.copy_(0.2 * torch.randn_like(parameter))
            for name, buffer in model.named_buffers():
                if name.endswith("layer_scalar"):
                    buffer.uniform_(0.7, 1.3)
    return model.eval()


def tiny_hf(
    path: Path,
    architecture: str,
    *,
    seed: int = 0,
    sharded: bool = False,
    dtype: torch.dtype = torch.float32,
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Write a random tiny model, and `tiny_tokenizer`, as a Hugging Face directory. Returns `path`.

    Args:
        sharded: several safetensors files with an index instead of one.
        dtype: of the weights on disk.
        overrides: see `tiny_config`.
    """
    model = tiny_model(architecture, seed=seed, **overrides).to(dtype)
    model.save_pretrained(path, max_shard_size="60KB" if sharded else "5GB")
    if tokenizer:
        tiny_tokenizer().save_pretrained(path)
    return path


_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    """GGUF's name of a Hugging Face tensor."""
    top = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in top:
        return top[name]
    _, _, layer, *middle, kind = name.split(".")
    return f"blk.{layer}.{_GGUF_NAMES['.'.join(middle)]}.{kind}"


def permute(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k: (head, half, dim/2) becomes (head, dim/2, half)."""
    rows = weight.shape[0]
    return weight.reshape(n_heads, 2, rows // n_heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def tiny_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    quantization: str = "F32",
    seed: int = 0,
    tokenizer: bool = True,
    pre: str = "smollm",
    metadata: dict[str, Any] | None = None,
    factors: list[float] | None = None,
    vocabulary: dict[str, Any] | None = None,
    template: str | None = CHATML,
    add_bos: bool = False,
    **overrides: Any,
) -> Path:
    """Write the model of `tiny_model` as a GGUF file. Returns `path`.

    Args:
        quantization: ggml type of the matrices: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 (vectors stay F32). With
            hidden 64 and intermediate 96 every row is a whole number of 32-blocks.
        pre: tokenizer.ggml.pre.
        metadata: more string, int or float keys; None as a value leaves a standard key out.
        vocabulary: a tokenizer instead of `tiny_tokenizer`'s: model ("gpt2" or "llama"), tokens, types, merges or
            scores. Set vocab_size to the number of tokens.
        factors: a rope_freqs.weight tensor (head_dim / 2 values).
        overrides: see `tiny_config`.
    """
    import gguf

    model = tiny_model(architecture, seed=seed, **overrides)
    config = model.config
    arch = "llama" if architecture == "mistral" else architecture
    writer = gguf.GGUFWriter(str(path), arch)
    values: dict[str, Any] = {
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{arch}.vocab_size": config.vocab_size,
    }
    if getattr(config, "head_dim", None):
        values[f"{arch}.attention.key_length"] = config.head_dim
        values[f"{arch}.attention.value_length"] = config.head_dim
    for key, value in {**values, **(metadata or {})}.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
    if tokenizer:
        if vocabulary is None:
            ids, merges = _vocabulary()
            n_unused = config.vocab_size - len(ids)
            vocabulary = {
                "model": "gpt2",
                "tokens": list(ids) + [f"<|unused{i}|>" for i in range(n_unused)],
                "types": [3] * 3 + [1] * (len(ids) - 3) + [5] * n_unused,
                "merges": [f"{left} {right}" for left, right in merges],
            }
        writer.add_tokenizer_model(vocabulary["model"])
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(vocabulary["tokens"])
        writer.add_token_types(vocabulary["types"])
        if "merges" in vocabulary:
            writer.add_token_merges(vocabulary["merges"])
        if "scores" in vocabulary:
            writer.add_token_scores(vocabulary["scores"])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(0)
        writer.add_add_bos_token(add_bos)
        if template is not None:
            writer.add_chat_template(template)
    kind = gguf.GGMLQuantizationType[quantization]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        if arch in ("llama", "granite") and ("q_proj" in name or "k_proj" in name):
            array = permute(array, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        array = np.ascontiguousarray(array)
        if array.ndim == 1 or quantization == "F32":
            writer.add_tensor(gguf_name(name), array)
        else:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(array, kind), raw_dtype=kind)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
