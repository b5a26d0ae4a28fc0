"""`rescoldo serve`: an OpenAI-compatible server."""

from __future__ import annotations

import importlib.util
import json
import os
from typing import Annotated

import typer

from rescoldo.extras import missing
from rescoldo.units import count

EXAMPLE = "serve artifacts/mistral --port 8080"


def serve(
    model: Annotated[str, typer.Argument(help="Run directory, or a base model (directory, GGUF, ollama:, sample:).")],
    host: Annotated[str, typer.Option(help="Address to listen on; other machines reach it only with an API key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(help="Bearer token that requests must send.", envvar="RESCOLDO_API_KEY", show_envvar=True),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Another host name that it answers to, behind a proxy or in a network; may be repeated."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web origin whose pages may read answers: http://localhost:3000; may be repeated."),
    ] = None,
    name: Annotated[str, typer.Option(help="The model's name in requests. (default: the run's directory)")] = "",
    quantization: Annotated[
        str, typer.Option(help="Precision of the base model: auto (the run's), int8, nf4 (or bnb4), bf16, fp32.")
    ] = "auto",
    rows: Annotated[int, typer.Option(min=1, max=256, help="Requests decoded together.")] = 8,
    waiting: Annotated[int, typer.Option(min=0, max=100_000, help="Requests that may wait; more get 429.")] = 64,
    context: Annotated[int, typer.Option(min=16, help="Maximum tokens of prompt and answer together.")] = 8192,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of an answer.")] = 4096,
    timeout: Annotated[float, typer.Option(min=0.1, max=86400, help="Seconds for a request, including waiting.")] = 600,
    max_body: Annotated[int, typer.Option(min=1024, max=1 << 28, help="Largest request body in bytes.")] = 1 << 20,
    grace: Annotated[float, typer.Option(min=1, max=86400, help="Seconds for running requests at shutdown.")] = 30,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON line with url and models once it listens.")] = (
        False
    ),
) -> None:
    """Serve a run over OpenAI's chat completions API: the fine-tuned model and its base, by name.

    SIGTERM or Ctrl-C: new requests are refused, running ones are finished.
    """
    from rich.console import Console

    from rescoldo.base.chat_templates import plain_note
    from rescoldo.evaluation.evaluation import role_for
    from rescoldo.models.loaded import load_for_inference

    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise missing("serve", f"serving needs the package {package}")
    from rescoldo.serve.access import access
    from rescoldo.serve.server import bind, run_server
    from rescoldo.serve.service import Limits, Service
    from rescoldo.training.progress import Reporter
    from rescoldo.units import gigabytes

    who = access(host, api_key=api_key or "", allowed_hosts=allowed_host or (), cors_origins=cors_origin or ())
    listener = bind(host, port)
    reporter = Reporter(Console(stderr=True, highlight=False) if json_ else None)
    role = role_for(model, None)
    with reporter.bar("Loading:", 100) as bar:
        loaded = load_for_inference(
            model, quantization, on_progress=lambda share: bar.advance(int(100 * share) - bar.done, "")
        )
    if note := plain_note(loaded.tokenizer):
        reporter.say(note)
    service = Service(loaded, role, Limits(max_body, context, max_tokens, timeout, rows, waiting), name)
    c = loaded.model.config
    size = 2 * c.kv_width * loaded.model.dtype.itemsize * service.limits.context * rows

    def ready(url: str) -> None:
        if json_:
            document = {"url": f"{url}/v1", "models": list(service.models), "pid": os.getpid()}
            print(json.dumps(document, ensure_ascii=False), flush=True)
            return
        reporter.say(f"Listening on {url}/v1 ({loaded.precision}); models: {service.title}")
        reporter.say(f"  {count(rows, 'request')} at a time, KV cache up to {gigabytes(size)}; Ctrl-C stops")

    run_server(service, listener, host=host, access=who, grace=grace, on_ready=ready)
    reporter.say("Stopped")
