"""One machine's worker, started by torchrun: `python -m rescoldo.cli.worker`, with RESCOLDO_NODES set."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

from rescoldo.errors import EXIT_FAILURE, EXIT_USAGE, RescoldoError
from rescoldo.invocation import program
from rescoldo.nodes.place import WorkerFolder, current_folder
from rescoldo.run.lock import process_start

AGAIN = 75  # exit code that makes torchrun start this worker again
WATCH_SECONDS = 0.5


def main() -> int:
    """Train according to the job. Errors that a restart cannot fix end the run; after others torchrun restarts."""
    place = current_folder()
    if place is None:
        print(f"error: this is started by `{program()} train --nodes`", file=sys.stderr)
        return EXIT_USAGE
    os.dup2(1, 2)  # torchrun's own output goes to a file; this worker's to the user
    job = place.job()
    if not job:  # the launcher has ended and removed its folder
        return EXIT_FAILURE
    _live_no_longer_than(int(job["launcher"]["pid"]), str(job["launcher"]["start"]))
    place.begin()
    return _work(place, job)


def _work(place: WorkerFolder, job: dict[str, object]) -> int:
    from rescoldo.assemble import real_parts
    from rescoldo.nodes.group import LostOthersError
    from rescoldo.nodes.together import train_here
    from rescoldo.training.config import RunConfig
    from rescoldo.training.progress import Reporter

    reporter = Reporter()
    config = RunConfig.model_validate(job["config"])
    try:
        result = train_here(
            config, real_parts(), adapter_bin=bool(job["adapter_bin"]), force=bool(job["force"]), reporter=reporter
        )
    except LostOthersError as error:
        reporter.say(f"{error.what}; continuing from the last checkpoint with the remaining machines")
        return AGAIN
    except RescoldoError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        place.end(error.exit_code, error=str(error))
        return error.exit_code
    if result.interrupted and not place.stopping:
        reporter.say("the machines of this run change: continuing from here with the present ones")
        return AGAIN
    place.end(128 + result.signal if result.signal else 0, summary=result.summary())
    return 0


def _live_no_longer_than(pid: int, start: str) -> None:
    """End when the launcher is gone and its lock is free; end torchrun first, which would restart this worker."""
    agent = os.getppid()

    def watch() -> None:
        while process_start(pid) == start:
            time.sleep(WATCH_SECONDS)
        with contextlib.suppress(OSError):
            if os.getppid() == agent:
                os.kill(agent, signal.SIGKILL)
        os._exit(EXIT_FAILURE)

    threading.Thread(target=watch, name="rescoldo-launcher-watch", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
