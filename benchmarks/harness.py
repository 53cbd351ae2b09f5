"""How things are timed: contenders of a case take turns, and each is compared with tokenloss in the same round."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import math
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

REFERENCE = "tokenloss"
UNITS = ("read", "copy", "product")  # contenders whose speed others are measured by
SAMPLE = 0.01  # seconds of calls in a row
CHEAP = 1.0  # seconds that every case may last: short samples are repeated until then
MOST_PREPARED = 5  # calls in one sample of a case that prepares each call
LONG, FEW_ROUNDS = 0.4, 3  # a contender whose call takes more seconds than LONG has FEW_ROUNDS rounds

# Thread pools (OpenMP's above all) spin for a while after their last call, on the next contender's cores.
SETTLE = 0.025  # seconds, where a case has several threads

DISTRIBUTIONS = (
    "tokenloss", "numpy", "scipy", "scikit-learn", "torch", "onnxruntime", "jax", "jaxlib", "ml_dtypes",
)  # fmt: skip
# What processors are called whose own names do not tell: by family and the upper half of the model's number.
GENERATIONS = {
    (25, 0): "Zen 3", (25, 1): "Zen 4", (25, 10): "Zen 4", (26, 0): "Zen 5", (26, 1): "Zen 5",
    (6, 6): "Ice Lake", (6, 8): "Sapphire Rapids", (6, 10): "Granite Rapids", (6, 12): "Emerald Rapids",
}  # fmt: skip


class UnavailableError(Exception):
    """A contender cannot run here, for this reason."""


@dataclass
class Contender:
    """One way to the result of a case."""

    name: str
    call: Callable[[], Any]  # returns a number, or an array of them
    tolerance: float | None = 0.0  # how far from tokenloss's number, relative to max(1, it); None: it is another number
    before: Callable[[], Any] | None = None  # before a row of calls, untimed
    holds: int = 0  # bytes of memory allocated once, beforehand, that other contenders do not need
    known: str = ""  # why its number may be inf or nan where tokenloss's is finite; nothing else is forgiven


@dataclass
class Case:
    """Contenders over the same input. Arrays must have been written to, for a page's first touch costs time."""

    title: str
    contenders: list[Contender]
    nbytes: int = 0  # of memory that has to be read; 0 where a rate would say nothing
    workers: int = 1
    prepare: Callable[[], None] | None = None  # before every call, untimed: say, moves on to rows that are not cached
    missing: dict[str, str] = field(default_factory=dict)
    settle: float = SETTLE
    rows: int = 0  # whose scores are reduced; 0 where the time of a row would say nothing
    memory: bool = False  # whether what a call allocates is measured


def gather(case: Case, builders: dict[str, tuple[str, Callable[..., Iterable[Contender]]]], *arguments: Any) -> Case:
    """Add the peers that are there to a case; the others are named with what would install them."""
    for name, (requirement, build) in builders.items():
        try:
            case.contenders.extend(build(*arguments))
        except ImportError:
            case.missing[name] = f"pip install {requirement}"
        except UnavailableError as error:
            case.missing[name] = str(error)
    return case


def measure(name: str, case: Case, rounds: int, *, quick: bool = False) -> dict[str, Any]:
    """All figures of a case, from at least this number of rounds."""
    seconds, cheap = (SAMPLE / 10, 0.0) if quick else (SAMPLE, CHEAP)
    if case.prepare:
        case.prepare()
    results, extra = [], []
    for contender in case.contenders:
        if contender.before:
            contender.before()
        results.append(_number(contender.call()))  # warms up, too
        extra.append(_extra_memory(contender) if case.memory else None)
    single = [_sample(case, contender, 1) for contender in case.contenders]  # after all results: `prepare` changes them
    calls = [min(MOST_PREPARED if case.prepare else 1_000_000, 1 + int(seconds / elapsed)) for elapsed in single]
    most_rounds = [FEW_ROUNDS if elapsed > LONG else math.inf for elapsed in single]
    wall: list[list[float]] = [[] for _ in results]
    orders = np.random.default_rng(0)
    gc.collect()
    gc.disable()
    start, start_others = time.perf_counter(), _others_time()
    for turn in itertools.count():
        if turn >= rounds and time.perf_counter() - start > cheap:
            break
        for i in orders.permutation(len(results)):  # no fixed order: whoever comes after a long call has empty caches
            if turn < most_rounds[i]:
                wall[i].append(_sample(case, case.contenders[i], calls[i]) / calls[i])
    gc.enable()
    others = (_others_time() - start_others) / (time.perf_counter() - start)
    names = [contender.name for contender in case.contenders]
    reference = names.index(REFERENCE)
    units = {f"of_{unit}": wall[names.index(unit)] for unit in UNITS if unit in names}
    return {
        "name": name,
        "title": case.title,
        "workers": case.workers,
        "bytes": case.nbytes,
        "rows": case.rows,
        "missing": case.missing,
        "others_cpus": max(0.0, others),
        "contenders": [
            {
                "name": contender.name,
                "time": median(wall[i]),
                "times_tokenloss": _median_ratio(wall[i], wall[reference]),
                **{unit: _median_ratio(walls, wall[i]) for unit, walls in units.items()},
                "extra_bytes": extra[i],
                "agrees": _agrees(results[i], results[reference], contender.tolerance),
                "known": "" if math.isfinite(results[i]) else contender.known,
            }
            for i, contender in enumerate(case.contenders)
        ],
    }


