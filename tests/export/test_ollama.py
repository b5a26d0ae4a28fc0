"""The Modelfile: its template writes what the chat template writes; `ollama create` is run where there is an Ollama."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from rescoldo.base import open_base
from rescoldo.base.chat_templates import INST_AS_TEXT, INST_AS_TOKEN, PLAIN, PLAIN_WITH_BOS
from rescoldo.data.tokenize import prompt_text
from rescoldo.errors import RescoldoError
from rescoldo.export import export_run
from rescoldo.export.go_template import Framed, Turns, go_template, read_template
from rescoldo.export.ollama import check_name
from tests.base.make_models import CHATML, tiny_gguf, tiny_hf, tiny_tokenizer
from tests.export.common import make_run
from tests.export.go_template import render

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
DEFAULT_SYSTEM = CHATML.replace(
    "{% for message in messages %}",
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are {{ polite }}.<|im_end|>\n' }}{% endif %}",
)
BRACES = "{% for m in messages %}{{ '{{' + m['role'] + '}}' + m['content'] + '\n' }}{% endfor %}"
CONVERSATIONS = [
    [("user", "hi there")],
    [("system", "Be terse."), ("user", "hi {{ .System }} \"there\"")],
    [("user", "one"), ("assistant", "two"), ("user", "three")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
    [("system", "S"), ("user", "one"), ("assistant", "two"), ("user", "three")],
    [("user", "one"), ("assistant", "two"), ("system", "From now on"), ("user", "three")],
    [("system", "S"), ("user", "one"), ("assistant", "two"), ("system", "From now on"), ("user", "three")],
    [("user", "one"), ("system", "From now on")],
    [("system", "S"), ("user", "one"), ("system", "T"), ("assistant", "two"), ("user", "three"), ("system", "V")],
]  # fmt: skip


def _data(conversation: list[tuple[str, str]]) -> dict[str, Any]:
    """What Ollama hands to the template."""
    return {
        "System": "\n\n".join(content for role, content in conversation if role == "system"),
        "Prompt": conversation[-1][1],
        "Messages": [{"Role": role, "Content": content} for role, content in conversation],
    }


@pytest.mark.parametrize(
    "template", [CHATML, DEFAULT_SYSTEM, LLAMA3, INST_AS_TEXT, INST_AS_TOKEN, PLAIN, PLAIN_WITH_BOS, BRACES]
)
def test_the_template_writes_what_the_chat_template_writes(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    read = read_template(tokenizer)
    assert isinstance(read, Turns) == (template in (INST_AS_TEXT, INST_AS_TOKEN))
    written = go_template(tokenizer)
    compared = 0
    for conversation in CONVERSATIONS:
        systems = [index for index, (role, _) in enumerate(conversation) if role == "system"]
        short = len(conversation) == 2 or template != INST_AS_TOKEN
        if systems and isinstance(read, Turns) and not (read.system and short and systems == [0]):
            continue  # Mistral from v0.3 on puts the system message before the last question, and takes one only
        messages = [{"role": role, "content": content} for role, content in conversation]
        assert render(written, _data(conversation)) == prompt_text(messages, tokenizer)
        compared += 1
    assert compared == (len(CONVERSATIONS) if isinstance(read, Framed) else compared) >= 3


def test_a_template_that_begins_the_sequence_leaves_that_to_ollama(tmp_path: Path) -> None:
    base = open_base(str(tiny_gguf(tmp_path / "m.gguf", add_bos=True, template=INST_AS_TEXT)))
    tokenizer = base.tokenizer()
    messages = [{"role": "user", "content": "hi"}]
    assert prompt_text(messages, tokenizer) == tokenizer.bos_token + "[INST] hi [/INST]"
    assert render(go_template(tokenizer), _data([("user", "hi")])) == "[INST] hi [/INST]"


def test_a_template_of_one_question_only() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "Q: {{ messages[0]['content'] }}\nA:"
    written = go_template(tokenizer)
    assert written == "Q: {{ .Prompt }}\nA:"


def _parameters(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("PARAMETER "):
            _, key, value = line.split(" ", 2)
            found.setdefault(key, []).append(value)
    return found


def test_modelfile_of_a_gguf_base(tmp_path: Path) -> None:
    base = tiny_gguf(tmp_path / "base.gguf", max_position_embeddings=4096)
    run = make_run(tmp_path / "run", str(base))
    document = export_run(run, "ollama")
    assert sorted(document["files"]) == ["Modelfile", "PROMPT.md", "adapter-F32.gguf", "prompt.json"]
    lines = (run / "export/ollama/Modelfile").read_text()
    assert f"FROM {base}\nADAPTER ./adapter-F32.gguf\n" in lines
    parameters = _parameters(lines)
    assert parameters["stop"] == ['"<|im_end|>"']
    assert (parameters["temperature"], parameters["repeat_penalty"]) == (["0.0"], ["1.0"])
    prompt = json.loads((run / "export/ollama/prompt.json").read_text())
    assert int(parameters["num_ctx"][0]) >= min(4096, len(prompt["example"]["tokens"]) + 2048)
    template = lines.split('"""')[1]
    messages = [{"Role": m["role"], "Content": m["content"]} for m in prompt["example"]["messages"]]
    assert render(template, {"System": "", "Messages": messages}) == prompt["example"]["rendered"]


