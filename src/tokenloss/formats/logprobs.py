"""Log-probabilities of tokens, without other classes: an array, or a list on each line of JSON."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core._core import KINDS, is_log_prob
from tokenloss._core.arguments import as_paths
from tokenloss._core.dtypes import FLOATS, as_float_array, without_bfloat16
from tokenloss._core.errors import named, raise_error
from tokenloss._core.validation import check_log_probs
from tokenloss._statistics.sequences import check_segment_ids
from tokenloss.formats import npy, npz
from tokenloss.formats.base import is_float
from tokenloss.formats.paths import resolved
from tokenloss.formats.readers import format_of
from tokenloss.formats.records import are_records, is_stream, read_records
from tokenloss.formats.responses import Response
from tokenloss.formats.responses.fields import Place, check_count, check_list
from tokenloss.formats.scores_file import reject_array_name
from tokenloss.formats.sources import Source, TokenOptions

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
    dialect, part, failed : str, str, tuple
        As in `Responses`, here always "log-probabilities", "generated" and ().

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss.formats import open_logprobs
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "trainer.npy"
    >>> np.save(path, [[-0.5, -1.0], [-2.0, np.nan]])
    >>> open_logprobs(path)
    Logprobs(trainer.npy, 2 x 2)
    """

    __module__ = "tokenloss.formats"

    level = "nll"
    holds = "log-probabilities"
    _lacking = MappingProxyType({
        "rows": "gives the log-probability of each token only",
        **dict.fromkeys(("ids", "tokenizer"), "has no class ids"),
    })  # fmt: skip
    dialect = "log-probabilities"  # in place of a server's
    part = "generated"

    @property
    def failed(self) -> tuple[()]:
        """Lines that failed: none."""
        return ()

    def _words(self) -> list[str]:
        """Its shape."""
        return ["lines of JSON" if self.are_lines else " x ".join(f"{n:,}" for n in self._located(self._name).shape)]

    @property
    def path(self) -> str:
        """The file."""
        return self.paths[0]

    @property
    def are_lines(self) -> bool:
        """Whether each line of JSON has a sequence."""
        return are_records(self.path)

    @property
    def are_sequences(self) -> bool:
        """Whether tokens belong to sequences; tokens on one axis without segment ids are independent."""
        has_ids = bool(self.token_options.segment_ids)
        return self.are_lines or has_ids or len(self._located(self._name).shape) > 1

    def like(self, paths: Any) -> Logprobs:
        """Open another file with the same options."""
        return open_logprobs(paths, **self.options)

    def values(self) -> Float64Array:
        """Read an array whole.

        Returns
        -------
        array of float64
            The log-probabilities, nan where the mask is 0.
        """
        name = f"{self.path}: {self._name}"
        with np.errstate(invalid="ignore"):  # a nan that signals is a nan
            values: Float64Array = without_bfloat16(*as_float_array(name, self._mapped(self._name))).astype(np.float64)
        mask = self.mask(values.shape)
        if mask is not None:
            values[~mask] = np.nan
        check_log_probs(name, values, True)
        return values

    def mask(self, shape: tuple[int, ...]) -> BoolArray | None:
        """Read the mask of an array.

        Parameters
        ----------
        shape : tuple of int
            Shape of the log-probabilities.

        Returns
        -------
        array of bool
            Which tokens count; None if the file has no mask.
        """
        name = self._mask
        if name is None:
            return None
        mask = self._mapped(name)
        if mask.shape != shape:
            fits = f"have {shape}, as {self._name}"
            raise_error("content", path=self.path, got=f"{name} has shape {mask.shape}", fits=fits)
        if not np.isin(mask, (0, 1)).all():
            raise_error("content", path=self.path, got=f"{name} has numbers other than 0 and 1", fits="be a mask")
        kept: BoolArray = mask == 1
        return kept

    def __iter__(self) -> Iterator[Response]:
        """Yield each sequence, a line or a part of an array; only its log-probabilities are known."""
        if self.are_lines:
            unmasked = []
            for response in self.lines():
                unmasked += [response.logprobs] if response.mask is None else []
                yield response
            if lists_seem_padded(unmasked):
                self.refuse_padding()
            return
        values = self.values()
        if self.seems_padded(values):
            self.refuse_padding()
        for number, row in enumerate(self._rows_of_array(values), 1):
            length = np.flatnonzero(~np.isnan(row))[-1:].sum() + 1 if row.size else 0
            yield response_of(number, None, 0, row[:length])

    def lines(self) -> Iterator[Response]:
        """Yield the sequence of each line of JSON, as iterating does, but accept zeros at the ends.

        Yields
        ------
        Response
            Log-probabilities, and their mask, which all lines have or none.
        """
        has_mask = None
        for line, value in read_records(self.path):
            row = self._row(value, place := Place(self.path, line))
            if has_mask not in (None, row.mask is not None):
                words = ("no mask", "one") if has_mask else ("a mask", "none")
                place.refuse(f"it has {words[0]}", f"be like the lines before it, which have {words[1]}")
            has_mask = row.mask is not None
            yield row

    @property
    def has_names(self) -> bool:
        """Whether the array has a name."""
        return bool(self._names)

    def seems_padded(self, values: Float64Array) -> bool:
        """Check whether rows seem to be padded with zeros, and nothing else shows where they end.

        Parameters
        ----------
        values : array
            The result of `values`.

        Returns
        -------
        bool
            Whether rows end in different numbers of zeros.
        """
        has_ends = values.ndim != 2 or self._mask is not None or bool(self.token_options.segment_ids)
        return not has_ends and not np.isnan(values).any() and end_in_zeros(values)

    def refuse_padding(self) -> NoReturn:
        """Raise an error that zeros may be padding, which would count as tokens."""
        got = "its rows end in zeros, as those of padding do, which would count as tokens"
        fits = f"hold nan there, or come with {named('mask', 'NAME')}"
        raise_error("content", path=self.path, got=got, fits=fits)

    def _rows_of_array(self, values: Float64Array) -> Iterable[Float64Array]:
        """The sequences of an array: its rows, or the tokens of each segment id."""
        ids = self.segment_ids(values.shape)
        if ids is None:
            return values.reshape(-1, values.shape[-1] if values.size else 1)
        values = values.reshape(-1)
        for i in np.flatnonzero((ids < 0) & ~np.isnan(values))[:1].tolist():
            got = f"token {i} of {self.path} has a log-probability, and the number {ids[i]}"
            raise_error("content", path=self.token_options.segment_ids[0], got=got, fits="give it that of a sequence")
        order = np.argsort(ids, kind="stable")[np.count_nonzero(ids < 0) :]
        return np.split(values[order], np.flatnonzero(np.diff(ids[order])) + 1)

    def segment_ids(self, shape: tuple[int, ...]) -> IntArray | None:
        """Read the number of each token's sequence.

        Parameters
        ----------
        shape : tuple of int
            Shape of the log-probabilities.

        Returns
        -------
        array of integers or None
            One number for each token, in C order; None if the opener got no file of them.
        """
        paths = self.token_options.segment_ids
        return check_segment_ids(npy.open_array(paths[0]), shape).flatten() if paths else None

    @property
    def _names(self) -> Collection[str]:
        """Names of the arrays in the file; empty for a .npy file."""
        return npz.array_names(self.path) if format_of(self.path) is npz.FORMAT else ()

    @property
    def _name(self) -> str:
        """The name of the array."""
        if self.options["array"] is not None or not self._names:
            return self.options["array"] or _NAME
        held = [name for name in FIELDS if name in self._names]
        if len(held) != 1:
            got = " and ".join(held) or f"holds {', '.join(self._names)}"
            fits = f"hold one of {', '.join(FIELDS)}, or come with the name of its array: {named('array', ...)}"
            raise_error("content", path=self.path, got=f"holds {got}" if held else got, fits=fits)
        return held[0]

    @property
    def _mask(self) -> str | None:
        """The name of the array's mask, or None."""
        usual = FIELDS.get(self._name)
        return self.options["mask"] or (usual if usual in self._names else None)

    def _located(self, name: str) -> Any:
        """The location of an array in the file."""
        form = format_of(self.path)
        if form is npz.FORMAT:
            if name not in self._names:
                got = f"holds {', '.join(self._names) or 'nothing'}"
                raise_error("content", path=self.path, got=got, fits=f"hold {name!r}")
            return npz.open_array(self.path, name)
        if form is not npy.FORMAT:
            fits = "be a .npy or .npz file, or lines of JSON (.jsonl)"
            raise_error("content", path=self.path, got=f"is {form.words}", fits=fits)
        return npy.locate(self.path)

    def _check_header(self) -> None:
        """Raise unless the file has an array of log-probabilities, and their mask if its name was given."""
        if not self._names:
            reject_array_name(self.path, self.options["array"], self.options["mask"])
        place = self._located(self._name)
        if not place.shape:
            raise_error("content", path=self.path, got="holds a single number", fits="hold one for each token")
        if not is_float(place.dtype):
            raise_error("content", path=self.path, got=f"{self._name} has dtype {place.dtype}", fits=f"be {FLOATS}")
        if self.options["mask"] is not None:
            self._located(self.options["mask"])

    def _mapped(self, name: str) -> Array:
        """An array of the file."""
        place = self._located(name)
        mapped: Array = place if isinstance(place, np.ndarray) else place.map()
        return mapped

    def _row(self, value: Mapping[str, Any], place: Place) -> Response:
        """The sequence of a line with a list of log-probabilities and perhaps a mask."""
        fields = FIELDS if self.options["array"] is None else (self.options["array"],)
        names = [name for name in fields if name in value]
        if len(names) != 1:
            held = " and ".join(names) or "no log-probabilities"
            place.refuse(f"it holds {held}", f'hold one list, {{"{self.options["array"] or _NAME}": [...]}}')
        (name,) = names
        numbers = check_list(value[name], name, place)
        field = self.options["mask"] or FIELDS.get(name) or ""
        has_mask = bool(field) and field in value
        if self.options["mask"] is not None and self.options["mask"] not in value:
            place.refuse(f"it has no mask {self.options['mask']!r}", f"have it beside {name}")
        marks = check_list(value[field], field, place, len(numbers)) if has_mask else [1] * len(numbers)
        for i, (number, mark) in enumerate(zip(numbers, marks, strict=True)):
            if mark not in (0, 1):
                place.refuse(f"{field}[{i}] is {mark!r}", "be 0 or 1")
            is_known = is_log_prob(number) or (type(number) is float and not number > 1e-3)  # by rounding; nan, too
            if mark and number is not None and not is_known:
                place.refuse(f"{name}[{i}] is {number!r}", "be a log-probability, a number of at most 0, or null")
        values = [one if mark and one is not None else np.nan for one, mark in zip(numbers, marks, strict=True)]
        choice = check_count(value.get("choice", 0), "choice", place)
        of_request = None if (own := value.get("custom_id")) is None else str(own)
        mask = np.array(marks, np.bool_) if has_mask else None
        return response_of(place.line, of_request, choice, np.array(values, np.float64), mask)


