"""Measures what a shard, a state, a merge and a sequence cost, and simulates 10^12 tokens and workers that die.

Times are of one CPU, as it was busy with this process, if nothing else is said. The exit status is 1 if a result has
other bits than it must have.

    python benchmarks/scale.py                        # small numbers of everything, in less than a minute
    python benchmarks/scale.py --full                 # a state of 10^5 lines, 10^4 shards on a cluster: 20 minutes
    python benchmarks/scale.py --only tokens dask     # parts of it
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import pickle
import random
import signal
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np

from tokenloss import LossMeter, compare, evaluate, sequence_losses
from tokenloss.formats import open_scores
from tokenloss.results import Evaluation
from tokenloss.sinks import TokenTable

TOKENS = 10**12  # of the simulation
MERGED = 200  # evaluations, whose `sum` takes a time that grows with the square of their number
ORDERS = 5  # in which its meters are merged
TRACED = 500  # files whose memory is counted, which is slow
LARGE = 64 << 20  # bytes of a file, to see how many of them are read


class Sizes(NamedTuple):
    """How much of everything."""

    files: int
    meters: int
    sequences: int
    blocks: int  # of an engine, each a line of the state
    shards: int  # on the cluster
    kills: int  # of its workers


QUICK = Sizes(files=400, meters=10_000, sequences=50_000, blocks=1000, shards=150, kills=1)
FULL = Sizes(files=20_000, meters=100_000, sequences=1_000_000, blocks=100_000, shards=10_000, kills=3)
Row = tuple[str, str]


class WrongBitsError(Exception):
    """A result is not the one that it must be."""


def check(is_right: bool, words: str) -> None:
    """Raise an error if a result is not as these words say."""
    if not is_right:
        raise WrongBitsError(f"not so: {words}")


def cpu_seconds(function: Callable[[], Any], calls: int = 1) -> float:
    """Seconds of CPU that a call takes."""
    start = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - start) / calls


def kept_bytes(function: Callable[[], Any]) -> tuple[Any, int]:
    """The result of a call, and the memory that it holds."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    result = function()
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return result, kept


