"""Ctrl-C and other signals: a long call ends within 0.2 s, and what was at work can be used again."""

import os

import pytest
from programs import LARGE

INTERRUPTED = """
import _thread, signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
DELAY = 0.03
PATIENCE = float(os.environ.get("PATIENCE", "1"))
# 0.2 s are promised: of two threads 0.4 s of processor time, whatever else the machine does; an emulated one is slow
LIMIT = 0.5 * PATIENCE


def interrupted(call):
    sent = []

    def interrupt():
        sent.append(time.process_time())
        _thread.interrupt_main()

    started = time.perf_counter()
    timer = threading.Timer(DELAY, interrupt)
    timer.start()
    try:
        call()
    except KeyboardInterrupt:
        late = time.process_time() - sent[0]
        assert late < LIMIT, f"late by {late:.2f} s of processor time"
    else:
        raise AssertionError(f"it was over after {time.perf_counter() - started:.2f} s")
    finally:
        timer.cancel()
        timer.join()


huge = 2**36
row = np.zeros(2**17, np.float16)
rows = np.broadcast_to(row, (huge, row.size))
windows = np.lib.stride_tricks.sliding_window_view(np.zeros(2**24 + 2**17, np.float16), 2**17)[: 2**24]
half = np.broadcast_to(np.float32(0.5), (1, huge))
nothing = np.broadcast_to(np.float32(0), (1, huge))
ids = np.broadcast_to(np.int8(0), huge)
expected = large(2)
"""


OF_MANY_ROWS = [
    "cross_entropy(rows[:2**24], ids[:2**24], workers=WORKERS)",
    "cross_entropy(windows, ids[:2**24], workers=WORKERS)",
    "cross_entropy(windows[:, ::-1], ids[:2**24], workers=WORKERS)",
    "cross_entropy(rows[:2**24, ::-1], ids[:2**24], workers=WORKERS)",
    "logsumexp(windows, workers=WORKERS)",
    "cross_entropy_loss(ids, rows, workers=WORKERS)",
    "nll_loss(rows, ids, where=np.broadcast_to(False, huge), workers=WORKERS)",
    "cross_entropy(rows[:2**24], rows[:2**24], workers=WORKERS)",
    "nll_loss(rows[:2**24], rows[:2**24], workers=WORKERS)",
]
OF_ONE_ROW = [
    "logsumexp(half)",
    "class_log_probs(half, [5, huge - 1])",
    "cross_entropy(half, [huge - 1])",
    "cross_entropy(half, half)",
    "cross_entropy(half, nothing)",
    "nll_loss(half, half)",
    "nll_loss(half, nothing)",
    "cross_entropy_loss(half, half)",
    "cross_entropy_loss(nothing, half)",
]
OF_PROJECTIONS = [
    "linear_cross_entropy(states, weight, ids[:2**24])",
    "linear_cross_entropy(states, weight, ids[:2**24], label_smoothing=0.1, workers=1)",
    "linear_token_scores(states[:2**20], weight, ids[:2**20], top_k=20)",
    "linear_cross_entropy(states[:24, :8], np.broadcast_to(np.ones(8, np.float32), (2**34, 8)), ids[:24])",
    "linear_cross_entropy(states[:24, :8], np.broadcast_to(np.float16(1), (2**34, 8)), ids[:24])",
    "linear_cross_entropy(states[:99, :8], np.broadcast_to(np.float16(1), (2**34, 8)), ids[:99])",
    "linear_cross_entropy(states[:2**18], weight, np.broadcast_to(np.float32(0), (2**18, 4096)))",
    "linear_cross_entropy(halves[:2**22], halves[:8192], ids[:2**22])",
    "linear_cross_entropy(halves[:99], halves[:2**22], ids[:99])",
    "linear_kl_divergence(states, weight, halves, weight)",
    "linear_compare(states[:24], halves[:2**24], states[:24], halves[:2**24], ids[:24], workers=1)",
]


