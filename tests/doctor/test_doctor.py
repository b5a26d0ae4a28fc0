"""Each check of doctor is seen to fail, for real where that can be had."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rescoldo.assemble import real_parts
from rescoldo.base import open_base
from rescoldo.base.hf import INDEX
from rescoldo.data.dataset import Dataset, Overrun, inputs_of, read_dataset
from rescoldo.data.records import read_records
from rescoldo.doctor import content, machine, room
from rescoldo.doctor.check import Check, exit_code, failure, ok, warning
from rescoldo.doctor.content import leaks
from rescoldo.doctor.examine import examine, not_fetched
from rescoldo.doctor.needs import disk_need
from rescoldo.doctor.subject import Subject
from rescoldo.engine.kernels import build
from rescoldo.engine.memory import memory_need
from rescoldo.engine.precisions import PRECISIONS
from rescoldo.engine.types import LoraConfig
from rescoldo.invocation import program
from rescoldo.role import get_role
from rescoldo.run.lock import LOCK_FILE
from rescoldo.system import cpu as processor
from rescoldo.system.cgroup import memory_left, memory_limit
from rescoldo.training.config import make_config
from tests.base.make_models import tiny_gguf, tiny_hf
from tests.data.examples import write
from tests.run.common import rescoldo, tiny_run, write_records
from tests.run.test_lock import HOLD


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    tiny_run(folder)
    return folder


def given(folder: Path, **other: str) -> dict[str, str]:
    fields = dict(flag.removeprefix("--").split("=", 1) for flag in tiny_run(folder))
    return {name.replace("-", "_"): value for name, value in fields.items()} | {"output": str(folder / "out")} | other


def checks(folder: Path, **other: str) -> list[Check]:
    return list(examine(make_config(given(folder, **other)), real_parts()))


def named(found: list[Check], name: str) -> list[Check]:
    return [check for check in found if check.name == name]


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """The folder, to be damaged."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def subject(folder) -> Subject:
    config = make_config(given(folder))
    return Subject(config, open_base(config.base_model))


def test_all_is_well(folder):
    found = checks(folder)
    assert not [check for check in found if check.level == "failure"]
    assert {check.name for check in found} >= {
        *("base model", "tokenizer", "training data", "validation data", "leakage", "output", "disk", "memory"),
        *("cpu", "kernels", "precision", "threads", "load", "sleep", "libraries"),
    }
    for check in found:
        assert bool(check.remedy) == (check.level != "ok")


def test_exit_codes():
    assert exit_code([ok("a", "b")], strict=True) == 0
    assert exit_code([warning("a", "b", "c")], strict=False) == 0
    assert exit_code([warning("a", "b", "c")], strict=True) == 2
    assert exit_code([warning("a", "b", "c"), failure("a", "b", "c")], strict=True) == 1


def test_the_command(folder, tmp_path):
    flags = [*tiny_run(folder), f"--output={tmp_path / 'out'}"]
    done = rescoldo(tmp_path, "doctor", *flags, "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"]) == (0, True)
    assert sum(document["counts"].values()) == len(document["checks"])
    strict = rescoldo(tmp_path, "doctor", *flags, "--strict")
    assert strict.returncode == 2  # few examples
    broken = rescoldo(tmp_path, "doctor", *flags, f"--base-model={tmp_path / 'none'}")
    assert broken.returncode == 1
    assert "❌ base model" in broken.stdout
    assert "→" in broken.stdout
    assert not (tmp_path / "out").exists()


# base model


def test_base_model_missing(folder):
    (found, *_) = checks(folder, base_model=str(folder / "nothing"))
    assert (found.name, found.level) == ("base model", "failure")


def test_base_model_not_fetched_says_how_to_get_it_with_and_without_a_network():
    found = not_fetched("some-org/some-model")
    assert found is not None
    assert "hf download some-org/some-model;" in found.remedy
    assert "--local-dir" in found.remedy
    assert not_fetched("sample:smollm2") is None


def test_base_model_shard_cut_short(copy):
    weights = copy / "model" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    (found,) = named(checks(copy), "base model")
    assert found.level == "failure"
    assert "damaged or cut short" in found.what


def test_base_model_with_a_damaged_header(copy):
    weights = copy / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[8:16] = b"\xff" * 8
    weights.write_bytes(content)
    (found,) = named(checks(copy), "base model")
    assert (found.level, "model.safetensors" in found.what) == ("failure", True)


