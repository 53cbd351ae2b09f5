"""Log-probabilities of tokens, without other classes: an array, or a list on each line of JSON."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core._core import KINDS, is_log_prob
from tokenloss._core.arguments import as_paths
from tokenloss._core.dtypes import FLOATS, as_float_array, without_bfloat16
from tokenloss._core.errors import named, raise_error, refuse
from tokenloss._core.validation import check_log_probs
from tokenloss._statistics.sequences import check_segment_ids
from tokenloss.formats import npy, npz
from tokenloss.formats.base import is_float
from tokenloss.formats.readers import format_of, resolved
from tokenloss.formats.records import COUNT, Place, are_records, check, check_length, is_stream, label_of, read_records
from tokenloss.formats.responses import Response, response_of
from tokenloss.formats.scores_file import Archive, reject_array_name
from tokenloss.formats.sources import Source, TokenOptions

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import NoReturn

    from tokenloss._core.types import Array, BoolArray, Float64Array, IntArray

    _Path = str | os.PathLike[str]

_NAME = "logprobs"
_TAIL = 64  # numbers at the end of a row: enough to count its last zeros unless all of these are 0
# names of arrays, or of lists in lines of JSON, and of their masks: ours, then verl's, TRL's and prime-rl's
FIELDS: dict[str, str | None] = {
    _NAME: None,
    "rollout_log_probs": "response_mask",
    "sampling_per_token_logps": "completion_mask",
    "completion_logprobs": "completion_mask",
}


@dataclass(frozen=True, eq=False, repr=False)
class Logprobs(Source):
    """The log-probability of each token in a file, but of no other class; `open_logprobs` returns them.

    Iterating yields each sequence as a `Response`.

    Attributes
    ----------
    array, mask : str or None
        The names of the array and of its mask, if the file names its arrays.
    shape : tuple of int or None
        The shape of the array; None for lines of JSON.
    dialect, part, failed : str, str, tuple
        As in `Responses`, here always "log-probabilities", "generated" and ().

    Examples
    --------
    >>> from tokenloss.formats import Logprobs
    >>> Logprobs(("trainer.npy",), shape=(2, 3))
    Logprobs(trainer.npy, 2 x 3)
    """

    __module__ = "tokenloss.formats"

    level = "nll"
    holds = "log-probabilities"
    _lacking = MappingProxyType({
        **dict.fromkeys(("tops", "rows"), "gives the log-probability of each token only"),
        **dict.fromkeys(("ids", "tokenizer"), "has no class ids"),
    })  # fmt: skip
    dialect = "log-probabilities"  # in place of a server's
    part = "generated"

    array: str | None = None
    mask: str | None = None
    shape: tuple[int, ...] | None = None
    _field: str | None = None  # whose labels group tokens

    @property
    def failed(self) -> tuple[()]:
        """Lines that failed: always empty."""
        return ()

    def _words(self) -> list[str]:
        """Its shape."""
        return ["lines of JSON" if self.shape is None else " x ".join(f"{n:,}" for n in self.shape)]

    @property
    def are_sequences(self) -> bool:
        """Whether tokens belong to sequences; tokens on one axis without segment ids are independent."""
        return self.shape is None or bool(self.token_options.segment_ids) or len(self.shape) > 1

    def like(self, paths: Any) -> Logprobs:
        """Open another file with the same options."""
        return open_logprobs(paths, **self.options)

    def __iter__(self) -> Iterator[Response]:
        """Yield each sequence, a line or a part of an array; only its log-probabilities are known."""
        if self.shape is None:
            responses, is_padded = read_lines(self)
            yield from responses
            if is_padded:
                refuse_padding(self)
            return
        values, _ = read_array(self)
        if seems_padded(self, values):
            refuse_padding(self)
        for number, row in enumerate(_rows_of_array(self, values), 1):
            length = np.flatnonzero(~np.isnan(row))[-1:].sum() + 1 if row.size else 0
            yield response_of(number, None, 0, row[:length])


def read_array(source: Logprobs) -> tuple[Float64Array, BoolArray | None]:
    """The log-probabilities of an array, nan where its mask is 0, and the mask; None if the file has no mask."""
    name = source.array or _NAME
    label = f"{source.path}: {name}"
    archive = _archive(source.path)
    stored = _located(archive, source.array).load()
    with np.errstate(invalid="ignore"):  # a nan that signals is a nan
        values: Float64Array = without_bfloat16(*as_float_array(label, stored)).astype(np.float64)
    mask = None
    if source.mask is not None:
        marks = _located(archive, source.mask).load()
        if marks.shape != values.shape:
            refuse(source.path, f"{source.mask} has shape {marks.shape}", f"have {values.shape}, as {name}")
        if not np.isin(marks, (0, 1)).all():
            refuse(source.path, f"{source.mask} has numbers other than 0 and 1", "be a mask")
        mask = marks == 1
        values[~mask] = np.nan
    check_log_probs(label, values, True)
    return values, mask


def read_lines(source: Logprobs) -> tuple[list[Response], bool]:
    """The sequence of each line of JSON, and whether lists without a mask seem to be padded with zeros."""
    rows: list[Response] = []
    for line, value in read_records(source.path):
        row = _row(source.options, value, place := Place(source.path, line), source._field)
        if rows and (row.mask is None) != (rows[0].mask is None):
            words = ("a mask", "none") if rows[0].mask is None else ("no mask", "one")
            place.refuse(f"it has {words[0]}", f"be like the lines before it, which have {words[1]}")
        rows.append(row)
    unmasked = [row.logprobs for row in rows if row.mask is None]
    return rows, len({row.size for row in unmasked}) == 1 and end_in_zeros(unmasked)


def read_segment_ids(source: Logprobs, shape: tuple[int, ...]) -> IntArray | None:
    """The number of each token's sequence, in C order; None if the opener got no file of them."""
    paths = source.token_options.segment_ids
    return check_segment_ids(npy.open_array(paths[0]), shape).flatten() if paths else None


