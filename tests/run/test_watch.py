"""`rescoldo watch` on a terminal beside a live run: it draws, follows a resize, and leaves the run alone."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from rescoldo.run.lock import read_holder
from rescoldo.run.status import read_status
from tests.run.common import environment

RUN = """
import json, sys, time
from pathlib import Path
from rescoldo.run.lock import RunLock
from rescoldo.run.state import StateFile
output = Path(sys.argv[1])
with RunLock(output):
    (output / "run.json").write_text(json.dumps({"config": {"base_model": "sample:smollm2"}, "started": "today"}))
    state = StateFile(output)
    for step in range(1, 10_000):
        with open(output / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "loss": 9 / step}) + chr(10))
        (output / "run.log").open("a").write(f"step {step} is done" + chr(10))
        state.update(now=True, phase="training", epoch=1, epochs=3, step=step, steps=10_000, loss=9 / step)
        time.sleep(0.2)
"""


class Terminal:
    """A program on a pseudo-terminal, and what it has written since the last look."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.fd, theirs = pty.openpty()
        self.resize(24, 80)
        own = environment(folder)
        del own["COLUMNS"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rescoldo", *arguments],
            env=own | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
            stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 (no threads here)
        )  # fmt: skip
        os.close(theirs)

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, pattern: str, seconds: float = 30.0) -> str:
        """What came until the pattern was there."""
        text, end = "", time.monotonic() + seconds
        while not re.search(pattern, text):
            ready, _, _ = select.select([self.fd], [], [], 0.5)
            try:
                text += os.read(self.fd, 65536).decode(errors="replace") if ready else ""
            except OSError:  # it has left the terminal
                break
            assert time.monotonic() < end, text
        return text

    def frame(self) -> list[str]:
        """The lines of a whole frame: it begins at the top left corner."""
        text = self.until(r"\x1b\[H[^\x1b]*training(?s:.)*\x1b\[H")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.split("\x1b[H")[-2]).splitlines()


@pytest.fixture
def run(tmp_path):
    output = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", RUN, str(output)])
    while read_status(output).status != "running":
        time.sleep(0.05)
    yield output
    process.kill()
    process.wait()


@pytest.mark.alone
@pytest.mark.parametrize("leave", [b"q", b"\x03", signal.SIGHUP])
def test_on_a_terminal(run, tmp_path, leave):
    terminal = Terminal(tmp_path, "watch", str(run), "--every=0.2")
    before = termios.tcgetattr(terminal.fd)
    for lines, columns in ((24, 80), (18, 60), (40, 120)):
        terminal.resize(lines, columns)
        terminal.until(r"\x1b\[H(?s:.)*\x1b\[H")
        frame = terminal.frame()
        assert len(frame) <= lines
        assert max(map(len, frame)) <= columns
        shown = "\n".join(frame)
        assert "running, training" in shown
        assert "loss by step" in shown
        assert "is done" in shown  # the log's last lines, at each size
    if isinstance(leave, bytes):
        os.write(terminal.fd, leave)
        last = terminal.until(r"\x1b\[\?1049l(?s:.)*is done")
        assert "\x1b[?25h" in last  # the cursor is there again
        assert terminal.process.wait(10) == 0
        assert termios.tcgetattr(terminal.fd)[3] == before[3]
    else:
        os.close(terminal.fd)  # the terminal is closed
        terminal.process.wait(10)
    step = read_status(run).state["step"]
    time.sleep(0.5)
    found = read_status(run)
    assert found.status == "running"
    assert found.state["step"] > step
    holder = read_holder(run)
    assert holder is not None
    assert holder.alive