def bytes_read() -> int:
    """Bytes that this process has read by calls; 0 where the system does not tell. Maps of files do not count."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def meter_of(losses: Any, **lengths: Any) -> LossMeter:
    """Meter of an array of losses, each row of which is a sequence."""
    meter = LossMeter()
    meter.update(sequence_losses(losses, **lengths))
    return meter


# -- states and their sums --------------------------------------------------------------------------------------------


def states(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """What a meter weighs, and what it takes to pickle and to merge it."""
    rng = np.random.default_rng(0)
    few, many = (meter_of(rng.exponential(3, (n, 512)), n_bytes=np.full(n, 2048)) for n in (4, 4096))
    for name, meter in (("2048 tokens", few), ("2,097,152 tokens", many)):
        yield f"a LossMeter of {name}, pickled", f"{len(pickle.dumps(meter)):,} bytes"
    total = LossMeter()
    yield "merging a meter", f"{cpu_seconds(lambda: total.merge(many), 20_000) * 1e6:.1f} µs"
    yield "pickling a meter", f"{cpu_seconds(lambda: pickle.dumps(many), 2000) * 1e6:.0f} µs"
    data = pickle.dumps(many)
    yield "unpickling it", f"{cpu_seconds(lambda: pickle.loads(data), 2000) * 1e6:.0f} µs"  # noqa: S301 -- pickled above
    paths = save_files(folder, sizes.files)[:MERGED]
    parts = [evaluate(path, workers=1) for path in paths]
    yield "an Evaluation of a file, pickled", f"{len(pickle.dumps(parts[0])):,} bytes"
    for n in (len(parts) // 2, len(parts)):
        yield f"sum of {n} Evaluations", f"{cpu_seconds(lambda n=n: sum(parts[:n])) * 1e3:.0f} ms"
        yield f"Evaluation.of_parts of {n}", f"{cpu_seconds(lambda n=n: Evaluation.of_parts(parts[:n])) * 1e3:.0f} ms"
    check(Evaluation.of_parts(parts) == evaluate(paths), "evaluations add up to that of all files")


# -- 10^12 tokens -----------------------------------------------------------------------------------------------------


def times(meter: LossMeter, n: int) -> LossMeter:
    """The sum of n equal meters."""
    total = LossMeter()
    while n:
        if n & 1:
            total.merge(meter)
        meter, n = meter + meter, n >> 1
    return total


def tokens(sizes: Sizes, _folder: Path) -> Iterator[Row]:
    """Meters of shards that have 10^12 tokens together, merged in random orders."""
    rng = np.random.default_rng(1)
    losses = rng.exponential(3, (64, 8, 512))
    repeats = math.ceil(TOKENS / (sizes.meters * losses[0].size))
    kinds = [times(meter_of(part), repeats) for part in losses]
    meters = list(itertools.islice(itertools.cycle(kinds), sizes.meters))
    numbers = [n for n in range(len(kinds)) for _ in range(n, len(meters), len(kinds))]
    exact_parts = [sum(map(Fraction, part.ravel().tolist())) * repeats for part in losses]
    exact = sum(exact_parts[n] for n in numbers)
    sums, floats, start = [], set(), time.process_time()
    for order in range(ORDERS):
        random.Random(order).shuffle(meters)  # noqa: S311 -- the order need not be unpredictable
        total = LossMeter()
        for meter in meters:
            total.merge(meter)
        sums.append(total)
    seconds = time.process_time() - start
    for order in range(ORDERS):
        random.Random(order).shuffle(meters)  # noqa: S311 -- the order need not be unpredictable
        floats.add(sum([meter.total for meter in meters[1:]], meters[0].total) / total.count)
    check(all(one == sums[0] for one in sums), "any order gives the same bits")
    check(total.total == float(exact) and total.loss == float(exact / total.count), "the sum is the exact one")
    yield f"tokens of {sizes.meters:,} meters", f"{total.count:,}"
    yield "loss", f"{total.loss!r} ± {total.loss.stderr:.3g}"
    yield f"different results of {ORDERS} random orders", "1, the exact one"
    yield "different results of float64 sums in these orders", f"{len(floats)}"
    yield "merging all of them", f"{seconds / ORDERS:.2f} s"
    beyond = times(total, 1 << 14)
    beyond.update([1.0])
    check(beyond.count == (total.count << 14) + 1 > 2**53, "counts are exact beyond 2^53")
    check(beyond.total == float(exact * 2**14 + 1), "so are sums")
    yield "tokens of 16,384 times as many, and one", f"{beyond.count:,}"
    yield "the state of these, pickled", f"{len(pickle.dumps(beyond)):,} bytes"


# -- files ------------------------------------------------------------------------------------------------------------


def save_files(folder: Path, count: int) -> list[Path]:
    """Small files of scores, in subfolders of a thousand."""
    rng = np.random.default_rng(2)
    logits, targets = rng.normal(size=(64, 2, 8, 32)).astype(np.float32), rng.integers(32, size=(64, 2, 8))
    paths = [folder / f"{number // 1000:03}" / f"part-{number:06}.npz" for number in range(count)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            np.savez(path, logits=logits[number % 64] + number % 7, targets=targets[number % 64])
    return paths


def files(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """What a file costs that hardly holds anything: to open, to plan, to score, to resume."""
    paths = save_files(folder, sizes.files)
    state, some = folder / "files.state", paths[:1000]
    yield "opening a file", f"{cpu_seconds(lambda: [open_scores(path) for path in some]) / len(some) * 1e3:.2f} ms"
    for count in (len(paths) // 8, len(paths) // 4):
        seconds = cpu_seconds(lambda count=count: evaluate(paths[:count], workers=1)) / count
        yield f"evaluate of {count:,} files, for each", f"{seconds * 1e3:.2f} ms"
    whole: list[Evaluation] = []
    seconds = cpu_seconds(lambda: whole.append(evaluate(paths, workers=1, state=state))) / len(paths)
    yield f"evaluate of {len(paths):,} files with a state, for each", f"{seconds * 1e3:.2f} ms"
    size = state.stat().st_size
    yield "size of the state", f"{size / 1e6:.1f} MB, {size / len(paths):.0f} bytes for each file"
    seconds = cpu_seconds(lambda: check(evaluate(paths, state=state) == whole[0], "a resumed run has the same bits"))
    yield "resuming when all is done", f"{seconds:.1f} s, {seconds / len(paths) * 1e3:.2f} ms for each file"
    traced = paths[:TRACED]
    evaluate(traced[:1])
    actual, kept = kept_bytes(lambda: evaluate(traced, workers=1))
    yield "memory of the result, for each file", f"{kept / len(traced) / 1e3:.1f} kB"
    yield "the result pickled, for each file", f"{len(pickle.dumps(actual)) / len(traced) / 1e3:.1f} kB"
    large, state = folder / "large.npy", folder / "large.state"
    np.save(large, np.zeros((LARGE // 4096, 1024), np.float32))
    np.save(folder / "ids.npy", np.arange(LARGE // 4096) % 1024)
    for words in ("scoring", "resuming"):
        before = bytes_read()
        evaluate(open_scores(large, folder / "ids.npy"), state=state)
        yield f"bytes read beside the scores by {words} a file of 64 MB with a state", f"{bytes_read() - before:,}"


# -- blocks of an engine -----------------------------------------------------------------------------------------------


def blocks(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """The state of an engine's loop that has a line for each of very many blocks."""
    rng = np.random.default_rng(4)
    block = rng.normal(size=(2, 8, 32)).astype(np.float32), rng.integers(32, size=(2, 8))
    state, result = folder / "blocks.state", []

    def engine(first: int) -> Iterator[tuple[Any, Any]]:
        return itertools.repeat(block, sizes.blocks - first)

    seconds = cpu_seconds(lambda: result.append(evaluate(engine, state=state)))
    yield f"evaluate of {sizes.blocks:,} blocks with a state, for each", f"{seconds / sizes.blocks * 1e3:.2f} ms"
    size = state.stat().st_size
    yield "size of the state", f"{size / 1e6:.1f} MB, {size / sizes.blocks:.0f} bytes for each block"
    seconds = cpu_seconds(lambda: check(evaluate(engine, state=state) == result[0], "a resumed run has the same bits"))
    yield "resuming when all is done", f"{seconds:.1f} s, {seconds / sizes.blocks * 1e3:.2f} ms each"


