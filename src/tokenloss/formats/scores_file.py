"""A file of scores, and the arrays that it may contain."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._core._core import KINDS
from tokenloss._core.dtypes import FLOATS
from tokenloss._core.errors import named, raise_error, refuse, worded
from tokenloss._core.validation import check_integer
from tokenloss.formats.base import is_float

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from tokenloss._core.types import Array

HIDDEN_NAMES = ("hidden_states", "hidden")  # arrays of hidden states; the first is their kind
SEQUENCES = ("segment_ids", "cu_seqlens")  # arrays that define which rows make a sequence
PARTS = ("targets", "tokens", *SEQUENCES)  # arrays that may come with scores
MASK = "attention_mask"  # a further one
OTHER_MASKS = ("mask", "loss_mask", "response_mask", "completion_mask")  # of trainers: refused, since they are not read
TARGETS = ("targets", "labels")  # the names that targets may have; the first one counts
INPUT_IDS = ("token_ids", "input_ids")  # arrays that may come in place of targets
_WEIGHTS = (".weight", ".qweight", ".weight_packed")  # ends of names of what a model's own files hold

_MAX_EMPTY_ROWS = 1 << 20  # without classes: they take no bytes, so a header may claim any number of them
_PIECE = 1 << 20  # code points, checked at a time
_MAX_CODE_POINT = 0x10FFFF  # of Unicode


class Archive(NamedTuple):
    """The arrays of a file that are not read yet: each has `shape`, `dtype`, `blocks` and `load`.

    `fitted` takes the name of the array of scores, their kind, the array, and the arrays that come with it; it checks
    and changes these as the format needs.
    """

    path: str
    names: Collection[str]  # only "" if the file has one array without a name
    locate: Callable[[str], Any]
    fitted: Callable[[str, str, Any, dict[str, Any]], tuple[Any, dict[str, Any]]] | None = None


class Format(NamedTuple):
    """A format of files of scores: how its files are recognized and read.

    Files begin with `magic`, if it is not empty, and their names end in `suffixes`; without suffixes, only `magic`
    identifies them. `open` takes the path and the names that the user gave; `open_scores` replaces it where files are
    more than arrays.
    """

    words: str  # what a file of it is, for messages
    suffixes: tuple[str, ...]
    magic: bytes
    open: Callable[[str, Sequence[str | None]], Archive] | None = None
    may_hold_head: bool = False  # since its arrays can be mapped
    open_scores: Callable[[str, str | None, str | None, str | None], ScoresFile] | None = None


@dataclass(frozen=True, eq=False)
class ScoresFile:
    """An open file of scores, as `Scores.file` returns it.

    Attributes
    ----------
    path : str
        The file.
    kind : {"logits", "log_probs", "probs", "hidden_states"}
        Kind of the scores; `lm_head` turns hidden states into logits.
    shape : tuple of int
        The shape (..., V) of the scores, or of these logits.
    dtype : dtype
        The dtype of the stored values; bfloat16 is from ml_dtypes.
    targets, tokens, segment_ids, cu_seqlens, input_ids, attention_mask : array or None
        The arrays in the file itself, as the page "Files and their arrays" of the reference describes them; `input_ids`
        in place of targets.
    is_shifted : bool
        Whether targets are known to be the tokens that the rows predict, not those at their positions.
    lm_head : LmHead or None
        The projection of hidden states onto the vocabulary: its `weight` of shape (V, D) is mapped; its `bias` of shape
        (V,) and `softcap` may be None; `logit_scale` is a number.
    names : tuple of str
        Names of the arrays in the file, if they have names.
    field : array or None
        The array of labels by which tokens are grouped, if a function was asked to.
    sketch : SketchFacts or None
        The options of a sketch, whose blocks are records, and whose kind is "sketch".

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss.formats import open_scores
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "probs.npy"
    >>> np.save(path, np.full((2, 3, 4), 0.25))
    >>> file = open_scores(path, kind="probs").file
    >>> file.rows, file.row_bytes
    (6, 32)
    """

    __module__ = "tokenloss.formats"

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    targets: Array | None
    tokens: Array | None
    _read: Callable[..., Iterator[Array]]  # of the most rows at a time; of a sketch also of the first row and the end
    is_shifted: bool = False
    segment_ids: Array | None = None
    cu_seqlens: Array | None = None
    lm_head: LmHead | None = None
    input_ids: Array | None = None
    attention_mask: Array | None = None
    names: tuple[str, ...] = ()
    field: Array | None = None  # the array whose labels group tokens, if it was asked for
    sketch: SketchFacts | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that cannot be scores."""
        if not is_float(self.dtype):
            refuse(self.path, f"{self.kind} has dtype {self.dtype}", f"be {FLOATS}")
        if not self.shape:
            refuse(self.path, f"{self.kind} is a scalar", "have a class axis")
        if not self.shape[-1] and self.rows > _MAX_EMPTY_ROWS:
            refuse(self.path, f"{self.kind} has {self.rows} rows without classes", "have classes")

    @property
    def rows(self) -> int:
        """Number of positions."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of the scores, or of the hidden state, at a position."""
        if self.sketch is not None:
            return self.sketch.row_bytes
        width = self.shape[-1] if self.lm_head is None else self.lm_head.weight.shape[1]
        return width * self.dtype.itemsize

    def blocks(self, most_rows: int) -> Iterator[Array]:
        """Read the scores, or the hidden states.

        Parameters
        ----------
        most_rows : int
            Number of rows to read at a time. It bounds the memory, whatever the file's size.

        Returns
        -------
        iterator of arrays of shape (n, V), or (n, D) of hidden states
            Each time the next rows, in C order of the batch, at most `most_rows`; a view of the file if possible.

        Raises
        ------
        ValueError
            If the file is damaged; the message names it and the byte or the rows.
        """
        most_rows = check_integer("most_rows", most_rows, "a positive integer", least=1)
        return self._read(most_rows) if self.rows else iter(())


