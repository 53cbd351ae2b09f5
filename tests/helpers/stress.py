"""Many threads call every function at once, with forks and Ctrl-C: `python tests/helpers/stress.py SECONDS`."""

from __future__ import annotations

import _thread
import dataclasses
import functools
import operator
import os
import signal
import sys
import threading
import time
import warnings

import numpy as np
from places import DATA
from programs import PATIENCE

import tokenloss
from tokenloss import (
    ComparisonMeter,
    LossMeter,
    calibration,
    class_log_probs,
    compare,
    cross_entropy,
    cross_entropy_and_grad,
    cross_entropy_loss,
    draft_acceptance,
    evaluate,
    kl_divergence,
    linear_compare,
    linear_cross_entropy,
    linear_kl_divergence,
    linear_token_scores,
    log_softmax,
    logsumexp,
    mismatch,
    nll_loss,
    sequence_losses,
    show_config,
    softmax,
    token_bytes,
    token_scores,
    topk_divergence_bound,
)  # fmt: skip
from tokenloss.formats import open_scores

THREADS = 32
WORKERS = [None, 1, 2, 3, 8, 64]

rng = np.random.default_rng(11)
LOGITS = rng.standard_normal((100, 8192), np.float32)  # 3 MB: threads share them
OTHERS = LOGITS + rng.standard_normal(LOGITS.shape, np.float32) / 4
TURNED = np.asfortranarray(LOGITS)
PROBS = np.exp(-np.abs(OTHERS))
IDS = rng.integers(0, 8192, 100)
NLL = rng.exponential(3, IDS.shape)
TOP_IDS, TOP_LOGPROBS = np.arange(2000).reshape(100, 20), -3 - rng.exponential(3, (2, 100, 20))
HIDDEN, WEIGHT = rng.standard_normal((20, 64), np.float32), rng.standard_normal((8192, 64)).astype(np.float16)


def of_blocks(workers):
    """The comparisons of two candidates by a meter that is updated in two blocks."""
    meter = ComparisonMeter(classes=8000, workers=workers)
    for rows in (slice(0, 7), slice(7, 100)):
        meter.update(LOGITS[rows], {"a": OTHERS[rows], "b": TURNED[rows]}, IDS[rows] % 8000)
    return tuple(meter.results().values())


def gradient_in_place(workers):
    """A loss, and the gradient written over the logits."""
    return cross_entropy_and_grad(own := LOGITS.copy(), IDS, label_smoothing=0.1, out=own, workers=workers)


