"""Bad flags, config files and directories: a message that names the culprit, exit code 2, and nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rescoldo.cli.main import app, run_app
from rescoldo.errors import EXIT_BUSY, EXIT_USAGE
from rescoldo.training.config import make_config
from tests.base.make_models import tiny_hf
from tests.training.test_real import write_records


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_hf(
        tmp_path_factory.mktemp("model") / "base", "llama", max_position_embeddings=4096, intermediate_size=96
    )


@pytest.fixture
def place(tmp_path, base, monkeypatch) -> Path:
    """A directory with good datasets and a base model; out/ does not exist yet."""
    write_records(tmp_path / "train.jsonl", 0, 3)
    write_records(tmp_path / "val.jsonl", 3, 5)
    (tmp_path / "base").symlink_to(base)
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


GOOD = {
    "--train": "train.jsonl",
    "--val": "val.jsonl",
    "--output": "out",
    "--base-model": "base",
    "--max-length": "4096",
}


def attempt(flags: dict[str, str | None], monkeypatch, capsys, extra: list[str] = []) -> tuple[int, str]:
    """Run `rescoldo train` with GOOD flags and these; returns exit code and all that was said."""
    chosen = [part for name, value in (GOOD | flags).items() if value is not None for part in (name, value)]
    monkeypatch.setattr("sys.argv", ["rescoldo", "train", *chosen, *extra])
    code = run_app(app)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def snapshot(place: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(place.rglob("*"))}


FLAGS: list[tuple[dict[str, str | None], list[str]]] = [
    ({"--train": None}, ["--train", "is required"]),
    ({"--val": None}, ["--val", "is required"]),
    ({"--output": None}, ["--output", "is required"]),
    ({"--train": ""}, ["--train", "empty"]),
    ({"--train": "nowhere.jsonl"}, ["--train", "no file nowhere.jsonl"]),
    ({"--val": "nowhere.jsonl"}, ["--val", "no file nowhere.jsonl"]),
    ({"--train": "folder"}, ["--train", "is a directory"]),
    ({"--val": "train.jsonl"}, ["--val", "same file", "data split"]),
    ({"--val": "./folder/../train.jsonl"}, ["same file"]),
    ({"--output": ""}, ["--output", "empty"]),
    ({"--output": "file"}, ["--output", "file is a file, not a directory"]),
    ({"--output": "file/out"}, ["--output", "is a file"]),
    ({"--output": "o" * 300}, ["ooo: cannot be examined: File name too long"]),
    ({"--train": "t" * 300}, ["ttt: cannot be examined: File name too long"]),
    ({"--output": "dangling"}, ["--output", "dangling is a link to", "nowhere, which does not exist", "mkdir -p "]),
    ({"--output": "base"}, ["--output", "is the base model itself"]),
    ({"--base-model": ""}, ["--base-model", "is not allowed: use a directory, Hub id"]),
    ({"--base-model": "./no/such/model"}, ["no/such/model"]),
    ({"--base-model": "folder"}, ["folder"]),
    ({"--base-model": "sample:nothing"}, ["sample:nothing"]),
    ({"--role": "poet"}, ["poet", "ba"]),
    ({"--epochs": "0"}, ["--epochs", "1 to 10000"]),
    ({"--epochs": "-3"}, ["--epochs", "1 to 10000"]),
    ({"--epochs": "two"}, ["--epochs two is not allowed: use a whole number from 1 to 10000"]),
    ({"--epochs": "1.5"}, ["--epochs 1.5 is not allowed: use a whole number from 1 to 10000"]),
    ({"--lr": "0"}, ["--lr", "above 0 and at most 1"]),
    ({"--lr": "-1e-4"}, ["--lr", "above 0"]),
    ({"--lr": "nan"}, ["--lr", "above 0"]),
    ({"--lr": "inf"}, ["--lr", "at most 1"]),
    ({"--lr": "2"}, ["--lr", "at most 1"]),
    ({"--batch-size": "0"}, ["--batch-size", "1 to 1024"]),
    ({"--grad-accum": "0"}, ["--grad-accum", "1 to 4096"]),
    ({"--lora-r": "0"}, ["--lora-r", "1 to 1024"]),
    ({"--lora-r": "65"}, ["--lora-r", "rank 65", "hidden size 64", "1 to 32"]),
    ({"--lora-alpha": "0"}, ["--lora-alpha", "above 0"]),
    ({"--lora-alpha": "nan"}, ["--lora-alpha", "above 0"]),
    ({"--lora-dropout": "1"}, ["--lora-dropout", "below 1"]),
    ({"--lora-dropout": "-0.1"}, ["--lora-dropout -0.1", "of at least 0 and below 1"]),
    ({"--lora-targets": ""}, ["--lora-targets", "nothing would be trained"]),
    ({"--lora-targets": ","}, ["--lora-targets", "nothing would be trained"]),
    ({"--lora-targets": "q_prj"}, ["--lora-targets", "did you mean q_proj?"]),
    ({"--lora-targets": "q_proj,lm_head"}, ["--lora-targets", "lm_head"]),
    ({"--max-length": "8"}, ["--max-length", "16 to"]),
    ({"--max-length": "9999"}, ["--max-length", "context of 4096"]),
    ({"--max-length": "16"}, ["longer than 16 tokens", "--max-length"]),
    ({"--seed": "-1"}, ["--seed", "0 to"]),
    ({"--quantization": "int3"}, ["--quantization", "auto, int8, nf4"]),
    ({"--quantization": "nf4"}, ["nf4", "multiple of 64"]),
    ({"--train-limit": "0"}, ["--train-limit", "of at least 1"]),
    ({"--val-limit": "0"}, ["--val-limit", "of at least 1"]),
    ({"--max-steps": "0"}, ["--max-steps", "of at least 1"]),
    ({"--warmup": "-1"}, ["--warmup -1", "from 0 to"]),
    ({"--warmup": "1.5"}, ["--warmup", "whole"]),
    ({"--weight-decay": "2"}, ["--weight-decay", "0 to 1"]),
    ({"--max-grad-norm": "0"}, ["--max-grad-norm", "above 0"]),
    ({"--early-stopping": "0"}, ["--early-stopping", "a whole number from 1 to 10000"]),
    ({"--checkpoint-minutes": "-1"}, ["--checkpoint-minutes", "0 to 1440"]),
    ({"--keep-checkpoints": "0"}, ["--keep-checkpoints", "1 to 1000"]),
    ({"--threads": "0"}, ["--threads", "1 to 1024"]),
    ({"--sead": "1"}, ["no option --sead", "did you mean --seed?"]),
    ({"--learning-rate": "1"}, ["no option --learning-rate", "did you mean --lr?"]),
    ({"--lora_rank": "1"}, ["no option --lora_rank", "did you mean --lora-r?"]),
    ({"--num-epochs": "1"}, ["did you mean --epochs?"]),
    ({"--model": "x"}, ["did you mean --base-model?"]),
    ({"--batch_size": "1"}, ["did you mean --batch-size?"]),
    ({"--lr": "0", "--epochs": "0"}, ["--lr", "--epochs"]),
]


def test_the_home_directory_may_be_said_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = make_config({"train": "~/t.jsonl", "val": "~v.jsonl", "output": "~/out", "base_model": "~/base"})
    assert (found.train, found.output) == (tmp_path / "t.jsonl", tmp_path / "out")
    assert (found.base_model, str(found.val)) == (str(tmp_path / "base"), "~v.jsonl")


@pytest.mark.parametrize(("flags", "said"), FLAGS)
def test_bad_flags(place, monkeypatch, capsys, flags, said):
    before = snapshot(place)
    code, text = attempt(flags, monkeypatch, capsys)
    assert code == EXIT_USAGE, text
    assert "Traceback" not in text
    for words in said:
        assert words in " ".join(text.replace("│", " ").split()), text
    assert snapshot(place) == before


FILES: list[tuple[bytes, list[str]]] = [
    (b"epochs: 0\n", ["run.yaml:1, epochs", "1 to 10000"]),
    (b"# c\n\nlr: fast\n", ["run.yaml:3, lr", "fast is not allowed", "a number above 0 and at most 1"]),
    (b"lora_rank: 8\n", ["run.yaml:1, lora_rank", "no such field"]),
    (b"epoch: 8\n", ["did you mean epochs?"]),
    (b"lr: .nan\n", ["run.yaml:1, lr"]),
    (b"epochs: true\n", ["epochs", "true is not allowed (a boolean)", "1 to 10000"]),
    (b"shuffle: maybe\n", ["shuffle", "true or false"]),
    (b"lora_targets: []\n", ["lora_targets", "nothing would be trained"]),
    (b"lora_targets: [1, 2]\n", ["lora_targets", "list of names"]),
    (b"lora_targets: {q_proj: 1}\n", ["lora_targets"]),
    (b"epochs: [1]\n", ["epochs"]),
    (b"seed: 1\nseed: 2\n", ["run.yaml:2, seed", "repeated"]),
    (b"- epochs\n", ["mapping"]),
    (b"just text\n", ["mapping"]),
    (b"a: [\n", ["not YAML"]),
    (b"a: !!python/object/apply:os.system ['true']\n", ["not YAML"]),
    (b"? [a]\n: 1\n", ["run.yaml"]),
    (b"1: 2\n", ["run.yaml:1, 1: there is no such field"]),
    (b"\xff\xfe\x00", ["run.yaml"]),
    (b"[" * 5000, ["run.yaml"]),
    (b"x: " + b"y" * (1 << 20), ["run.yaml", "1048576"]),
]


@pytest.mark.parametrize(("content", "said"), FILES)
def test_bad_config_files(place, monkeypatch, capsys, content, said):
    (place / "run.yaml").write_bytes(content)
    before = snapshot(place)
    code, text = attempt({"--config": "run.yaml"}, monkeypatch, capsys)
    assert code == EXIT_USAGE, text
    assert "Traceback" not in text
    for words in said:
        assert words in text
    assert snapshot(place) == before


@pytest.mark.parametrize("name", ["nowhere.yaml", "folder"])
def test_config_that_is_no_file(place, monkeypatch, capsys, name):
    code, text = attempt({"--config": name}, monkeypatch, capsys)
    assert code == EXIT_USAGE
    assert name in text


@pytest.mark.parametrize("name", ["train.jsonl", "val.jsonl"])
def test_a_faulty_dataset_is_told_before_anything_is_loaded(place, name, monkeypatch, capsys) -> None:
    (place / name).write_text("{}\n")
    code, said = attempt({}, monkeypatch, capsys)
    assert code == EXIT_USAGE
    assert said.startswith(f"error: {name}:1, concept: is missing")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "training_info.json", "metrics.jsonl"])
def test_what_another_program_left_is_not_overwritten(place, monkeypatch, capsys, name):
    (place / "out").mkdir()
    (place / "out" / name).write_text("theirs")
    before = snapshot(place)
    code, text = attempt({}, monkeypatch, capsys)
    assert code == EXIT_USAGE
    assert f"holds {name} that this program did not start" in text
    assert "--restart" in text
    assert snapshot(place) == before


def test_second_process_is_refused(place, monkeypatch, capsys):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom rescoldo.run.lock import RunLock\n"
        "with RunLock(Path('out')):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        for extra in ([], ["--restart"]):
            status, text = attempt({}, monkeypatch, capsys, extra)
            assert status == EXIT_BUSY
            assert f"process {holder.pid} on " in text
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_read_only_output(place, monkeypatch, capsys):
    disk = place / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,ro", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no mount here")
    try:
        code, text = attempt({"--output": "disk/out"}, monkeypatch, capsys)
        assert code == EXIT_USAGE
        assert "disk" in text
        assert "cannot be written" in text
        code, text = attempt({"--output": "disk"}, monkeypatch, capsys)
        assert code == EXIT_USAGE
        assert "disk cannot be written" in text
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_script_has_the_originals_flags():
    script = Path(__file__).parents[2] / "scripts" / "finetune_ba.py"
    shown = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True).stdout
    flags = "train val output base-model epochs lr batch-size grad-accum lora-r lora-alpha lora-dropout max-length seed"
    for name in [*flags.split(), "quantization", "train-limit", "val-limit", "max-steps"]:
        assert f"--{name} " in shown
    bad = subprocess.run([sys.executable, str(script), "--lr", "0"], capture_output=True, text=True, check=False)
    assert bad.returncode == EXIT_USAGE
    assert "--lr" in bad.stderr


def test_help_starts_without_torch():
    code = (
        "import sys; from rescoldo.cli.main import app, run_app; "
        "sys.argv = ['rescoldo', 'train', '--help']; run_app(app); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
