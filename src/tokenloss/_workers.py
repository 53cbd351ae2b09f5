"""The threads that share work on rows."""

from __future__ import annotations

import atexit
import collections
import contextlib
import os
import queue
import threading
import time
from typing import TYPE_CHECKING

from tokenloss import _arrays

if TYPE_CHECKING:
    from tokenloss import _core

VARIABLE = "TOKENLOSS_NUM_WORKERS"
MOST = 64  # threads, however many are asked for

# Waking a thread costs what reading some 100 kB does.
SMALL = 1 << 20  # bytes that the caller's thread reads alone
BLOCK = 1 << 18  # bytes that a thread takes at a time

EXIT_SECONDS = 1  # that an exit waits for threads which are still at work


class _Share:
    """What a thread of the pool does in some work, if it begins before the caller's thread is done."""

    __slots__ = ("_begun_by", "_ended", "_is_over", "_step", "_work", "error")

    def __init__(self, work: _core.Job, step: int) -> None:
        self._work, self._step = work, step
        self._begun_by: dict[str, str] = {}
        self._is_over = False
        self._ended = threading.Lock()
        self._ended.acquire()
        self.error: BaseException | None = None

    def _begins(self, who: str) -> bool:
        """Whether it is the pool's or the caller's, which leaves it undone: the first that asks has it."""
        return self._begun_by.setdefault("", who) == who

    def do(self) -> None:
        """In a thread of the pool: take rows until none is left."""
        if self._begins("pool"):
            try:
                self._work.run(self._step, False)
            except BaseException as error:
                self.error = error

    def end(self) -> None:
        """Tell the caller's thread."""
        self._is_over = True
        self._ended.release()

    def wait(self) -> None:
        """Wait for its end if it has begun, else have it never begin; to be called again if it was interrupted."""
        if not self._begins("caller") and not self._is_over:
            self._ended.acquire()


class _Pool:
    """Threads that do shares of work.

    That is what concurrent.futures has, too, but its semaphores are written in Python: Ctrl-C may come where one was
    locked and nothing yet sees to it that it is unlocked, and the pool hangs for good. Each step here is one of C.
    """

    def __init__(self) -> None:
        self._shares: queue.SimpleQueue[_Share | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # a None for each thread that waits (or waited, if its next share was queued), and before these the numbers of
        # those that are not started
        self._free: collections.deque[int | None] = collections.deque(reversed(range(MOST)))

    def offer(self, share: _Share) -> None:
        """Have a thread do it, which is started if none waits; RuntimeError if it cannot be."""
        number = None
        with contextlib.suppress(IndexError):  # where all are busy, one will come to it
            number = self._free.pop()
        if number is not None:
            try:
                thread = threading.Thread(target=self._work, name=f"tokenloss_{number}", daemon=True)
                self._threads.append(thread)
                thread.start()
            except RuntimeError:
                self._threads.remove(thread)
                self._free.appendleft(number)
                raise
        self._shares.put(share)

    def _work(self) -> None:
        """Do shares until there is None."""
        while (share := self._shares.get()) is not None:
            share.do()
            self._free.append(None)  # before the caller, who may offer another, knows
            share.end()
            del share  # and its arrays

    def close(self) -> None:
        """End the threads: one that runs while the interpreter is taken down may leave it locked."""
        for _ in self._threads:
            self._shares.put(None)
        last = time.monotonic() + EXIT_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, last - time.monotonic()))


_pool = _Pool()


def _forget() -> None:
    """In a forked child: its parent's threads are not there."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(lambda: _pool.close())


def all_workers() -> int:
    """The number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers() -> int:
    """The number of threads that the environment asks for, else that of all CPUs."""
    given = os.environ.get(VARIABLE)
    if given:
        if not (given.isdecimal() and len(given) < 10 and int(given) >= 1):
            _arrays.fail("option", name=VARIABLE, got=given[:20], fits=f"an integer from 1 to {10**9 - 1}")
        return int(given)
    return all_workers()


def wanted(workers: int | None) -> int | None:
    """The number of threads that was asked for, None if that was left open."""
    if workers is None:
        return None
    fits = "a positive integer, -1 for all CPUs, or None"
    number = _arrays.integer("workers", workers, fits)
    return all_workers() if number == -1 else _arrays.integer("workers", number, fits, least=1)


def run(work: _core.Job, row_bytes: int, workers: int | None) -> None:
    """Do work on the caller's thread and, if there is much to read, on others; `workers` are as `wanted` gives them."""
    rows = work.rows
    if rows * row_bytes < SMALL:
        work.run(rows or 1, False)
        return
    step = max(BLOCK // row_bytes, work.rows_at_once())
    blocks = -(-rows // step)
    threads = min(workers or default_workers(), blocks, MOST)
    others: list[_Share] = []
    try:
        try:
            while len(others) < threads - 1:
                others.append(_Share(work, step))
                _pool.offer(others[-1])
        except RuntimeError:
            pass  # the interpreter is shutting down, or no thread can be had: the caller's thread does it all
        work.run(step, True)
        for other in others:
            other.wait()
            if other.error is not None:
                raise other.error
    except BaseException:
        work.stop()
        for other in others:
            other.wait()  # a second Ctrl-C ends this early; threads hold what they still write to
        raise