def test_base_model_as_a_gguf_file_cut_short(folder, tmp_path):
    path = tiny_gguf(tmp_path / "model.gguf", max_position_embeddings=4096)
    assert named(checks(folder, base_model=str(path)), "base model")[0].level == "ok"
    os.truncate(path, path.stat().st_size - 100)
    (found,) = named(checks(folder, base_model=str(path)), "base model")
    assert (found.level, "model.gguf" in found.what) == ("failure", True)


@pytest.mark.parametrize("fault", ["shard missing", "index disagrees"])
def test_base_model_in_shards(tmp_path, folder, fault):
    model = tiny_hf(tmp_path / "sharded", "llama", sharded=True, max_position_embeddings=4096)
    shards = sorted(model.glob("*.safetensors"))
    assert len(shards) > 1
    if fault == "shard missing":
        shards[-1].unlink()
    else:
        index = model / INDEX
        document = json.loads(index.read_text())
        holders = list(document["weight_map"].values())
        name = next(key for key, where in document["weight_map"].items() if holders.count(where) > 1)
        document["weight_map"][name] = next(where for where in holders if where != document["weight_map"][name])
        index.write_text(json.dumps(document))
    (found,) = named(checks(folder, base_model=str(model)), "base model")
    assert found.level == "failure"
    assert ("missing" in found.what) if fault == "shard missing" else ("in the index" in found.what)


def test_architecture(copy):
    path = copy / "model" / "config.json"
    path.write_text(path.read_text().replace('"llama"', '"gpt2"'))
    (found, *_) = named(checks(copy), "base model")
    assert "gpt2" in found.what
    assert all(name in found.remedy for name in ("llama", "mistral", "qwen3", "gemma3_text", "phi3"))


def test_tokenizer_and_template(copy):
    (copy / "model" / "chat_template.jinja").unlink(missing_ok=True)
    path = copy / "model" / "tokenizer_config.json"
    document = json.loads(path.read_text())
    document.pop("chat_template", None)
    path.write_text(json.dumps(document))
    (found,) = named(checks(copy), "tokenizer")
    assert (found.level, "no chat template" in found.what) == ("ok", True)
    (copy / "model" / "tokenizer.json").write_text("{")
    assert named(checks(copy), "tokenizer")[0].level == "failure"


# data


def test_dataset_faults_overruns_and_leakage(copy):
    with open(copy / "train.jsonl", "a") as file:
        file.write("{}\n")
    (found,) = named(checks(copy), "training data")
    assert found.level == "failure"
    assert "train.jsonl:7" in found.what
    write_records(copy / "train.jsonl", ["parking spaces", "a" * 5000, "bicycles"])  # beyond what the model reads
    (found,) = named(checks(copy), "training data")
    assert found.figures["overruns"] == 1
    assert "a longer context: this one's has 4096 tokens" in found.remedy
    write_records(copy / "train.jsonl", ["parking spaces", "a" * 200, "bicycles"])
    found_all = checks(copy, max_length="1024")
    (found,) = named(found_all, "training data")
    assert found.figures["overruns"] == 1
    assert found.remedy.startswith("--max-length ")
    (leak,) = named(found_all, "leakage")
    assert leak.level == "failure"
    assert "val.jsonl:1 = train.jsonl:1" in leak.what
    assert "rescoldo data split" in leak.remedy


def test_only_the_whole_conversation_is_a_leak(tmp_path):
    def data(name: str, *questions: str) -> Dataset:
        lines = [
            {"messages": [
                {"role": ("user", "assistant")[i % 2], "content": text}
                for i, text in enumerate((question, "Yes.", "Are you sure?", "Yes."))
            ]}
            for question in questions
        ]  # fmt: skip
        (tmp_path / "a b").mkdir(exist_ok=True)
        path = write(tmp_path / "a b" / name, *lines)
        return Dataset(path, [], [], [], "", "", inputs=inputs_of(read_records(path, generic), generic))

    generic = get_role("generic")
    train = data("t.jsonl", "Is Madrid in Spain?", "Is Porto in Portugal?")
    (check,) = leaks(train, data("v.jsonl", "Does the Ebro reach the sea?"), generic)
    assert (check.level, check.what) == ("ok", "training and validation share no prompt")
    (check,) = leaks(train, data("w.jsonl", "Is Porto in Portugal?"), generic)
    assert check.level == "failure"
    assert "1 validation prompts are trained on" in check.what
    assert "w.jsonl:1 = t.jsonl:2" in check.what
    command = shlex.split(check.remedy)
    train, val = tmp_path / "a b" / "t_split.jsonl", tmp_path / "a b" / "w_split.jsonl"
    assert rescoldo(tmp_path, *command[1:]).returncode == 0, "a command that works as it is printed"
    assert len(train.read_text().splitlines()) + len(val.read_text().splitlines()) == 3


