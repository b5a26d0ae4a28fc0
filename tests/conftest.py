"""Shared by all tests. That this file exists in a package is what makes `from tests.base.make_models import …` work."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

# minutes each, most of them first
LONGEST = (
    *("nodes/test_elastic.py", "export/test_llama_cpp.py", "arm/test_arm.py", "nodes/test_two.py", "run/test_chaos.py"),
    *("evaluation/test_real_server.py", "packaging/test_wheels.py", "engine/test_precision.py", "test_benchmarks.py"),
    *("evaluation/test_real_judge.py", "export/test_served_sizes.py", "export/test_memory.py", "run/test_detach.py"),
    *("doctor/test_plan.py", "training/test_resume.py", "engine/test_native.py"),
)
WORKER_BYTES = 2_500_000_000  # memory that a worker and what it starts may take

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Several tests at a time: threads that wait must not take the processor from those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="rescoldo-tests-state-")  # no test's run in the user's list

# A shell's background jobs inherit Ctrl-C as ignored, those of nohup the signal of a closed terminal, and so would the
# processes that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("beside others", deadline=None)  # how long an example takes depends on what runs beside it
settings.load_profile("beside others")


def pytest_configure(config: pytest.Config) -> None:
    """Processes that tests start find no mistral_common, as with most users: gguf imports it where it is installed, and
    that takes 0.4 s. The tests that compare with it do so in their own process, which is a worker of xdist if there are
    any."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        lean = str(Path(__file__).parent / "lean")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [lean, os.environ.get("PYTHONPATH")]))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`: one worker more than this container may use cores, since many tests wait for other processes; fewer if
    there is not the memory for so many."""
    from rescoldo.system.cgroup import available_threads

    return max(1, min(available_threads() + 1, psutil.virtual_memory().available // WORKER_BYTES))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, the longest before all: with the quick ones last, the workers end at about the same
    time. A file stays together, since its fixtures are made once for it."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    here = Path(__file__).parent
    rank = {here / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (rank.get(item.path, len(rank)), item.path not in slow))
