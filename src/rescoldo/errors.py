"""The one exception that users see, and the exit codes of the commands."""

from __future__ import annotations

EXIT_FAILURE = 1  # the work was started and failed, or a check did not pass
EXIT_USAGE = 2  # the request is invalid: flags, config, dataset, model
EXIT_BUSY = 3  # another process holds the output directory
EXIT_INTERRUPTED = 130  # a signal stopped the run; it can be resumed


class RescoldoError(Exception):
    """An error that the user can fix.

    Args:
        what: what is wrong, in one sentence.
        where: the file, line, field or flag, if any ("data.jsonl:7, requirements.title").
        fix: what to do next, if possible a command to type.
        exit_code: the process's exit code if this ends a command.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "", exit_code: int = EXIT_USAGE) -> None:
        self.what, self.where, self.fix, self.exit_code = what, where, fix, exit_code
        super().__init__(str(self))

    def document(self) -> dict[str, str]:
        """Its fields, for JSON."""
        return {"what": self.what, "where": self.where, "fix": self.fix}

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  → {self.fix}" if self.fix else text