def test_near_leakage_is_a_warning(copy):
    text = "a board on which the nurses of a large hospital swap their shifts among each other"
    write_records(copy / "train.jsonl", [text, "bicycles"])
    write_records(copy / "val.jsonl", [text + " by phone", "keys"])
    (leak,) = named(checks(copy), "leakage")
    assert leak.level == "warning"


def test_train_stops_on_failures_unless_forced(copy, tmp_path):
    write_records(copy / "train.jsonl", ["parking spaces", "bicycles"])
    flags = [*tiny_run(copy), f"--output={tmp_path / 'out'}", "--max-steps=1"]
    done = rescoldo(tmp_path, "train", *flags)
    assert done.returncode == 1
    assert "leakage: " in done.stderr
    assert "--force" in done.stderr
    assert not (tmp_path / "out").exists()
    assert rescoldo(tmp_path, "train", *flags, "--force").returncode == 0


# room


@pytest.fixture
def small_disk(tmp_path, request) -> Iterator[Path]:
    """A tmpfs of 4 MB, or with the options of an indirect parameter."""
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", getattr(request, "param", "size=4m"), "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("no mount here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False)


@pytest.mark.parametrize("small_disk", ["size=900m,nr_inodes=100"], indirect=True)
def test_disk_that_can_hold_no_more_files(folder, small_disk, subject):
    found = list(room.disk(Subject(make_config(given(folder, output=str(small_disk / "out"))), subject.base)))
    (full,) = [check for check in found if "more files" in check.what]
    assert (full.level, full.remedy) == ("failure", f"df -i {small_disk}")


@pytest.mark.parametrize("small_disk", ["size=4m,ro"], indirect=True)
def test_output_that_cannot_be_written(folder, small_disk):
    (found,) = room.output(Subject(make_config(given(folder, output=str(small_disk / "out")))))
    assert (found.level, "cannot be written" in found.what) == ("failure", True)


def test_disk_too_small_for_output_temporary_files_and_caches(folder, small_disk, subject, monkeypatch):
    found = list(room.disk(Subject(make_config(given(folder, output=str(small_disk / "out"))), subject.base)))
    assert found[0].level == "failure"
    assert found[0].figures["needed_bytes"] > found[0].figures["free_bytes"]
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    monkeypatch.setenv("XDG_CACHE_HOME", str(small_disk))
    levels = {check.what.partition(" lie")[0]: check for check in room.disk(subject)}
    assert levels["temporary files"].remedy.startswith("export TMPDIR=")
    assert levels["caches"].remedy.startswith("export XDG_CACHE_HOME=")


CODE = """
import sys
from rescoldo.doctor import machine, room
from rescoldo.doctor.subject import Subject
from rescoldo.base import open_base
from rescoldo.training.config import RunConfig
config = RunConfig(train="a", val="b", output="c", base_model=sys.argv[1], quantization="fp32")
subject = Subject(config, open_base(sys.argv[1]))
print(*[f"{check.level}: {check.what} -> {check.remedy}" for check in CHECK(subject)], sep=chr(10))
"""


def within(kind: str, limits: dict[str, str], check: str) -> str:
    """What a check says of the sample model in fp32, in a control group of its own with these limits."""
    new, old = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup") / kind
    group = (old if old.is_dir() else new) / f"rescoldo-test-{os.getpid()}"
    try:
        group.mkdir()
        for name, value in limits.items():
            if name.startswith(f"{kind}.") and (group / name).exists():
                (group / name).write_text(value)
    except OSError:
        pytest.skip("no control group can be made here")
    try:
        code = CODE.replace("CHECK", check)
        command = f"echo $$ > {group}/cgroup.procs && exec {sys.executable} -c '{code}' sample:smollm2"
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, timeout=120).stdout
    finally:
        group.rmdir()


def test_memory_within_a_real_container_limit():
    """1 GB: more than this program needs to look, less than it needs to train."""
    limits = {"memory.limit_in_bytes": "1000000000", "memory.max": "1000000000"}
    said = within("memory", limits, "room.memory")
    assert said.startswith("failure: fp32 needs at least")
    assert "within the container's limit of 1.0 GB" in said
    assert "-> --quantization " in said or "-> a smaller base model" in said


