"""How things are timed: contenders of a case take turns, and each is compared with tokenloss in the same round."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

REFERENCE = "tokenloss"
UNITS = ("read", "product")  # contenders whose speed others are measured by
CHEAP = 250  # sample lengths that every case may last: short ones are repeated until then
MOST_PREPARED = 5  # calls in one sample of a case that prepares each call

# Thread pools (OpenMP's above all) spin for a while after their last call, on the next contender's cores.
SETTLE = 0.025  # seconds

DISTRIBUTIONS = (
    "tokenloss", "numpy", "scipy", "scikit-learn", "torch", "onnxruntime", "jax", "jaxlib", "numba", "ml_dtypes",
)  # fmt: skip


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
    share: float = 1.0  # of the case's bytes, what this one reads
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
    flops: int = 0  # additions and multiplications of floats; 0 likewise
    settle: float = SETTLE
    rows: int = 0  # whose scores are reduced; 0 where the time of a row would say nothing
    fresh: tuple[str, ...] = ()  # what fresh_process.py builds this case from, to measure memory; (): measured here


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


def measure(name: str, case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """Every figure of a case, from at least so many rounds. A sample is as many calls as last this long."""
    if case.prepare:
        case.prepare()
    results, extra, calls = [], [], []
    for contender in case.contenders:
        if contender.before:
            contender.before()
        results.append(_number(contender.call()))  # warms up, too
        extra.append(_fresh_memory(*case.fresh, contender.name) if case.fresh else extra_memory(contender))
        calls.append(_calls(contender.call, seconds, MOST_PREPARED if case.prepare else 1_000_000))
    wall: list[list[float]] = [[] for _ in results]
    cpu = [0.0 for _ in results]
    gc.collect()
    gc.disable()
    clocks = time.perf_counter(), _others_time()
    for turn in itertools.count():
        if turn >= rounds and time.perf_counter() - clocks[0] > CHEAP * seconds:
            break
        order = [(i + turn) % len(results) for i in range(len(results))]
        for i in order[:: 1 if turn % 2 == 0 else -1]:  # so that nobody always has the same predecessor
            elapsed, used = _sample(case, case.contenders[i], calls[i])
            wall[i].append(elapsed / calls[i])
            cpu[i] += used / calls[i]
    gc.enable()
    clock, others = time.perf_counter() - clocks[0], _others_time() - clocks[1]
    names = [contender.name for contender in case.contenders]
    reference = names.index(REFERENCE)
    units = {unit: wall[names.index(unit)] for unit in UNITS if unit in names}
    return {
        "name": name,
        "title": case.title,
        "workers": case.workers,
        "bytes": case.nbytes,
        "flops": case.flops,
        "rows": case.rows,
        "missing": case.missing,
        "others_cpus": max(0.0, others / clock),
        "contenders": [
            {
                "name": contender.name,
                "times_tokenloss": _median_ratio(wall[i], wall[reference]),
                **{
                    f"of_{unit}": contender.share * _median_ratio(units[unit], wall[i]) if unit in units else None
                    for unit in UNITS
                },
                "gb_per_s": contender.share * case.nbytes / median(wall[i]) / 1e9 if case.nbytes else None,
                "gflop_per_s": case.flops / median(wall[i]) / 1e9 if case.flops else None,
                "ns_per_row": median(wall[i]) / case.rows * 1e9 if case.rows else None,
                "median": median(wall[i]),
                "extra_bytes": extra[i],
                "cpus": cpu[i] / sum(wall[i]),
                "result": results[i],
                "agrees": _agrees(results[i], results[reference], contender.tolerance),
                "known": "" if math.isfinite(results[i]) else contender.known,
                "calls": calls[i],
            }
            for i, contender in enumerate(case.contenders)
        ],
    }


def _number(result: Any) -> float:
    """A result, or the sum of an array of them."""
    return float(result.sum() if getattr(result, "ndim", 0) else result)


def _calls(call: Callable[[], Any], seconds: float, most: int) -> int:
    """How many calls last this long."""
    start = time.perf_counter()
    call()
    return min(most, 1 + int(seconds / (time.perf_counter() - start)))


def _agrees(result: float, reference: float, tolerance: float | None) -> bool:
    """Whether a result is the reference's, within a tolerance."""
    return tolerance is None or abs(result - reference) <= tolerance * max(1.0, abs(reference))


def _median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median of the ratios of each round."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def _sample(case: Case, contender: Contender, calls: int) -> tuple[float, float]:
    """Wall and CPU time of some calls."""
    call = contender.call
    if contender.before:
        contender.before()
    until = time.perf_counter() + case.settle
    while time.perf_counter() < until:  # sleeping would let the clock rate fall
        pass
    if not case.prepare:
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            call()
        return time.perf_counter() - start, time.process_time() - start_cpu
    wall = cpu = 0.0
    for _ in range(calls):
        case.prepare()
        start, start_cpu = time.perf_counter(), time.process_time()
        call()
        wall += time.perf_counter() - start
        cpu += time.process_time() - start_cpu
    return wall, cpu


def extra_memory(contender: Contender) -> int | None:
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


def _fresh_memory(*arguments: str) -> int | None:
    """The same of the first call in a process of its own, where no library has a pool of memory yet."""
    script = Path(__file__).with_name("fresh_process.py")
    run = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE, check=True)
    found: int | None = json.loads(run.stdout)
    return found


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
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "last_level_cache": _last_level_cache(),
        "system": f"{platform.system()} {platform.machine()}",
        "instruction_set": tokenloss.show_config(mode="dicts")["instruction_set"],
        "bfloat16": _bfloat16_instructions(),
        "blas": _blas(),
        "versions": versions,
    }


def _cpu_model() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _last_level_cache() -> str:
    """Its size, as Linux has it."""
    sizes = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return sizes[-1].read_text().strip() if sizes else "unknown"


def _bfloat16_instructions() -> list[str]:
    """Which instructions for products of bfloat16 the processor has, as Linux names them."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        words = set()
    return sorted(words & {"amx_bf16", "avx512_bf16", "bf16"})


def _blas() -> list[str]:
    """What multiplies matrices for NumPy, and for which processor it takes this one."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return [f"{blas['internal_api']} {blas['version']} {blas.get('architecture', '')}".strip() for blas in found]
