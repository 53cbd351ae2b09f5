"""Sinks, which receive the rows and the result of an evaluation or a comparison, and the schema of the rows."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from tokenloss._core.errors import named, raise_error, worded
from tokenloss._core.files import check_outputs, write_errors
from tokenloss._evaluation.token_bytes import cut_pieces, text_of_pieces
from tokenloss._scores.token_scores import COLUMNS, TokenScores

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tokenloss._core.types import Array, Columns

# spelled out, because stubtest does not recognize a Literal of several values
Dtype: TypeAlias = Literal["bool"] | Literal["int64"] | Literal["float64"] | Literal["text"]
Needs: TypeAlias = Sequence[Collection[str]]

_TOPS = ("rank", "top_ids", "top_logprobs")  # columns of the most likely classes


class Column(NamedTuple):
    """A column of the rows that a sink receives.

    Attributes
    ----------
    name : str
        Its name, as in the tables of `tokenloss.sinks.TokenTable`.
    dtype : {"bool", "int64", "float64", "text"}
        The type of its values. Text is an array of objects, each a str or None.
    nullable : bool
        Whether the values of tokens that are not scored are null: nan, -1 or False.
    known : bool
        False if all values are null, as losses are without targets.
    optional : bool
        Whether tables have it only if it is asked for by name.
    width : int
        Length of the longest text, for .npy files; 0 if these files do not have the column.

    Examples
    --------
    >>> from tokenloss.sinks import Column
    >>> Column("nll", "float64").nullable
    True
    """

    name: str
    dtype: Dtype
    nullable: bool = True
    known: bool = True
    optional: bool = False
    width: int = 0


# Columns other than plain numbers, which are floats, and null for tokens that are not scored.
_COLUMNS = {
    column.name: column
    for column in (
        *(Column(name, "bool", False) for name in ("kept", "is_greedy_known", "is_prompt")),
        *(Column(name, "bool") for name in ("is_greedy", "is_same_top", "is_top_known", "flipped")),
        *(Column(name, "int64", False) for name in (
            "file", "row", "sequence", "position", "target", "count", "line", "choice", "base_line", "doc_id",
            "document", "start", "stop", "n_tokens_a", "n_tokens_b",
        )),
        *(Column(name, "int64") for name in ("rank", "argmax", "n_bytes", "first_difference", "first_flip")),
        *(Column(name, "float64", optional=True) for name in ("logsumexp", "acceptance")),
    )
}  # fmt: skip


class Schema(NamedTuple):
    """The columns and models of the rows that a sink receives.

    Attributes
    ----------
    tokens : tuple of Column
        Columns of the tokens, in the order of files: spans in `tokenloss.compare_texts`; empty for samples.
    sequences : tuple of Column
        Columns of the sequences: documents in `tokenloss.compare_texts`, questions in `tokenloss.compare_samples`.
    models : tuple of str
        Names of the candidates; empty if there is only one model.
    top_k : int
        Number of the most likely classes that each token comes with.
    bytes_of : function or None
        Returns the bytes of each class id in an array, by the tokenizer; None without one.

    Examples
    --------
    >>> from tokenloss.sinks import Column, Schema
    >>> Schema((Column("nll", "float64"),), ()).models
    ()
    """

    tokens: tuple[Column, ...]
    sequences: tuple[Column, ...]
    models: tuple[str, ...] = ()
    top_k: int = 0
    bytes_of: Callable[[Any], list[bytes | None]] | None = None


class Block(NamedTuple):
    """The next rows, in the order of the text, as `Sink.write` gets them. Its arrays must not be changed.

    Attributes
    ----------
    columns : dict of 1-D arrays
        Columns of the schema that all models share, or that the only model or the base has.
    models : dict of dicts of 1-D arrays
        For each candidate (of responses, for one), its own columns, with its `name`; empty if there is only one model.
    tops : dict of dicts of arrays
        For each candidate, and as "" for the only model or the base, the most likely classes, if they are known:
        `top_ids` and `top_logprobs` of shape (n, k), the likeliest first, filled up with -1 and -inf; `rank` of the
        token itself, -1 if it is not known; and `top_tokens`, their text, if a server returned it.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_files, sinks
    >>> class Printed(sinks.Sink):
    ...     rows = "tokens"
    ...
    ...     def write(self, block):
    ...         for name, columns in block.models.items():
    ...             print(name, block.columns["row"], columns["kl"].round(4))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     base, q4 = (pathlib.Path(directory, name) for name in ("base.npz", "q4.npy"))
    ...     np.savez(base, logits=4 * np.eye(4), targets=np.arange(4))
    ...     np.save(q4, 2 * np.eye(4))
    ...     _ = compare_files(base, {"q4": q4}, sinks=[Printed()])
    q4 [0 1 2 3] [0.1831 0.1831 0.1831 0.1831]
    """

    columns: dict[str, Array]
    models: Mapping[str, dict[str, Array]] = {}
    tops: Mapping[str, dict[str, Array]] = {}


for _public in (Column, Schema, Block):
    _public.__module__ = "tokenloss.sinks"


class Sink:
    """Receives the rows and the result of `evaluate` or a comparison: the base class of files and of your own sinks.

    `open` is called before the first row, `write` with each block of rows, and `finish` with the result. A subclass
    need not define all three.

    Parameters
    ----------
    path : path-like, optional
        File to write, which is refused before any work if it would replace an input or what another sink writes.

    Attributes
    ----------
    rows : {"none", "tokens", "sequences"}
        The rows that `write` gets. A sink for tokens cannot be combined with `state` or `scheduler`, which keep only
        sums. Sequences come in one block, after the last token.
    needs : sequence of sets of str
        The columns that the sink requires: all columns of at least one set must be known, or the sink is refused before
        the first row. They are columns of sequences if `rows` is "sequences", otherwise of tokens.
    top_k : int
        Number of the most likely classes wanted for each token. `Block.tops` may have more or fewer.
    made_by : str
        The command or function that a page names as its origin.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import evaluate, sinks
    >>> class Surprises(sinks.Sink):
    ...     rows = "tokens"
    ...     needs = ({"row", "nll"},)
    ...
    ...     def __init__(self, nats):
    ...         self.nats, self.surprising = nats, []
    ...
    ...     def write(self, block):
    ...         self.surprising += block.columns["row"][block.columns["nll"] > self.nats].tolist()
    >>> surprises = Surprises(2.0)
    >>> _ = evaluate([(np.log([[0.9, 0.1], [0.1, 0.9]]), [0, 0])], sinks=[surprises])
    >>> surprises.surprising
    [1]
    """

    __module__ = "tokenloss.sinks"

    option: str = ""  # of the command line
    options: tuple[str, ...] = ()  # further ones that it takes
    help: str = ""
    rows: str = "none"
    needs: Needs = ()
    top_k: int = 0
    path: Any = None  # None: it writes no file; also if a subclass does not call `__init__`
    made_by: str = ""

    def __init__(self, path: Any = None) -> None:
        self.path = path

    @property
    def _name(self) -> str:
        """Its name in error messages."""
        return worded(type(self).__name__, self.option)

    def open(self, schema: Schema) -> AbstractContextManager[object]:
        """Prepare for rows.

        Parameters
        ----------
        schema : Schema
            The columns of the rows to come.

        Returns
        -------
        context manager
            It is exited after all sinks have finished, with the exception if the work failed.
        """
        return contextlib.nullcontext()

    def write(self, block: Block) -> None:
        """Receive the next rows.

        Parameters
        ----------
        block : Block
            The rows, whose arrays must not be changed.
        """

    def finish(self, result: Any) -> None:
        """Receive the result, after all rows.

        Parameters
        ----------
        result : Evaluation, Comparisons or TextComparison
            The result; `to_dict` and `columns` have its values.
        """


def schema_of(
    tokens: Sequence[str], sequences: Sequence[str], models: Sequence[str] = (), top_k: int = 0, bytes_of: Any = None,
    unknown: Collection[str] = (), widths: Mapping[str, int] = {},
) -> Schema:  # fmt: skip
    """The schema with columns of these names; `widths` are lengths of text, and `name` comes first with candidates."""
    lengths = {"text": 0, "name": max(map(len, models), default=0), **widths}

    def described(name: str) -> Column:
        column = _COLUMNS.get(name, Column(name, "float64"))
        if name in lengths:
            column = Column(name, "text", False, width=lengths[name] if name == "text" else max(lengths[name], 1))
        return column._replace(known=name not in unknown)

    every = (["name", *names] if models and names else names for names in (tokens, sequences))
    token_columns, sequence_columns = (tuple(map(described, names)) for names in every)
    return Schema(token_columns, sequence_columns, tuple(models), top_k, bytes_of)


def scored_block(scores: TokenScores, places: Mapping[str, Any], top_tokens: Array | None = None) -> Block:
    """The tokens of these scores, for sinks; `places` are further columns, some of which may be None."""
    columns = {name: column for name, column in vars(scores).items() if not COLUMNS[name].is_top}
    with np.errstate(over="ignore"):
        columns["probability"] = np.exp(-scores.nll)
    columns |= {name: column for name, column in places.items() if column is not None}
    return Block(columns, {}, tops_of({"": scores}, top_tokens))


def tops_of(scores: Mapping[str, TokenScores | None], text: Array | None = None) -> dict[str, Columns]:
    """The most likely classes of each model for which they are known."""
    known = {name: vars(one) for name, one in scores.items() if one is not None and one.top_ids is not None}
    texts = {} if text is None else {"top_tokens": text}
    return {name: {column: own[column] for column in _TOPS} | texts for name, own in known.items()}


def checked_sinks(value: Any, state: bool = False, scheduler: str | None = None) -> list[Sink]:
    """Sinks as a list; sinks of tokens are refused with a state or a scheduler, which has no tokens."""
    sinks = list(value) if hasattr(value, "__iter__") else [value]
    for sink in sinks:
        if not isinstance(sink, Sink) or value is sink:
            raise_error("type", name="sinks", got=type(sink).__name__, fits="a sequence of tokenloss.sinks.Sink")
        if sum(sink is one for one in sinks) > 1:
            raise_error("not for", name=sink._name, fits="is given twice in sinks")
    option, verb = ("state", "keeps") if state else ("scheduler", "returns")
    for sink in sinks if state or scheduler else ():
        if sink.rows == "tokens":
            got = f"{named(option)} {verb} only sums"
            raise_error("needs tokens", name=sink._name, got=got, option=named(option))
    return sinks


def check_files(sinks: Sequence[Sink], state: str | None, inputs: dict[object, str]) -> None:
    """Refuse to write a file that is an input, another sink's output or stdout; inputs are keys of `identity`."""
    taken = dict(inputs)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # stdout without a file number
        printed = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(printed.st_mode):
            taken[printed.st_dev, printed.st_ino] = "stdout"
    written = [(sink._name, sink.path) for sink in sinks if sink.path is not None]
    check_outputs(written + [(named("state"), state)] * (state is not None), taken)


