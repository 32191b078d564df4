"""A contender: a process that has loaded a model, and answers each line that it is sent with one of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


class Process:
    """Runs from when it is made until `close`.

    Attributes:
        greeting: its first line, which it writes when it is ready; empty if it ended before.
    """

    def __init__(self, command: Sequence[object], stderr: int | None = None) -> None:
        pipe = subprocess.PIPE
        words = [str(word) for word in command]
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=stderr, text=True)
        self.greeting = self._line()

    def ask(self, line: str) -> str:
        """Send a line and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        """End the process and wait until its memory is free."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
