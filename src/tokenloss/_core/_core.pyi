import sys
from collections.abc import Callable, Container
from typing import Any, Self, TypeAlias, final

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

_Array: TypeAlias = npt.NDArray[Any]
_Bools: TypeAlias = npt.NDArray[np.bool_]
_Bytes: TypeAlias = npt.NDArray[np.uint8]
_Floats: TypeAlias = npt.NDArray[np.float64]
_Ints: TypeAlias = npt.NDArray[np.int64]
_Texts: TypeAlias = list[str | None]

DTYPES: dict[str, int]
FLOAT_DTYPES: tuple[str, ...]
SWAPPED: int
DEFINITIONS: dict[str, int]
KINDS: tuple[str, ...]
BF16_MATMULS: tuple[str, ...]
TILE_CLASS_MULTIPLE: int
BAD_TARGET: int
BAD_DISTRIBUTION: int
UNNORMALIZED: int

def backends() -> list[str]: ...
def look_like_probs(scores: Scores, positions: Positions, wanted: int = 8) -> bool: ...
def use_backend(name: str, without: Container[str] = ()) -> None: ...
def set_chooser(function: Callable[[], None]) -> None: ...
def bf16_matmul_in_use() -> str: ...
def backend_in_use() -> str: ...
def is_log_prob(value: object) -> bool: ...
def columns_of_listed(
    texts: _Texts, ids: list[int], logprobs: list[Any], lengths: list[int], ranks: list[int] | None,
    counts: list[int], top_texts: _Texts, top_ids: list[int], top_logprobs: list[Any], is_prompt: bool,
    is_keyed: bool, is_added: bool, is_exact: bool,
) -> tuple[_Ints, _Bytes, _Floats, _Texts, _Ints, _Floats] | None: ...  # fmt: skip
def moments(values: _Floats) -> tuple[int, float, int]: ...
def sort_keys(keys: _Array, scratch: _Array) -> None: ...
def starts_of_runs(numbers: _Ints, starts: _Ints) -> int: ...
def sum_of_products(a: _Floats, b: _Floats) -> int: ...

@final
class Scores:
    name: str
    array: _Array
    dtype: int
    axis: int
    kind: int
    most_unnormalized: float
    shape: tuple[int, ...]
    batch: tuple[int, ...]
    rows: int
    classes: int
    def __init__(
        self, name: str, array: _Array | None, dtype: int, axis: int, shape: tuple[int, ...], kind: int = 0,
        most_unnormalized: float = ...,
    ) -> None: ...  # fmt: skip
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Positions:
    name: str
    targets: _Array
    mask: _Bools | None
    weight: _Array | None
    sample_weight: _Floats | None
    batch: tuple[int, ...]
    rows: int
    classes: int
    by_class: bool
    is_checked: bool
    def __init__(
        self, batch: tuple[int, ...], classes: int, name: str | None, targets: _Array | None, dtype: int,
        axis: int, ignored: int | None, mask: _Bools | None, weight: _Array | None, weight_dtype: int,
        sample_weight: _Floats | None,
    ) -> None: ...  # fmt: skip
    def find_bad_target(self) -> int: ...
    def find_bad_distribution(self) -> int: ...
    def count_unmasked(self) -> int: ...
    def find_unmasked(self, found: _Ints) -> int: ...

@disjoint_base
class Job:
    rows: int
    pending_exception: BaseException | None
    @property
    def has_refused(self) -> bool: ...
    @property
    def row_cost(self) -> float: ...
    @property
    def rows_at_once(self) -> int: ...
    def stop(self) -> None: ...
    def run(self, step: int, poll: bool) -> None: ...

@final
class DistributionCheck(Job):
    def __init__(self, positions: Positions) -> None: ...

@disjoint_base
class RowJob(Job):
    scores: Scores
    positions: Positions
    is_probability: bool
    refuses_bad_targets: bool
    def hold_rows(self, start: int, stop: int) -> None: ...
    def refusal(self) -> tuple[int, int, int, float]: ...
    def reduced(self, mean: bool) -> float: ...

@final
class ClassIdLoss(RowJob):
    def __init__(
        self, scores: Scores, positions: Positions, numbers: _Floats | None, is_probability: bool, epsilon: float
    ) -> None: ...

@final
class SoftTargetLoss(RowJob):
    def __init__(
        self, scores: Scores, positions: Positions, numbers: _Floats | None, is_probability: bool, epsilon: float
    ) -> None: ...

@disjoint_base
class LogSumExpJob(RowJob): ...

@final
class LogSumExp(LogSumExpJob):
    def __init__(self, scores: Scores, positions: Positions, numbers: _Floats | None) -> None: ...

