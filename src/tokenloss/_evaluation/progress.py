"""Progress on a terminal: with rich where it is installed, else as plain text."""

from __future__ import annotations

import importlib
import math
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress


_PROGRESS_SECONDS = 1.0  # until progress is shown, and between two lines of plain text


def has_rich() -> bool:
    """Whether rich is installed."""
    try:
        importlib.import_module("rich")
    except ImportError:
        return False
    return True


class Progress:
    """Shows the progress of long work on stderr, if that is a terminal; a total of None shows nothing, 0 is unknown."""

    def __init__(self, total: int | None, label: str = "") -> None:
        self._total, self._label = total, label  # words before the numbers
        self._done = 0
        is_shown = total is not None and sys.stderr and sys.stderr.isatty()
        self._next = time.monotonic() + _PROGRESS_SECONDS if is_shown else math.inf
        self._bar: rich.progress.Progress | None = None
        self._line = ""

    def __enter__(self) -> Progress:
        """Start."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()
        elif self._line:
            self._write("")

    def advance(self, n_bytes: int, what: str = "") -> None:
        """Count bytes that are done; `what` names the last of them."""
        self._done, what = self._done + n_bytes, what or self._label
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done, description=what)
        elif time.monotonic() >= self._next:
            if has_rich():
                self._start_bar()
            else:
                self._next = time.monotonic() + _PROGRESS_SECONDS
                known = f"{self._done / self._total:4.0%} of {self._total / 1e9:.3g} GB" if self._total else ""
                label = f"{self._label} " if self._label else ""
                self._write(f"{label}{known}" if known else f"{what}, {self._done / 1e9:.3g} GB")

    def _write(self, line: str) -> None:
        """Replace the line of progress."""
        print("\r" + line.ljust(len(self._line)), end="" if line else "\r", file=sys.stderr, flush=True)
        self._line = line

    def _start_bar(self) -> None:
        """Start the progress bar of rich."""
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.add_task("", total=self._total or None, completed=self._done)
        self._bar.start()
