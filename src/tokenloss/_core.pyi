from typing import Any

import numpy as np
import numpy.typing as npt

DTYPES: dict[str, int]
SWAPPED: int
PROBS: int
LOG_PROBS: int
LOGITS: int
LOGSUMEXP: int
MAXIMUM: int

def backends() -> list[str]: ...
def use_backend(name: str) -> None: ...
def backend_in_use() -> str: ...
def moments(values: npt.NDArray[np.float64]) -> tuple[int, float, int]: ...

class Fold:
    rows: int
    kept: int
    interruption: BaseException | None
    def __init__(
        self,
        what: int,
        scores: npt.NDArray[Any],
        scores_dtype: int,
        axis: int,
        targets: npt.NDArray[Any] | None,
        targets_dtype: int,
        weight: npt.NDArray[Any] | None,
        weight_dtype: int,
        where: npt.NDArray[np.bool_] | None,
        ignored: int | None,
        epsilon: float,
        out: npt.NDArray[np.float64] | None,
    ) -> None: ...
    def rows_at_once(self) -> int: ...
    def stop(self) -> None: ...
    def first_bad_target(self, start: int, stop: int) -> int: ...
    def run(self, step: int, ask: bool) -> None: ...
    def reduced(self, mean: bool) -> float: ...

class DLPackBuffer:
    dtype: str
    def __init__(self, capsule: object) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
