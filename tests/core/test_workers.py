"""workers, the GIL and threads: how many start and when, many callers, fork, and the end of Python."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from arrays import DEFAULTS, assert_same_bits, fails
from programs import LARGE, PATIENCE

from tokenloss import cross_entropy, cross_entropy_loss, logsumexp, nll_loss, show_config, token_scores
from tokenloss._core import _core, threads
from tokenloss._core.validation import as_positions, as_scores, loss_options, without_targets


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(3).standard_normal((500, 4096)).astype(np.float32)


# how many threads, and when they start


def test_workers_are_not_started_by_small_calls(run_python):
    run_python(
        LARGE
        + """
for workers in (None, 8):
    for rows in (1, 2, 50):
        cross_entropy(logits[:rows], targets[:rows], workers=workers)
        logsumexp(logits[:rows], workers=workers)
        cross_entropy(logits[:rows], np.eye(4096, dtype=np.int8)[targets[:rows]], workers=workers)
    cross_entropy_loss(targets, np.exp(-abs(logits)), workers=workers)
    nll_loss(-abs(logits), targets, workers=workers)
assert threading.active_count() == 1
"""
    )


def test_workers_are_the_most_threads_of_a_large_call(run_python):
    run_python(
        LARGE
        + """
for workers in (1, 2, 4):
    large(workers)
    assert 1 < threading.active_count() <= workers or workers == threading.active_count() == 1
"""
    )


def test_workers_of_canceled_tasks_are_not_replaced(run_python):
    # each call is over before the other thread, which waits for the GIL, can begin its part
    run_python(
        """
import sys, threading
from types import SimpleNamespace
from tokenloss._core import threads

sys.setswitchinterval(100)
job = SimpleNamespace(rows=1000, row_cost=1e6, rows_at_once=1, run=lambda step, polls: None, stop=lambda: None)
for _ in range(20):
    threads.run(job, 2)
assert threading.active_count() == 2, threading.active_count()
"""
    )


def test_workers_after_an_interrupt_before_the_thread_has_started(run_python):
    run_python(
        LARGE
        + """
from tokenloss._core import threads

submit = threads._Pool.submit


def interrupted(pool, task):
    threads._Pool.submit = submit
    raise KeyboardInterrupt


threads._Pool.submit = interrupted
try:
    large(2)
except KeyboardInterrupt:
    large(2)
    assert threading.active_count() == 2
"""
    )


def test_workers_count_the_thread_of_the_caller(run_python):
    run_python(
        LARGE
        + """
assert large(1) == large(2)
assert threading.active_count() == 2  # the caller's and one more
"""
    )


@pytest.mark.parametrize("workers", [1, 3, 1000])
def test_workers_by_the_environment_variable(workers, run_python):
    printed = run_python(
        LARGE
        + """
large()
print(show_config(mode="dicts")["workers"], threading.active_count())
""",
        TOKENLOSS_NUM_WORKERS=str(workers),
    )
    told, threads = map(int, printed.split())
    assert told == workers
    assert threads <= min(workers, 64)
    assert (threads == 1) == (workers == 1)


def test_workers_that_all_refuse_a_row_name_the_first():
    rows = np.broadcast_to(np.float32(0.5), (4, 1 << 23))  # each thread takes one before another has read its own
    with fails(ValueError, "logits[0] has a row that adds up to 4.194e+06"):
        token_scores(rows, [0, 1, 2, 3], kind="probs", workers=4)


def test_workers_argument_wins_over_the_environment_variable(run_python):
    run_python(
        LARGE
        + """
for variable, workers in ("4", 1), ("1", 2):
    os.environ["TOKENLOSS_NUM_WORKERS"] = variable
    large(workers)
    assert threading.active_count() == workers
"""
    )


def test_workers_environment_variable_that_is_empty(monkeypatch):
    monkeypatch.delenv("TOKENLOSS_NUM_WORKERS", raising=False)
    config = show_config(mode="dicts")
    monkeypatch.setenv("TOKENLOSS_NUM_WORKERS", "")
    assert show_config(mode="dicts") == config


@pytest.mark.parametrize("value", ["0", "two", "1.5", " "])
def test_workers_environment_variable_that_is_bad(value, logits, monkeypatch):
    monkeypatch.setenv("TOKENLOSS_NUM_WORKERS", value)
    for call in (lambda: logsumexp(logits), show_config):
        with fails(ValueError, f"TOKENLOSS_NUM_WORKERS is {value!r}; it must be an integer from 1 to"):
            call()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no CPU affinity")
def test_workers_default_respects_the_cpu_affinity(run_python):
    run_python(
        LARGE
        + """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