def _number(result: Any) -> float:
    """A result, or the sum of an array of them."""
    return float(result.sum() if getattr(result, "ndim", 0) else result)


def _agrees(result: float, reference: float, tolerance: float | None) -> bool:
    """Whether a result is the reference's, within a tolerance."""
    return tolerance is None or abs(result - reference) <= tolerance * max(1.0, abs(reference))


def _median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median of the ratios of each round."""
    return median(a / b for a, b in zip(numerators, denominators, strict=False))  # one may have had fewer rounds


def _sample(case: Case, contender: Contender, calls: int) -> float:
    """The time of some calls."""
    call = contender.call
    if contender.before:
        contender.before()
    until = time.perf_counter() + (case.settle if case.workers > 1 else 0)
    while time.perf_counter() < until:  # sleeping would let the clock rate fall
        pass
    if not case.prepare:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return time.perf_counter() - start
    wall = 0.0
    for _ in range(calls):
        case.prepare()
        start = time.perf_counter()
        call()
        wall += time.perf_counter() - start
    return wall


def keep_freed_memory() -> None:
    """Let malloc keep freed arrays of up to 32 MB from the start, as it does after a while in a long run.

    Otherwise, the system clears the temporary arrays of other libraries at every call, and torch takes twice as long.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # where the C library is not glibc
        for parameter, size in (-3, 1 << 25), (-1, 1 << 30):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, size)


def _extra_memory(contender: Contender) -> int | None:
    """Bytes by which one call raises the peak of this process's resident memory; None where only Linux could tell.

    The kernel counts pages whoever allocated them: NumPy, torch, a JIT's runtime, a thread's stack. (Tracing would see
    NumPy's alone, and the threads of OpenMP do not survive a fork.) The peak is reset first, and free heap is given
    back, so that memory which an earlier call left is counted again. Pools of a library's own stay, and do not show.
    The kernel's counters are exact to some 100 kB.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # where the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        contender.call()
        return max(0, _status("VmHWM") - before) + contender.holds
    except OSError:
        contender.call()
        return None


def _others_time() -> float:
    """Seconds of CPU time that were not this process's, a hypervisor's other guests included; 0 but on Linux."""
    try:
        with Path("/proc/stat").open() as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except OSError:
        return 0.0
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def _status(key: str) -> int:
    """One of this process's memory counters, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(key)


def machine() -> dict[str, Any]:
    """Facts that figures depend on."""
    import tokenloss

    versions = {"Python": platform.python_version()}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    cache = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return {
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "last_level_cache": cache[-1].read_text().strip() if cache else "unknown",
        "system": f"{platform.system()} {platform.machine()}",
        "instruction_set": tokenloss.show_config(mode="dicts")["instruction_set"],
        "blas": _blas(),
        "versions": versions,
    }


def _processor() -> str:
    """The processor's name with its generation, which virtual machines leave out of the name."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in lines}
    name = facts.get("model name", platform.processor() or platform.machine()).replace("(R)", "").replace("(TM)", "")
    if "cpu family" not in facts:
        return name
    family, model = int(facts["cpu family"]), int(facts["model"])
    return f"{name} ({GENERATIONS.get((family, model // 16), f'family {family}, model {model}')})"


def _blas() -> str:
    """What multiplies matrices for NumPy, and for which processor it takes this one."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return "unknown"
    result = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return ", ".join(
        f"{blas['internal_api']} {blas['version']} {blas.get('architecture', '')}".strip() for blas in result
    )
