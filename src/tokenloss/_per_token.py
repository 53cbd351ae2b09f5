"""What is kept of each token: written to a file block by block, or gathered for a picture or a page."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenloss import _arrays
from tokenloss._files import replacing
from tokenloss.scores import TokenScores, token_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO, TypeAlias

    from tokenloss._evaluation.run import Sink
    from tokenloss._types import Array

    _Write: TypeAlias = Callable[[Array], object]

# a row of a file; all but the target is 0 where it was ignored, and classes are -1
_COLUMNS = np.dtype(
    [
        ("target", "<i8"), ("kept", "?"), ("nll", "<f8"), ("probability", "<f8"), ("rank", "<i8"),
        ("argmax", "<i8"), ("is_greedy", "?"), ("entropy", "<f8"),
    ]
)  # fmt: skip


@contextlib.contextmanager
def writing(path: str, rows: int) -> Iterator[Sink]:
    """Write a .npy, .csv or .parquet file of so many rows; it takes its name when the block of the context ends."""
    with replacing(path) as file, _WRITERS[Path(path).suffix.lower()](file, rows) as write:

        def sink(scores: TokenScores, ids: Array, text: Array | None) -> None:
            table = np.zeros(len(ids), _COLUMNS)
            for name in ("kept", "nll", "rank", "argmax", "is_greedy", "entropy"):
                table[name] = getattr(scores, name)
            table["target"] = ids
            with np.errstate(over="ignore"):
                table["probability"] = np.where(scores.kept, np.exp(-scores.nll), 0)
            write(table)

        yield sink


def check(path: str) -> None:
    """Make sure that a file of this name can be written, before long work."""
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITERS:
        _arrays.fail("option", name="path", got=path, fits=f"a name that ends in {', '.join(_WRITERS)}")
    if suffix == ".parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError:
            _arrays.fail("missing", name=path, got="pyarrow")


@contextlib.contextmanager
def _npy(file: BinaryIO, rows: int) -> Iterator[_Write]:
    """Write a structured array."""
    descr = np.lib.format.dtype_to_descr(_COLUMNS)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (rows,)})
    yield lambda table: file.write(table.tobytes())


@contextlib.contextmanager
def _csv(file: BinaryIO, rows: int) -> Iterator[_Write]:
    """Write text, in which numbers keep all their digits."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS.names or ())
    yield lambda table: writer.writerows(table.tolist())
    text.detach()


@contextlib.contextmanager
def _parquet(file: BinaryIO, rows: int) -> Iterator[_Write]:
    """Write columns, by pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.from_numpy_dtype(_COLUMNS[name])) for name in _COLUMNS.names or ()])
    with pq.ParquetWriter(file, schema) as writer:
        yield lambda table: writer.write_table(pa.table({name: table[name] for name in schema.names}, schema))


_WRITERS = {".npy": _npy, ".csv": _csv, ".parquet": _parquet}


class Gathered:
    """A sink that puts scores of tokens together again, those of all tokens or of the first so many."""

    def __init__(self, top_k: int, names: Sequence[str] | None = None, most: int | None = None) -> None:
        self._names, self._most, self._seen = names, most, 0
        self._parts: list[dict[str, Array]] = []
        # what there is when nothing comes
        self(token_scores(np.empty((0, top_k)), np.empty(0, np.int64), top_k=top_k), np.empty(0, np.int64), None)

    def __call__(self, scores: TokenScores, ids: Array, text: Array | None) -> None:
        """Take the next tokens."""
        columns = dict(vars(scores), ids=ids, text=np.full(len(ids), None) if text is None else text.astype(object))
        left = None if self._most is None else self._most - self._seen
        self._seen += len(ids)
        if left is None or left >= 0:
            self._parts.append(
                {
                    name: column[:left]
                    for name, column in columns.items()
                    if column is not None and (self._names is None or name in self._names)
                }
            )

    def columns(self) -> dict[str, Array]:
        """All columns, by name: those of `TokenScores`, `ids` and `text`."""
        return {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}

    def scores(self, batch: tuple[int, ...]) -> tuple[TokenScores, Array, Array | None]:
        """Scores, class ids and text, of this shape if it is theirs."""
        columns = self.columns()
        if math.prod(batch) == len(columns["ids"]):
            columns = {name: column.reshape(batch + column.shape[1:]) for name, column in columns.items()}
        ids, text = columns.pop("ids"), columns.pop("text")
        known = any(word is not None for word in text.flat)
        return TokenScores(**columns), ids, text if known else None
