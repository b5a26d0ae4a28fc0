r"""How soon a recipe reaches the validation loss of transformers + PEFT: training tokens, steps and CPU time.

python -m benchmarks.speedrun --trials benchmarks/speedrun.txt --output benchmarks/out/speedrun.json
echo "task=tickets seed=1 lr=2e-3 step=1 epochs=1" > one.txt
python -m benchmarks.speedrun --trials one.txt --output benchmarks/out/one.json

--trials is a text file with one trial a line (settings: benchmarks/trial.py; # begins a comment); it is read again
after each trial. Results are appended to OUTPUT with the ending .jsonl, and what is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.needs import require, writable
from benchmarks.trial import Trial, run


def read_trials(path: Path) -> list[Trial]:
    """The trials of a file.

    Raises:
        SystemExit: it cannot be read, or a line is no trial.
    """
    trials = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SystemExit(f"error: {path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                trials.append(Trial.parse(text))
            except (TypeError, ValueError) as error:
                raise SystemExit(f"error: {path}:{number}: {error}") from error
    return trials


def read_results(path: Path) -> list[dict[str, Any]]:
    """What has been measured; a last line that was cut off is left out."""
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    log = args.output.with_suffix(".jsonl")
    writable(log)
    if any(trial.engine == "peft" for trial in read_trials(args.trials)):
        require("peft")
    while True:
        done = [result["trial"] for result in read_results(log)]
        waiting = [trial for trial in read_trials(args.trials) if trial.key() not in done]
        if not waiting:
            break
        trial = waiting[0]
        print(trial, flush=True)
        result = run(trial, log.parent, lambda text: print("  " + text, flush=True))
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
            file.flush()
            os.fsync(file.fileno())


if __name__ == "__main__":
    main()