large()
assert threading.active_count() == 1
assert show_config(mode="dicts")["workers"] == 1
"""
    )


def test_workers_default_is_the_number_of_cpus_of_the_process():
    expected = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if "TOKENLOSS_NUM_WORKERS" not in os.environ:
        assert show_config(mode="dicts")["workers"] == expected


def test_workers_beyond_the_rows_or_the_pool(logits):
    targets = np.zeros(500, int)
    expected = cross_entropy(logits, targets, workers=1)
    for workers in (499, 501, 10**6, 2**70):
        assert cross_entropy(logits, targets, workers=workers) == expected
    assert cross_entropy(logits.reshape(-1)[None], [5], workers=8) == cross_entropy(logits.reshape(-1), 5)


# how rows are shared: by what they cost


def job(loss, scores, targets=None):
    """The job of a loss of the core."""
    scores = as_scores("scores", scores, -1)
    if targets is None:
        return _core.LogSumExp(scores, without_targets(scores), None)
    positions = as_positions("targets", targets, scores, -100)
    if loss == "cross_entropy":
        return _core.CrossEntropy(scores, positions, None, loss_options(**DEFAULTS))
    kind = _core.ClassIdLoss if positions.by_class else _core.SoftTargetLoss
    return kind(scores, positions, None, True, 1e-12)


class Counted:
    """Work that only counts the calls of `run`."""

    def __init__(self, rows, row_cost, rows_at_once):
        self.rows, self.row_cost, self.rows_at_once, self.steps = rows, row_cost, rows_at_once, []

    def run(self, step, poll):
        self.steps.append(step)


def shared(rows, row_cost, workers, rows_at_once=1):
    """The rows that a thread takes at a time, and how many threads are used at most."""
    tasks, pool, work = [], threads._pool, Counted(rows, row_cost, rows_at_once)
    threads._pool = SimpleNamespace(submit=tasks.append, free=[])
    try:
        threads.run(work, workers)
    finally:
        threads._pool = pool
    (step,) = work.steps
    return step, len(tasks) + 1


@pytest.mark.thread_unsafe(reason="replaces the pool")
def test_rows_are_shared_where_waking_a_thread_costs_less():
    assert shared(0, 5.0, 8) == (1, 1)
    assert shared(1000, 99.0, 8) == (1000, 1)  # 0.1 ms
    assert shared(1000, 100.0, 8) == (62, 2)
    assert shared(1000, 400.0, 8) == (31, 4)
    assert shared(1000, 400.0, 1) == (50, 1)
    assert shared(10**6, 400.0, 8) == (50, 8)
    assert shared(10**6, 400.0, 10**6) == (50, 64)
    assert shared(3, 1e9, 8) == (1, 3)


@pytest.mark.thread_unsafe(reason="replaces the pool")
def test_blocks_are_multiples_of_the_rows_that_are_worked_on_together():
    assert shared(10**6, 5.0, 2, 64) == (3968, 2)
    assert shared(10**6, 1000.0, 2, 64) == (64, 2)
    assert shared(100, 10000.0, 8, 64) == (64, 2)


def test_short_and_class_major_rows_are_worked_on_together():
    for classes, expected in [(1, 64), (512, 64), (513, 1)]:
        assert job("", np.zeros((3, classes))).rows_at_once == expected
        assert job("cross_entropy_loss", np.zeros((3, classes)), np.zeros(3, int)).rows_at_once == expected
    assert job("", np.zeros((600, 1000), order="F")).rows_at_once == 64
    assert job("", np.zeros((60, 1000), np.float32, order="F")).rows_at_once == 16  # that share a cache line


@pytest.mark.parametrize("classes", [2, 100, 512, 513, 10000])
def test_rows_that_take_longer_cost_more(classes):
    x = np.zeros((4, classes), np.float32)
    ids, one_hot, soft = np.ones(4, int), np.eye(4, classes, dtype=np.float32), x + 1 / classes
    ascending = [
        job("cross_entropy_loss", x, ids),
        job("cross_entropy_loss", x, one_hot.astype(bool)),
        job("cross_entropy_loss", x, one_hot),
        job("", x),
        job("", x.astype(np.float64)),
        job("cross_entropy", x.astype(np.float64), one_hot),
        job("cross_entropy", x.astype(np.float64), soft),
    ]
    costs = [each.row_cost for each in ascending]
    assert costs == sorted(costs)
    assert costs[0] >= 2
    assert len(set(costs)) == len(costs)


# many callers


@pytest.mark.parametrize("workers", [None, 8])
def test_workers_of_sixteen_callers_at_once_give_the_same_bits(workers, logits):
    rng = np.random.default_rng(4)
    targets, shares = rng.integers(0, 4096, 500), np.abs(logits)
    calls = [
        lambda: cross_entropy(logits, targets, reduction="none", workers=workers),
        lambda: cross_entropy(logits, targets, weight=shares[0], workers=workers),
        lambda: cross_entropy_loss(shares, np.exp(-shares), workers=workers),
        lambda: nll_loss(-shares, np.tile(targets, 1), reduction="sum", workers=workers),
        lambda: logsumexp(logits, workers=workers),
    ]
    expected = [call() for call in calls]
    barrier = threading.Barrier(16)

    def caller(number):
        barrier.wait(30)
        order = np.random.default_rng(number).permutation(np.repeat(np.arange(len(calls)), 2))
        return [(k, calls[k]()) for k in order]

    with ThreadPoolExecutor(16) as callers:
        for results in callers.map(caller, range(16), timeout=60 * PATIENCE):
            for k, value in results:
                assert_same_bits(value, expected[k], f"call {k}")


def test_error_of_one_caller_does_not_reach_other_callers(logits):
    targets = np.zeros(500, int)
    expected = cross_entropy(logits, targets)

    def caller(number):
        if number % 2:
            with pytest.raises(IndexError):
                cross_entropy(logits, targets - 1, workers=4)
            return expected
        return cross_entropy(logits, targets, workers=4)

    with ThreadPoolExecutor(8) as callers:
        assert set(callers.map(caller, range(64), timeout=60 * PATIENCE)) == {expected}


def test_workers_that_cannot_be_started(run_python):
    run_python(
        """