# every public function; each is given the number of workers
CALLS = {
    "cross_entropy": lambda n: cross_entropy(LOGITS, IDS, reduction="none", workers=n),
    "cross_entropy, class by class": lambda n: cross_entropy(TURNED, IDS, workers=n),
    "cross_entropy, distributions": lambda n: cross_entropy(LOGITS, PROBS, z_loss=1e-3, softcap=9.0, workers=n),
    "cross_entropy_and_grad": gradient_in_place,
    "cross_entropy_loss": lambda n: cross_entropy_loss(PROBS, PROBS, reduction="sum", workers=n),
    "nll_loss": lambda n: nll_loss(-abs(LOGITS), OTHERS, workers=n),
    "logsumexp": lambda n: logsumexp(LOGITS, workers=n),
    "softmax": lambda n: softmax(LOGITS, workers=n),
    "log_softmax": lambda n: log_softmax(TURNED, workers=n),
    "token_scores": lambda n: token_scores(LOGITS, IDS, top_k=5, workers=n),
    "kl_divergence": lambda n: kl_divergence(LOGITS, OTHERS, reduction="none", workers=n),
    "mismatch": lambda _: mismatch(-NLL, -NLL[::-1]),
    "topk_divergence_bound": lambda _: topk_divergence_bound(TOP_IDS, TOP_LOGPROBS[0], TOP_IDS, TOP_LOGPROBS[1]),
    "class_log_probs": lambda n: class_log_probs(LOGITS, [5, 17, 4095, 5], logit_scale=1.5, workers=n),
    "calibration": lambda n: calibration(LOGITS, IDS, bins=5, workers=n).to_dict(),
    "compare": lambda n: compare(LOGITS, OTHERS, IDS, workers=n),
    "draft_acceptance": lambda n: draft_acceptance(LOGITS, OTHERS[:, :4000], temperature=0.7, workers=n),
    "ComparisonMeter": of_blocks,
    "linear_cross_entropy": lambda n: linear_cross_entropy(HIDDEN, WEIGHT, IDS[:20], workers=n),
    "linear_token_scores": lambda n: linear_token_scores(HIDDEN, WEIGHT, IDS[:20], top_k=3, workers=n),
    "linear_kl_divergence": lambda n: linear_kl_divergence(HIDDEN, WEIGHT, HIDDEN / 2, WEIGHT, workers=n),
    "linear_compare": lambda n: linear_compare(HIDDEN, WEIGHT, HIDDEN / 2, WEIGHT, IDS[:20], workers=n),
    "token_bytes": lambda _: token_bytes(DATA / "model"),
    "sequence_losses": lambda n: tuple(sequence_losses(NLL, segment_ids=IDS // 9).columns().values()),
    "evaluate": lambda n: evaluate([(LOGITS, IDS)], shift=False, workers=n).meter.total,
    "evaluate, of a file": lambda _: open_scores(DATA / "llama-cpp.npz", kind="logits").targets.sum(),
    "show_config": lambda n: tuple(show_config(mode="dicts").values()),
}
# what is no function, or calls functions that are in the table
LEFT_OUT = {"Comparison", "Comparisons", "DraftAcceptance", "Evaluation", "KindWarning", "LossMeter", "NormWarning",
            "ResponseComparison", "SampleComparison", "SampleMetric", "SequenceLosses", "ShiftWarning", "TokenScores",
            "TopkDivergence", "compare_files", "compare_samples", "compare_texts", "next_token", "windows"}  # fmt: skip
assert {name.split(",")[0] for name in CALLS} == {*tokenloss.__all__} - LEFT_OUT


def bits(result):
    """Every bit of the result of a call."""
    if dataclasses.is_dataclass(result):
        result = tuple(vars(result).values())
    if isinstance(result, tuple):
        return b"".join(map(bits, result))
    return result.tobytes() if isinstance(result, np.ndarray) else repr(result).encode()


class Crowd:
    """Threads that compare the results of calls with those of a single thread, and update meters."""

    def __init__(self, expected):
        self.expected = expected
        self.losses = CALLS["cross_entropy"](1)
        self.done = threading.Event()
        self.wrong = []
        self.calls = [0] * THREADS
        self.meters = [LossMeter() for _ in range(THREADS)]
        self.seen = LossMeter()  # never changed; each thread merges it into its own
        self.seen.update(self.losses)
        self.threads = [threading.Thread(target=self.work, args=[number]) for number in range(THREADS)]

    def work(self, number):
        """Call every function in an order of this thread's own."""
        choose = np.random.default_rng(number)
        try:
            while not self.done.is_set() or not self.calls[number]:
                name, workers = choose.choice(list(CALLS)), choose.choice(WORKERS)
                if bits(CALLS[name](workers)) != self.expected[name]:
                    self.wrong.append(f"{name} of {workers} workers")
                if number % 2:
                    self.meters[number].update(self.losses)
                else:
                    self.meters[number].merge(self.seen)
                self.calls[number] += 1
        except BaseException as error:
            self.wrong.append(f"{name} of {workers} workers: {error!r}")
            raise

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self.done.set()
        for thread in self.threads:
            thread.join()

    def check(self):
        """Compare the results of all threads."""
        assert not self.wrong, self.wrong
        assert min(self.calls) > 0
        total, expected = functools.reduce(operator.add, self.meters), LossMeter()
        for _ in range(sum(self.calls)):
            expected.merge(self.seen)
        assert total == expected


def fork(expected):
    """Call every function in a forked child; return its process id."""
    # From 3.12 on Python warns that a lock of another thread may be held forever in the child. This tests that the
    # locks of the package are not.
    with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):
        pid = os.fork()
    if pid == 0:
        signal.alarm(round(60 * PATIENCE))  # a child that hangs is killed
        right = False
        try:
            right = all(bits(call(4)) == expected[name] for name, call in CALLS.items())
        finally:
            os._exit(0 if right else 1)
    return pid


class Interrupts:
    """Ctrl-C again and again, while the main thread is in a call."""

    def __init__(self):
        self.in_a_call = False
        self.count = 0
        self.done = threading.Event()
        self.sender = threading.Thread(target=self.send)

    def send(self):
        """Interrupt the main thread again and again."""
        choose = np.random.default_rng(6)
        while not self.done.wait(choose.exponential(0.01)):
            _thread.interrupt_main()

    def handle(self, number, frame):
        """Take the signal."""
        if self.in_a_call:
            raise KeyboardInterrupt

    def during(self, call):
        """Return the result of a call, or None if it was interrupted."""
        result = None
        try:
            self.in_a_call = True
            result = call()
            self.in_a_call = False
        except KeyboardInterrupt:
            self.in_a_call = False
            self.count += 1
        return result

    def __enter__(self):
        signal.signal(signal.SIGINT, self.handle)
        self.sender.start()
        return self

    def __exit__(self, *error):
        self.done.set()
        self.sender.join()


def run(seconds):
    """Run threads, forks and interrupts for some seconds, or longer if no interrupt came yet; print how many."""
    expected = {name: bits(call(1)) for name, call in CALLS.items()}
    choose = np.random.default_rng(5)
    forks, forks_every, names = 0, seconds / 6, list(CALLS)
    with Crowd(expected) as crowd, Interrupts() as interrupts:
        end = time.monotonic() + seconds
        while ((now := time.monotonic()) < end or not interrupts.count) and not crowd.wrong:
            while time.monotonic() < now + forks_every:
                name, workers = choose.choice(names), choose.choice(WORKERS)
                result = interrupts.during(functools.partial(CALLS[name], workers))
                assert result is None or bits(result) == expected[name], name
            if hasattr(os, "fork"):
                _, status = os.waitpid(fork(expected), 0)
                assert status == 0, f"a child ended with status {status} (14: it hung)"
                forks += 1
    crowd.check()
    for name, call in CALLS.items():
        assert bits(call(8)) == expected[name], name
    print(f"{sum(crowd.calls)} calls, {interrupts.count} interrupts, {forks} forks")


if __name__ == "__main__":
    run(float(sys.argv[1]))
