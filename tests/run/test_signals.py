"""The first signal is noted, ignored signals stay ignored, the second Ctrl-C ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

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


class Dropped:
    """Something with a weak reference whose callback gets the signal, as those of the import locks can."""


def swallow(number: int) -> None:
    """Receive a signal where the exception is printed and dropped."""
    thing = Dropped()
    reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), number))
    del thing
    assert reference() is None


SWALLOWED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@SWALLOWED
def test_a_signal_whose_exception_was_dropped_is_raised_again_while_work_goes_on():
    before, began = signal.getsignal(signal.SIGALRM), time.monotonic()

    def work() -> None:
        swallow(signal.SIGTERM)
        while time.monotonic() < began + 20:
            time.sleep(0.01)

    with pytest.raises(EndedBySignal, match="SIGTERM"), EndAtOnce():
        work()
    assert time.monotonic() < began + 10
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[1] == 0.0


@SWALLOWED
def test_a_signal_whose_exception_was_dropped_ends_the_context():
    with pytest.raises(EndedBySignal, match="SIGTERM"), EndAtOnce():
        swallow(signal.SIGTERM)


@SWALLOWED
def test_a_signal_whose_exception_was_dropped_is_known_to_what_comes_after():
    with EndAtOnce():
        swallow(signal.SIGTERM)
        with Interruption() as interruption:
            assert interruption.received == signal.SIGTERM
            time.sleep(0.6)  # nothing is raised in here

    def nested() -> None:
        swallow(signal.SIGHUP)
        with EndAtOnce():
            pytest.fail("it was entered")

    with pytest.raises(EndedBySignal, match="SIGHUP"), EndAtOnce():
        nested()


def test_cleaning_up_after_a_signal_is_not_disturbed():
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            time.sleep(0.6)
            cleaned.append(True)

    with pytest.raises(EndedBySignal), EndAtOnce():
        work()
    assert cleaned