def seems_padded(source: Logprobs, values: Float64Array) -> bool:
    """Whether rows end in different numbers of zeros, and nothing else shows where they end."""
    has_ends = values.ndim != 2 or source.mask is not None or bool(source.token_options.segment_ids)
    return not has_ends and not np.isnan(values).any() and end_in_zeros(values)


def refuse_padding(source: Logprobs) -> NoReturn:
    """Raise an error that zeros may be padding, which would be counted as tokens."""
    got = "its rows end in zeros, which look like padding and would count as tokens"
    fits = f"have nan there, or come with {named('mask', 'NAME')}"
    refuse(source.path, got, fits)


def _rows_of_array(source: Logprobs, values: Float64Array) -> Iterable[Float64Array]:
    """The sequences of an array: its rows, or the tokens of each segment id."""
    ids = read_segment_ids(source, values.shape)
    if ids is None:
        return values.reshape(-1, values.shape[-1] if values.size else 1)
    values = values.reshape(-1)
    for i in np.flatnonzero((ids < 0) & ~np.isnan(values))[:1].tolist():
        got = f"token {i} of {source.path} has a log-probability, and the number {ids[i]}"
        refuse(source.token_options.segment_ids[0], got, "give it the number of a sequence")
    order = np.argsort(ids, kind="stable")[np.count_nonzero(ids < 0) :]
    return np.split(values[order], np.flatnonzero(np.diff(ids[order])) + 1)


def _archive(path: str) -> Archive:
    """The arrays of a file."""
    form = format_of(path)
    if form not in (npy.FORMAT, npz.FORMAT) or form.open is None:
        refuse(path, f"is {form.words}", "be a .npy or .npz file, or lines of JSON (.jsonl)")
    return form.open(path, ())


def _located(archive: Archive, name: str | None) -> Any:
    """An array of a file that is not read yet."""
    if name is not None and name not in archive.names:
        refuse(archive.path, f"contains {', '.join(archive.names) or 'nothing'}", f"contain {name!r}")
    return archive.locate(name or "")


def _checked_names(path: str, array: str | None, mask: str | None) -> tuple[str | None, str | None, tuple[int, ...]]:
    """The names of the array and of its mask, None in a .npy file, and the shape of the array."""
    archive = _archive(path)
    names = archive.names
    if "" in names:
        reject_array_name(path, array, mask)
    elif array is None:
        held = [name for name in FIELDS if name in names]
        if len(held) != 1:
            got = " and ".join(held) or ", ".join(names) or "nothing"
            fits = f"contain one of {', '.join(FIELDS)}, or come with the name of its array: {named('array', ...)}"
            refuse(path, f"contains {got}", fits)
        array = held[0]
    place = _located(archive, array)
    if not place.shape:
        refuse(path, "contains a single number", "contain one for each token")
    if not is_float(place.dtype):
        refuse(path, f"{array or _NAME} has dtype {place.dtype}", f"be {FLOATS}")
    usual = FIELDS.get(array or "")
    if mask is not None:
        _located(archive, mask)
    return array, mask or (usual if usual in names else None), place.shape


