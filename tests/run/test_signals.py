"""The first signal is noted, ignored signals stay ignored, the second Ctrl-C ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rescoldo.run.signals import EndAtOnce, EndedBySignal, Interruption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_first_signal_is_noted_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # the same keystroke, passed on by a launcher
        assert interruption.received == number
    assert signal.getsignal(number) == before


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_get_no_handlers():
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with Interruption():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors


def test_second_ctrl_c_leaves_at_once():
    code = (
        "import time\nfrom rescoldo.run.signals import EndAtOnce, EndedBySignal, Interruption\n"
        "with Interruption():\n    print('ready', flush=True)\n    end = time.time() + 30\n"
        "    while time.time() < end: time.sleep(0.01)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130
    assert process.stderr is not None
    assert "SIGINT: finishing this micro-batch" in process.stderr.read()


def test_while_loading_a_signal_ends_at_once_whatever_swallows_exceptions():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(EndedBySignal, match="SIGTERM"), EndAtOnce(), contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
