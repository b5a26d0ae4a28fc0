"""`rescoldo optimize`: a better prompt for the same model, as a DSPy program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rescoldo.allowed import check_number
from rescoldo.cli.eval import TerminalConsole, check_sampling, going_on
from rescoldo.invocation import program
from rescoldo.units import count

EXAMPLE = (
    "optimize --model sample:smollm2 --train artifacts/synthetic/ba_train_v2_fixed.jsonl "
    "--method labeled --shots 2 --output artifacts/dspy/few-shot"
)


def optimize(
    model: Annotated[
        str, typer.Option(help="The program's model: base model, run directory, ollama:NAME, openai:MODEL@URL.")
    ],
    train: Annotated[
        Path, typer.Option(help="Training examples: shown in prompts, and a part of them held out to score prompts.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the program: artifacts/dspy/NAME.")],
    method: Annotated[
        str,
        typer.Option(
            help="labeled (LabeledFewShot), bootstrap (BootstrapFewShot), mipro (MIPROv2, with instructions) or gepa "
            "(GEPA: instructions, from the metric's textual feedback)."
        ),
    ] = "mipro",
    shots: Annotated[
        int | None, typer.Option(help="Maximum examples in the prompt (labeled, bootstrap, mipro). (default 3)")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Number of prompts that MIPROv2 or GEPA tries. (default 10)")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="Maximum answers that GEPA scores. (default what --trials prompts may need)")
    ] = None,
    reflection_model: Annotated[
        str | None,
        typer.Option(help="The model that writes instructions (mipro, gepa), named as --model. (default --model)"),
    ] = None,
    dev: Annotated[float, typer.Option(help="Fraction of the training set that prompts are scored on.")] = 0.2,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Minimum score of the model's own answer to become an example (bootstrap, mipro). (default 0.8)"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first N training examples.")] = None,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens of an answer.")] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of split, sampling and search.")] = 42,
    quantization: Annotated[
        str, typer.Option(help="Precision of models in this program's engine: auto, int8, nf4 (or bnb4), bf16, fp32.")
    ] = "auto",
    concurrency: Annotated[int, typer.Option(help="Concurrent requests to a server.")] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer from a server.")] = 1800.0,
    role: Annotated[str, typer.Option(help="Role with prompt and metric.")] = "ba",
    restart: Annotated[bool, typer.Option("--restart", help="Start over.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")] = False,
) -> None:
    """Optimize the prompt instead of the weights (M2), by the role's metric, using only the training set.

    The same command resumes where it stopped. Needs the extra [dspy]; without it, the command that installs it is
    printed.
    """
    check_sampling(temperature, 1.0, max_new_tokens)
    check_number("--concurrency", concurrency, whole=True, ge=1, le=1000)
    check_number("--timeout", timeout, gt=0, le=1e6)
    from rescoldo.models.server import ServerOptions
    from rescoldo.optimize.config import OptimizeConfig
    from rescoldo.optimize.optimizer import optimize as run_optimizer

    config = OptimizeConfig(
        model=model, train=str(train), method=method, shots=shots, trials=trials, budget=budget,
        reflection_model=reflection_model, dev=dev, threshold=threshold,
        limit=limit, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed, role=role,
        quantization=quantization,
    )  # fmt: skip
    server = ServerOptions(concurrency, timeout)
    with going_on(str(output / "answers.partial.jsonl")):
        record = run_optimizer(config, output, server=server, restart=restart, console=TerminalConsole(quiet=json_))
    if json_:
        print(json.dumps(record, ensure_ascii=False, allow_nan=False))
        return
    before, after = (record["scores"][when]["mean"] for when in ("before", "after"))
    scored, shown = count(record["dev_examples"], "training example"), count(record["demos"], "example")
    print(f"{before:.1%} before, {after:.1%} after, on {scored} that are not shown in the prompt")
    print(
        f"Prompts were selected on these examples, so the score is optimistic: score others with `{program()} compare`"
    )
    print(f"Written: {output / record['program']} ({shown} shown), {output / 'optimize.json'}")