@final
class Softmax(LogSumExpJob):
    def __init__(
        self, scores: Scores, positions: Positions, numbers: _Floats | None, is_log: bool, out: _Array, out_dtype: int
    ) -> None: ...

@final
class CrossEntropy(LogSumExpJob):
    def __init__(
        self, scores: Scores, positions: Positions, numbers: _Floats | None, options: tuple[float, ...],
        is_mean: bool = False, grad: _Array | None = None, grad_dtype: int = 0,
    ) -> None: ...  # fmt: skip

@final
class ClassLogProbs(LogSumExpJob):
    count: int
    def __init__(
        self, scores: Scores, positions: Positions, logit_scale: float, softcap: float, ids: _Ints, log_probs: _Floats
    ) -> None: ...

@final
class TokenStats(LogSumExpJob):
    def __init__(
        self, scores: Scores, positions: Positions, nll: _Floats, logit_scale: float, softcap: float, top_k: int,
        columns: dict[str, _Array],
    ) -> None: ...  # fmt: skip
    def add_moments(self, confidence: _Floats | None, brier: _Floats | None, variance: _Floats | None) -> None: ...

@final
class TailDraws(RowJob):
    def __init__(
        self, scores: Scores, positions: Positions, log_masses: _Floats, excluded: _Ints, maxima: _Floats,
        uniforms: _Floats, epsilon: float, supports: _Ints, drawn: _Ints,
    ) -> None: ...  # fmt: skip

@disjoint_base
class PairJob(LogSumExpJob):
    other: Scores
    def set_transform(self, logit_scale: float, softcap: float) -> None: ...

@final
class KLDivergence(PairJob):
    def __init__(
        self, scores: Scores, positions: Positions, numbers: _Floats | None, other: Scores, columns: dict[str, _Array]
    ) -> None: ...

@final
class PairStats(PairJob):
    def __init__(
        self, scores: Scores, positions: Positions, other: Scores, definitions: int, columns: dict[str, _Array],
        most_unnormalized: float = ...,
    ) -> None: ...  # fmt: skip

@final
class RowMaximum(RowJob):
    def __init__(self, scores: Scores, positions: Positions, numbers: _Floats | None) -> None: ...

@final
class SequenceSums(Job):
    def __init__(
        self, tokens: dict[str, _Array | None], first: _Ints, start: _Ints, stop: _Ints, results: dict[str, _Array]
    ) -> None: ...
    def totals(self) -> tuple[tuple[int, float, int], tuple[int, float, int], int]: ...

@final
class Tiles(Job):
    def __new__(cls, job: RowJob, taken: _Ints, excluded: _Ints) -> Self: ...
    def begin_rows(self) -> int: ...
    def begin_rows_of(self, other: Tiles) -> None: ...
    def set_target_logits(self, logits: _Floats, base_logits: _Floats | None = None) -> None: ...
    def set_tile(self, tile: _Array, first: int, base_tile: _Array | None = None) -> None: ...
    def end_rows(self) -> int: ...
    def end(self) -> None: ...

@final
class CastRows(Job):
    def __new__(cls, source: _Array, dtype: int, numbers: _Ints | None, result: _Array, result_dtype: int) -> Self: ...

@disjoint_base
class Product(Job):
    def set_result(self, result: _Array, first: int) -> None: ...

@final
class MatVec(Product):
    def __new__(cls, weight: _Array, dtype: int, hidden: _Array, hidden_dtype: int) -> Self: ...

@final
class BFloat16MatMul(Product):
    def __new__(cls, weight: _Array, hidden: _Array) -> Self: ...

def row_dots(
    weight: _Array, dtype: int, hidden: _Array, hidden_dtype: int, numbers: _Ints, result: _Floats
) -> None: ...
def small_nll(
    scores: object, targets: object, is_probability: bool, epsilon: object, axis: object, weight: object,
    ignore_index: object, mask: object, sample_weight: object, reduction: object, workers: object,
) -> float | _Floats | None: ...  # fmt: skip
def small_cross_entropy(
    logits: object, targets: object, axis: object, weight: object, ignore_index: object, mask: object,
    sample_weight: object, options: tuple[object, ...], reduction: object, workers: object,
) -> float | _Floats | None: ...  # fmt: skip
def small_logsumexp(logits: object, axis: object, workers: object) -> _Floats | None: ...
def small_softmax(is_log: bool, logits: object, axis: object, workers: object) -> _Array | None: ...

@final
class DLPackBuffer:
    dtype: str
    device: tuple[int, int]
    def __new__(cls, capsule: object) -> Self: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...