# -- sequences and tokens ---------------------------------------------------------------------------------------------


def sequences(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """What is kept of each sequence, and written of each token."""
    rng = np.random.default_rng(3)
    batch = rng.normal(size=(1000, 4, 2)).astype(np.float32), rng.integers(2, size=(1000, 4))

    evaluate(itertools.repeat(batch, 1))
    result, kept = kept_bytes(lambda: evaluate(itertools.repeat(batch, sizes.sequences // 1000)))
    count = result.n_sequences
    yield f"memory of an Evaluation of {count:,} sequences, for each", f"{kept / count:.0f} bytes"
    yield "the same pickled", f"{len(pickle.dumps(result)) / count:.0f} bytes"
    yield "its meter pickled, in all", f"{len(pickle.dumps(result.meter)):,} bytes"
    logits, targets = rng.normal(size=(20_000, 4, 2)).astype(np.float32), rng.integers(2, size=(20_000, 4))
    np.savez(folder / "sequences.npz", logits=logits, targets=targets)
    state = folder / "sequences.state"
    evaluate(folder / "sequences.npz", state=state)
    yield "the state of a file of 20,000 sequences, for each", f"{state.stat().st_size / 20_000:.0f} bytes"
    base = rng.normal(size=(20_000, 32)).astype(np.float32)
    other, ids = base + np.float32(0.1) * base[::-1], rng.integers(32, size=20_000)
    compare(base[:9], other[:9], ids[:9])
    _, kept = kept_bytes(lambda: compare(base, other, ids))
    yield "memory of a Comparison, for each token", f"{kept / 20_000:.0f} bytes"
    for suffix in ("npy", "csv", "parquet"):
        path = folder / f"tokens.{suffix}"
        logits, targets = rng.normal(size=(20_000, 512)).astype(np.float32), rng.integers(512, size=20_000)
        try:
            evaluate([(logits, targets)], sinks=[TokenTable(str(path))])
        except ImportError as error:
            yield f"--per-token *.{suffix}", f"skipped ({error})"
            continue
        yield f"--per-token *.{suffix}, for each token", f"{path.stat().st_size / 20_000:.0f} bytes"


# -- a cluster --------------------------------------------------------------------------------------------------------


def cluster(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Shards on a local cluster of two workers, which are killed now and then."""
    try:
        import dask
        from distributed import LocalCluster
    except ImportError as error:
        yield "skipped", str(error)
        return
    paths = save_files(folder, sizes.shards)
    whole = evaluate(paths, workers=1)
    settings = {"distributed.scheduler.allowed-failures": 100}  # workers that may die under a shard; else 3
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as local,
    ):
        evaluate(paths[:2], scheduler=local.scheduler_address)
        start, own = time.perf_counter(), time.process_time()
        result = evaluate(paths, scheduler=local.scheduler_address)
        seconds, own = time.perf_counter() - start, time.process_time() - own
        check(result == whole, "a cluster gives the same bits")
        yield f"{len(paths):,} shards on two workers, by the clock", f"{seconds:.1f} s"
        yield "CPU of the scheduler and of the caller, for each", f"{own / len(paths) * 1e3:.1f} ms"
        killed: list[int] = []
        ended = threading.Event()
        pause = max(0.2, seconds / (sizes.kills + 1))
        killer = threading.Thread(target=kill_workers, args=(local, sizes.kills, pause, killed, ended))
        killer.start()
        start = time.perf_counter()
        try:
            result = evaluate(paths, scheduler=local.scheduler_address)
        finally:
            ended.set()
            killer.join()
        check(result == whole, "workers that die change no bit")
        seconds = time.perf_counter() - start
        yield f"the same, while workers are killed ({len(killed)})", f"{seconds:.1f} s, the same bits"


def kill_workers(local: Any, most: int, pause: float, killed: list[int], ended: threading.Event) -> None:
    """Kill one of the workers of a local cluster every now and then."""
    from distributed import Client

    with Client(local.scheduler_address, set_as_default=False) as client:
        while len(killed) < most and not ended.wait(pause):
            left = [pid for pid in client.run(os.getpid, on_error="ignore").values() if pid not in killed]
            if len(left) > 1:
                killed.append(left[0])
                os.kill(left[0], getattr(signal, "SIGKILL", signal.SIGTERM))


PARTS = {"states": states, "tokens": tokens, "files": files, "sequences": sequences, "blocks": blocks, "dask": cluster}


def main() -> int:
    """Measure and print what was asked for; the exit status."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sized = parser.add_mutually_exclusive_group()
    sized.add_argument("--quick", action="store_true", help="small numbers of everything (default)")
    sized.add_argument("--full", action="store_true", help="the numbers that the documentation quotes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    for name in Sizes._fields:
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"number of {name}")
    options = parser.parse_args()
    given = {name: value for name in Sizes._fields if (value := getattr(options, name)) is not None}
    sizes = (FULL if options.full else QUICK)._replace(**given)
    print(harness.machine()["processor"])
    with tempfile.TemporaryDirectory() as folder:
        for part in options.only:
            print(f"\n{part}")
            try:
                for words, value in PARTS[part](sizes, Path(folder)):
                    print(f"  {words:70} {value}", flush=True)
            except WrongBitsError as error:
                print(f"  WRONG: {error}")
                return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