class SketchFacts(NamedTuple):
    """The facts about all rows of a sketch."""

    top: int  # the most likely classes of each
    tail: int  # classes drawn from the others
    epsilon: float  # the share of a uniform distribution in the draws
    seed: int
    masked: Array | None = None  # classes that are impossible in all rows; None where rows differ
    row_bytes: int = 0
    words: tuple[str, str] = ("", "")  # kind and dtype of the scores, if they are known


class Span(NamedTuple):
    """Some rows of files that are read as one, being parts of a longer text."""

    start: int  # in these files
    stop: int
    row: int  # the number of the first row in the text
    sequence: int  # the number to add to those of the sequences in these files


class HeadSpec(NamedTuple):
    """Where the head of hidden states is, and how its products become logits."""

    spec: str  # FILE or FILE:NAME
    logit_scale: float | None = None  # None: from the model's config.json
    softcap: float | None = None  # None: the same; 0: no cap


class FileSpec(NamedTuple):
    """A file of scores that is not open: the options that open it in any process, and its header."""

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    row_bytes: int
    target_type: str = "none"  # in the file itself: "class ids", "distributions", "input ids" or "none"
    has_text: bool = False  # whether the file contains the text of its tokens
    array: str | None = None  # the options that it was opened with
    given_kind: str | None = None  # None: the kind is checked by the first rows
    targets_array: str | None = None
    field: str | None = None
    head: HeadSpec | None = None
    head_files: tuple[str, ...] = ()  # of hidden states; the weight's file comes first
    head_facts: dict[str, Any] | None = None  # what was read from them and from config.json
    stamp: tuple[int, int] | None = None  # size and time of the last change of a file, by which another one is noticed
    parts: tuple[FileSpec, ...] = ()  # of files that are read as one
    n_listed: int = 0  # most likely classes of a position, of a sketch
    span: Span | None = None  # of the rows of the parts; None: all

    @property
    def rows(self) -> int:
        """Number of rows."""
        return math.prod(self.shape[:-1])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.shape[-1]

    @property
    def n_bytes(self) -> int:
        """Size of the scores in bytes."""
        return self.rows * self.row_bytes

    def absolute(self) -> FileSpec:
        """The file with absolute paths, for a process in another directory."""
        head = self.head and self.head._replace(spec=str(Path(self.head.spec).absolute()))
        parts = tuple(one.absolute() for one in self.parts)
        return self._replace(path=str(Path(self.path).absolute()), head=head, parts=parts)


