"""Files as Ollama serves them, with layers of Mistral-7B's sizes: they train a step on their own blocks, and what is
exported answers in llama.cpp as in our engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.models import write_gguf

from rescoldo.export import export_run
from rescoldo.models.loaded import load_for_inference

pytest.importorskip("xllamacpp")
from tests.base.llama_cpp import LlamaCpp
from tests.export.test_llama_cpp import BOUND, TIE, follow, prompts

DATA = Path(__file__).parents[2] / "artifacts" / "synthetic"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M"])
def test_a_step_on_its_blocks_and_the_way_back(tmp_path: Path, kind: str) -> None:
    base, run = tmp_path / "mistral-7b-instruct.gguf", tmp_path / "run"
    write_gguf(base, 2, kind)
    command = [sys.executable, "-m", "rescoldo", "train", "--base-model", str(base), "--output", str(run)]
    command += [f"--train={DATA / 'ba_train_v2_fixed.jsonl'}", f"--val={DATA / 'ba_val_v2_fixed.jsonl'}"]
    command += ["--quantization=nf4", "--memory-gb=3", "--max-steps=1", "--train-limit=2", "--val-limit=1"]
    command += ["--grad-accum=2", "--lr=0.05", "--warmup=0", "--lora-targets=all"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    export_run(run, "gguf-adapter")
    mine = load_for_inference(str(run), "fp32")
    asked = prompts(mine.tokenizer, ["A shared calendar for a choir", "Parking permits online"])
    served = LlamaCpp(base, lora=run / "export/gguf-adapter/adapter-F32.gguf", context=1024)
    found = follow(mine.model, served, asked, 6, share=True)
    print(found)
    assert found.largest_difference < BOUND["Q4_1"]  # random weights: many tokens are nearly as likely as the best
    assert found.widest_tie < TIE["Q4_1"]
    with mine.model.without_adapter():
        assert follow(mine.model, served, asked[:1], 6).largest_difference > 2 * found.largest_difference
