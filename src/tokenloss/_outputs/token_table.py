"""The table with a row for each token: a .npy, .csv or .parquet file, written block by block."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenloss._errors import raise_error
from tokenloss._files import replacing
from tokenloss._outputs._base import Output
from tokenloss.scores import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO, TypeAlias

    from tokenloss._types import Array
    from tokenloss.scores import TokenScores

    _Write: TypeAlias = Callable[[Array], object]

# those of `TokenScores`; logsumexp is left out, since it is 0 for probabilities and their logarithms
_OF_SCORES = {name: column.dtype for name, column in COLUMNS.items() if name != "logsumexp" and not column.is_top}
_DTYPES = {"target": np.int64, "probability": np.float64, **_OF_SCORES}
# the order of these is fixed, for readers who go by position; others follow
_FIRST = ("target", "kept", "nll", "probability", "rank", "argmax", "is_greedy", "entropy")
_COLUMNS = np.dtype([(name, np.dtype(_DTYPES[name]).newbyteorder("<")) for name in dict.fromkeys((*_FIRST, *_DTYPES))])


class TokenTable(Output):
    """A file with a row for each token; it takes its name when all is written."""

    option = "--per-token"
    help = "write a row for each token: a .npy, .csv or .parquet file"
    needs_tokens = True

    def __init__(self, path: str) -> None:
        self._suffix = Path(path).suffix.lower()
        if self._suffix not in _WRITERS:
            raise_error("option", name="path", got=path, fits=f"a name that ends in {', '.join(_WRITERS)}")
        if self._suffix == ".parquet":
            try:
                importlib.import_module("pyarrow.parquet")
            except ImportError:
                raise_error("missing", name=path, got="pyarrow")
        super().__init__(path)

    @contextlib.contextmanager
    def open(self, batch: tuple[int, ...], rows: int, top_k: int) -> Iterator[None]:
        with replacing(self.path) as file, _WRITERS[self._suffix](file, rows) as self._write:
            yield

    def add(self, scores: TokenScores, ids: Array, text: Array | None) -> None:
        table = np.zeros(len(ids), _COLUMNS)
        for name in _OF_SCORES:
            table[name] = getattr(scores, name)
        table["target"] = ids
        with np.errstate(over="ignore"):
            table["probability"] = np.where(scores.kept, np.exp(-scores.nll), 0)
        self._write(table)


@contextlib.contextmanager
def _npy(file: BinaryIO, rows: int) -> Iterator[_Write]:
    """Write a structured array."""
    descr = np.lib.format.dtype_to_descr(_COLUMNS)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (rows,)})
    yield lambda table: file.write(table.tobytes())


@contextlib.contextmanager
def _csv(file: BinaryIO, rows: int) -> Iterator[_Write]:
    """Write text; numbers keep all their digits."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS.names or ())
    yield lambda table: writer.writerows(table.tolist())
    text.detach()


@contextlib.contextmanager
def _parquet(file: BinaryIO, rows: int) -> Iterator[_Write]:
    """Write columns with pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.from_numpy_dtype(_COLUMNS[name])) for name in _COLUMNS.names or ()])
    with pq.ParquetWriter(file, schema) as writer:
        yield lambda table: writer.write_table(pa.table({name: table[name] for name in schema.names}, schema))


_WRITERS = {".npy": _npy, ".csv": _csv, ".parquet": _parquet}
