"""The demo: fine-tune the sample model, score it and its base on the validation examples, compare.

Each part resumes where it was interrupted: the training from its checkpoint, the evaluation from the answers that are
on the disk. When everything is finished the result is printed again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rescoldo.cli.main import run_app
from rescoldo.files import sha256
from rescoldo.invocation import near, program
from rescoldo.units import count, when

TRAIN = Path("artifacts/synthetic/ba_train_v2_fixed.jsonl")
VAL = Path("artifacts/synthetic/ba_val_v2_fixed.jsonl")
RUN = Path("artifacts/demo/run")
COMPARISON = Path("artifacts/demo/comparison.json")
MAX_NEW_TOKENS = 1024  # the longest answer in the dataset has 885

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    restart: Annotated[
        bool, typer.Option("--restart", help="Start again; the old run is kept as artifacts/demo/run.old-N.")
    ] = False,
) -> None:
    """Fine-tune SmolLM2-135M-Instruct on 98 examples, score it and its base on 22 others, compare."""
    from rescoldo.run.layout import LOG_FILE
    from rescoldo.run.streams import unfailing

    with unfailing(RUN / LOG_FILE):  # a terminal that is closed meanwhile does not end it
        document = None if restart else read_finished()
        if document is None:
            document = evaluate(train(restart))
        else:
            print(f"The demo finished on {when(document['metadata']['date'])}; its result:")
        show(document)


def read_finished() -> dict[str, Any] | None:
    """The comparison on the disk, if it has a verdict and belongs to the adapter and datasets that are there now."""
    try:
        document = json.loads(COMPARISON.read_bytes())
        known = document["metadata"]["sha256"]
        current = all(known[str(path)] == sha256(path) for path in inputs())
        return document if current and document["comparison"]["decision"]["verdict"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def inputs() -> tuple[Path, ...]:
    """The files that the comparison depends on."""
    return TRAIN, VAL, RUN / "adapter_model.safetensors"


def train(restart: bool) -> float:
    """Train, or recognise that it has been done; leaves when a signal came. Returns the run's wall time in seconds."""
    from rescoldo.assemble import real_parts
    from rescoldo.run.registry import register
    from rescoldo.training.checkpoint import UnresumableError
    from rescoldo.training.config import RunConfig
    from rescoldo.training.start import train

    config = RunConfig(train=TRAIN, val=VAL, output=RUN)
    register(RUN)
    try:
        result = train(config, real_parts(), restart=restart)
    except UnresumableError:  # the settings are fixed here: only another version can have had others
        print(f"{RUN} was made by another version of this program and cannot be resumed: the demo starts again")
        result = train(config, real_parts(), restart=True)
    if result.signal:
        raise typer.Exit(128 + result.signal)
    return float(result.info["wall_seconds"])


def evaluate(train_seconds: float) -> dict[str, Any]:
    """Score base (free, and held to the role's grammar) and fine-tuned model on the validation examples; write it."""
    from rescoldo.cli.eval import TerminalConsole
    from rescoldo.engine.types import Sampling
    from rescoldo.evaluation import compare_run, write_document

    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS)
    document = compare_run(
        RUN, VAL, output=COMPARISON, train=TRAIN, sampling=sampling, constrained=True, console=TerminalConsole()
    )
    digests = {str(path): sha256(path) for path in inputs()}
    document["metadata"].update(train_seconds=train_seconds, sha256=digests)
    write_document(document, COMPARISON)
    return document


def show(document: dict[str, Any]) -> None:
    """Print scores, comparison and verdict, where things lie and what to do next."""
    from rich.console import Console

    from rescoldo.evaluation.report import print_comparison

    print_comparison(document, Console())
    models = document["models"]
    means = {name: part["scores"]["mean"] for name, part in models.items()}
    content = models["finetuned"]["content"]
    megabytes = (RUN / "adapter_model.safetensors").stat().st_size / 1e6
    meta = document["metadata"]
    print()
    examples = count(meta["examples"], "example")
    held = f", held to the form by a grammar {means['base_constrained']:.1%}" if "base_constrained" in means else ""
    print(f"Form: base model {means['base']:.1%}{held}, fine-tuned {means['finetuned']:.1%} on {examples}")
    print(f"Content: {content['doubtful']} of {content['answers']} fine-tuned answers are unlike the dataset's own")
    print(f"Trained in {meta['train_seconds']:.0f} s, all models scored in {meta['wall_seconds']:.0f} s")
    print(f"The adapter: {RUN} (adapter_model.safetensors, {megabytes:.1f} MB, PEFT's format)")
    print(next_steps())


def next_steps() -> str:
    """What to type and to read after the demo."""
    called = program()
    tensorboard = Path(sys.executable).with_name("tensorboard")
    return f"""
What to do next
  read the answers side by side   {COMPARISON.with_suffix(".html")} (in a browser; all data: {COMPARISON})
  vote on them, blind             {called} review {COMPARISON}
  check the run's files           {called} verify {RUN}
  ask it something                {called} chat {RUN} --concept "A tool library" --compare
  see the loss curves             {RUN / "report.html"}, or {near(tensorboard)} --logdir {RUN / "logs"}
  check examples of your own      {called} data audit yours.jsonl
  train on them                   {called} train --train train.jsonl --val val.jsonl --output artifacts/mine
  start the demo again            ./demo --restart"""


if __name__ == "__main__":
    sys.exit(run_app(app))