def test_a_real_cpu_quota():
    """Half a core."""
    limits = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000", "cpu.max": "50000 100000"}
    said = within("cpu", limits, "machine.threads")
    assert said.startswith("warning: ")
    assert "a quota of 0.5" in said
    assert "less than one core" in said
    assert "raise the CPU quota" in said


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_threads_follow_the_tightest_real_quota_on_the_path():
    """A group worth two cores in one worth one: one thread, for libraries too, and as many wanted are refused."""
    old = Path("/sys/fs/cgroup/cpu")
    outer = (old if old.is_dir() else Path("/sys/fs/cgroup")) / f"rescoldo-test-{os.getpid()}"
    inner = outer / "inner"
    try:
        inner.mkdir(parents=True)
        for group, quota in ((outer, "100000"), (inner, "200000")):
            for name, value in (("cpu.cfs_quota_us", quota), ("cpu.max", f"{quota} 100000")):
                if (group / name).exists():
                    with contextlib.suppress(OSError):  # version 1 refuses an inner quota above the outer one
                        (group / name).write_text(value, encoding="ascii")
        if not any((outer / name).exists() for name in ("cpu.cfs_quota_us", "cpu.max")):
            pytest.skip("no quota can be set here")
        code = (
            "import os; from rescoldo.system.cgroup import *; hold_libraries_to_quota(); "
            "print(cpu_quota(), available_threads(), os.environ.get('OMP_NUM_THREADS'))"
        )
        command = f'echo $$ > {inner}/cgroup.procs && exec {sys.executable} -c "{code}"'
        clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        done = subprocess.run(
            ["sh", "-c", command], capture_output=True, encoding="utf-8", check=True, timeout=60, env=clean
        )
        assert done.stdout.split() == ["1.0", "1", "1"]
    except OSError:
        pytest.skip("no control group can be made here")
    finally:
        for group in (inner, outer):
            with contextlib.suppress(OSError):
                group.rmdir()


def test_memory_too_small(subject, monkeypatch):
    """Failure where not even the least fits, warnings where it swaps, is tight, or must compute twice."""
    need = memory_need(subject.base.config, "fp32", subject.lora(subject.base), subject.rows)
    swap = type("Swap", (), {"free": 0})
    monkeypatch.setattr(room.psutil, "swap_memory", lambda: swap)
    for free, level in ((need.least - 1, "failure"), (need.least + 1, "warning"), (10 * need.full, "ok")):
        monkeypatch.setattr(room, "memory_available", lambda free=free: free)
        assert [check.level for check in room.memory(subject)] == [level]
    monkeypatch.setattr(room, "memory_available", lambda: need.least - 1)
    swap.free = 10**12
    (found,) = room.memory(subject)
    if memory_limit() is None:
        assert (found.level, "it would swap" in found.what) == ("warning", True)
    assert memory_left() is None or memory_left() > 0


def test_a_precision_that_cannot_hold_the_model_is_no_remedy(folder, monkeypatch):
    """nf4 is the smallest precision, but needs inputs in multiples of 64, which this model does not have."""
    odd = open_base(str(tiny_hf(folder / "odd", "llama", intermediate_size=96)))
    assert PRECISIONS["nf4"].misfits(odd.config) == {"down_proj": 96}
    subject = Subject(make_config(given(folder)), odd)
    need = {name: memory_need(odd.config, name, subject.lora(odd), subject.rows).least for name in PRECISIONS}
    assert min(need, key=lambda name: need[name]) == "nf4"
    monkeypatch.setattr(room, "memory_available", lambda: int(need["nf4"] / room.COMFORT) + 2)  # enough for nf4 alone
    (found,) = room.memory(subject)
    assert found.level in ("failure", "warning")
    assert "a smaller base model" in found.remedy


def test_examples_left_out_whose_length_is_not_known(subject, folder):
    """A line of preferences has several lengths: it is named, and the remedy names none."""
    data = replace(
        read_dataset(folder / "train.jsonl", get_role("ba"), subject.base.tokenizer(), 4096, None),
        overruns=[Overrun(3), Overrun(5, file="old.jsonl")],
    )
    found = named(list(content.datasets(replace(subject, train=data))), "training data")
    assert [check.level for check in found] == ["warning"]
    assert "line 3, line 5 of old.jsonl" in found[0].what
    assert found[0].remedy == "a larger --max-length, or shorter answers"


