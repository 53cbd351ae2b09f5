"""The instruction set in use: the best one of this machine that the environment does not disable."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, overload

from tokenloss._core import _core, threads
from tokenloss._core.errors import raise_error
from tokenloss._core.version import __version__

if TYPE_CHECKING:
    from typing import Literal

VARIABLE = "TOKENLOSS_DISABLE_CPU_FEATURES"

BF16 = "avx512_bf16"

# names that the variable may hold on any machine, and the backend, or the product of bfloat16, that each disables
FEATURES = {"AVX512": "avx512", "AVX512_BF16": BF16, "AVX2": "avx2", "NEON": "neon"}


def choose_backend() -> None:
    """Use the best that this machine has and the environment allows: called when rows are first read."""
    disabled = set()
    for name in os.environ.get(VARIABLE, "").replace(",", " ").split():
        if name.upper() not in FEATURES:
            raise_error("option", name=VARIABLE, got=name, fits=f"some of {', '.join(FEATURES)}")
        disabled.add(FEATURES[name.upper()])
    _core.use_backend(next(name for name in _core.backends() if name not in disabled), BF16 not in disabled)


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
        `bfloat16_matmul` ("avx512_bf16" or "blas": what multiplies many positions and weights in bfloat16).

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
        "workers": threads.default_workers(),
        "bfloat16_matmul": BF16 if _core.has_bf16_matmul() else "blas",
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        print(f"{name:16}{', '.join(value) if isinstance(value, list) else value}")
    return None