class LmHead(NamedTuple):
    """The projection onto the vocabulary; its weight is mapped, perhaps as a transposed view.

    Logits are ``logit_scale * (hidden @ weight.T + bias)``, capped if `softcap` is not None.
    """

    path: str
    name: str | None  # of the weight, where arrays have names
    weight: Array  # (V, D)
    bias: Array | None  # (V,)
    logit_scale: float = 1.0
    softcap: float | None = None
    note: str = ""  # for people: where the transform is from
    norm: str | None = None  # name of the weight of the model's final norm
    norm_weights: tuple[Array, ...] = ()  # and its values, perhaps with its bias
    files: tuple[str, ...] = ()  # with the weight, the biases and the norm

    def facts(self) -> dict[str, Any]:
        """The names and the transform, as values for JSON."""
        weight = {"weight": self.name or Path(self.path).name, "has_bias": self.bias is not None}
        transform = {"logit_scale": self.logit_scale, "softcap": self.softcap, "note": self.note}
        return weight | transform | {"norm": self.norm}


def read_scores(
    form: Format, path: str, array: str | None, kind: str | None, targets_array: str | None, field: str | None = None
) -> ScoresFile:
    """The open file of scores in a format, with the arrays that accompany them, and one with the name of a field."""
    if form.open is None:
        assert form.open_scores is not None
        return form.open_scores(path, array, kind, targets_array)
    archive = form.open(path, (array, targets_array))
    name, stored = "", dict[str, str]()
    if "" in archive.names:
        reject_array_name(path, array, targets_array)
        kind = kind or "logits"
    else:
        name, kind = _choose_scores(path, archive.names, array, kind)
        stored = _stored_parts(path, archive.names, name, targets_array)
        stored |= {} if field is None or field not in archive.names else {"field": field}
    scores, parts = archive.locate(name), {part: archive.locate(one) for part, one in stored.items()}
    if archive.fitted is not None:
        scores, parts = archive.fitted(name, kind, scores, parts)
    names = tuple(filter(None, archive.names))
    file = ScoresFile(path, kind, scores.shape, scores.dtype, None, None, scores.blocks, names=names)
    # the shapes of all are checked before memory of their size is used
    arrays: dict[str, Any] = {part: one.load() for part, one in parts.items() if _is_of_rows(file, part, one.shape)}
    if "tokens" in arrays:
        _check_text(path, arrays["tokens"])
    return replace(file, **arrays)


def _choose_scores(path: str, names: Collection[str], array: str | None, kind: str | None) -> tuple[str, str]:
    """Name and kind of the array of scores, among the names in a file."""
    kinds = KINDS if kind is None else HIDDEN_NAMES if kind in HIDDEN_NAMES else (kind,)
    if array in PARTS:
        raise_error("option", name="array", got=array, fits="the name of scores")
    if array is not None:
        kinds = (array,)
    fitting = [name for name in kinds if name in names]
    held = [name for name in HIDDEN_NAMES if name in names]
    if kind is array is None and held and not fitting:
        opener = worded("be opened by open_hidden_states, with {}", "come with {}: --lm-head FILE")
        refuse(path, f"contains {held[0]} and no scores", opener.format("its model's projection onto the vocabulary"))
    weight = next((name for name in names if name.endswith(_WEIGHTS)), None)
    if array is None and weight is not None and not fitting:
        got, fits = f"contains a model's weights, such as {weight}", "contain its predictions: store its logits first"
        refuse(path, got, fits)
    if len(fitting) != 1:
        fits = ("exactly one of " if len(kinds) > 1 else "") + ", ".join(kinds) if array is None else repr(array)
        if array is None and kind is None and not fitting and any("top_" in name or "topk" in name for name in names):
            fits += "; for lists of likely tokens, see topk_divergence_bound"
        elif array is None and not fitting:
            option = worded("array=", "--array, or --base-array for the base")
            option = worded("array=", "--hidden") if kind in HIDDEN_NAMES else option
            fits += f", or come with the name of its array: {option}; "
            fits += f"{named('targets_array', ...)} names targets"
        refuse(path, f"contains {', '.join(names) or 'nothing'}", f"contain {fits}")
    name = fitting[0]
    return name, kind or (name if name in KINDS else "logits")


