"""A Hugging Face directory as a base model: config.json as a DecoderConfig, mapped safetensors files."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from rescoldo.base.hub_id import REFETCH
from rescoldo.base.model import BaseModel, check_tensors
from rescoldo.base.quantized import Quantization, Quantized, read_quantization
from rescoldo.base.tokenizer import DirectoryTokenizer
from rescoldo.engine.config import DecoderConfig
from rescoldo.engine.rope_scaling import NO_SCALING, SCALINGS, short_context
from rescoldo.engine.weights import TensorSource
from rescoldo.errors import RescoldoError
from rescoldo.families import FAMILIES, WRAPPERS, Family
from rescoldo.families.unsupported import unsupported
from rescoldo.files import load_json

INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ROPE_KEYS = {
    *("rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
    *("mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor"),
}
_BOUNDS = {  # of integers in the config, checked before transformers sees them
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_hidden_layers": 1000,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 14,
    "max_position_embeddings": 1 << 30,
    "sliding_window": 1 << 31,
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def decoder_config(config: dict[str, Any], where: str) -> tuple[Family, dict[str, Any]]:
    """The family of a config.json and the part of it that describes the decoder: all of it, or a wrapper's text_config.

    Raises:
        RescoldoError: the family is not supported, or the weights are quantized in an unsupported format.
    """
    architecture = config.get("model_type")
    wrapped = WRAPPERS.get(str(architecture), ())
    family = FAMILIES.get(str(architecture)) or next(iter(wrapped), None)
    if family is None:
        raise RescoldoError(
            unsupported(architecture) if architecture else "config.json has no model_type",
            where=where,
            fix=f"use a model of one of these: {', '.join(FAMILIES)}",
        )
    decoder = config
    if wrapped:
        decoder = config.get("text_config") or {}
        kind = decoder.get("model_type", family.name) if isinstance(decoder, dict) else None
        if kind not in [one.name for one in wrapped]:
            names = " or ".join(one.name for one in wrapped)
            raise RescoldoError(f"text_config does not describe a {names} decoder", where=where)
        family = FAMILIES[kind]
        said = "tie_word_embeddings"
        decoder = {**({said: config[said]} if said in config else {}), **decoder, "model_type": kind}
    quantization_of(config, where)
    return family, {key: value for key, value in decoder.items() if key != "quantization_config"}


def quantization_of(config: dict[str, Any], where: str) -> Quantization | None:
    """The quantization of the weights, according to config.json or a wrapper's text_config.

    Raises:
        RescoldoError: the format is not supported.
    """
    inner = config.get("text_config")
    found = [read_quantization(one, where) for one in (config, inner) if isinstance(one, dict)]
    return next((one for one in found if one is not None), None)


def read_config(directory: Path) -> DecoderConfig:
    """The decoder that config.json describes, with transformers' defaults.

    Raises:
        RescoldoError: an unsupported architecture, or a value that is impossible or not supported.
    """
    path = directory / "config.json"
    raw = load_json(path, REFETCH)
    family, raw = decoder_config(raw, str(path))
    for key, high in _BOUNDS.items():
        value = raw.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high):
            raise RescoldoError(f"{key} is {value!r:.80}, not a whole number from 1 to {high}", where=str(path))
    from transformers import AutoConfig

    raw.pop("auto_map", None)  # names code to run, which is never done
    raw.pop("model_type")
    try:
        config = AutoConfig.for_model(family.name, **raw)
    except Exception as error:  # transformers raises many types
        reason = " ".join(str(error).split())
        raise RescoldoError(f"transformers refuses the config: {reason:.300}", where=str(path)) from None
    return _convert(family, config, str(path))


def _convert(family: Family, config: Any, where: str) -> DecoderConfig:
    def fail(what: str) -> RescoldoError:
        return RescoldoError(what, where=where)

    several = set(getattr(config, "per_layer_attributes", None) or ()) - set(family.by_layer)
    if several:
        raise fail(f"per_layer_config sets {', '.join(sorted(several))} by layer, which is not supported")
    n_layers, n_heads, n_kv_heads = config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
    first = config.per_layer_config[0] if getattr(config, "is_heterogeneous", False) else config
    head_dim = getattr(first, "head_dim", None) or config.hidden_size // n_heads
    if n_heads % n_kv_heads or head_dim < 2 or head_dim % 2:
        raise fail(f"{n_heads} heads, {n_kv_heads} key-value heads and head size {head_dim} do not fit together")
    activation = _ACTIVATIONS.get(str(getattr(config, family.activation_key)))
    if activation is None:
        raise fail(
            f"activation {getattr(config, family.activation_key)!r:.40} is not supported: expected one of "
            f"{', '.join(_ACTIVATIONS)}"
        )
    eps = config.rms_norm_eps
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
        raise fail(f"rms_norm_eps is {eps!r:.40}, not a number between 0 and 1")
    theta, scaling, local_theta = _rope(family, config, fail)
    rotary_dim = _rotary_dim(family, config, head_dim, fail)
    max_positions = config.max_position_embeddings
    if scaling is not None:
        try:
            scaling = SCALINGS[scaling["rope_type"]].complete(scaling, max_positions, rotary_dim or head_dim)
        except ValueError as error:
            raise fail(str(error)) from None
        max_positions = short_context(scaling, max_positions)
    fields: dict[str, Any] = {
        "architecture": family.name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "norm_eps": float(eps),
        "rope_theta": theta,
        "max_positions": max_positions,
        "rope_scaling": scaling,
        "local_rope_theta": local_theta,
        "rotary_dim": rotary_dim,
        "windows": _windows(family, config, fail),
        "activation": activation,
        "tied_embeddings": bool(config.tie_word_embeddings),
    }
    for key, (value, what) in family.refused.items():
        if getattr(config, key, None) == value:
            raise fail(f"{key} is {value!r:.40}: {what} is not supported")
    try:
        derived = family.derive_hf(config)
    except ValueError as error:
        raise fail(str(error)) from None
    said = {name: _field(getattr(config, key.hf), name, key.hf, fail) for name, key in family.keys.items() if key.hf}
    return DecoderConfig(**{**fields, **family.fixed, **said, **derived})


def _field(value: Any, name: str, key: str, fail: Any) -> Any:
    """A value of config.json, checked against the type of its field in DecoderConfig."""
    default = next(one.default for one in dataclasses.fields(DecoderConfig) if one.name == name)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise fail(f"{key} is {value!r:.40}: expected true or false")
        return value
    if value is None and default is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise fail(f"{key} is {value!r:.40}: expected a positive number")
    return float(value)


def _rope(family: Family, config: Any, fail: Any) -> tuple[float, dict[str, Any] | None, float | None]:
    """(theta, scaling or None, theta of the layers with a window if they have another one) from rope_parameters, where
    transformers also puts rope_theta and rope_scaling."""
    parameters = config.rope_parameters or {}
    if "full_attention" not in parameters:
        return *_one_rope({key: v for key, v in parameters.items() if key not in family.rope_keys}, fail), None
    if family.windows != "layer_types":
        raise fail(f"rope_parameters by kind of layer: a {family.name} model has one kind")
    main = _one_rope(parameters["full_attention"] or {}, fail)
    local = _one_rope(parameters.get("sliding_attention") or parameters["full_attention"] or {}, fail)
    if local == main:
        return *main, None
    if local[1] is not None:
        raise fail("a separate RoPE scaling for the layers with a sliding window is not supported")
    return *main, local[0]


def _one_rope(parameters: dict[str, Any], fail: Any) -> tuple[float, dict[str, Any] | None]:
    kind = parameters.get("rope_type", NO_SCALING)
    row = SCALINGS.get(kind) if isinstance(kind, str) else None
    if row is None or not row.in_config:
        known = ", ".join(name for name, one in SCALINGS.items() if one.in_config)
        raise fail(f"RoPE type {kind!r:.40} is not supported: expected one of {known}")
    factors = {key: parameters.get(key) for key in row.lists}
    apart = ("rope_type", "type", "truncate", "partial_rotary_factor", *factors)
    numbers = {key: value for key, value in parameters.items() if key not in apart}
    for key, value in numbers.items():
        if key not in _ROPE_KEYS and value is not None:
            raise fail(f"RoPE parameter {key!r:.80} is unknown and may change the rotation")
        if value is not None and not _positive(value):
            raise fail(f"RoPE parameter {key} is {value!r:.80}, not a positive number")
    for key, value in factors.items():
        if not isinstance(value, list | tuple) or not all(map(_positive, value)):
            raise fail(f"RoPE parameter {key} is {value!r:.80}, not a list of positive numbers")
    for key in ("rope_theta", *row.needs):
        if numbers.get(key) is None:
            raise fail(f"RoPE type {kind} needs the parameter {key}")
    if row.ascending and numbers[row.ascending[0]] >= numbers[row.ascending[1]]:
        raise fail(f"RoPE parameter {row.ascending[0]} must be below {row.ascending[1]}")
    theta = float(numbers.pop("rope_theta"))
    if kind == NO_SCALING:
        return theta, None
    scaling = {"rope_type": kind, **{key: value for key, value in numbers.items() if value is not None}, **factors}
    if row.takes_share:
        share = parameters.get("partial_rotary_factor", 1.0)
        if not _positive(share) or share > 1:
            raise fail(f"RoPE parameter partial_rotary_factor is {share!r:.80}, not a number above 0 and up to 1")
        scaling["partial_rotary_factor"] = float(share)
    if isinstance(parameters.get("truncate"), bool):
        scaling["truncate"] = parameters["truncate"]
    return theta, scaling


def _positive(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value) and value > 0


def _takes_share(kind: Any) -> bool:
    return isinstance(kind, str) and kind in SCALINGS and SCALINGS[kind].takes_share


def _rotary_dim(family: Family, config: Any, head_dim: int, fail: Any) -> int | None:
    """The number of rotated elements of a head; None: all of them."""
    parameters = config.rope_parameters or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    shares = {kind.get("partial_rotary_factor") or 1.0 for kind in kinds if not _takes_share(kind.get("rope_type"))}
    if shares == {1.0}:
        return None
    share = shares.pop()
    if not family.partial_rope or shares or not _positive(share) or share > 1:
        raise fail("RoPE over this part of the head only (partial_rotary_factor) is not supported")
    rotary_dim = int(head_dim * share)
    if rotary_dim < 2 or rotary_dim % 2:
        raise fail(f"partial_rotary_factor {share} of a head of {head_dim} is not an even number of elements")
    return rotary_dim


def _windows(family: Family, config: Any, fail: Any) -> tuple[int | None, ...]:
    if family.windows == "none" or config.sliding_window is None:
        return ()
    if family.windows == "all":
        return tuple([config.sliding_window] * config.num_hidden_layers)
    kinds = config.layer_types
    if len(kinds) != config.num_hidden_layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise fail("layer_types must say sliding_attention or full_attention for each layer")
    windows: tuple[int | None, ...] = tuple(
        config.sliding_window if kind == "sliding_attention" else None for kind in kinds
    )
    return windows if any(windows) else ()


class HfTensors(TensorSource):
    """Mapped tensors of one or several safetensors files: getting one copies nothing.

    Args:
        files: in order.
        decoder_name: from the name in the file to the decoder's; None for tensors that are not used (`left_alone` has
            their names).
        norm_offset: added to the weights of norms.
        quantization: the format of quantized matrices, which are decoded when they are used.
    """

    def __init__(
        self,
        files: list[Path],
        decoder_name: Callable[[str], str | None] = str,
        norm_offset: float = 0.0,
        quantization: Quantization | None = None,
    ) -> None:
        from safetensors import SafetensorError, safe_open

        self._handles: dict[Path, Any] = {}
        self._files: dict[str, tuple[Path, str]] = {}
        self._norm_offset = norm_offset
        self.left_alone: list[str] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._quantized = Quantized(quantization, self._stored, str(files[0].parent) if files else "")
        dtypes: dict[str, str] = {}
        for path in files:
            try:
                open(path, "rb").close()  # safetensors reports an unreadable file as missing
            except PermissionError:
                raise RescoldoError(
                    "the weight file cannot be read: this user has no permission",
                    where=str(path),
                    fix=f"as its owner: chmod a+r {shlex.quote(str(path))}",
                ) from None
            try:
                handle: Any = safe_open(path, framework="pt")
                self._handles[path] = handle
                for stored in handle.keys():  # noqa: SIM118 (a handle is not a mapping)
                    name = decoder_name(stored)
                    if name is None:
                        self.left_alone.append(stored)
                        continue
                    if name in self._files:
                        raise RescoldoError(f"tensor {stored} is in two files", where=str(path), fix=REFETCH)
                    part = handle.get_slice(stored)
                    self._files[name] = path, stored
                    if not self._quantized.take(name):
                        self._shapes[name] = tuple(part.get_shape())
                        dtypes[name] = part.get_dtype()
            except (SafetensorError, OSError, ValueError) as error:
                raise RescoldoError(
                    f"the weight file is damaged or cut short ({' '.join(str(error).split()):.200})",
                    where=str(path),
                    fix=REFETCH,
                ) from None

        for name, dtype in dtypes.items():
            if self._quantized.decodes(name):
                self._shapes[name] = self._quantized.shape(name, self._shapes[name])
            elif dtype not in _DTYPES:
                raise RescoldoError(
                    f"tensor {name} is stored as {dtype}: expected one of {', '.join(_DTYPES)}",
                    where=str(self._files[name][0]),
                    fix="use the model's unquantized safetensors, or a GGUF file of it",
                )

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def decoded(self, name: str) -> bool:
        return self._quantized.decodes(name)

    def get(self, name: str) -> torch.Tensor:
        tensor = self._stored(name)
        if self._quantized.decodes(name):
            return self._quantized.decode(name, tensor)
        is_norm = self._norm_offset and name.endswith("norm.weight")
        return tensor.float() + self._norm_offset if is_norm else tensor

    def _stored(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        if name not in self._files:
            raise RescoldoError(f"there is no tensor {name} in the model's weights")
        path, stored = self._files[name]
        if path not in self._handles:
            self._handles[path] = safe_open(path, framework="pt")
        tensor: torch.Tensor = self._handles[path].get_tensor(stored)
        return tensor

    def release(self) -> None:
        self._handles.clear()


def weight_files(directory: Path) -> list[Path]:
    """The model's safetensors files, in order.

    Raises:
        RescoldoError: there are none, or one that the index names is missing.
    """
    index, single = directory / INDEX, directory / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        weight_map = load_json(index, REFETCH).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise RescoldoError("the index has no weight_map", where=str(index), fix=REFETCH)
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if name != Path(name).name or not name.endswith(".safetensors"):
                raise RescoldoError(f"the index names a file outside of the model: {name!r:.100}", where=str(index))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise RescoldoError(
                f"{len(missing)} of {len(names)} weight files are missing: {', '.join(missing[:3])}{more}",
                where=str(directory),
                fix=REFETCH,
            )
        return [directory / name for name in names]
    if list(directory.glob("*.bin")) or list(directory.glob("*.pt")) or list(directory.glob("*.pth")):
        raise RescoldoError(
            "the weights are pickle files, which can run code when they are opened, and are therefore refused",
            where=str(directory),
            fix='convert them: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{directory}', dtype='auto').save_pretrained('{directory}')\"",
        )
    raise RescoldoError("there is no model.safetensors and no index of such files", where=str(directory), fix=REFETCH)


class HfModel(BaseModel):
    """A Hugging Face directory."""

    def hf_config(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        path, beside = self.path / "config.json", self.path / "generation_config.json"
        whole = load_json(path, REFETCH)
        family, decoder = decoder_config(whole, str(path))
        content = {key: value for key, value in decoder.items() if key != "torch_dtype"}
        if decoder != whole:  # remove the wrapper
            content["architectures"] = [family.hf_class]
        return content, load_json(beside, REFETCH) if beside.is_file() else None

    def maps_embedding(self) -> bool:
        name = "model.embed_tokens.weight"
        return not self.tensors.decoded(name) and self.tensors.get(name).dtype == torch.bfloat16

    def disagreements(self) -> Iterator[str]:
        """Tensors that are in another shard than the index says."""
        path = self.path / INDEX
        if not path.is_file() or (self.path / "model.safetensors").is_file():
            return
        from safetensors import safe_open

        weight_map: dict[str, Any] = load_json(path, REFETCH)["weight_map"]
        for file in self.weight_files:
            with safe_open(file, framework="pt") as handle:
                there = set(handle.keys())
            named = {name for name, where in weight_map.items() if where == file.name}
            for name in sorted(named - there):
                yield f"{path}: {name} should be in {file.name} and is not"
            for name in sorted(there - named):
                yield f"{path}: {name} is in {file.name} but not in the index"


def open_hf(directory: Path, spec: str) -> BaseModel:
    """Open a Hugging Face directory.

    Raises:
        RescoldoError: an unsupported architecture, damaged or incomplete files, or weights that do not fit the config.
    """
    path = directory / "config.json"
    raw = load_json(path, REFETCH)
    family, _ = decoder_config(raw, str(path))
    config = read_config(directory)

    wrapped = raw.get("model_type") in WRAPPERS
    architectures = raw.get("architectures") if wrapped else None

    def name(stored: str) -> str | None:
        found = family.decoder_name(stored, wrapped=wrapped)
        unused = found in config.unused_tensors or (found == "lm_head.weight" and config.tied_embeddings)
        return None if unused else found

    files = weight_files(directory)
    tensors = HfTensors(files, name, family.norm_offset, quantization_of(raw, str(path)))
    check_tensors(tensors, config, directory)
    tokenizer = DirectoryTokenizer(directory, config.max_positions)
    return HfModel(
        spec,
        directory,
        config,
        tensors,
        tuple(files),
        tokenizer,
        wrapper=(str(architectures[0]) if isinstance(architectures, list) and architectures else raw["model_type"])
        if wrapped
        else "",
        left_alone=tuple(
            stored
            for stored in tensors.left_alone
            if not stored.endswith(".inv_freq") and family.decoder_name(stored, wrapped=wrapped) is None
        ),
    )
