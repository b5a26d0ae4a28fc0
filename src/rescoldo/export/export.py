"""One export from beginning to end: open, plan, check the place, write, check, put under its name."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescoldo.base import open_base
from rescoldo.base.gguf_header import read_header
from rescoldo.errors import RescoldoError
from rescoldo.export import gguf_adapter, merged_gguf, merged_hf, ollama
from rescoldo.export.dtypes import parse_dtype
from rescoldo.export.gguf_file import Planned, write_gguf
from rescoldo.export.gguf_metadata import merged_metadata
from rescoldo.export.place import MANIFEST, check_place, new_directory
from rescoldo.export.prompt import prompt_document, write_prompt
from rescoldo.export.source import Source, open_source
from rescoldo.files import sha256, write_json, write_text
from rescoldo.version import __version__

KINDS = ("gguf-adapter", "ollama", "merged", "merged-gguf")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What will be written: `tensors` of a GGUF file named `file`, or (None) a Hugging Face directory."""

    dtype: str
    n_bytes: int
    n_tensors: int
    file: str = ""
    tensors: list[Planned] | None = None
    adapter_only: bool = False


def export_run(
    run: Path,
    kind: str,
    *,
    output: Path | None = None,
    dtype: str | None = None,
    force: bool = False,
    name: str = "",
    on_progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Export a run. What is in `output` afterwards is complete and has been read again, or nothing has changed.

    Args:
        run: a finished run's directory, or an adapter that PEFT wrote.
        kind: one of KINDS.
        output: the directory to make; default RUN/export/KIND.
        dtype: the number format; see DTYPES of the kinds' modules for what is allowed and default_dtype.
        force: replace an earlier export.
        name: the model's in Ollama; default the run's.
        on_progress: told how many tensors of how many are written.

    Returns:
        What export.json says, and "output".

    Raises:
        RescoldoError: nothing was written.
    """
    if kind not in KINDS:
        raise RescoldoError(f"there is no export {kind!r}", where="--to", fix=f"one of {', '.join(KINDS)}")
    model = ollama.check_name(name or run.resolve().name) if kind == "ollama" else ""
    source = open_source(run)
    target = output or run / "export" / kind
    document = prompt_document(source)
    plan = _plan(source, kind, dtype)
    check_place(target, plan.n_bytes, force=force)
    with new_directory(target) as directory:
        done = 0

        def count(_: Any) -> None:
            nonlocal done
            done += 1
            source.base.tensors.release()
            on_progress(done, plan.n_tensors)

        if plan.tensors is None:
            merged_hf.write_merged(source, directory, plan.dtype, count)
        else:
            metadata = (
                gguf_adapter.adapter_metadata(source) if plan.adapter_only else merged_metadata(source, plan.dtype)
            )
            write_gguf(directory / plan.file, metadata, plan.tensors, count)
            _check_gguf(source, directory / plan.file, plan, document)
        if kind == "ollama":
            write_text(directory / "Modelfile", ollama.modelfile(source, _ollama_files(source, plan), document))
        write_prompt(directory, document, _calls(source, kind, model, plan))
        manifest = _manifest(source, kind, plan, directory)
        write_json(directory / MANIFEST, manifest)
    return {**manifest, "output": str(target), "prompt": document["messages"], "stop": document["stop"]}


def _plan(source: Source, kind: str, dtype: str | None) -> Plan:
    if kind == "merged":
        chosen = parse_dtype(dtype or merged_hf.default_dtype(source), merged_hf.DTYPES)
        shards = merged_hf.plan_shards(source, chosen)
        return Plan(chosen, merged_hf.total_bytes(source, chosen), sum(map(len, shards)))
    adapter_only = kind == "gguf-adapter" or (kind == "ollama" and source.base.kind == "gguf")
    if adapter_only:
        chosen = parse_dtype(dtype or "F32", gguf_adapter.DTYPES)
        tensors = list(gguf_adapter.adapter_tensors(source, chosen))
    else:
        chosen = parse_dtype(dtype or merged_gguf.default_dtype(source), merged_gguf.DTYPES)
        tensors = list(merged_gguf.merged_tensors(source, chosen))
    file = f"{'adapter' if adapter_only else 'model'}-{chosen}.gguf"
    return Plan(chosen, sum(t.n_bytes for t in tensors), len(tensors), file, tensors, adapter_only)


def _check_gguf(source: Source, path: Path, plan: Plan, document: dict[str, Any]) -> None:
    """Beyond the bytes: a merged file opens as a base model with the same shapes and makes the same prompt."""
    if plan.adapter_only:
        read_header(path)
        return
    base = open_base(str(path))
    tokens = base.tokenizer()(document["example"]["rendered"], add_special_tokens=False)["input_ids"]
    if tokens != document["example"]["tokens"]:
        raise RescoldoError(
            "the tokenizer in the GGUF file makes other tokens of the prompt", where=source.base.spec,
            fix="--to merged, and llama.cpp's own convert_hf_to_gguf.py",
        )  # fmt: skip


def _ollama_files(source: Source, plan: Plan) -> dict[str, str]:
    if not plan.adapter_only:
        return {"model": f"./{plan.file}"}
    name = source.base.spec.removeprefix("ollama:")
    model = name if name != source.base.spec else str(source.base.path.resolve())
    return {"model": model, "adapter": f"./{plan.file}"}


def _calls(source: Source, kind: str, name: str, plan: Plan) -> list[str]:
    """Commands that use the export, to be given in its directory. `name` is the model's in Ollama."""
    if kind == "ollama":
        return [
            shlex.join(ollama.create_command(name, Path("Modelfile"))),
            f"jq '{{model: \"{name}\", stream: false, messages: .example.messages}}' prompt.json \\\n"
            "  | curl -s http://localhost:11434/api/chat -d @-",
        ]
    if kind == "merged":
        return [
            "python -c \"import json, transformers as t; p = json.load(open('prompt.json'))\n"
            "print(t.pipeline('text-generation', '.', max_new_tokens=2048)(p['example']['messages'])[0])\""
        ]
    model = str(source.base.path.resolve()) if plan.adapter_only else plan.file
    if plan.adapter_only and source.base.kind == "hf":
        model = "BASE.gguf"
    lora = ["--lora", plan.file] if plan.adapter_only else []
    context = str(min(8192, source.base.config.max_positions))
    return [
        shlex.join(["llama-server", "-m", model, *lora, "--jinja", "--temp", "0", "-c", context]),
        "jq '{temperature: 0, messages: .example.messages}' prompt.json \\\n"
        "  | curl -s http://localhost:8080/v1/chat/completions -d @-",
    ]


def _manifest(source: Source, kind: str, plan: Plan, directory: Path) -> dict[str, Any]:
    return {
        "rescoldo_export": kind,
        "version": __version__,
        "dtype": plan.dtype,
        "run": str(source.run),
        "adapter_sha256": source.adapter_sha256,
        "base_model": source.base.spec,
        "base_fingerprint": source.base.fingerprint(),
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(directory.iterdir())
        },
    }