import threading
from tokenloss._core import threads

busy, free, begun = threading.Event(), threading.Event(), threading.Event()


class Busy:
    def claim(self, who):
        return True

    def do(self):
        busy.set()
        assert free.wait(10)

    def end(self):
        pass


class Work:
    rows, row_cost, rows_at_once, ended = 100, 1e6, 1, False

    def run(self, step, ask):
        if ask:  # on the caller's thread
            free.set()
            begun.wait(0.3)
        else:
            begun.set()
            threading.Event().wait(0.3)
            self.ended = True


def refuse(thread):
    raise RuntimeError("can't start new thread")


threads._pool.submit(Busy())  # the pool has one thread, which is busy for a while
assert busy.wait(10)
threading.Thread.start = refuse
threads.run(work := Work(), 4)
assert work.ended or not begun.is_set()
"""
    )


# the GIL


@pytest.mark.parametrize("workers", [1, 2])
def test_gil_is_released_during_a_call(workers, run_python):
    """Another thread counts during a call. As threads are not made to switch, it can only do so if the call lets it."""
    run_python(
        LARGE
        + f"""
sys.setswitchinterval(1000)
rows = np.broadcast_to(np.zeros(2**17, np.float16), (2**12, 2**17))
turns, moved, done = 0, False, False


def count():
    global turns
    while not done:
        turns += 1
        time.sleep(0.0005)


thread = threading.Thread(target=count)
thread.start()
for _ in range(100):
    before = turns
    logsumexp(rows, workers={workers})
    moved = moved or turns > before
    if moved:
        break
done = True
thread.join()
assert moved
"""
    )


# fork and multiprocessing

FORKING = (
    LARGE
    + """
import signal, warnings

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forking a process of several threads
expected = large(1)


def child():
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)  # a child that hangs is killed
        right = large(4) == large(1) == expected and threading.active_count() > 1
        os._exit(0 if right else 1)
    return pid


def assert_right(pid):
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"status {status} (14: it hung)"
"""
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


@needs_fork
def test_fork_after_the_pool_was_used(run_python):
    run_python(
        FORKING
        + """
assert large(4) == expected
assert threading.active_count() > 1
assert_right(child())
assert large(4) == expected
"""
    )


@needs_fork
def test_fork_before_the_pool_was_used(run_python):
    run_python(FORKING + "assert_right(child()); assert large(4) == expected")


@needs_fork
def test_fork_while_other_threads_are_at_work(run_python):
    run_python(
        FORKING
        + """
