"""The tables with a row for each token or each sequence: .npy, .csv or .parquet files, written block by block."""

from __future__ import annotations

import csv
import importlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenloss._comparison.responses import TOKEN_COLUMNS
from tokenloss._core.errors import contextmanager, raise_error
from tokenloss._core.files import replacing
from tokenloss._core.validation import check_integer
from tokenloss._evaluation.sink import Sink
from tokenloss._scores.token_scores import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO, TypeAlias

    from tokenloss._core.types import Array
    from tokenloss._evaluation.sink import ComparedBlock, TokenBlock

    _Write: TypeAlias = Callable[[Array], object]

# The columns of `TokenScores` without logsumexp, which is 0 for probabilities and log-probabilities.
_OF_SCORES = {name: column.dtype for name, column in COLUMNS.items() if name != "logsumexp" and not column.is_top}
_PLACES = ("file", "row", "sequence", "position")
_DTYPES = {"target": np.int64, "probability": np.float64, **_OF_SCORES, **dict.fromkeys(_PLACES, np.int64)}
# Readers may go by position, so these come first and in this order; others follow.
_FIRST = ("target", "kept", "nll", "probability", "rank", "argmax", "is_greedy", "entropy")
_COLUMNS = np.dtype([(name, np.dtype(_DTYPES[name]).newbyteorder("<")) for name in dict.fromkeys((*_FIRST, *_DTYPES))])
# Of `_OF_SCORES`, responses of servers have these alone.
_OF_RESPONSES = ("nll", "rank", "argmax", "is_greedy", "kept")
_NOT_OF_RESPONSES = {*_OF_SCORES, "row"} - {*_OF_RESPONSES}
_RESPONSE_COLUMNS = np.dtype(
    [(name, _COLUMNS[name]) for name in _COLUMNS.names or () if name not in _NOT_OF_RESPONSES]
    + [("is_greedy_known", "?"), ("is_prompt", "?")]
)
_SEQUENCE_COLUMNS = np.dtype(
    [(name, "<i8") for name in ("file", "sequence", "count")]
    + [(name, "<f8") for name in ("nll", "loss", "perplexity")]
    + [("is_greedy", "?")]
)
# Sequences of responses have these, too.
_SOURCE_COLUMNS = [("line", "<i8"), ("choice", "<i8"), ("is_greedy_known", "?")]
# Tables of comparisons begin with the name of the candidate; text is an object until it is written.
_COMPARED_PLACES = [*((name, "<i8") for name in (*_PLACES, "target")), ("text", "O")]
_COMPARED_COLUMNS = [("kept", "?"), *((name, "<f8") for name in ("base_nll", "nll", "kl", "delta_p")),
                     ("is_same_top", "?"), ("base_top_p", "<f8")]  # fmt: skip
_DRAFT_COLUMNS = [("kept", "?"), ("acceptance", "<f8")]
_COMPARED_RESPONSE_COLUMNS = [
    (name, "?" if name in ("kept", "is_same_top", "is_top_known") else "<f8") for name in TOKEN_COLUMNS
]
_COMPARED_SEQUENCE_COLUMNS = [
    *((name, "<i8") for name in ("file", "sequence", "count")),
    *((name, "<f8") for name in ("loss", "base_loss", "loss_difference", "kl", "delta_p", "same_top")),
]
_DRAFT_SEQUENCE_COLUMNS = [*_COMPARED_SEQUENCE_COLUMNS[:3], ("acceptance", "<f8")]
# For token log-probabilities; arrays have line -1.
_MISMATCH_COLUMNS = [("kept", "?"), *((name, "<f8") for name in ("logprobs", "base_logprobs", "difference", "ratio"))]
_MISMATCH_SEQUENCE_COLUMNS = [
    *((name, "<i8") for name in ("file", "sequence", "count", "line")),
    *((name, "<f8") for name in ("difference", "k3", "log_ratio", "ratio", "geometric_ratio")),
]
# Columns that are not null for tokens that are not scored, where the format has a null.
_OF_SPANS = {"document", "start", "stop", "kind", "script", "n_tokens_a", "n_tokens_b"}
_OF_ALL = {"name", "target", "kept", "text", "is_greedy_known", "is_prompt", *_PLACES, *_OF_SPANS}


