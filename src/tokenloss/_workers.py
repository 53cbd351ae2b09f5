"""The threads that share work on rows."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from tokenloss import _arrays

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from tokenloss import _core

VARIABLE = "TOKENLOSS_NUM_WORKERS"
MOST = 64  # threads, however many are asked for

# Waking a thread costs what reading some 100 kB does.
SMALL = 1 << 20  # bytes that the caller's thread reads alone
BLOCK = 1 << 18  # bytes that a thread takes at a time

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def _forget() -> None:
    """In a forked child: its parent's threads are not there."""
    global _pool
    _pool = None
    _lock.release()


if hasattr(os, "register_at_fork"):
    # no fork while the pool is set up, which may import modules: a child could not finish that
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forget)


def default_workers() -> int:
    """What the environment says, else the number of CPUs that this process may use."""
    given = os.environ.get(VARIABLE)
    if given:
        if not given.isdecimal() or int(given) < 1:
            _arrays.fail("option", name=VARIABLE, got=given, fits="a positive integer")
        return int(given)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads() -> ThreadPoolExecutor:
    """The pool; it starts threads as they are first needed."""
    global _pool
    with _lock:
        if _pool is None:
            from concurrent.futures import ThreadPoolExecutor  # takes longer to import than all else here

            _pool = ThreadPoolExecutor(MOST, thread_name_prefix="tokenloss")
        return _pool


def _offer(work: _core.Work, step: int, others: list[Future[None]]) -> None:
    """Have a thread of the pool do a share of the work."""
    pool = _threads()
    from concurrent.futures import Future  # is there by now

    share: Future[None] = Future()
    # known before it is queued: a `submit` that starts no thread, or is interrupted, leaves it to a thread that is busy
    others.append(share)
    pool.submit(_help, share, work, step)


def _help(share: Future[None], work: _core.Work, step: int) -> None:
    """In a thread of the pool: do a share of the work, unless it was called off."""
    if share.set_running_or_notify_cancel():
        try:
            work.run(step, False)
        except BaseException as error:
            share.set_exception(error)
        else:
            share.set_result(None)


def wanted(workers: int | None) -> int | None:
    """The number of threads that was asked for, None if that was left open."""
    return None if workers is None else _arrays.integer("workers", workers, "a positive integer or None", least=1)


def run(work: _core.Work, row_bytes: int, workers: int | None) -> None:
    """Do work on the caller's thread and, if there is much to read, on others; `workers` are as `wanted` gives them."""
    rows = work.rows
    if rows * row_bytes < SMALL:
        work.run(rows or 1, False)
        return
    step = max(BLOCK // row_bytes, work.rows_at_once())
    blocks = -(-rows // step)
    threads = min(workers or default_workers(), blocks, MOST)
    others: list[Future[None]] = []
    try:
        try:
            while len(others) < threads - 1:
                _offer(work, step, others)
        except RuntimeError:
            pass  # the interpreter is shutting down, or no thread can be had: the caller's thread does it all
        work.run(step, True)
        for other in others:
            if not other.cancel():  # one that has not begun would find nothing to do
                other.result()
    except BaseException:
        work.stop()
        for other in others:
            if not other.cancel():
                other.exception()
        raise
