"""Merging takes bounded memory: Mistral 7B's real widths, fewer layers (the peak does not depend on their number)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rescoldo.base import open_base
from rescoldo.engine.types import LoraConfig
from tests.export.common import make_run
from tests.export.random_gguf import random_gguf

PEAK = 3_000_000_000  # bytes, mapped pages of the files included
SCRIPT = """
import sys
from pathlib import Path
from rescoldo.export import export_run
run, kind, dtype = sys.argv[1:]
export_run(Path(run), kind, dtype=dtype)
# not getrusage: its maximum goes on across exec, and is then the test process's own
lines = Path("/proc/self/status").read_text().splitlines()
print(1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")))
"""


def peak(run: Path, kind: str, dtype: str) -> int:
    """Peak resident bytes of a process that exports and does nothing else."""
    command = [sys.executable, "-c", SCRIPT, str(run), kind, dtype]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ, timeout=500)
    return int(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stored", "kind", "dtype"),
    [("Q4_K_M", "merged", "F16"), ("Q4_K_M", "gguf-adapter", "F16"), ("Q4_0", "merged-gguf", "Q8_0")],
)
def test_exporting_at_mistrals_widths(
    tmp_path: Path, stored: str, kind: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = random_gguf(tmp_path / "base.gguf", layers=2, kind=stored)
    run = make_run(tmp_path / "run", str(base), lora=LoraConfig(rank=8, alpha=32.0, dropout=0.0), size=0.02)
    found = peak(run, kind, dtype)
    with capsys.disabled():
        print(f"\n  {stored} to {kind} {dtype}: {found / 1e9:.2f} GB")
    assert found < PEAK
    export = run / "export" / kind
    if kind != "gguf-adapter":
        merged = open_base(str(export if kind == "merged" else export / f"model-{dtype}.gguf"))
        assert merged.config.total_params == open_base(str(base)).config.total_params
    if kind == "merged":
        assert len(list(export.glob("*.safetensors"))) > 1
