"""Threads that work on the rows of a job in parallel, and how many of them a job gets."""

from __future__ import annotations

import atexit
import collections
import math
import os
import queue
import threading
import time
from typing import TYPE_CHECKING

from tokenloss._core.config import all_workers, default_workers
from tokenloss._core.validation import check_integer

if TYPE_CHECKING:
    from tokenloss._core import _core

MAX_THREADS = 64

WAKE_NS = 25_000  # to wake a thread: half on the caller's thread, half until the other one begins
SERIAL_NS = 4 * WAKE_NS  # less work stays on the caller's thread: to wake another would take a quarter of its time
GRAIN_NS = 20_000  # of work that a thread takes at a time
BLOCKS_PER_THREAD = 8  # at least, so that all end at nearly the same time

EXIT_SECONDS = 1  # to wait for threads at exit


class _Task:
    """The part of a job that a thread of the pool does, if it starts before the caller's thread is done."""

    __slots__ = ("_begun_by", "_ended", "_is_over", "_step", "_work", "error")

    def __init__(self, work: _core.Job, step: int) -> None:
        self._work: _core.Job | None = work
        self._step = step
        self._begun_by: dict[str, str] = {}
        self._is_over = False
        self._ended = threading.Lock()
        self._ended.acquire()
        self.error: BaseException | None = None

    def claim(self, who: str) -> bool:
        """Claim the task atomically, by dict.setdefault; if the caller claims it first, it is canceled."""
        return self._begun_by.setdefault("", who) == who

    def do(self) -> None:
        """Process rows until no row is left, in a thread of the pool, which has claimed the task."""
        work, self._work = self._work, None
        try:
            if work is not None:
                work.run(self._step, False)
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        """Wake the caller's thread."""
        self._is_over = True
        self._ended.release()

    def wait(self) -> bool:
        """Wait for the end, or cancel the task if it has not started; whether this call did. May be called again."""
        if self.claim("caller"):
            work, self._work = self._work, None  # whose arrays would stay until the pool comes to it
            return work is not None
        if not self._is_over:
            self._ended.acquire()
        return False


class _Pool:
    """Pool of threads.

    concurrent.futures has one, too, but its semaphores are written in Python: Ctrl-C may come between the lock and the
    code that unlocks it, and the pool hangs forever. Each step here is a single C call.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        # None for each thread that is idle or has its next task queued, after the numbers of threads not yet started
        self.free: collections.deque[int | None] = collections.deque(reversed(range(MAX_THREADS)))

    def submit(self, task: _Task) -> None:
        """Give the task to a thread, started if none is idle; RuntimeError if no thread can be started."""
        try:
            number = self.free.pop()
        except IndexError:  # all are busy: one will take it later
            number = None
        if number is not None:
            thread = threading.Thread(target=self._work, name=f"tokenloss_{number}", daemon=True)
            self._threads.append(thread)
            try:
                thread.start()
            except RuntimeError:
                self._threads.remove(thread)
                self.free.appendleft(number)
                raise
        self._tasks.put(task)

    def _work(self) -> None:
        """Run tasks until None comes."""
        while (task := self._tasks.get()) is not None:
            if task.claim("pool"):
                task.do()
                self.free.append(None)  # before the caller is woken and submits another
                task.end()
            del task  # and its arrays

    def close(self) -> None:
        """End the threads: one that runs during the interpreter's shutdown may leave it locked."""
        for _ in self._threads:
            self._tasks.put(None)
        last = time.monotonic() + EXIT_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, last - time.monotonic()))


_pool = _Pool()


def _new_pool_in_child() -> None:
    """Replace the pool in a forked child, which does not have its parent's threads."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_pool_in_child)
atexit.register(lambda: _pool.close())


def check_workers(workers: int | None) -> int | None:
    """Checked argument `workers`: the number of threads, or None for the default."""
    if workers is None:
        return None
    fits = "a positive integer, -1 for all CPUs, or None"
    number = check_integer("workers", workers, fits)
    return all_workers() if number == -1 else check_integer("workers", number, fits, least=1)


def run(work: _core.Job, workers: int | None) -> None:
    """Run a job on the caller's thread and, if it takes long, on others; `workers` is already checked."""
    rows, row_ns = work.rows, work.row_cost
    if rows * row_ns < SERIAL_NS:
        work.run(rows or 1, False)
        return
    useful = math.isqrt(int(rows * row_ns) // WAKE_NS)  # with more, waking takes longer than a share
    threads = min(workers or default_workers(), useful, MAX_THREADS)
    block_rows, at_once = min(GRAIN_NS / row_ns, rows / (threads * BLOCKS_PER_THREAD)), work.rows_at_once
    step = max(1, int(block_rows / at_once)) * at_once
    threads = min(threads, -(-rows // step))
    pool, tasks = _pool, list[_Task]()
    try:
        try:
            while len(tasks) < threads - 1:
                tasks.append(_Task(work, step))
                pool.submit(tasks[-1])
        except RuntimeError:
            tasks.pop()  # no thread can be started, or Python is shutting down: the caller's thread does it all
        work.run(step, True)
        for task in tasks:
            if task.wait():
                pool.free.append(None)  # a thread that has yet to begin it can take another
            if task.error is not None:
                raise task.error
    except BaseException:
        work.stop()
        for task in tasks:
            task.wait()  # a second Ctrl-C ends this early; threads keep the arrays they write to alive
        raise
