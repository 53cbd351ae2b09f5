"""The command line in tests: run in their process or in one of its own, how it refuses, and a limit to its time."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from tokenloss._command.cli import main
from tokenloss._evaluation import checkpoint

LOGITS = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 9.0]], np.float32)
TARGETS = np.array([0, 1, 2, 0])
# keys of the JSON of `tokenloss score` that are sums over all tokens, or come from such sums
SUMMARY_FIELDS = (
    "count", "n_ignored", "loss", "stderr", "perplexity", "perplexity_interval", "accuracy", "bits_per_token",
    "n_bytes_read",
)  # fmt: skip


def run(*arguments):
    """Exit status of the command and what it prints to stderr: one line about bad input, and no JSON then."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*map(str, arguments), "--format", "json", "--workers", "1"])
    assert status in (0, 2)
    assert err.getvalue().count("\n") == (status == 2), err.getvalue()
    assert (json.loads(out.getvalue()) is not None) if status == 0 else not out.getvalue()
    return status, err.getvalue()


def process(*argv, stdout=subprocess.PIPE, program=("-m", "tokenloss"), **environment):
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", *program, *map(str, argv)],
        stdout=stdout, stderr=subprocess.PIPE, text=True, encoding="utf-8", timeout=60, check=False,
        env={"PYTHONUTF8": "1"} | os.environ | environment,
    )  # fmt: skip


def assert_refused(result, *words):
    """Check that a command ended with status 2 and one line that holds these words; `result` is of `command`."""
    status, out, err = result
    assert (status, out) == (2, "")
    assert re.fullmatch(r"tokenloss: error: [^\n]+\n", err)
    for word in words:
        assert str(word) in err, err


def read_state(path):
    """The options and the entries of a checkpoint, which has a line for each, after its hash."""
    first, *entries = (json.loads(line.partition(b" ")[2]) for line in Path(path).read_bytes().splitlines())
    return first | {"done": entries}


def write_state(path, state):
    """Write what `read_state` returned, with the hashes that belong to it."""
    entries = [{name: value for name, value in state.items() if name != "done"}, *state["done"]]
    Path(path).write_bytes(b"".join(map(checkpoint._line, entries)))


def raising(error):
    """Make a function that raises this error."""

    def function(*_, **__):
        raise error

    return function


@contextlib.contextmanager
def at_most(seconds):
    """Fail instead of waiting longer, where the platform has alarms."""

    def late(*_):
        raise AssertionError(f"more than {seconds} seconds")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