def test_needs_of_known_models():
    """Mistral-7B, r=8 on attention: 6.8 million trained parameters, a checkpoint of four times 27 MB."""
    from rescoldo.engine.config import DecoderConfig

    mistral = DecoderConfig("mistral", 32768, 4096, 14336, 32, 32, 8, 128, 1e-5, 1e6, 32768)
    lora = LoraConfig(8, 32, 0.1)
    assert 13.9e9 < memory_need(mistral, "bf16", lora, 1000).weights < 14.6e9
    assert 7e9 < memory_need(mistral, "int8", lora, 1000).weights < 8e9
    assert 0.4e9 < disk_need(mistral, lora, 3, 2) < 1.5e9


def test_output_in_use_by_a_second_process(folder, tmp_path, subject):
    out = tmp_path / "busy"
    config = make_config(given(folder, output=str(out)))
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        (found,) = room.output(Subject(config))
        assert found.level == "failure"
        assert f"process {process.pid} on " in found.what
        assert found.remedy.startswith(f"{program()} stop ")
    finally:
        process.kill()
        process.wait()
    (found,) = room.output(Subject(config))
    assert found.level == "ok"
    assert (out / LOCK_FILE).exists()


def test_output_foreign_a_file_and_resumable(folder, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "adapter_config.json").write_text("{}")
    for name in ("file", "foreign"):
        (found,) = room.output(Subject(make_config(given(folder, output=str(tmp_path / name)))))
        assert found.level == "failure"
    flags = [*tiny_run(folder), f"--output={tmp_path / 'run'}", "--max-steps=1"]
    assert rescoldo(tmp_path, "train", *flags).returncode == 0
    (done,) = named(checks(folder, output=str(tmp_path / "run"), max_steps="1"), "output")
    assert "finished" in done.what
    (tmp_path / "run" / "training_info.json").unlink()
    (resumable,) = named(checks(folder, output=str(tmp_path / "run"), max_steps="1"), "output")
    assert "it will resume from checkpoint-2" in resumable.what
    (other,) = named(checks(folder, output=str(tmp_path / "run"), max_steps="1", lr="0.02"), "output")
    assert other.level == "failure"
    assert "lr: 0.01 → 0.02" in other.what
    assert "--restart" in other.remedy


# machine


