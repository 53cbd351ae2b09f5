"""The file of a sketch: the k most likely classes of each position, and s classes drawn from the others.

It is a safetensors file, whose arrays are listed in `_fields`. Draws are those of `uniforms_of` and `tails_of`.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core import jobs
from tokenloss._core.dtypes import CheckedArray, as_float_array, dtype_name, without_bfloat16
from tokenloss._core.errors import contextmanager, raise_error, refuse
from tokenloss._core.files import replacing, write_errors
from tokenloss._core.signature import IdsHash, signature_of
from tokenloss._core.validation import as_positions, as_scores, most_unnormalized
from tokenloss._scores.losses import cross_entropy_loss
from tokenloss._scores.softmax import logsumexp
from tokenloss._scores.tails import tails_of, uniforms_of
from tokenloss._scores.token_scores import token_job
from tokenloss.formats import safetensors
from tokenloss.formats.base import open_regular
from tokenloss.formats.scores_file import Format, ScoresFile, SketchFacts

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from typing import BinaryIO

    from tokenloss._core.types import Array, BoolArray, Float64Array, IntArray
    from tokenloss.formats.mapped import ArrayLocation

VERSION, EPSILON, IGNORED = 1, 0.1, -100
MOST_CLASSES = 2**31 - 1  # ids are int32
MOST_LISTED = 1 << 16  # classes of a position
_ROWS = 1 << 12  # that are copied at a time
_SLACK = 1e-2  # by which rounding may move the sum of a row's probabilities from 1
_PAIRED = ("targets", "target_logprobs", "target_ranks")  # a file has all of these arrays or none


def _fields(top: int, tail: int, logits: Any, has_targets: bool, has_sequences: bool) -> np.dtype[Any]:
    """The dtype of a position, whose fields are the arrays of a file, the widest first."""
    target_fields = [("target_logprobs", "<f8"), ("targets", "<i4"), ("target_ranks", "<i4")] if has_targets else []
    fields: list[Any] = [
        ("log_normalizers", "<f8"), ("log_tails", "<f8"), ("entropies", "<f8"), ("supports", "<i4"), *target_fields,
        *([("sequences", "<i8")] if has_sequences else []), ("ids", "<i4", (top + tail,)),
        ("logits", np.dtype(logits).newbyteorder("<"), (top + tail,)),
    ]  # fmt: skip
    return np.dtype(sorted(fields, key=lambda field: -np.dtype(field[1]).itemsize))


# -- reading -----------------------------------------------------------------------------------------------------------


def open_scores(path: str, array: str | None, kind: str | None, targets_array: str | None) -> ScoresFile:
    """The open file of a sketch, whose rows are records."""
    if array is not None or targets_array is not None or kind is not None:
        refuse(path, "contains a sketch", "come without the names of arrays, and without a kind")
    header = safetensors.read_header(path)
    facts, classes = _facts(path, header.metadata)
    places = {name: header.place(name) for name in header.entries}
    n = places["log_normalizers"].shape[:1] if "log_normalizers" in places else ()
    has_targets, has_sequences = _PAIRED[0] in places, "sequences" in places
    logits: Any = places["logits"].dtype if "logits" in places else np.float32
    fields = _fields(facts.top, facts.tail, logits, has_targets, has_sequences)
    wanted = {name: (*n, *fields[name].shape) for name in fields.names or ()}
    for name, shape in wanted.items():
        held = places[name].shape if name in places else None
        dtypes = ("f2", "f4", "f8") if name == "logits" else (fields[name].base.str[1:],)
        if held != shape or not n or places[name].dtype.str[1:] not in dtypes:
            got = f"contains {name} of {places[name].dtype} and shape {held}" if held is not None else f"has no {name}"
            refuse(path, got, f"contain {name} of {' or '.join(dtypes)} and shape {shape or '(n,)'}, to be a sketch")
    if more := sorted(places.keys() - wanted.keys() - {"masked"}):
        refuse(path, f"contains {', '.join(more)}", f"contain only the arrays of a sketch: {', '.join(wanted)}, masked")
    masked = _masked(path, places["masked"], classes) if "masked" in places else None
    facts = facts._replace(masked=masked, row_bytes=fields.itemsize)
    arrays: dict[str, Any] = {"segment_ids": places["sequences"].load()} if has_sequences else {}
    if not has_targets:  # rows that were left out
        arrays["attention_mask"] = places["supports"].load() >= 0
    targets: Any = places["targets"].load() if has_targets else None
    if has_targets and ((targets != IGNORED) & ((targets < 0) | (targets >= classes))).any():
        refuse(path, "contains targets that are no classes", "be whole, as it was written")

    def blocks(most_rows: int, first: int = 0, stop: int = n[0]) -> Iterator[Array]:
        with open_regular(path) as file:
            for start in range(first, stop, most_rows):
                rows = np.empty(min(most_rows, stop - start), fields)
                for name in wanted:
                    rows[name] = _part(places[name], file, start, start + len(rows))
                _check_rows(path, start, rows, facts, classes)
                yield rows

    dtype = np.dtype(logits)
    shape = *n, classes
    return ScoresFile(path, "sketch", shape, dtype, targets, None, blocks, is_shifted=True, sketch=facts, **arrays)


def _part(place: ArrayLocation, file: BinaryIO, start: int, stop: int) -> Array:
    """Rows of an array (n,) or (n, k)."""
    is_flat = len(place.shape) == 1
    rows = (place._replace(shape=(*place.shape, 1)) if is_flat else place).rows(file, start, stop)
    return rows.reshape(-1) if is_flat else rows


def _facts(path: str, said: dict[str, str]) -> tuple[SketchFacts, int]:
    """The facts in the metadata, and the number of classes."""
    if said.get("kind") != "sketch":
        refuse(path, f"has {said.get('kind') or 'no'} kind in its metadata", "have 'sketch' there, to be a sketch")
    values = {}
    for name, least, most in (
        ("version", 1, VERSION), ("vocabulary", 1, MOST_CLASSES), ("top", 1, MOST_LISTED), ("tail", 0, MOST_LISTED),
        ("seed", 0, 2**64 - 1),
    ):  # fmt: skip
        text = said.get(name, "")
        values[name] = int(text) if text.isascii() and text.isdecimal() and len(text) < 21 else -1
        if not least <= values[name] <= most:
            refuse(path, f"has {name} {text!r} in its metadata", f"have an integer from {least} to {most}")
    try:
        epsilon = float(said.get("epsilon", ""))
    except ValueError:
        epsilon = math.nan
    if not 0 <= epsilon <= 1:
        refuse(path, f"has epsilon {said.get('epsilon')!r} in its metadata", "have a number from 0 to 1")
    signed = dict(field.partition(":")[::2] for field in said.get("signature", "").split("|"))
    words = signed.get("kind", ""), signed.get("dtype", "")
    return SketchFacts(values["top"], values["tail"], epsilon, values["seed"], words=words), values["vocabulary"]


def _masked(path: str, place: ArrayLocation, classes: int) -> Array:
    """The classes that are impossible in all rows."""
    masked: Array = np.array(place.load()) if place.dtype.kind == "i" and len(place.shape) == 1 else np.array([-1])
    if (np.diff(masked) <= 0).any() or (masked < 0).any() or (masked >= classes).any():
        refuse(path, f"has masked of {place.dtype} and shape {place.shape}", "contain class ids in ascending order")
    return masked


def _check_rows(path: str, start: int, rows: Array, facts: SketchFacts, classes: int) -> None:
    """Refuse rows that no writer produces, such as in a damaged file."""
    ids, logits = rows["ids"], rows["logits"].astype(np.float64)
    top, drawn = ids[:, : facts.top], ids[:, facts.top :]
    top_logits, known = logits[:, : facts.top], (rows["supports"] >= 0) & ~np.isnan(rows["log_normalizers"])
    ordered = np.sort(top, axis=1)
    with np.errstate(all="ignore"):
        log_sum = np.logaddexp.reduce(top_logits, axis=1) - rows["log_normalizers"]
        total = np.exp(log_sum) + np.exp(rows["log_tails"])
        wrong = {
            "class ids": (ids < -1) | (ids >= classes),
            "logits in another order": known[:, None] & ~(top_logits[:, 1:] <= top_logits[:, :-1]),
            "one class twice": (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0),
            "draws above the most likely classes": known[:, None] & ~(logits[:, facts.top :] <= top_logits[:, -1:]),
            "draws in another order": np.diff(drawn, axis=1) < 0,
            "draws where there is no tail": ((drawn >= 0) != (rows["supports"] > 0)[:, None]) & known[:, None],
            "another number of classes": (rows["supports"] + (top >= 0).sum(1) > classes)[:, None],
            "probabilities that do not add up to 1": (known & ~(abs(total - 1) <= _SLACK))[:, None],
        }
    for words, where in wrong.items():
        for row in np.flatnonzero(where.any(1))[:1].tolist():
            refuse(path, f"row {start + row} contains {words}", "be whole, as it was written")


# -- writing -----------------------------------------------------------------------------------------------------------


class _Begun(NamedTuple):
    """Facts about a file, from its first rows."""

    fields: np.dtype[Any]
    classes: int
    words: tuple[str, str]  # the kind and the dtype of the scores


class SketchWriter:
    """Adds rows to a sketch; `sketch_writer` makes it."""

    def __init__(self, top: int, tail: int, seed: int, rows: BinaryIO, workers: int | None) -> None:
        self._top, self._tail, self._seed, self._rows, self._workers = top, tail, seed, rows, workers
        self._begun: _Begun | None = None
        self._masked: IntArray | None = None  # the classes that are impossible in all rows; None before the first
        self._is_shared = True  # whether these are the same in all rows
        self.n_rows: int = 0
        self.n_kept: int = 0
        self.n_sequences: int = 0  # the least number that no sequence has
        self._n_of: dict[int, int] = {}  # rows of each sequence

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self._begun.fields.itemsize if self._begun else 0

    def take(self, file: ScoresFile) -> None:
        """Begin with the rows of a sketch with the same options."""
        facts: Any = file.sketch
        for name, value in (("top", self._top), ("tail", self._tail), ("seed", self._seed)):
            if getattr(facts, name) != value:
                refuse(file.path, f"has {name} {getattr(facts, name)}", f"have {value}, to continue it")
        self._masked, self._is_shared = facts.masked, facts.masked is not None
        for rows in file.blocks(_ROWS):
            self._begun = _Begun(rows.dtype, file.shape[-1], facts.words)
            self._count(rows["sequences"] if "sequences" in (rows.dtype.names or ()) else np.full(len(rows), -1))
            self._rows.write(rows.tobytes())
            self.n_rows += len(rows)
            self.n_kept += int(np.count_nonzero(rows["supports"] >= 0))

    def _count(self, sequences: Array) -> Array:
        """The position of each row in its sequence, or among rows outside any sequence; it also counts the rows."""
        positions = np.empty(len(sequences), np.int64)
        for number in np.unique(sequences).tolist():
            where, before = np.flatnonzero(sequences == number), self._n_of.get(number, 0)
            positions[where] = before + np.arange(len(where))
            self._n_of[number] = before + len(where)
        self.n_sequences = max(self.n_sequences, int(sequences.max(initial=-1)) + 1)
        return positions

    def add(self, array: Any, kind: str, targets: Any, kept: BoolArray, sequences: IntArray | None) -> None:
        """Add rows (n, V), with their targets and the numbers of their sequences, if given."""
        rows, code = as_float_array("logits", array)
        if len(rows) == 0:
            return
        dtype, classes = dtype_name(code, rows), rows.shape[-1]
        wide = np.float16 if rows.itemsize == 2 and kind != "probs" else np.float32 if rows.itemsize < 8 else np.float64
        fields = _fields(self._top, self._tail, wide, targets is not None, sequences is not None)
        begun = _Begun(fields, classes, (kind, dtype))
        if self._begun not in (None, begun):
            assert self._begun is not None
            got, fits = (
                f"{one.classes} classes of {one.words[1]} {one.words[0]}, with {', '.join(one.fields.names or ())}"
                for one in (begun, self._begun)
            )
            raise_error("option", name="a block", got=got, fits=f"of {fits}, like the blocks before it")
        self._begun = begun
        numbers = np.full(len(rows), -1) if sequences is None else np.maximum(sequences, -1)
        uniforms = uniforms_of(self._seed, numbers, self._count(numbers), self._tail)
        ids = np.zeros(len(rows), np.int64) if targets is None else targets
        records = self._records(without_bfloat16(rows, code), kind, ids, kept, uniforms)
        if targets is not None:
            records["targets"] = np.where(kept, ids, IGNORED)
        if sequences is not None:
            records["sequences"] = numbers
        self._rows.write(records.tobytes())
        self.n_rows += len(records)
        self.n_kept += int(np.count_nonzero(kept))

    def _records(self, given: Array, kind: str, ids: Array, kept: BoolArray, uniforms: Float64Array) -> Array:
        """The records of rows, without targets and sequences."""
        assert self._begun is not None
        fields, classes = self._begun.fields, given.shape[-1]
        rows = logits_of(given, kind, kept)
        scores = as_scores("logits", rows, -1)
        positions = as_positions("targets", ids, scores, None, kept, distributions=False)
        job, columns = token_job(scores, positions, (1.0, 0.0), min(self._top, classes))
        jobs.run(job, self._workers)
        check_sums(columns["logsumexp"], kind, given)
        excluded = columns["top_ids"]
        maxima = logits_at(rows, excluded[:, :1])[:, 0]
        tails = tails_of(scores, excluded, maxima, uniforms, EPSILON, kept, self._workers)
        records = np.zeros(len(rows), fields)
        records["ids"] = -1
        records["ids"][:, : excluded.shape[1]], records["ids"][:, self._top :] = excluded, tails.drawn
        exact = logits_at(rows, records["ids"])
        with np.errstate(over="ignore"):
            records["logits"] = exact
        lost = np.isfinite(exact) & ~np.isfinite(records["logits"])
        if lost.any():
            fits = f"at most {np.finfo(fields['logits'].base).max:g}, or float32"
            raise_error("option", name="a logit", got=float(exact[lost][0]), fits=fits)
        is_known = kept & ~np.isnan(columns["logsumexp"])
        self._note_masks(rows, is_known, excluded, exact, tails.supports)
        # columns["logsumexp"] depends on the target in its last bits, but identical rows must have identical records
        log_sums = np.where(kept, logsumexp(rows, workers=self._workers), np.nan)
        records["log_normalizers"], records["entropies"] = log_sums, columns["entropy"]
        with np.errstate(invalid="ignore"):
            records["log_tails"] = np.where(kept, tails.log_masses - log_sums, np.nan)
        records["supports"] = np.where(kept, np.where(is_known, tails.supports, 0), -1)
        records["ids"][~is_known], records["logits"][~is_known] = -1, -np.inf
        if "targets" in (fields.names or ()):
            records["target_logprobs"], records["target_ranks"] = -columns["nll"], columns["rank"]
        return records

    def _note_masks(self, rows: Array, is_known: BoolArray, excluded: Array, exact: Array, supports: Array) -> None:
        """Keep the classes that are impossible in all rows, as long as all rows have the same ones."""
        if not self._is_shared or not is_known.any():
            return
        n_possible = np.isfinite(exact[:, : excluded.shape[1]]).sum(1) + supports
        are_whole = bool((n_possible[is_known] == rows.shape[-1]).all())
        if self._masked is None and are_whole:
            self._masked = np.empty(0, np.int64)
        elif self._masked is None or len(self._masked):
            impossible = rows[is_known] == -np.inf
            first = np.flatnonzero(impossible[0]) if self._masked is None else self._masked
            self._masked = first
            expected = np.zeros(rows.shape[-1], np.bool_)
            expected[first] = True
            self._is_shared = bool((impossible == expected).all())
        else:
            self._is_shared = are_whole

    def finish(self, file: BinaryIO) -> None:
        """Write the file: the header, and the rows array by array."""
        if self._begun is None:
            raise_error("empty", name="source", fits="at least one row")
        fields = self._begun.fields
        arrays = {name: (fields[name].base, (self.n_rows, *fields[name].shape)) for name in fields.names or ()}
        masked = np.empty(0, "<i4") if self._masked is None else self._masked.astype("<i4")
        if self._is_shared:
            arrays["masked"] = masked.dtype, masked.shape
        file.write(safetensors.header_of(arrays, self._metadata()))
        for name in fields.names or ():
            for rows in self._written(fields):
                file.write(np.ascontiguousarray(rows[name]).tobytes())
        if self._is_shared:
            file.write(masked.tobytes())

    def _written(self, fields: np.dtype[Any]) -> Iterator[Array]:
        """The rows, some at a time."""
        self._rows.seek(0)
        while data := self._rows.read(_ROWS * fields.itemsize):
            yield np.frombuffer(data, fields)

    def _metadata(self) -> dict[str, str]:
        """The metadata of the file."""
        assert self._begun is not None
        (kind, dtype), names, hashed, count = self._begun.words, self._begun.fields.names or (), IdsHash(), 0
        for rows in self._written(self._begun.fields):
            kept = rows["supports"] >= 0
            count += int(np.count_nonzero(kept))
            if "targets" in names:
                hashed.add(IdsHash.of(rows["targets"][kept], rows["sequences"][kept] if "sequences" in names else None))
        signature = signature_of(
            unit="tokens", tokens=count, kind=kind, dtype=dtype, ignored=self.n_rows - count,
            ids=hashed.total if "targets" in names else None,
        )  # fmt: skip
        numbers = {"version": VERSION, "vocabulary": self._begun.classes, "top": self._top, "tail": self._tail}
        said = {"kind": "sketch", **numbers, "seed": self._seed, "epsilon": EPSILON, "signature": signature}
        return {name: str(value) for name, value in said.items()}


def flat_rows(scores: Array, code: int) -> Any:
    """Scores (..., V) as rows (n, V); bfloat16 keeps its name."""
    return CheckedArray(scores.reshape(-1, scores.shape[-1]), code)


def logits_of(rows: Array, kind: str, mask: BoolArray) -> Array:
    """The rows, if they are logits or log-probabilities; for probabilities, their logarithms in float64."""
    if kind != "probs":
        return rows
    each = rows.reshape(-1, 1).astype(np.float64)
    where = np.repeat(mask, rows.shape[-1])
    # the same on each machine
    losses: Any = cross_entropy_loss(np.zeros(len(each), np.int8), each, epsilon=0.0, where=where, reduction="none")
    logits: Array = -losses.reshape(rows.shape)
    return logits


def check_sums(logsumexps: Float64Array, kind: str, rows: Array) -> None:
    """Refuse rows of probabilities or log-probabilities that are far from normalized."""
    for row in np.flatnonzero(abs(logsumexps) > most_unnormalized(kind, rows))[:1].tolist():
        jobs.raise_unnormalized("logits", [row], kind, float(logsumexps[row]))


def logits_at(rows: Array, ids: Array) -> Float64Array:
    """The logits of classes, -inf for negative ids."""
    values: Array = np.take_along_axis(rows, np.maximum(ids, 0).astype(np.int64), 1).astype(np.float64)
    return np.where(ids < 0, -np.inf, values)


@contextmanager
def sketch_writer(
    path: str | os.PathLike[str], top: int, tail: int, seed: int, append: bool = False, workers: int | None = None
) -> Iterator[SketchWriter]:
    """A writer of rows; the file is written at the end, and with `append` it begins with its existing rows."""
    with contextlib.ExitStack() as stack:
        with write_errors(path):
            rows: Any = stack.enter_context(tempfile.TemporaryFile(dir=Path(path).absolute().parent))
        writer = SketchWriter(top, tail, seed, rows, workers)
        if append:
            writer.take(open_scores(str(path), None, None, None))
        yield writer
        with replacing(path) as file:
            writer.finish(file)


SKETCH_FORMAT = Format("a sketch", (".sketch",), b"", open_scores=open_scores)