def _row(options: Mapping[str, Any], value: dict[str, Any], place: Place, field: str | None = None) -> Response:
    """The sequence of a line with a list of log-probabilities and perhaps a mask."""
    array, mask = options["array"], options["mask"]
    names = [name for name in (FIELDS if array is None else (array,)) if name in value]
    if len(names) != 1:
        held = " and ".join(names) or "no log-probabilities"
        place.refuse(f"it has {held}", f'have one list, {{"{array or _NAME}": [...]}}')
    (name,) = names
    numbers = check(value[name], [], name, place)
    marked = mask or FIELDS.get(name) or ""
    has_mask = bool(marked) and marked in value
    if mask is not None and mask not in value:
        place.refuse(f"it has no mask {mask!r}", f"have it next to {name}")
    marks = [1] * len(numbers)
    if has_mask:
        marks = check_length(check(value[marked], [], marked, place), len(numbers), marked, place)
    for i, (number, mark) in enumerate(zip(numbers, marks, strict=True)):
        if mark not in (0, 1):
            place.refuse(f"{marked}[{i}] is {mark!r}", "be 0 or 1")
        is_known = is_log_prob(number) or (type(number) is float and not number > 1e-3)  # by rounding; nan, too
        if mark and number is not None and not is_known:
            place.refuse(f"{name}[{i}] is {number!r}", "be a log-probability, a number of at most 0, or null")
    values = [one if mark and one is not None else np.nan for one, mark in zip(numbers, marks, strict=True)]
    choice = check(value.get("choice", 0), COUNT, "choice", place)
    request = None if (own := value.get("custom_id")) is None else str(own)
    kept = np.array(marks, np.bool_) if has_mask else None
    label = field and label_of((value,), field, place)
    return response_of(place.line, request, choice, np.array(values, np.float64), kept, label)


def end_in_zeros(rows: Iterable[Array]) -> bool:
    """Whether rows end in different numbers of zeros, and no row has only zeros."""
    lengths = set()
    for row in rows:
        for n in (_TAIL, row.size):
            others = np.flatnonzero(row[::-1][:n])
            if others.size:
                break
        else:
            return False
        lengths.add(int(others[0]))
    return len(lengths) > 1 and max(lengths) >= 2


def are_logprobs(path: str) -> bool:
    """Whether a file has an array, or lists in lines of JSON, with a name of log-probabilities."""
    if is_stream(path):
        return False
    if are_records(path):
        value = next(iter(read_records(path))).value
        return "choices" not in value and any(isinstance(value.get(name), list) for name in FIELDS)
    if format_of(path) is not npz.FORMAT:
        return False
    names = {*_archive(path).names}
    return not names.isdisjoint(FIELDS) and names.isdisjoint(KINDS)


def open_logprobs(
    path: _Path | Sequence[_Path],
    *,
    array: str | None = None,
    mask: str | None = None,
    segment_ids: _Path | Sequence[_Path] = (),
) -> Logprobs:
    """Open a file of log-probabilities of tokens, from a trainer or from the engine that sampled.

    Parameters
    ----------
    path : path
        A .npy or .npz file with an array (tokens,) or (N, T), or a .jsonl file with a sequence on each line. Numbers
        are in nats; nan, or null in JSON, marks padding and tokens without a number.
    array : str, optional
        Name of the array, or of the list in each line. By default ``logprobs``, or the name that a framework writes:
        ``rollout_log_probs`` (verl), ``sampling_per_token_logps`` (TRL) or ``completion_logprobs`` (prime-rl).
    mask : str, optional
        Name of the mask, which is 1 for tokens that count and 0 for others. By default the framework's own, if present:
        ``response_mask`` (verl) or ``completion_mask`` (TRL and prime-rl).
    segment_ids : path, optional
        A .npy file with the number of each token's sequence, for arrays. By default, each row of (N, T) is a sequence.

    Returns
    -------
    Logprobs
        A source for `tokenloss.compare_files`.

    Raises
    ------
    TypeError, ValueError, OSError
        As in `open_scores`; the message names the line of a file of JSON.

    See Also
    --------
    tokenloss.mismatch : The comparison of two arrays of log-probabilities.

    Notes
    -----
    Lines of JSON may also have ``custom_id`` and ``choice`` (0 by default), which match them with the lines of another
    file.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_files
    >>> from tokenloss.formats import open_logprobs
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> np.save(folder / "trainer.npy", [-0.5, -1.5])
    >>> np.savez(folder / "rollout.npz", rollout_log_probs=[-0.5, -1.0])
    >>> one = compare_files(open_logprobs(folder / "trainer.npy"), {"engine": folder / "rollout.npz"})["engine"]
    >>> round(one.k3, 4)
    0.0533
    """
    paths = resolved(as_paths("path", path))
    if len(paths) != 1:
        raise_error("option", name="path", got=f"{len(paths)} paths", fits="one file of log-probabilities")
    segments = tuple(resolved(as_paths("segment_ids", segment_ids)))
    if len(segments) > 1:
        raise_error("option", name="segment_ids", got=f"{len(segments)} paths", fits="one file")
    for name, given in (("array", array), ("mask", mask)):
        if given is not None and not isinstance(given, str):
            raise_error("type", name=name, got=given, fits="a name")
    options, said = {"array": array, "mask": mask}, TokenOptions(segment_ids=segments)
    if are_records(paths[0]):
        if segments:
            raise_error("not for", name="segment_ids", fits="is for arrays, but this file has one sequence per line")
        line, value = next(iter(read_records(paths[0])))
        _row(options, value, Place(paths[0], line))
        return Logprobs(tuple(paths), options, said)
    return Logprobs(tuple(paths), options, said, *_checked_names(paths[0], array, mask))
