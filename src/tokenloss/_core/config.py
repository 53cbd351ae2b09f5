"""Settings from the environment: the instruction set, among those of this machine, and the number of threads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, overload

from tokenloss._core import _core
from tokenloss._core.errors import raise_error
from tokenloss._core.version import __version__

if TYPE_CHECKING:
    from typing import Literal

FEATURES_VARIABLE = "TOKENLOSS_DISABLE_CPU_FEATURES"
WORKERS_VARIABLE = "TOKENLOSS_NUM_WORKERS"

# names that the variable may hold on any machine, and the backend, or the product of bfloat16, that each disables
FEATURES = {name.upper(): name for name in ("avx512", "avx2", "neon", *_core.BF16_MATMULS[:-1])}


def choose_backend() -> None:
    """Use the best instruction set that the machine has and the environment allows; called when rows are first read."""
    disabled = set()
    for name in os.environ.get(FEATURES_VARIABLE, "").replace(",", " ").split():
        if name.upper() not in FEATURES:
            raise_error("option", name=FEATURES_VARIABLE, got=name, fits=f"some of {', '.join(FEATURES)}")
        disabled.add(FEATURES[name.upper()])
    _core.use_backend(next(name for name in _core.backends() if name not in disabled), without=disabled)


_core.set_chooser(choose_backend)


def all_workers() -> int:
    """The number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers() -> int:
    """The number of threads from the environment variable, else the number of CPUs."""
    given = os.environ.get(WORKERS_VARIABLE)
    if given:
        if not (given.isdecimal() and len(given) < 10 and int(given) >= 1):
            raise_error("option", name=WORKERS_VARIABLE, got=given[:20], fits=f"an integer from 1 to {10**9 - 1}")
        return int(given)
    return all_workers()


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print or return the version, the instruction set in use and the number of workers.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Whether to print the configuration or to return it.

    Returns
    -------
    dict or None
        For "dicts": `version`, `instruction_set` (in use), `available` (on this machine, best first), `workers`, and
        `bfloat16_matmul` ("amx_bf16", "avx512_bf16" or "blas": what multiplies many positions and weights in bfloat16).

    Raises
    ------
    ValueError
        If `mode` is neither "stdout" nor "dicts", or an environment variable has an invalid value.

    Notes
    -----
    The environment variables `TOKENLOSS_DISABLE_CPU_FEATURES` (say, ``"AVX512 AVX2"``; read on first use) and
    `TOKENLOSS_NUM_WORKERS` change the instruction set and the number of workers.

    Examples
    --------
    >>> from tokenloss import show_config
    >>> sorted(show_config(mode="dicts"))
    ['available', 'bfloat16_matmul', 'instruction_set', 'version', 'workers']
    """
    if mode not in ("stdout", "dicts"):
        raise_error("option", name="mode", got=mode, fits="'stdout' or 'dicts'")
    config = {
        "version": __version__,
        "instruction_set": _core.backend_in_use(),
        "available": _core.backends(),
        "workers": default_workers(),
        "bfloat16_matmul": _core.bf16_matmul_in_use(),
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        print(f"{name:16}{', '.join(value) if isinstance(value, list) else value}")
    return None
