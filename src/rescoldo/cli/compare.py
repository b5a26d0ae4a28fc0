"""`rescoldo compare`: models on the same dataset, and the decision whether to adopt the fine-tuned one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rescoldo.allowed import check_number
from rescoldo.cli.eval import TerminalConsole, check_sampling, going_on
from rescoldo.errors import RescoldoError

EXAMPLE = (
    "compare --baseline sample:smollm2 --finetuned artifacts/demo/run "
    "--dataset artifacts/synthetic/ba_val_v2_fixed.jsonl --output artifacts/demo/compare.json"
)


def compare(
    baseline: Annotated[
        str, typer.Option(help="M1, the untouched model: base model, ollama:NAME, openai:MODEL@URL, engine:BASE.")
    ],
    dataset: Annotated[Path, typer.Option(help="Records to answer (JSON Lines).")],
    optimized: Annotated[
        str, typer.Option(help="M2, the optimized prompt: a DSPy program (directory or JSON), or PROGRAM@MODEL.")
    ] = "",
    finetuned: Annotated[str, typer.Option(help="M3, the fine-tuned model: a run directory, or any other model.")] = "",
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Another model, as NAME=MODEL; may be repeated.")
    ] = None,
    together: Annotated[
        Path | None,
        typer.Option(
            help="Train the optimized prompt's instruction into the weights (BetterTogether) in this directory, with "
            "the fine-tuned model's settings, and compare that, too. Can be resumed like any training."
        ),
    ] = None,
    constrained: Annotated[
        bool, typer.Option(help="Also compare with the baseline constrained to the role's schema.")
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON to write; Markdown and HTML reports are written next to it."),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Greedy decoding; the same as --temperature 0.")] = False,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling; 1 is off.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens of an answer.")] = 2048,
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 42,
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            "--repeats",
            help="Answers to each record (with increasing seeds): mean, pass@k, best of k.",
        ),
    ] = 1,
    train_set: Annotated[
        Path | None, typer.Option(help="Also score the fine-tuned model on its training set, to detect overfitting.")
    ] = None,
    train_set_limit: Annotated[int | None, typer.Option(help="Use only its first N examples.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first N records.")] = None,
    quantization: Annotated[
        str,
        typer.Option(
            help="Precision of models in this program's engine: auto (a run's), int8, nf4 (or bnb4), bf16, fp32."
        ),
    ] = "auto",
    concurrency: Annotated[int, typer.Option(help="Concurrent requests to a server.")] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer from a server.")] = 1800.0,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="Reuse answers from this earlier evaluation or comparison if they fit.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="A model that judges the answers if it passes an exam: openai:MODEL@URL, ollama:NAME, a base "
            "model or a run; may be repeated."
        ),
    ] = None,
    judge_tokens: Annotated[int, typer.Option(help="Maximum tokens of a judge's answer; thinking needs more.")] = 16,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Load a pickled DSPy program: it can run any code on this machine.")
    ] = False,
    role: Annotated[
        str | None,
        typer.Option(help="Role with prompt and metric: name, file or folder. (default the run's own, else ba)"),
    ] = None,
    perplexity: Annotated[
        bool, typer.Option("--perplexity", help="Measure each answer's perplexity under the base model, too.")
    ] = False,
    lang: Annotated[str, typer.Option(help="Language of reports, tables and verdict: en or es.")] = "en",
    json_: Annotated[bool, typer.Option("--json", help="Print the JSON document, nothing else.")] = False,
) -> None:
    """Compare two or more models on the same dataset; report whether the fine-tuned one is worth adopting, and why.

    All models answer the same records with the same sampling and seeds. The same command resumes after an interruption;
    once finished, it asks no model again (both with --output).
    """
    temperature = 0.0 if greedy else temperature
    check_sampling(temperature, top_p, max_new_tokens)
    models = _models(baseline, model or [], optimized, finetuned, together)
    counts = {
        "concurrency": concurrency,
        "limit": limit,
        "train-set-limit": train_set_limit,
        "judge-tokens": judge_tokens,
    }
    for name, value in counts.items():
        check_number(f"--{name}", value, whole=True, ge=1, le=1_000_000)
    check_number("--timeout", timeout, gt=0, le=1e6)
    if train_set is not None and not finetuned:
        raise RescoldoError("there is no fine-tuned model to score on it", where="--train-set", fix="add --finetuned")
    from rescoldo.engine.types import Sampling
    from rescoldo.evaluation.compare import Parts
    from rescoldo.evaluation.compare import compare as run_comparison
    from rescoldo.evaluation.document import reports_beside
    from rescoldo.evaluation.evaluation import check_samples
    from rescoldo.evaluation.language import language
    from rescoldo.models.server import ServerOptions

    language(lang)
    check_samples(samples, temperature)
    if together is not None:
        _train_together(together, finetuned, optimized, role, allow_pickle, json_)
    with going_on(f"{output}.partial.jsonl" if output else ""):
        document = run_comparison(
            models,
            dataset,
            Parts(
                "baseline",
                "optimized" if optimized else "",
                "finetuned" if finetuned else "",
                "together" if together else "",
            ),
            role=role,
            output=output,
            sampling=Sampling(temperature, top_p, max_new_tokens, seed),
            repeats=samples,
            train_set=train_set,
            train_limit=train_set_limit,
            limit=limit,
            quantization=quantization,
            server=ServerOptions(concurrency, timeout),
            allow_pickle=allow_pickle,
            constrained=constrained,
            reuse=reuse or [],
            perplexity=perplexity,
            lang=lang,
            judges=judge or [],
            judge_tokens=judge_tokens,
            console=TerminalConsole(quiet=json_),
        )
    if json_:
        print(json.dumps(document, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console

    from rescoldo.evaluation.report import print_comparison

    print_comparison(document, Console())
    if output is not None:
        print("Written: " + ", ".join(map(str, [output, *reports_beside(output)])))


def _train_together(
    output: Path, finetuned: str, optimized: str, role: str | None, allow_pickle: bool, as_json: bool
) -> None:
    """Train the run of --together, resume it, or recognize it as finished; exits if a signal came."""
    from rich.console import Console

    from rescoldo.assemble import real_parts
    from rescoldo.evaluation.together import together_config
    from rescoldo.run.registry import register
    from rescoldo.training.progress import Reporter
    from rescoldo.training.start import train

    config = together_config(finetuned, optimized, output, role=role, allow_pickle=allow_pickle)
    register(output)
    reporter = Reporter(Console(stderr=as_json, highlight=False))
    reporter.say(f"Training the optimized prompt's instruction into the weights: {output}")
    result = train(config, real_parts(), reporter=reporter)
    if result.signal:
        raise typer.Exit(128 + result.signal)


def _models(baseline: str, further: list[str], optimized: str, finetuned: str, together: Path | None) -> dict[str, str]:
    """Name in the document → spec, the simplest model first.

    Raises:
        RescoldoError: only one model, a --model without a name, a repeated name, or --together without its two parts.
    """
    models = {"baseline": baseline}
    reserved = ("baseline", "optimized", "finetuned", "together")
    if together is not None and not (optimized and finetuned):
        raise RescoldoError(
            "weights and prompt together are made of both", where="--together", fix="add --optimized and --finetuned"
        )
    for text in further:
        name, equals, spec = text.partition("=")
        if not equals or not name.strip() or not spec.strip():
            raise RescoldoError(f"{text!r} is not NAME=MODEL", where="--model", fix="for example other=ollama:mistral")
        if name in models or name in reserved:
            raise RescoldoError(f"the name {name!r} is taken", where="--model", fix="choose another")
        models[name] = spec
    models |= {"optimized": optimized} if optimized else {}
    models |= {"together": str(together)} if together is not None else {}
    models |= {"finetuned": finetuned} if finetuned else {}
    if len(models) < 2:
        raise RescoldoError(
            "a comparison needs two models or more", fix="add --finetuned, --optimized or --model NAME=MODEL"
        )
    return models