def _stored_parts(path: str, names: Collection[str], scores: str, targets_array: str | None) -> dict[str, str]:
    """The parts that accompany scores of this name, and their names in the file."""
    parts = {part: part for part in (*PARTS, MASK) if part in names}
    for name in TARGETS if targets_array is None else (targets_array,):
        if name in names and name != scores:
            parts["targets"] = name
            break
    else:
        if targets_array is not None:
            refuse(path, f"contains {', '.join(names)}", f"contain the targets {targets_array!r} next to {scores}")
    if "targets" not in parts:
        held = [name for name in INPUT_IDS if name in names]
        if len(held) > 1:
            refuse(path, f"contains {' and '.join(held)}", "contain only one of them")
        if held:
            parts["input_ids"] = held[0]
    return parts


def reject_array_name(path: str, *arrays: str | None) -> None:
    """Refuse the name of an array for a file without names."""
    for array in arrays:
        if array is not None:
            refuse(path, "contains one array without a name", f"name {array!r}")


def _is_of_rows(scores: ScoresFile, part: str, shape: tuple[int, ...]) -> bool:
    """Whether a part belongs to the scores. Input ids of another shape do not: targets may be in another file.

    Any other part of a shape that does not fit is refused, before memory of its size is used. The shape of class ids
    and the bounds of sequences are checked where they are used.
    """
    batch = scores.shape[:-1]
    if part == "input_ids" and scores.kind not in HIDDEN_NAMES and shape != batch:
        return False
    if part == "cu_seqlens":
        fits, is_fit = "(G + 1,) for G sequences", len(shape) == 1
    elif part == "field":  # whose labels may also be of sequences, which have rows
        fits, is_fit = f"{batch}, or a label for each sequence", shape == batch or len(shape) == 1 <= scores.rows
        is_fit = is_fit and math.prod(shape) <= scores.rows
    elif part == "targets":
        are_hidden = scores.kind in HIDDEN_NAMES  # their number of classes is not known yet
        fits = f"{batch} (class ids) or {(*batch, 'V') if are_hidden else scores.shape} (distributions)"
        is_fit = shape[:-1] == batch if are_hidden else shape == scores.shape
        is_fit = is_fit or math.prod(shape) == scores.rows
    else:
        fits, is_fit = f"{batch}", shape == batch
    if not is_fit:
        got, fits = f"{part} has shape {shape}", f"have shape {fits}, to fit {scores.kind}"
        if part == "targets" and shape == scores.shape[:1] + scores.shape[2:]:  # of images
            fits += (
                f"; or save the classes last, if they are on axis 1 of {scores.kind}: np.moveaxis({scores.kind}, 1, -1)"
            )
        refuse(scores.path, got, fits)
    return True


def _check_text(path: str, tokens: Array) -> None:
    """Refuse values other than text, and code points beyond Unicode, which NumPy's strings may contain."""
    if tokens.dtype.kind not in "UT":
        refuse(path, f"tokens has dtype {tokens.dtype}", "be text")
    if tokens.dtype.kind == "T":
        return
    codes = tokens.reshape(-1, order="A").view(np.dtype(np.uint32).newbyteorder(tokens.dtype.byteorder))
    for start in range(0, codes.size, _PIECE):
        largest = int(codes[start : start + _PIECE].max())
        if largest > _MAX_CODE_POINT:
            refuse(path, f"tokens has the code point {largest:#x}", f"have none above {_MAX_CODE_POINT:#x}")


def checked_mask(file: ScoresFile) -> Array:
    """A model's mask; one that is added to attention, 0 for tokens and negative for padding, is refused."""
    mask = np.asarray(file.attention_mask)
    wrong = ~(mask >= 0)
    if wrong.any():
        got = f"{MASK}{np.argwhere(wrong)[0].tolist()} is {mask[wrong][0]}"
        refuse(file.path, got, "be 0 for padding and positive for tokens")
    return mask