def response_of(
    line: int, name: str | None, choice: int, logprobs: Float64Array, mask: BoolArray | None = None
) -> Response:
    """A response with only the log-probabilities of its tokens."""
    n = len(logprobs)
    text, none, no = np.full(n, None), np.full(n, -1), np.zeros(n, np.bool_)
    tops = np.empty((n, 0), np.object_), np.empty((n, 0), np.int64), np.empty((n, 0))
    return Response(line, choice, name, text, none, none, logprobs, no, no, none, no, no, *tops, mask=mask)


def lists_seem_padded(rows: Sequence[Float64Array]) -> bool:
    """Whether lists without a mask have one length, and end in zeros as padding does."""
    return len({row.size for row in rows}) == 1 and end_in_zeros(rows)


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
    names = npz.array_names(path)
    return not {*names}.isdisjoint(FIELDS) and {*names}.isdisjoint(KINDS)


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
    TypeError, ValueError
        If an option is invalid, or the file is damaged or contains no log-probabilities; the message names the file,
        and the line if there is one.
    OSError
        If the file cannot be read.

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
    found = Logprobs(tuple(paths), {"array": array, "mask": mask}, TokenOptions(segment_ids=segments))
    if found.are_lines:
        if segments:
            raise_error("not for", name="segment_ids", fits="is for arrays, and a file holds a sequence on each line")
        line, value = next(iter(read_records(found.path)))
        found._row(value, Place(found.path, line))
    else:
        found._check_header()
    return found
