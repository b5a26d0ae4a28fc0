"""The export formats, a row of FORMATS each: how files are planned and written, and the commands that use them.

A plan is made from headers alone; its `write` writes the weights and the other files into an empty directory, and
verifies them by reading.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rescoldo.base import open_base
from rescoldo.base.chat_templates import is_supplied
from rescoldo.base.gguf_header import read_header
from rescoldo.errors import RescoldoError
from rescoldo.export import gguf_adapter, merged_gguf, merged_hf, ollama
from rescoldo.export.dtypes import parse_dtype
from rescoldo.export.gguf_file import Planned, write_gguf
from rescoldo.export.gguf_metadata import merged_metadata
from rescoldo.export.source import Source
from rescoldo.files import write_text

_TEMPLATE_FILE = "chat_template.jinja"
Count = Callable[[Any], None]


@dataclass(frozen=True)
class Plan:
    """The result of planning an export.

    Attributes:
        dtype: the number format.
        n_bytes: size of the weights.
        n_tensors: how often `write` calls its counter.
        write: fills an empty directory; `document` is the content of prompt.json; the function is called for each
            tensor.
        calls: commands that use the result, to be typed in its directory.
    """

    dtype: str
    n_bytes: int
    n_tensors: int
    write: Callable[[Path, dict[str, Any], Count], None]
    calls: list[str]


@dataclass(frozen=True)
class Format:
    """An export format.

    Attributes:
        plan: takes a source, a dtype (None: the format's default) and, for formats with a server, the model's name.
        check_name: validates the model's name in the server; raises if it is invalid.
        create: the command that registers the result in a directory with its server; None if there is no such step.
    """

    plan: Callable[[Source, str | None, str], Plan]
    check_name: Callable[[str], str] = str
    create: Callable[[str, Path], list[str]] | None = None


def get_format(name: str) -> Format:
    """The format with this name.

    Raises:
        RescoldoError: there is none.
    """
    if name not in FORMATS:
        raise RescoldoError(f"there is no export {name!r}", where="--to", fix=f"one of {', '.join(FORMATS)}")
    return FORMATS[name]


def _gguf_adapter(source: Source, dtype: str | None, _: str) -> Plan:
    if missing := gguf_adapter.lacks(source):
        raise RescoldoError(
            f"llama.cpp's adapter format cannot hold {missing}", where=str(source.run),
            fix="--to merged-gguf or --to merged: the whole model",
        )  # fmt: skip
    chosen = parse_dtype(dtype or "F32", gguf_adapter.DTYPES)
    tensors, file = list(gguf_adapter.adapter_tensors(source, chosen)), _adapter_file(chosen)

    def write(directory: Path, document: dict[str, Any], count: Count) -> None:
        write_gguf(directory / file, gguf_adapter.adapter_metadata(source), tensors, count)
        read_header(directory / file)
        if template:
            write_text(directory / _TEMPLATE_FILE, source.tokenizer.chat_template)

    template = ["--chat-template-file", _TEMPLATE_FILE] if is_supplied(source.tokenizer) else []  # not in the base file
    file_of_base = source.base.gguf_file
    base = "BASE.gguf" if file_of_base is None else str(file_of_base.resolve())
    return _planned(
        chosen, tensors, write, _llama_server(base, source.base.config.max_positions, "--lora", file, *template)
    )


def _merged_gguf(source: Source, dtype: str | None, _: str) -> Plan:
    chosen = parse_dtype(dtype or merged_gguf.default_dtype(source), merged_gguf.DTYPES)
    tensors, file = list(merged_gguf.merged_tensors(source, chosen)), _model_file(chosen)

    def write(directory: Path, document: dict[str, Any], count: Count) -> None:
        write_gguf(directory / file, merged_metadata(source, chosen), tensors, count)
        _same_prompt(source, directory / file, document)

    return _planned(chosen, tensors, write, _llama_server(file, source.base.config.max_positions))


def _adapter_file(dtype: str) -> str:
    return f"adapter-{dtype}.gguf"


def _model_file(dtype: str) -> str:
    return f"model-{dtype}.gguf"


def _planned(
    dtype: str, tensors: list[Planned], write: Callable[[Path, dict[str, Any], Count], None], calls: list[str]
) -> Plan:
    return Plan(dtype, sum(tensor.n_bytes for tensor in tensors), len(tensors), write, calls)


def _same_prompt(source: Source, path: Path, document: dict[str, Any]) -> None:
    """Verify that a merged file opens as a base model of the same shapes and tokenizes the prompt identically."""
    tokens = open_base(str(path)).tokenizer()(document["example"]["rendered"], add_special_tokens=False)["input_ids"]
    if tokens != document["example"]["tokens"]:
        raise RescoldoError(
            "the tokenizer in the GGUF file gives other tokens for the prompt", where=source.base.spec,
            fix="--to merged, and llama.cpp's own convert_hf_to_gguf.py",
        )  # fmt: skip


def _llama_server(model: str, context: int, *adapter: str) -> list[str]:
    return [
        shlex.join(["llama-server", "-m", model, *adapter, "--jinja", "--temp", "0", "-c", str(min(8192, context))]),
        "jq '{temperature: 0, messages: .example.messages}' prompt.json \\\n"
        "  | curl -s http://localhost:8080/v1/chat/completions -d @-",
    ]


def _merged(source: Source, dtype: str | None, _: str) -> Plan:
    chosen = parse_dtype(dtype or merged_hf.default_dtype(source), merged_hf.DTYPES)

    def write(directory: Path, document: dict[str, Any], count: Count) -> None:
        merged_hf.write_merged(source, directory, chosen, count)

    n_tensors = sum(map(len, merged_hf.plan_shards(source, chosen)))
    call = (
        "python -c \"import json, transformers as t; p = json.load(open('prompt.json'))\n"
        "print(t.pipeline('text-generation', '.', max_new_tokens=2048)(p['example']['messages'])[0])\""
    )
    return Plan(chosen, merged_hf.total_bytes(source, chosen), n_tensors, write, [call])


def _ollama(source: Source, dtype: str | None, name: str) -> Plan:
    """The adapter with Ollama's own base file if the base is a GGUF file and llama.cpp's adapter format can represent
    the adapter, else the merged model; and a Modelfile."""
    file_of_base = None if gguf_adapter.lacks(source) else source.base.gguf_file
    weights = (_merged_gguf if file_of_base is None else _gguf_adapter)(source, dtype, name)
    if file_of_base is not None:
        model = source.base.ollama_name or str(file_of_base.resolve())
        files = {"model": model, "adapter": f"./{_adapter_file(weights.dtype)}"}
    else:
        files = {"model": f"./{_model_file(weights.dtype)}"}

    def write(directory: Path, document: dict[str, Any], count: Count) -> None:
        weights.write(directory, document, count)
        write_text(directory / "Modelfile", ollama.modelfile(source, files, document))

    calls = [
        shlex.join(ollama.create_command(name, Path())),
        f"jq '{{model: \"{name}\", stream: false, messages: .example.messages}}' prompt.json \\\n"
        "  | curl -s http://localhost:11434/api/chat -d @-",
    ]
    return replace(weights, write=write, calls=calls)


FORMATS: dict[str, Format] = {
    "gguf-adapter": Format(_gguf_adapter),
    "ollama": Format(_ollama, ollama.check_name, ollama.create_command),
    "merged": Format(_merged),
    "merged-gguf": Format(_merged_gguf),
}
