"""The tables with a row for each token or each sequence: .npy, .csv or .parquet files, written block by block."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core.errors import contextmanager, raise_error
from tokenloss._core.files import replacing
from tokenloss._core.validation import check_integer
from tokenloss._evaluation.sink import Column, Sink
from tokenloss._output.shared import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from typing import BinaryIO, TypeAlias

    from tokenloss._core.types import Array
    from tokenloss._evaluation.sink import Block, Needs, Schema

    _Write: TypeAlias = Callable[[Array], object]

_NULLS: dict[str, Any] = {"int64": -1, "float64": np.nan}  # where the most likely classes are not known


class _TableFile(Sink):
    """A file with a table, which replaces an existing file when it is complete; without a path, a table in memory."""

    def __init__(self, path: str | None = None, columns: Sequence[str] | None = None) -> None:
        self._suffix = "" if path is None else Path(path).suffix.lower()
        if path is not None and self._suffix not in _WRITERS:
            raise_error("option", name="path", got=path, fits=f"a name that ends in {', '.join(_WRITERS)}")
        if self._suffix == ".parquet":
            try:
                importlib.import_module("pyarrow.parquet")
            except ImportError:
                raise_error("missing", name=path, got="pyarrow")
        names = (columns,) if isinstance(columns, str) else columns
        self._wanted = None if names is None else {*map(str, names)}
        self.needs: Needs = () if self._wanted is None else (self._wanted,)
        self._blocks: list[Array] = []  # of a table in memory
        super().__init__(path)

    @contextmanager
    def open(self, schema: Schema) -> Iterator[None]:
        columns = schema.tokens if self.rows == "tokens" else schema.sequences
        if self._wanted is None:
            columns = tuple(one for one in columns if not one.optional)
        else:
            columns = tuple(one for one in columns if not one.nullable or one.name in self._wanted)
        for k in range(1, min(self.top_k, schema.top_k) + 1):
            columns += Column(f"top_id_{k}", "int64"), Column(f"top_logprob_{k}", "float64")
        if self._suffix == ".npy":
            columns = tuple(one for one in columns if one.dtype != "text" or one.width)
        self._columns = {one.name: one for one in columns}
        # .npy files need a length for text
        text = {one.name: f"<U{one.width}" for one in columns if one.dtype == "text" and self._suffix == ".npy"}
        self._form = np.dtype([(name, text.get(name, DTYPES[one.dtype])) for name, one in self._columns.items()])
        with self._writer() as self._write:
            yield

    def write(self, block: Block) -> None:
        models = block.models or {"": {}}
        tables = [self._table(block.columns | own, block.tops.get(name, {})) for name, own in models.items()]
        for table in tables if self.rows == "tokens" else [np.concatenate(tables)]:
            self._write(table)

    def _table(self, columns: dict[str, Array], tops: dict[str, Array]) -> Array:
        """The rows of a model."""
        table = np.zeros(len(next(iter(columns.values()), ())), self._form)
        for top in ("top_id", "top_logprob") if tops else ():
            columns |= {f"{top}_{k}": values for k, values in enumerate(tops[f"{top}s"].T, 1)}
        for column, described in self._columns.items():
            values = columns[column] if column in columns else np.array([_NULLS.get(described.dtype)])
            table[column] = _as_unicode(values.tolist()) if described.dtype == "text" else values
        return table

    def columns(self) -> dict[str, Array]:
        """The columns of a table without a path, once the work is done, for ``pandas.DataFrame`` and the like.

        Returns
        -------
        dict of 1-D arrays
            For tokens that are not scored, floats are nan and integers -1.

        Raises
        ------
        ValueError
            If the table is in a file.
        """
        if self.path is not None:
            raise_error("option", name="path", got=self.path, fits="None, for a table in memory")
        table = np.concatenate(self._blocks or [np.zeros(0, [])])
        return {name: np.array(table[name], table.dtype[name].newbyteorder("=")) for name in table.dtype.names or ()}

    @contextmanager
    def _writer(self) -> Iterator[_Write]:
        """Yield the function that writes rows."""
        if self.path is None:
            self._blocks, blocks = [], [np.zeros(0, self._form)]
            yield blocks.append
            self._blocks = blocks  # none of work that failed
            return
        nullable = {one.name for one in self._columns.values() if one.nullable and "kept" in self._columns}
        with replacing(self.path) as file, _WRITERS[self._suffix](file, self._form, nullable) as write:
            yield write


class TokenTable(_TableFile):
    """A file with a row for each token, as ``--per-token`` of both commands writes it.

    Its columns come from `evaluate`, `compare_files` or `compare_texts`: losses, ranks, divergences and places. With
    candidates, there is a row for each token and candidate, with its `name`. Each block of tokens is written candidate
    by candidate, so group the rows by `name`. In `compare_texts`, the rows are spans of text.

    The file is a .npy file of a structured array, a .csv or a .parquet file, written block by block. For tokens that
    are not scored (`kept` is False), all columns except `target`, `kept`, `text` and the places are null in .parquet
    and empty in .csv; in .npy, floats are nan and integers -1. A .npy file has no `text`.

    Parameters
    ----------
    path : path-like, optional
        File to write. An existing file is replaced when the new one is complete. By default the table stays in memory,
        and `columns` has it.
    top_k : int, default 0
        Number of most likely classes to write for each token (of the candidate, in comparisons): `top_id_1` and
        `top_logprob_1` are the likeliest class. This is the option ``--top-k``.
    columns : sequence of str, optional
        Names of the columns to write, in addition to those that every row has, such as `target` and `kept`. By default
        all columns except `logsumexp` and `acceptance`.

    Raises
    ------
    ValueError
        If the name has another suffix, or a column does not exist.
    ImportError
        If the file is .parquet, and pyarrow is not installed.

    See Also
    --------
    SequenceTable : A row for each sequence.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import evaluate, sinks
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = pathlib.Path(directory) / "tokens.npy"
    ...     _ = evaluate([(np.zeros((2, 3, 4)), np.ones((2, 3), int))], sinks=[sinks.TokenTable(path)])
    ...     np.load(path)["sequence"]
    array([0, 0, 0, 1, 1, 1])

    Without a file, say for ``pandas.DataFrame(table.columns())``:

    >>> table = sinks.TokenTable(columns=["nll"])
    >>> _ = evaluate([(np.zeros((2, 3, 4)), np.ones((2, 3), int))], sinks=[table])
    >>> list(table.columns())
    ['target', 'kept', 'nll', 'file', 'row', 'sequence', 'position']
    """

    __module__ = "tokenloss.sinks"

    option = "--per-token"
    options: tuple[str, ...] = ("top_k", "columns")
    help = "write a row for each token (with `compare --text`, for each span) to a .npy, .csv or .parquet file"
    rows = "tokens"

    def __init__(self, path: str | None = None, top_k: int = 0, columns: Sequence[str] | None = None) -> None:
        self.top_k: int = check_integer("top_k", top_k, "an integer >= 0", least=0)
        super().__init__(path, columns)


class SequenceTable(_TableFile):
    """A file with a row for each sequence, as ``--per-sequence`` of both commands writes it.

    Its columns are the properties of each sequence, such as its loss and its `count` of tokens; `file` is -1 if several
    files may contain parts of it. With candidates, there is a row for each sequence and candidate, with its `name`. In
    `compare_texts`, the rows are documents, and in `compare_samples` questions, with a row for each metric.

    The file is a .npy file of a structured array, a .csv or a .parquet file.

    Parameters
    ----------
    path
        As in `TokenTable`.
    columns : sequence of str, optional
        Names of the columns to write, in addition to those that identify a row, such as `file` and `sequence`. By
        default all columns except `acceptance`.

    Raises
    ------
    ValueError, ImportError
        As in `TokenTable`.

    See Also
    --------
    TokenTable : A row for each token.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import evaluate, sinks
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = pathlib.Path(directory) / "sequences.csv"
    ...     _ = evaluate([(np.log([[[0.5, 0.5]], [[1, 3]]]), [[0], [1]])], sinks=[sinks.SequenceTable(path)])
    ...     print(path.read_text().splitlines()[1])
    0,0,1,0.6931471805599453,0.6931471805599453,2.0,True

    The questions at which one model is right and the other is not:

    >>> import json
    >>> from tokenloss import compare_samples
    >>> table = sinks.SequenceTable()
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     base, other = (pathlib.Path(directory, name) for name in ("base.json", "other.json"))
    ...     for file, values in (base, [1, 1, 0]), (other, [1, 0, 0]):
    ...         lines = [{"doc_id": i, "filtered_resps": [], "acc": value} for i, value in enumerate(values)]
    ...         _ = file.write_text(json.dumps(lines))
    ...     _ = compare_samples(base, {"q4": other}, sinks=[table])
    >>> table.columns()["doc_id"][table.columns()["flipped"]]
    array([1])
    """

    __module__ = "tokenloss.sinks"

    option = "--per-sequence"
    options: tuple[str, ...] = ("columns",)
    help = (
        "write a row for each sequence (with `compare --text`, for each document; for samples, for each question) to a "
        ".npy, .csv or .parquet file"
    )
    rows = "sequences"


def _as_unicode(text: list[str | None]) -> list[str | None]:
    """Text that every Unicode encoding can represent: an unpaired surrogate in an array is replaced."""
    try:
        "".join(filter(None, text)).encode()
    except UnicodeEncodeError:
        return [word and word.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for word in text]
    return text


@contextmanager
def _npy(file: BinaryIO, columns: np.dtype[Any], nullable: Collection[str]) -> Iterator[_Write]:
    """Write a structured array."""
    del nullable  # nulls are values here
    written = 0

    def write(table: Array) -> None:
        nonlocal written
        target.write(table.tobytes())
        written += len(table)

    with contextlib.ExitStack() as stack:
        # the header, which comes first, has the number of rows
        target = file if file.seekable() else stack.enter_context(tempfile.TemporaryFile())
        _write_header(target, columns, 0)
        yield write
        target.seek(0)
        _write_header(target, columns, written)  # NumPy's header has room for any number of rows
        if target is not file:
            target.seek(0)
            shutil.copyfileobj(target, file)


def _write_header(file: BinaryIO, columns: np.dtype[Any], rows: int) -> None:
    """Write the header of a .npy file."""
    descr = np.lib.format.dtype_to_descr(columns)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (rows,)})


@contextmanager
def _csv(file: BinaryIO, columns: np.dtype[Any], nullable: Collection[str]) -> Iterator[_Write]:
    """Write text: numbers with all their digits, and empty cells for tokens that are not scored."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    # a line break of either kind in a cell is quoted only if it is part of those that end lines
    lines: Any = SimpleNamespace(write=lambda line: text.write(line.removesuffix("\r\n") + "\n"))
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow(columns.names or ())

    def write(table: Array) -> None:
        cells = {name: table[name].tolist() for name in columns.names or ()}
        for name in nullable:
            for row in np.flatnonzero(~table["kept"]).tolist():
                cells[name][row] = None
        writer.writerows(zip(*cells.values(), strict=True))

    yield write
    text.detach()


@contextmanager
def _parquet(file: BinaryIO, columns: np.dtype[Any], nullable: Collection[str]) -> Iterator[_Write]:
    """Write columns with pyarrow, with nulls for tokens that are not scored."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {name: pa.string() if columns[name].kind == "O" else pa.from_numpy_dtype(columns[name])
             for name in columns.names or ()}  # fmt: skip
    schema = pa.schema(types.items())

    def write(table: Array) -> None:
        masks = {name: ~table["kept"] if name in nullable else None for name in types}
        arrays = [pa.array(table[name], types[name], mask=mask) for name, mask in masks.items()]
        writer.write_table(pa.table(arrays, schema))

    with pq.ParquetWriter(file, schema) as writer:
        yield write


_WRITERS = {".npy": _npy, ".csv": _csv, ".parquet": _parquet}