class _TableFile(Sink):
    """A file with a table, which replaces an existing file when it is complete; without a path, a table in memory."""

    def __init__(self, path: str | None = None) -> None:
        self._suffix = "" if path is None else Path(path).suffix.lower()
        if path is not None and self._suffix not in _WRITERS:
            raise_error("option", name="path", got=path, fits=f"a name that ends in {', '.join(_WRITERS)}")
        if self._suffix == ".parquet":
            try:
                importlib.import_module("pyarrow.parquet")
            except ImportError:
                raise_error("missing", name=path, got="pyarrow")
        self._blocks: list[Array] = []  # of a table in memory
        super().__init__(path)

    def _compared(self, columns: list[tuple[str, str]]) -> np.dtype[Any]:
        """Columns of a table of candidates: their name, then these, but for those that there are not."""
        missing = {"row"} if self._of_responses or self._of_logprobs else set()
        if self._suffix == ".npy" or not self._has_text:
            missing.add("text")
        width = max(map(len, self._names), default=0) or 1
        name = f"<U{width}" if self._suffix == ".npy" else "O"
        return np.dtype([("name", name), *(column for column in columns if column[0] not in missing)])

    def columns(self) -> dict[str, Array]:
        """The columns of a table without a path, after the work, for ``pandas.DataFrame`` and the like.

        Returns
        -------
        dict of 1-D arrays
            Of tokens that are not scored, floats are nan and integers -1.

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
    def _writer(self, columns: np.dtype[Any], rows: int | None) -> Iterator[_Write]:
        if self.path is None:
            self._blocks, blocks = [], [np.zeros(0, columns)]
            yield blocks.append
            self._blocks = blocks  # none of work that failed
            return
        with replacing(self.path) as file, _WRITERS[self._suffix](file, columns, rows) as write:
            yield write


class TokenTable(_TableFile):
    """A file with a row for each token, as ``tokenloss score --per-token`` writes it.

    Its columns are `target`, `probability`, those of `TokenScores` but `logsumexp`, and the places of a token: `file`
    (its number, from 0), `row` (of the file), `sequence` (-1 of none) and `position` (in the sequence, from 0; -1 where
    there is none). Where targets are shifted, row and position are those that predict the target, which is the token
    at the next position. Of responses of servers, there is no `entropy` and no `row`, but `is_greedy_known` and
    `is_prompt`; a rank or a class of -1 is not known. With a tokenizer there is `n_bytes`, the target's bytes in its
    text. Where the files or the tokenizer have the text of the tokens, .csv and .parquet have the target's `text`, with
    escapes for bytes that are no whole character; .npy has no text.

    It is a .npy file of a structured array, a .csv or a .parquet file, written block by block. Of tokens that are not
    scored (where `kept` is False), all but `target`, `kept`, `text` and the places is null in .parquet and empty in
    .csv; in .npy, floats are nan and integers -1.

    Parameters
    ----------
    path : path-like, optional
        File to write. An existing file is replaced when the new one is complete. By default the table stays in memory,
        and `columns` has it.
    top_k : int, default 0
        Number of the most likely classes of each token to write, if there are so many: `top_id_1` and `top_logprob_1`
        are the likeliest one; the option ``--top-k``.

    Raises
    ------
    ValueError
        If the name has another suffix.
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

    >>> table = sinks.TokenTable()
    >>> _ = evaluate([(np.zeros((2, 3, 4)), np.ones((2, 3), int))], sinks=[table])
    >>> table.columns()["position"]
    array([0, 1, 2, 0, 1, 2])
    """

    __module__ = "tokenloss.sinks"

    option = "--per-token"
    _function = "evaluate"
    help = "write a row for each token to a .npy, .csv or .parquet file"
    needs_tokens = True

    options: ClassVar[tuple[str, ...]] = ("top_k",)

    def __init__(self, path: str | None = None, top_k: int = 0) -> None:
        self.top_k: int = check_integer("top_k", top_k, "an integer of at least 0", least=0)
        super().__init__(path)

    @contextmanager
    def open(self, batch: tuple[int, ...] | None, rows: int | None, top_k: int) -> Iterator[None]:
        columns = (_RESPONSE_COLUMNS if self._of_responses else _COLUMNS).descr
        columns += [("n_bytes", "<i8")] * (self._tokenizer is not None)
        if self._has_text and self._suffix != ".npy":
            columns.append(("text", "O"))
        for k in range(1, min(self.top_k, top_k) + 1):
            columns += [(f"top_id_{k}", "<i8"), (f"top_logprob_{k}", "<f8")]
        self._columns = np.dtype(columns)
        with self._writer(self._columns, rows) as self._write:
            yield

    def add(self, block: TokenBlock) -> None:
        scores, table = block.scores, np.zeros(len(block.target), self._columns)
        with np.errstate(over="ignore"):
            columns: dict[str, Any] = {"target": block.target, "probability": np.exp(-scores.nll)}
        columns |= {"file": block.file, "row": block.row, "sequence": block.sequence, "position": block.position}
        columns["text"] = None if block.text is None else _as_unicode(block.text.tolist())
        if scores.top_ids is not None and scores.top_logprobs is not None:
            for k in range(scores.top_ids.shape[1]):
                columns |= {f"top_id_{k + 1}": scores.top_ids[:, k], f"top_logprob_{k + 1}": scores.top_logprobs[:, k]}
        for name in self._columns.names or ():
            of_token = columns if name in columns else vars(scores) if name in _OF_SCORES else block._asdict()
            table[name] = of_token[name]
        self._write(table)


def _as_unicode(text: list[str | None]) -> list[str | None]:
    """Text that every encoding of Unicode has: half of a surrogate pair, which an array may hold, is replaced."""
    try:
        "".join(filter(None, text)).encode()
    except UnicodeEncodeError:
        return [word and word.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for word in text]
    return text


class ComparedTokenTable(_TableFile):
    """A file with a row for each candidate and token, as ``tokenloss compare --per-token`` writes it.

    Its columns are `name` (of the candidate), `file` (the number of its shard, from 0), `row` (of the file), `sequence`
    and `position` in it (-1 of none), `target` (-1 where it is not known), `kept`, and those of `Comparison`:
    `base_nll`, `nll`, `kl`, `delta_p`, `is_same_top`, `base_top_p` and further `divergences` that were asked for, which
    are nan, null or empty of tokens that are not scored, as in `TokenTable`; without targets, losses and `delta_p` are
    nan. Where files hold the text of the tokens, .csv and .parquet have the target's `text`. Of responses of servers
    there is no `row`, and the others are those of `ResponseComparison`; of token log-probabilities, of
    `Mismatch`. It is a .npy file of a structured array, a .csv or a .parquet file, written block by block: of several
    candidates, the rows of a block of tokens come candidate by candidate, so group them by `name`.

    Parameters
    ----------
    path
        As in `TokenTable`.

    Raises
    ------
    ValueError, ImportError
        As in `TokenTable`.

    See Also
    --------
    TokenTable : The same of one model.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_files, sinks
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     base, q4, path = (pathlib.Path(directory, name) for name in ("base.npz", "q4.npy", "tokens.npy"))
    ...     np.savez(base, logits=4 * np.eye(4), targets=np.arange(4))
    ...     np.save(q4, 2 * np.eye(4))
    ...     _ = compare_files(base, {"q4": q4}, sinks=[sinks.ComparedTokenTable(path)])
    ...     table = np.load(path)
    >>> table["name"], table["kl"].round(4)
    (array(['q4', 'q4', 'q4', 'q4'], dtype='<U2'), array([0.1831, 0.1831, 0.1831, 0.1831]))
    """

    __module__ = "tokenloss.sinks"

    option = "--per-token"
    _function = "compare_files"
    help = "write a row for each candidate and token to a .npy, .csv or .parquet file; with --text, for each span"
    needs_tokens = True

    @contextmanager
    def open(self, batch: tuple[int, ...] | None, rows: int | None, top_k: int) -> Iterator[None]:
        of_tokens = [*_COMPARED_COLUMNS, *((name, "<f8") for name in self._divergences)]
        if self._is_of_drafts:
            of_tokens = _DRAFT_COLUMNS
        of_tokens = _COMPARED_RESPONSE_COLUMNS if self._of_responses else of_tokens
        of_tokens = _MISMATCH_COLUMNS if self._of_logprobs else of_tokens
        self._columns = self._compared([*_COMPARED_PLACES, *of_tokens])
        with self._writer(self._columns, rows) as self._write:
            yield

    def add(self, block: ComparedBlock) -> None:
        table = np.zeros(len(block.target), self._columns)
        (named,) = _as_unicode([block.name])
        places: dict[str, Any] = {"name": named, "file": block.file, "row": block.row}
        places |= {"sequence": block.sequence, "position": block.position, "target": block.target}
        places["text"] = None if block.text is None else _as_unicode(block.text.tolist())
        for name in self._columns.names or ():
            table[name] = places[name] if name in places else block.columns.get(name, np.nan)
        self._write(table)


class ComparedSequenceTable(_TableFile):
    """A file with a row for each candidate and sequence, as ``tokenloss compare --per-sequence`` writes it.

    Its columns are `name` (of the candidate), `file` (the number of the shard, from 0; -1 where several may hold a
    part), and those of `Comparison.sequences`: `sequence`, `count`, and the means `loss`, `base_loss`,
    `loss_difference`, `kl`, `delta_p`, `same_top`, and further `divergences` that were asked for. Of responses of
    servers, `kl_bound` stands in place of `kl`, and `line` and `base_line` are those of the response in both files. Of
    token log-probabilities, they are those of `Mismatch.sequences`. It is a .npy file of a structured array,
    a .csv or a .parquet file.

    Parameters
    ----------
    path
        As in `TokenTable`.

    Raises
    ------
    ValueError, ImportError
        As in `TokenTable`.

    See Also
    --------
    ComparedTokenTable : A row for each token.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_files, sinks
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     base, q4, path = (pathlib.Path(directory, name) for name in ("base.npz", "q4.npy", "sequences.npy"))
    ...     np.savez(base, logits=4 * np.ones((2, 3, 5)), targets=np.ones((2, 3), int))
    ...     np.save(q4, np.ones((2, 3, 5)))
    ...     _ = compare_files(base, {"q4": q4}, sinks=[sinks.ComparedSequenceTable(path)])
    ...     np.load(path)["count"]
    array([3, 3])
    """

    __module__ = "tokenloss.sinks"

    option = "--per-sequence"
    _function = "compare_files"
    help = (
        "write a row for each candidate and sequence to a .npy, .csv or .parquet file; with --text, for each document"
    )

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        columns = [*_COMPARED_SEQUENCE_COLUMNS, *((name, "<f8") for name in self._divergences)]
        if self._is_of_drafts:
            columns, result = _DRAFT_SEQUENCE_COLUMNS, {name: one.acceptance() for name, one in result.items()}
        if self._of_responses:
            columns = [("kl_bound", form) if name == "kl" else (name, form) for name, form in columns]
            columns += [("line", "<i8"), ("base_line", "<i8")]
        if self._of_logprobs:
            columns = _MISMATCH_SEQUENCE_COLUMNS
        form = self._compared(columns)
        numbers = {path: number for number, path in enumerate(summary.get("files", ()))}
        tables = [np.zeros(0, form)]
        for name, comparison in result.items():
            rows = comparison._figures().get("sequences", ())
            files = [numbers[row["file"]] if "file" in row else 0 if len(numbers) < 2 else -1 for row in rows]
            tables.append(np.zeros(len(rows), form))
            for column, _ in columns:
                tables[-1][column] = files if column == "file" else [row.get(column, -1) for row in rows]
            tables[-1]["name"] = _as_unicode([name])[0]
        table = np.concatenate(tables)
        with self._writer(form, len(table)) as write:
            write(table)


class SequenceTable(_TableFile):
    """A file with a row for each sequence, as ``tokenloss score --per-sequence`` writes it.

    Its columns are those of `Evaluation.sequences`: `file` (-1 where several hold a part), `sequence`, `count`, `nll`,
    `loss`, `perplexity` and `is_greedy`; of responses of servers also `line`, `choice` and `is_greedy_known`, and with
    a tokenizer `n_bytes` and `bits_per_byte`. It is a .npy file of a structured array, a .csv or a .parquet file.

    Parameters
    ----------
    path
        As in `TokenTable`.

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
    """

    __module__ = "tokenloss.sinks"

    option = "--per-sequence"
    _function = "evaluate"
    help = "write a row for each sequence to a .npy, .csv or .parquet file"

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        columns = _SEQUENCE_COLUMNS
        if self._of_responses:
            columns = np.dtype([*columns.descr, *_SOURCE_COLUMNS])
        if self._tokenizer is not None:
            columns = np.dtype([*columns.descr, ("n_bytes", "<i8"), ("bits_per_byte", "<f8")])
        table = np.zeros(len(result.sequences["file"]), columns)
        for name in columns.names or ():
            table[name] = result.sequences[name]
        with self._writer(columns, len(table)) as write:
            write(table)


@contextmanager
def _npy(file: BinaryIO, columns: np.dtype[Any], rows: int | None) -> Iterator[_Write]:
    """Write a structured array."""
    written = 0

    def header(rows: int) -> None:
        descr = np.lib.format.dtype_to_descr(columns)
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (rows,)})

    def write(table: Array) -> None:
        nonlocal written
        file.write(table.tobytes())
        written += len(table)

    header(rows or 0)
    yield write
    if written != (rows or 0):
        file.seek(0)
        header(written)  # NumPy's header has room for any number of rows


@contextmanager
def _csv(file: BinaryIO, columns: np.dtype[Any], rows: int | None) -> Iterator[_Write]:
    """Write text: numbers with all their digits, and empty cells for tokens that are not scored."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    # a line break of either kind in a cell is quoted only if it is part of those that end lines
    lines: Any = SimpleNamespace(write=lambda line: text.write(line.removesuffix("\r\n") + "\n"))
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow(columns.names or ())

    def write(table: Array) -> None:
        cells = {name: table[name].tolist() for name in columns.names or ()}
        for name in cells.keys() - _OF_ALL if "kept" in cells else ():
            for row in np.flatnonzero(~table["kept"]).tolist():
                cells[name][row] = None
        writer.writerows(zip(*cells.values(), strict=True))

    yield write
    text.detach()


@contextmanager
def _parquet(file: BinaryIO, columns: np.dtype[Any], rows: int | None) -> Iterator[_Write]:
    """Write columns with pyarrow, with nulls for tokens that are not scored."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {name: pa.string() if columns[name].kind == "O" else pa.from_numpy_dtype(columns[name])
             for name in columns.names or ()}  # fmt: skip
    schema = pa.schema(types.items())
    nullable = types.keys() - _OF_ALL if "kept" in types else set()

    def write(table: Array) -> None:
        masks = {name: ~table["kept"] if name in nullable else None for name in types}
        arrays = [pa.array(table[name], types[name], mask=mask) for name, mask in masks.items()]
        writer.write_table(pa.table(arrays, schema))

    with pq.ParquetWriter(file, schema) as writer:
        yield write


_WRITERS = {".npy": _npy, ".csv": _csv, ".parquet": _parquet}