@pytest.fixture
def interrupt_each(run_python):
    """Interrupt these calls, one after the other in one process, and use the threads after each."""

    def interrupt(calls, before=""):
        program = "".join(
            f"print({call!r}, flush=True)\ninterrupted(lambda: {call})\nassert large(2) == large(1) == expected\n"
            for call in calls
        )
        run_python(LARGE + INTERRUPTED + before + program, timeout=20 * len(calls))

    return interrupt


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_interrupt_of_many_rows_by_workers(workers, interrupt_each):
    interrupt_each(OF_MANY_ROWS, f"WORKERS = {workers}\n")


def test_interrupt_of_a_single_enormous_row(interrupt_each):
    interrupt_each(OF_ONE_ROW)


@pytest.mark.slow
def test_interrupt_of_a_projection(interrupt_each):
    before = """
import ml_dtypes
from tokenloss import linear_compare, linear_cross_entropy, linear_kl_divergence, linear_token_scores

states, weight = np.broadcast_to(np.float32(0.5), (2**24, 64)), logits.reshape(-1, 64)[:4096]
halves = np.broadcast_to(np.zeros(64, ml_dtypes.bfloat16), (2**24, 64))
"""
    interrupt_each(OF_PROJECTIONS, before)


def test_interrupt_of_a_meter(run_python):
    run_python(
        LARGE
        + INTERRUPTED
        + """
meter = LossMeter()
interrupted(lambda: meter.update(np.broadcast_to(0.5, 2**30)))
assert meter == LossMeter()
"""
    )


@pytest.mark.slow
def test_interrupt_leaves_the_pool_usable_again_and_again(run_python):
    run_python(
        LARGE
        + INTERRUPTED
        + """
for _ in range(4):
    interrupted(lambda: logsumexp(rows[:2**24], workers=4))
    assert large(4) == expected
"""
    )


def test_interrupt_at_any_step_leaves_the_pool_usable(run_python):
    run_python(
        LARGE
        + """
from pathlib import Path

import tokenloss

OURS = {str(Path(tokenloss.__file__).parent / "_core" / "threads.py"), threading.__file__}
expected = large(4)


class Interrupt:
    def __init__(self, step):
        self.left = step

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename in OURS:
            frame.f_trace_opcodes = True
            # early releases of Python 3.12 trace lines alone
            self.left -= event == ("line" if sys.version_info[:2] == (3, 12) else "opcode")
            if self.left < 0:
                raise KeyboardInterrupt
        return self


step, was_interrupted = 0, True
while was_interrupted:
    sys.settrace(Interrupt(step))
    try:
        was_interrupted = large(4) != expected
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    assert large(4) == expected
    step += 1
assert step > (50 if sys.version_info[:2] == (3, 12) else 100)
"""
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system sends no SIGINT to a process of its own")
def test_sigint_of_the_system_interrupts_too(run_python):
    run_python(
        LARGE
        + INTERRUPTED
        + """
signal.signal(signal.SIGALRM, signal.default_int_handler)
_thread.interrupt_main = lambda: os.kill(os.getpid(), signal.SIGALRM)
interrupted(lambda: logsumexp(rows[:2**24], workers=2))
assert large(2) == expected
"""
    )


def test_signal_handlers_run_in_a_long_call_and_their_errors_come_out(run_python):
    run_python(
        LARGE
        + INTERRUPTED
        + """
class Enough(Exception):
    pass


calls = []


def handler(number, frame):
    calls.append(number)
    if len(calls) == 3:
        raise Enough


signal.signal(signal.SIGINT, handler)
over = threading.Event()


def interrupt():  # two signals at once count as one, so that three may not be enough
    while not over.wait(0.1):
        _thread.interrupt_main()


sender = threading.Thread(target=interrupt)
sender.start()
try:
    logsumexp(rows[:2**24], workers=2)
except Enough:
    over.set()
    sender.join()
else:
    raise AssertionError("nothing was raised")
assert len(calls) >= 3
assert large(2) == expected
"""
    )
