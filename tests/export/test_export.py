"""The command and the place: complete or not there, nothing overwritten, clear messages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from rescoldo.base.chat_templates import INST_AS_TEXT
from rescoldo.base.gguf_header import read_header
from rescoldo.cli.main import app, run_app
from rescoldo.errors import RescoldoError
from rescoldo.export import KINDS, export_run, gguf_file
from rescoldo.files import sha256
from rescoldo.models.loaded import load_for_inference
from tests.base.make_models import tiny_gguf
from tests.base.test_tokenizer import _mistral_gguf
from tests.export.common import CONCEPTS, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    return make_run(folder / "run", str(tiny_gguf(folder / "base.gguf", max_position_embeddings=4096)))


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["rescoldo", "export", *map(str, args)])
    code = run_app(app)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("kind", KINDS)
def test_command(
    run: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new" / kind
    code, out, err = command(monkeypatch, capsys, run, "--to", kind, "-o", target)
    assert (code, err) == (0, "")
    assert f"Written: {target}" in out
    assert f"{target}/PROMPT.md" in out
    code, _, err = command(monkeypatch, capsys, run, "--to", kind, "-o", target)
    assert code == 2
    assert "holds an export already" in err
    code, out, _ = command(monkeypatch, capsys, run, "--to", kind, "-o", target, "--force", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["rescoldo_export"] == kind
    for name, file in document["files"].items():
        assert (sha256(target / name), (target / name).stat().st_size) == (file["sha256"], file["bytes"])
    assert sorted(path.name for path in target.iterdir()) == sorted([*document["files"], "export.json"])
    assert [path.name for path in target.parent.iterdir()] == [kind], "nothing temporary is left"


def test_the_prompt_goes_along(run: Path, tmp_path: Path) -> None:
    from rescoldo.base import open_base
    from rescoldo.data.tokenize import prompt_ids
    from rescoldo.role import get_role

    export_run(run, "gguf-adapter", output=tmp_path / "x")
    document = json.loads((tmp_path / "x/prompt.json").read_text())
    messages = get_role("ba").messages({"concept": CONCEPTS[0]})
    filled = json.loads(json.dumps(document["messages"]).replace("{concept}", CONCEPTS[0]))
    assert filled == messages == document["example"]["messages"]
    base = open_base(json.loads((run / "training_info.json").read_text())["base_model"])
    assert document["example"]["tokens"] == prompt_ids(messages, base.tokenizer())
    assert (document["stop"], document["stop_ids"]) == (["<|im_end|>"], [2])
    assert document["sampling"]["temperature"] == 0
    text = (tmp_path / "x/PROMPT.md").read_text()
    assert document["example"]["rendered"] in text
    assert "--lora adapter-F32.gguf" in text


def test_the_commands_are_for_the_exports_own_directory(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = command(monkeypatch, capsys, run, "--to", "ollama", "--name", "mine:1", "-o", tmp_path / "a b")
    assert (code, f"ollama create mine:1 -f '{tmp_path}/a b/Modelfile'" in out) == (0, True)
    text = (tmp_path / "a b/PROMPT.md").read_text()
    assert "In this directory:\n\n```sh\nollama create mine:1 -f Modelfile\n```" in text
    assert '{model: "mine:1",' in text


def test_the_adapters_file(run: Path, tmp_path: Path) -> None:
    export_run(run, "gguf-adapter", dtype="F16", output=tmp_path / "x")
    header = read_header(tmp_path / "x/adapter-F16.gguf")
    assert {key: header.metadata[key] for key in ("general.type", "adapter.type", "adapter.lora.alpha")} == {
        "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0,
    }  # fmt: skip
    assert len(header.tensors) == 2 * 7 * 2
    assert header.tensors["blk.1.ffn_down.weight.lora_a"].shape == (4, 96)
    assert header.tensors["blk.0.attn_k.weight.lora_b"].shape == (32, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "gguf"], "there is no export 'gguf'"),
        (["--to", "merged", "--dtype", "Q8_0"], "--dtype: 'Q8_0' cannot be written here"),
        (["--to", "merged-gguf", "--dtype", "Q4_K"], "one of F32, F16, BF16, Q8_0, Q4_0"),
        (["--to", "merged", "--create"], "--create: requires --to ollama"),
        (["--to", "ollama", "--name", "a b"], "invalid name for a model"),
        (["--to", "merged", "-o", "{file}"], "is not a directory"),
        (["--to", "merged", "-o", "{file}/x"], "is not a writable directory"),
        (["--to", "merged", "-o", "{full}", "--force"], "not an earlier export"),
        (["--to", "merged", "-o", "."], "--output .: must be a new directory"),
    ],
)
def test_bad_arguments(
    run: Path, tmp_path: Path, arguments: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    filled = [text.format(file=tmp_path / "file", full=tmp_path / "full") for text in arguments]
    code, out, err = command(monkeypatch, capsys, run, *filled)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine"]
    assert not (run / "export/merged").exists()


def test_runs_that_cannot_be_exported(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RescoldoError, match="is not a run's directory"):
        export_run(tmp_path, "merged")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RescoldoError, match="this run has not finished"):
        export_run(tmp_path, "merged")
    with pytest.raises(RescoldoError, match="this run has not finished"):
        load_for_inference(str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("export"))
    info = json.loads((copy / "training_info.json").read_text())
    (copy / "training_info.json").write_text(json.dumps({**info, "base_fingerprint": "0" * 64}))
    with pytest.raises(RescoldoError, match="another base model"):
        export_run(copy, "merged")
    (copy / "training_info.json").write_text(json.dumps({**info, "base_model": "/gone"}))
    with pytest.raises(RescoldoError, match="its base model cannot be opened: /gone: there is no such") as error:
        export_run(copy, "merged")
    assert error.value.where == str(copy)
    assert "base_model in training_info.json names it" in error.value.fix
    (copy / "training_info.json").write_text(json.dumps(info))
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "r": 5}))
    with pytest.raises(RescoldoError, match="does not fit its base model"):
        export_run(copy, "merged")
    assert not (copy / "export").exists()


def test_no_room_on_the_disk(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    with pytest.raises(RescoldoError, match="would be written, but only") as error:
        export_run(run, "merged", output=tmp_path / "new" / "x")
    assert error.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["merged", "merged-gguf"])
def test_an_error_half_way_leaves_the_earlier_export(
    run: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"
    first = export_run(run, kind, output=target)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise OSError(28, "No space left on device")

    with pytest.raises(RescoldoError, match="No space left"):
        export_run(run, kind, output=target, force=True, on_progress=stop)
    assert json.loads((target / "export.json").read_text())["files"] == first["files"]
    for name, file in first["files"].items():
        assert sha256(target / name) == file["sha256"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_somebody_has_put_beside_an_export_is_kept(run: Path, tmp_path: Path) -> None:
    """As llama-quantize does, with the file it makes of the exported one."""
    export_run(run, "gguf-adapter", output=tmp_path / "x")
    (tmp_path / "x/model-Q4_K_M.gguf").write_text("mine")
    with pytest.raises(RescoldoError, match="holds files that are not part of an export: model-Q4"):
        export_run(run, "gguf-adapter", output=tmp_path / "x", force=True)
    assert (tmp_path / "x/model-Q4_K_M.gguf").read_text() == "mine"


def test_a_killed_export_is_cleared_away(run: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from rescoldo.export import export_run\n"
        "export_run(Path(sys.argv[1]), 'merged-gguf', output=Path(sys.argv[2]), "
        "on_progress=lambda done, total: done < 5 or os.kill(os.getpid(), signal.SIGKILL))"
    )
    target = tmp_path / "x"
    done = subprocess.run([sys.executable, "-c", script, run, target], check=False, env=os.environ)
    assert done.returncode == -9
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1
    export_run(run, "merged-gguf", output=target)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_does_not_read_back_is_not_put_there(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte of the written file flips before it is read again."""
    check = gguf_file._check

    def damage(path: Path, *rest: Any) -> None:
        content = bytearray(path.read_bytes())
        content[-70] ^= 1
        path.write_bytes(content)
        check(path, *rest)

    monkeypatch.setattr(gguf_file, "_check", damage)
    with pytest.raises(RescoldoError, match="does not read back as it was written"):
        export_run(run, "merged-gguf", output=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_do_not_fit(tmp_path: Path) -> None:
    base = tiny_gguf(tmp_path / "base.gguf", max_position_embeddings=4096)
    run = make_run(tmp_path / "run", str(base), size=1e7)
    with pytest.raises(RescoldoError, match="do not fit into F16") as error:
        export_run(run, "merged-gguf", dtype="F16")
    assert "BF16" in error.value.fix
    export_run(run, "merged-gguf", dtype="BF16")
    merged = read_header(run / "export/merged-gguf/model-BF16.gguf")
    assert merged.tensors["blk.0.attn_q.weight"].type_name == "BF16"
    assert torch.bfloat16.itemsize * 64 * 64 == merged.tensors["blk.0.attn_q.weight"].n_bytes


def test_the_merged_file_has_the_runs_name_and_names_its_base(tmp_path: Path) -> None:
    """What the base file says of itself goes to general.base_model.0; what is no longer true is left out."""
    about = {
        "general.name": "Tiny Instruct", "general.author": "Someone", "general.url": "https://example.org/tiny",
        "general.license": "apache-2.0", "general.quantized_by": "another", "general.basename": "Tiny",
        "general.base_model.count": 1, "general.base_model.0.name": "Tiny",
    }  # fmt: skip
    base = tiny_gguf(tmp_path / "tiny.gguf", max_position_embeddings=4096, metadata=about)
    run = make_run(tmp_path / "my-run", str(base))
    export_run(run, "merged-gguf")
    found = read_header(run / "export/merged-gguf/model-F16.gguf").metadata
    general = {key: value for key, value in found.items() if key.startswith("general.")}
    assert general == {
        "general.architecture": "llama", "general.name": "my-run", "general.license": "apache-2.0",
        "general.basename": "Tiny", "general.base_model.count": 1, "general.base_model.0.name": "Tiny Instruct",
        "general.base_model.0.author": "Someone", "general.base_model.0.url": "https://example.org/tiny",
        "general.file_type": 1, "general.quantization_version": 2,
    }  # fmt: skip
    export_run(run, "gguf-adapter")
    adapter = read_header(run / "export/gguf-adapter/adapter-F32.gguf").metadata
    assert (adapter["general.name"], adapter["general.base_model.0.name"]) == ("my-run", "tiny")


def test_a_template_known_by_the_bases_name_goes_into_the_merged_file(tmp_path: Path) -> None:
    base = _mistral_gguf(tmp_path / "base.gguf", "v1", **{"llama.context_length": 4096})
    run = make_run(tmp_path / "run", str(base))
    export_run(run, "merged-gguf")
    (merged,) = (run / "export/merged-gguf").glob("*.gguf")
    assert read_header(merged).metadata["tokenizer.chat_template"] == INST_AS_TEXT
