"""What annotations speak of. Only type checkers import this: NumPy's types would slow an import down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from tokenloss.scores import TokenScores


class SupportsDLPack(Protocol):
    """A tensor of any library; each has options and device types of its own."""

    def __dlpack__(self, *args: Any, **options: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, int]: ...


ArrayLike: TypeAlias = npt.ArrayLike | SupportsDLPack
# spelled out: of NumPy's NDArray stubtest does not know that it is a type
Array: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[Any]]
BoolArray: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.bool_]]
Float64Array: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]
IntArray: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.int64]]

# what is called with the scores of each block, its targets and its text
Sink: TypeAlias = Callable[[TokenScores, Array, Array | None], None]

Scalar = TypeVar("Scalar", bound=np.generic)
Out = TypeVar("Out", bound=SupportsDLPack)  # NumPy's arrays, too, speak DLPack
