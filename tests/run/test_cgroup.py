"""CPU quotas of nested control groups, from files that look like the kernel's."""

from __future__ import annotations

import os

import pytest

from rescoldo.system import cgroup


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """`groups(own, {folder: {file: content}})` makes them this process's."""
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "fs")
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    def make(own: str, files: dict[str, dict[str, str]]) -> None:
        (tmp_path / "own").write_text(own, encoding="ascii")
        for folder, contents in files.items():
            (tmp_path / "fs" / folder).mkdir(parents=True, exist_ok=True)
            for name, text in contents.items():
                (tmp_path / "fs" / folder / name).write_text(text, encoding="ascii")

    return make


V2 = "cpu.max"


@pytest.mark.parametrize(
    ("files", "quota", "threads"),
    [
        ({"": {}, "a/b": {V2: "100000 100000\n"}}, 1.0, 1),  # no file at the top: the root group has none
        ({"a": {V2: "150000 100000\n"}, "a/b": {V2: "max 100000\n"}}, 1.5, 1),
        ({"a": {V2: "200000 100000\n"}, "a/b": {V2: "400000 100000\n"}}, 2.0, 2),
        ({"a": {V2: "max 100000\n"}, "a/b": {V2: "50000 100000\n"}}, 0.5, 1),
        ({"a": {V2: "max 100000\n"}, "a/b": {V2: "max 100000\n"}}, None, 8),
        ({"a/other": {V2: "50000 100000\n"}, "a/b": {V2: "max 100000\n"}}, None, 8),
        ({"a/b": {V2: "3200000 100000\n"}}, 32.0, 8),
        ({"a/b": {V2: "what\n"}}, None, 8),
        ({"": {V2: "300000 100000\n"}}, 3.0, 3),  # a container: the path is the host's, only its own group is mounted
    ],
)
def test_version_2(groups, files, quota, threads):
    groups("0::/a/b\n", files)
    assert cgroup.cpu_quota() == quota
    assert cgroup.available_threads() == threads


def version_1(quota: int, period: int = 100000) -> dict[str, str]:
    return {"cpu.cfs_quota_us": f"{quota}\n", "cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu": version_1(-1), "cpu/a": version_1(-1), "cpu/a/b": version_1(50000)}, 0.5),
        ({"cpu": version_1(-1), "cpu/a": version_1(100000), "cpu/a/b": version_1(-1)}, 1.0),
        ({"cpu,cpuacct/a/b": version_1(25000, 10000)}, 2.5),
        ({"cpu/a/b": version_1(100000, 0)}, None),
    ],
)
def test_version_1(groups, files, quota):
    groups("4:memory:/x\n3:cpu,cpuacct:/a/b\n0::/\n" if "cpu,cpuacct/a/b" in files else "3:cpu:/a/b\n", files)
    assert cgroup.cpu_quota() == quota


def test_libraries_are_held_to_a_quota_unless_the_user_says_otherwise(groups, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    groups("0::/a\n", {"a": {V2: "max 100000\n"}})
    cgroup.hold_libraries_to_quota()
    assert "OMP_NUM_THREADS" not in os.environ
    groups("0::/a\n", {"a": {V2: "200000 100000\n"}})
    cgroup.hold_libraries_to_quota()
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    cgroup.hold_libraries_to_quota()
    assert os.environ["OMP_NUM_THREADS"] == "5"