def test_modelfile_of_a_model_in_ollamas_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.base.test_open import _put

    gguf = tiny_gguf(tmp_path / "b.gguf", max_position_embeddings=4096)
    _put(tmp_path / "store", "registry.ollama.ai/library/tiny/latest", gguf)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    run = make_run(tmp_path / "run", "ollama:tiny")
    export_run(run, "ollama")
    assert "\nFROM tiny\nADAPTER" in (run / "export/ollama/Modelfile").read_text()


def test_modelfile_of_a_hugging_face_base_brings_the_merged_model(tmp_path: Path) -> None:
    base = tiny_hf(tmp_path / "base", "llama", max_position_embeddings=4096)
    run = make_run(tmp_path / "run", str(base))
    export_run(run, "ollama", dtype="Q8_0")
    lines = (run / "export/ollama/Modelfile").read_text()
    assert "\nFROM ./model-Q8_0.gguf\n" in lines
    assert "ADAPTER" not in lines
    assert open_base(str(run / "export/ollama/model-Q8_0.gguf")).config.n_layers == 2


def fake_ollama(folder: Path, code: int) -> Path:
    """An `ollama` that writes down how it was called."""
    folder.mkdir()
    path = folder / "ollama"
    path.write_text(f'#!/bin/sh\necho working\nprintf "%s\\n" "$@" > {folder}/called\nexit {code}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder / "called"


@pytest.mark.parametrize("code", [0, 3])
def test_create(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: int) -> None:
    from rescoldo.cli.main import app, run_app

    run = make_run(tmp_path / "run", str(tiny_gguf(tmp_path / "base.gguf", max_position_embeddings=4096)))
    called = fake_ollama(tmp_path / "bin", code)
    arguments = ["rescoldo", "export", str(run), "--to", "ollama", "--create", "--name", "me/ba:1", "--json"]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setenv("PATH", "/nowhere")
    assert run_app(app) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["create"] == {
        "command": ["ollama", "create", "me/ba:1", "-f", str(run / "export/ollama/Modelfile")],
        "done": False,
    }
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr("sys.argv", [*arguments, "--force"])
    assert run_app(app) == (1 if code else 0)
    assert called.read_text().splitlines() == document["create"]["command"][1:]
    out, err = capfd.readouterr()
    if code:
        assert "exit code 3" in err
    else:
        assert json.loads(out)["create"]["done"] is True


@pytest.mark.parametrize("name", ["", "-f", "a b", "../x", "a/b/c/d", "ä", "x\ny"])
def test_names_that_ollama_would_not_take(name: str) -> None:
    with pytest.raises(RescoldoError, match="--name"):
        check_name(name)
