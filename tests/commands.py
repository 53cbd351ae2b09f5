"""The command line, run in the process of the tests, and a limit to the time that it takes."""

import contextlib
import io
import json
import signal

from tokenloss.cli import main


def run(*arguments):
    """Exit status of the command and what it prints to stderr: one line about bad input, and no JSON then."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*map(str, arguments), "--json", "--workers", "1"])
    assert status in (0, 2)
    assert err.getvalue().count("\n") == (status == 2), err.getvalue()
    assert (json.loads(out.getvalue()) is not None) if status == 0 else not out.getvalue()
    return status, err.getvalue()


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