def check_needs(sink: Sink, schema: Schema) -> None:
    """Refuse a sink that needs rows or columns that are missing."""
    rows = "sequences" if sink.rows == "sequences" else "tokens"
    columns = {column.name: column for column in getattr(schema, rows)}
    if not columns and (sink.rows != "none" or sink.needs):
        raise_error("not for", name=sink._name, fits=f"needs {rows}, which this comparison does not have")
    known = {name for name, column in columns.items() if column.known}
    missing = min((sorted({*need} - known) for need in sink.needs), key=len, default=[])
    if missing:
        why = "are not known without targets" if {*missing} <= columns.keys() else f"the {rows} here do not have"
        raise_error("not for", name=sink._name, fits=f"needs columns that {why}: {', '.join(missing)}")


class Sinks:
    """The sinks of a run; the stack closes those that are open."""

    def __init__(self, sinks: Sequence[Sink], stack: contextlib.ExitStack) -> None:
        self._sinks, self._stack = sinks, stack
        self._schema = Schema((), ())
        self.top_k = max((sink.top_k for sink in sinks), default=0)  # the most that any sink wants

    def check(self, schema: Schema) -> None:
        """Refuse sinks whose rows or columns are missing, before any work."""
        for sink in self._sinks:
            check_needs(sink, schema)

    def open(self, schema: Schema) -> None:
        """Open all sinks."""
        self._schema = schema
        self.check(schema)
        for sink in self._sinks:
            with write_errors(sink.path, sink._name):
                manager = sink.open(schema)
                manager.__enter__()
            self._stack.push(functools.partial(_leave, sink, manager))

    def emitter(self, file: int = 0) -> Callable[[Block], None] | None:
        """A function that passes tokens of this file to the sinks that take them; None if no sink does."""
        return functools.partial(self._write_tokens, file) if any(one.rows == "tokens" for one in self._sinks) else None

    def _write_tokens(self, file: int, block: Block) -> None:
        """Pass tokens on, with their file and text."""
        size = len(block.columns["kept"])
        columns: Columns = {"file": np.full(size, file), "text": np.full(size, None)} | block.columns
        if "sequence" in columns:
            columns["sequence"] = np.maximum(columns["sequence"], -1)
        if self._schema.bytes_of is not None:
            pieces = self._schema.bytes_of(columns["target"])
            columns["text"] = text_of_pieces(cut_pieces(pieces, columns.get("n_bytes")))
        self._write("tokens", block._replace(columns=columns))

    def _write(self, rows: str, block: Block) -> None:
        """Pass rows to the sinks that take them, with the columns of the schema; rows of a candidate get its name."""
        dtypes = {column.name: column.dtype for column in getattr(self._schema, rows)}
        none = {name: np.zeros(0, np.object_ if dtype == "text" else dtype) for name, dtype in dtypes.items()}
        tables = block.columns, *block.models.values()
        columns, *models = ({name: own[name] for name in dtypes if name in own} for own in tables)
        named = dict(zip(block.models, (own or {**none} for own in models), strict=True))  # `none` without any sequence
        for name, own in named.items():
            own["name"] = np.full(len(next(iter(own.values()))), name, np.object_)
        block = block._replace(columns=columns, models=named)
        for sink in self._sinks:
            with write_errors(sink.path, sink._name):
                if sink.rows == rows:
                    sink.write(block)

    def finish(self, result: Any, sequences: Callable[[], Block]) -> None:
        """Pass all sequences to the sinks that take them, then the result to all sinks."""
        if any(sink.rows == "sequences" for sink in self._sinks):
            self._write("sequences", sequences())
        for sink in self._sinks:
            with write_errors(sink.path, sink._name):
                sink.finish(result)


def _leave(sink: Sink, manager: AbstractContextManager[object], *error: Any) -> bool | None:
    """Close a sink."""
    with write_errors(sink.path, sink._name):
        return manager.__exit__(*error)