done = threading.Event()


def work():
    while not done.is_set():
        assert large(4) == expected


threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
try:
    for _ in range(15):
        assert_right(child())
finally:
    done.set()
    for thread in threads:
        thread.join()
"""
    )


@pytest.mark.thread_unsafe(reason="works in processes of its own")
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow), "forkserver"])
def test_multiprocessing(method, tmp_path):
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"the system has no {method}")
    program = tmp_path / "program.py"
    program.write_text(
        LARGE
        + f"""
import functools, multiprocessing, warnings


def meter_of(part):
    meter = LossMeter()
    meter.update(cross_entropy(logits[part::3], targets[part::3], reduction="none", workers=2))
    return meter


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    with multiprocessing.get_context({method!r}).Pool(3) as pool:
        meters = pool.map_async(meter_of, range(3)).get(60)
    total = cross_entropy(logits, targets, reduction="sum", workers=2)
    assert functools.reduce(LossMeter.__add__, meters).total == total
"""
    )
    subprocess.run([sys.executable, str(program)], check=True, timeout=90)


# the end of the interpreter


def test_no_thread_of_the_pool_outlives_the_interpreter(run_python):
    """A daemon thread that still runs Python code while the interpreter is taken down can hang it without a GIL."""
    program = """
import atexit, threading
atexit.register(lambda: print(threading.active_count()))  # after what importing tokenloss registers
"""
    assert run_python(program + LARGE + "large(9), print(threading.active_count() > 1)").split() == ["True", "1"]


def test_calls_while_the_interpreter_shuts_down(run_python):
    printed = run_python(
        "import atexit\n"
        + LARGE
        + """
expected = large(1)
atexit.register(lambda: print(large(4) == expected))
large(2)
"""
    )
    assert printed.split() == ["True"]


def test_workers_of_minus_1_are_all_cpus(logits, run_python):
    for workers in (-1, np.int64(-1)):
        assert cross_entropy(logits, [0] * 500, workers=workers) == cross_entropy(logits, [0] * 500, workers=1)
    program = """
import os, threading
os.sched_getaffinity = lambda pid: {0, 1, 2}
import numpy as np, tokenloss
tokenloss.logsumexp(np.zeros((3000, 4096)), workers=-1)
print(threading.active_count())
"""
    assert run_python(program, TOKENLOSS_NUM_WORKERS="1").strip() == "3"


# arrays that change during a call


CHANGED = """
import contextlib
import sys
import threading
import numpy as np
from tokenloss import *

x = np.zeros((300_000, 3))
probs, weight, hidden, matrix = x + 1 / 3, np.ones(3), np.zeros((300_000, 2)), np.zeros((3, 2))


def change():
    while not stop.is_set():
        changing[:] = value
        changing[:] = 0


calls = [
    lambda: cross_entropy(x, changing, workers=2),
    lambda: cross_entropy(x, changing, weight=weight, workers=2),
    lambda: cross_entropy_and_grad(x, changing, weight=weight, workers=2),
    lambda: cross_entropy_loss(changing, probs, weight=weight, workers=2),
    lambda: token_scores(x, changing, top_k=2, workers=2),
    lambda: linear_token_scores(hidden[:3000], matrix, changing[:3000], workers=2),
    lambda: cross_entropy(x.T, changing, axis=0, workers=2),
]
for dtype, value in (np.int64, 10**12), (np.uint64, 2**64 - 2**40):
    changing, stop, thread = np.zeros(300_000, dtype), threading.Event(), threading.Thread(target=change)
    thread.start()
    for number, call in enumerate(calls):
        print("call", number, file=sys.stderr, flush=True)
        for _ in range(TIMES):
            with contextlib.suppress(IndexError):
                call()
    stop.set()
    thread.join()
"""


@pytest.mark.parametrize("times", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_targets_that_another_thread_changes_during_a_call_read_no_other_memory(times, run_python):
    run_python(CHANGED.replace("TIMES", str(times)))


# many threads, forks and Ctrl-C together: see stress.py


@pytest.mark.parametrize("seconds", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_32_threads_that_call_everything_get_the_bits_of_one(seconds, run_python):
    run_python(f"import stress; stress.run({seconds})", timeout=60 + 4 * seconds)