def test_threads(subject, folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GOMP_CPU_AFFINITY", "0")
    many = Subject(make_config(given(folder, threads="999")))
    found = list(machine.threads(many))
    assert [check.level for check in found] == ["warning"] * 3
    assert found[0].remedy.startswith("--threads ")
    assert {check.remedy for check in found[1:]} == {"unset OMP_NUM_THREADS", "unset GOMP_CPU_AFFINITY"}
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    assert "a quota of 0.5" in next(machine.threads(subject)).what


def test_load_of_another_process_is_named(subject):
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        (found,) = machine.load(subject)
        assert found.level == "warning"
        assert "python" in found.what or "most of it" in found.what
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize(("flags", "level"), [({"sse2", "avx_vnni"}, "warning"), ({"avx2", "fma", "f16c"}, "ok")])
def test_a_cpu_that_no_kernels_are_for(subject, monkeypatch, flags, level):
    monkeypatch.setattr(machine.processor, "instructions", lambda: frozenset(flags))
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    found = next(machine.cpu(subject))
    assert (found.name, found.level) == ("cpu", level)


def test_cpu_without_compiler_or_a_quick_precision(subject, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # nothing was built there before
    from rescoldo.engine import auto
    from rescoldo.engine.kernels import choose

    choose.use(None)  # no choice of an earlier test

    rates = {"fp32": 1e9, "bf16": 5e9, "int8": 9e9}
    monkeypatch.setattr(auto, "product_rates", lambda into, out: rates)
    try:
        found = {check.name: check for check in machine.cpu(subject)}
    finally:
        choose.use(None)  # nor this one's for a later test
    assert found["kernels"].remedy == "apt install gcc"
    assert found["precision"].remedy == "--quantization int8"
    assert "9.0 times slower" in found["precision"].what


def test_kernels_slower_than_the_cpu_allows_are_named_with_the_faster_ones(monkeypatch):
    from rescoldo.engine.kernels import choose
    from rescoldo.engine.kernels.build import usable

    names = [row.name for row in usable(processor.instructions(), vendor=processor.vendor())]
    if len(names) < 2:
        pytest.skip("one instruction set")
    try:
        for name, level in ((names[1], "warning"), (names[0], "ok")):
            monkeypatch.setenv("RESCOLDO_KERNELS", name)
            choose.use(None)
            (found,) = machine._kernels()
            assert found.level == level
            assert name in found.what
            assert level == "ok" or (names[0] in found.what and found.remedy == "unset RESCOLDO_KERNELS")
    finally:
        choose.use(None)


def test_a_name_of_no_kernels_is_a_failure_and_the_other_checks_go_on(folder, monkeypatch):
    from rescoldo.engine.kernels import choose

    monkeypatch.setenv("RESCOLDO_KERNELS", "mmx")
    try:
        choose.use(None)
        found = {check.name: check for check in checks(folder)}
    finally:
        choose.use(None)
    assert found["kernels"].level == "failure"
    assert "expected torch, " in found["kernels"].what
    assert found["kernels"].remedy == "unset RESCOLDO_KERNELS"
    assert {"threads", "load", "sleep", "libraries"} <= found.keys()


def test_power(subject, tmp_path, monkeypatch):
    (tmp_path / "governor").write_text("powersave\n")
    monkeypatch.setattr(machine, "GOVERNOR", tmp_path / "governor")
    battery = type("Battery", (), {"power_plugged": False, "percent": 40})
    monkeypatch.setattr(machine.psutil, "sensors_battery", lambda: battery, raising=False)
    assert [check.level for check in machine.power(subject)] == ["warning", "warning"]


def test_power_of_a_machine_that_tells_nothing(subject, tmp_path, monkeypatch):
    """As psutil does where there is no /sys/class/power_supply."""

    def absent():
        raise FileNotFoundError(2, "No such file or directory", "/sys/class/power_supply")

    monkeypatch.setattr(machine, "GOVERNOR", tmp_path / "none")
    monkeypatch.setattr(machine.psutil, "sensors_battery", absent, raising=False)
    assert [*machine.power(subject)] == []


def test_sleep(subject, tmp_path, monkeypatch):
    (tmp_path / "states").write_text("freeze mem disk\n")
    monkeypatch.setattr("rescoldo.system.awake.POWER_STATES", tmp_path / "states")
    monkeypatch.setenv("PATH", str(tmp_path))  # neither systemd-inhibit nor caffeinate
    assert next(machine.sleep(subject)).level == "warning"
    program = tmp_path / "systemd-inhibit"
    program.write_text("#!/bin/sh\nexec /bin/cat\n")
    program.chmod(0o755)
    assert next(machine.sleep(subject)).what == "the run will prevent sleep"
    (tmp_path / "states").write_text("\n")
    assert "cannot be suspended" in next(machine.sleep(subject)).what


def test_libraries(subject, monkeypatch):
    monkeypatch.setattr(machine, "requires", lambda name: ["torch>=99", "no-such-package-x", "rich; extra == 'z'"])
    (found,) = machine.libraries(subject)
    assert found.level == "failure"
    assert "torch>=99 is needed" in found.what
    assert found.remedy.endswith("python -m pip install 'torch>=99' no-such-package-x")


def test_quick_enough(folder, tmp_path):
    """What the checks add to a start: everything but opening model and data, under two seconds of this process."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    config = make_config(given(folder, output=str(tmp_path / "out")))
    subject = Subject(config, open_base(config.base_model))
    for check in (
        machine.threads,
        machine.load,
        machine.power,
        machine.sleep,
        machine.libraries,
        room.disk,
        room.memory,
    ):
        list(check(subject))
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


def test_each_dataset_is_parsed_once_before_the_first_step(folder, tmp_path, monkeypatch):
    """By the first look at the data, the tokenization and the checks together; and by doctor alone."""
    from rescoldo.data import records
    from rescoldo.training.prepare import prepare
    from tests.training.fake import Silent

    opened: list[str] = []
    whole = records.read_lines

    def counted(path):
        opened.append(path.name)
        return whole(path)

    for module in ("records", "audit", "fix", "split"):
        monkeypatch.setattr(f"rescoldo.data.{module}.read_lines", counted)
    monkeypatch.setattr("rescoldo.doctor.content.read_lines", counted, raising=False)
    config = make_config(given(folder, output=str(tmp_path / "out")))
    parts = real_parts()
    parts.preflight(prepare(config, parts, Silent(), restart=False), Silent(), True)
    assert sorted(opened) == ["train.jsonl", "val.jsonl"]
    opened.clear()
    checks(folder)
    assert sorted(opened) == ["train.jsonl", "val.jsonl"]
