"""Types for annotations. Only type checkers import this: NumPy's types would slow an import down."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt


class SupportsDLPack(Protocol):
    """Tensor of any library that exports DLPack; each library has its own options and device types."""

    def __dlpack__(self, *args: Any, **options: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, int]: ...


ArrayLike: TypeAlias = npt.ArrayLike | SupportsDLPack
# spelled out, because stubtest does not recognize NumPy's NDArray as a type
Array: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[Any]]
BoolArray: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.bool_]]
Float64Array: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]
IntArray: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.int64]]
Axes: TypeAlias = int | tuple[int, ...] | None

Columns: TypeAlias = dict[str, Array]
Kind: TypeAlias = Literal["logits"] | Literal["log_probs"] | Literal["probs"]  # a union, as stubtest has it
# what a verb may need of a source
Need: TypeAlias = (
    Literal["nll"] | Literal["tops"] | Literal["rows"] | Literal["targets"] | Literal["ids"]
    | Literal["tokenizer"] | Literal["plan"] | Literal["resume"]
)  # fmt: skip

Scalar = TypeVar("Scalar", bound=np.generic)
Out = TypeVar("Out", bound=SupportsDLPack)  # NumPy arrays support DLPack, too
