"""Files of scores and of hidden states as sources: `open_scores` and `open_hidden_states`."""

from __future__ import annotations

import dataclasses
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core._core import KINDS
from tokenloss._core.arguments import as_path, as_paths, check_choice, refuse_given
from tokenloss._core.errors import named, raise_error, refuse
from tokenloss._core.text import title
from tokenloss._core.validation import check_integer, head_transform
from tokenloss.formats import npy
from tokenloss.formats.lm_head import lm_head_files, open_lm_head
from tokenloss.formats.readers import check_different, format_of, located, resolved
from tokenloss.formats.scores_file import HIDDEN_NAMES, FileSpec, HeadSpec, LmHead, ScoresFile, Span, read_scores
from tokenloss.formats.sources import Source, TokenOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import NoReturn, TypeAlias

    from tokenloss._core.types import Array, Kind, Need

    _Path: TypeAlias = str | os.PathLike[str]
    _Paths: TypeAlias = _Path | Sequence[_Path]


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Source):
    """Files of scores or hidden states, the shards of one text, with their tokens; `open_scores` returns them.

    Attributes
    ----------
    specs : tuple of FileSpec
        The path, kind, shape and dtype of each file, from its header.
    given_paths : tuple of str
        The paths given to the opener, including patterns and folders.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss.formats import open_scores
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name in "ab":
    ...     np.savez(folder / f"{name}.npz", logits=np.zeros((3, 50), np.float32), targets=[1, 2, 3])
    >>> open_scores(folder)
    Scores(2 files, 6 x 50, float32, class ids)
    """

    __module__ = "tokenloss.formats"

    level = "rows"
    holds = "scores"

    specs: tuple[FileSpec, ...] = ()
    given_paths: tuple[str, ...] = ()  # including patterns and folders

    def _words(self) -> list[str]:
        """Shape, dtype and targets."""
        held = "class ids" if self.token_options.targets else self.specs[0].target_type
        targets = {"none": "without targets"}.get(held, held)
        return [" x ".join(f"{length:,}" for length in self.shape), self.dtype, targets]

    @property
    def name(self) -> str:
        """The name of the given paths in tables."""
        return title(self.given_paths)

    @property
    def files(self) -> tuple[str, ...]:
        """All files to read, including the head's."""
        head = self.specs[0].head
        return (*([] if head is None else lm_head_files(head.spec)), *super().files)

    @property
    def kind(self) -> str:
        """Kind of the scores; "hidden_states" if a head turns them into logits."""
        return self.specs[0].kind

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (..., V) of the scores of one file, or (rows, V) of several."""
        first = self.specs[0]
        return first.shape if len(self.specs) == 1 else (sum(spec.rows for spec in self.specs), first.classes)

    @property
    def dtype(self) -> str:
        """Dtype of the stored values."""
        return ", ".join(dict.fromkeys(spec.dtype for spec in self.specs))

    @property
    def file(self) -> ScoresFile:
        """The open file with all its arrays, if the source is one file."""
        if len(self.specs) > 1:
            raise_error("type", name="source", got=repr(self), fits="one file, to be read by hand")
        # not a cached_property, whose lock before Python 3.12 a forked child may wait for without end
        kept: dict[str, ScoresFile] = vars(self)
        return kept["_file"] if "_file" in kept else kept.setdefault("_file", open_file(self.specs[0]))

    @property
    def targets(self) -> Array | None:
        """The targets in the file, if the source is one file."""
        return self.file.targets

    def blocks(self, most_rows: int) -> Iterator[Array]:
        """Read the scores or hidden states, one file after the other.

        Parameters
        ----------
        most_rows : int
            Number of rows to read at a time. It bounds the memory, whatever the size of the files.

        Returns
        -------
        iterator of arrays
            As in `ScoresFile.blocks`.
        """
        most_rows = check_integer("most_rows", most_rows, "a positive integer", least=1)
        files = [self.file] if len(self.specs) == 1 else map(open_file, self.specs)
        return (block for file in files for block in file.blocks(most_rows))

    def _lacks(self, need: Need) -> str:
        """The words of an error for a need that the files do not meet."""
        said = self.token_options
        if need == "targets" and not said.targets and all(spec.target_type == "none" for spec in self.specs):
            return "has no targets"
        is_without = need == "tokenizer" and said.tokenizer is None
        return f"was opened without {named('tokenizer', ...)}" if is_without else super()._lacks(need)

    def given(self) -> dict[str, Any]:
        """The options of the opener by name, without paths."""
        return super().given() | ({} if self.specs[0].head is None else {"source": "hidden states"})

    def like(self, paths: Any) -> Scores:
        """Open other files with the same options."""
        given, files = located(paths)
        specs = opened_specs(files, self.specs[0])
        return replace(self, paths=tuple(spec.path for spec in specs), specs=specs, given_paths=tuple(given))

    def absolute(self) -> Scores:
        """The source with absolute paths, for a process in another directory."""
        return replace(super().absolute(), specs=tuple(spec.absolute() for spec in self.specs))

    def __getstate__(self) -> dict[str, Any]:
        """The attributes to pickle, without the open file."""
        return {name: value for name, value in vars(self).items() if name != "_file"}


def joined_spec(specs: Sequence[FileSpec]) -> FileSpec:
    """Files as if they were one, with their rows one after the other."""
    if len(specs) == 1:
        return specs[0]
    return specs[0]._replace(shape=(sum(one.rows for one in specs), specs[0].classes), parts=(*specs,))


_JOINED = "targets", "input_ids", "attention_mask"  # arrays with a number for each row


def _open_joined(specs: Sequence[FileSpec], head: LmHead | None, span: Span | None) -> ScoresFile:
    """The open files as if they were one, or a span of their rows, with targets, ids or a mask if all files have them.

    Sequences of sketches are numbered on from file to file.
    """
    files: list[ScoresFile] = []
    for spec in specs:
        files.append(open_file(spec, head))
        head = files[-1].lm_head
    start, stop = (0, sum(file.rows for file in files)) if span is None else span[:2]

    def joined(arrays: Sequence[Any]) -> Any:
        is_missing = any(one is None for one in arrays)
        return None if is_missing else np.concatenate([one.reshape(-1) for one in arrays])[start:stop]

    arrays = {name: joined([getattr(file, name) for file in files]) for name in _JOINED}
    arrays["segment_ids"] = joined(_numbered_on(files, span.sequence if span else 0)) if files[0].sketch else None

    def blocks(most_rows: int) -> Iterator[Array]:
        first = 0
        for file in files:
            own = max(start - first, 0), min(stop - first, file.rows)
            if own == (0, file.rows):
                yield from file.blocks(most_rows)
            elif own[0] < own[1]:
                yield from file._read(most_rows, *own)
            first += file.rows

    shape = stop - start, files[0].shape[-1]
    return dataclasses.replace(files[0], shape=shape, _read=blocks, tokens=None, field=None, cu_seqlens=None, **arrays)


def _numbered_on(files: Sequence[ScoresFile], first: int) -> list[Array | None]:
    """The numbers of the sequences of all files; each file's numbers begin after the previous file's."""
    numbers: list[Array | None] = []
    for file in files:
        own = file.segment_ids
        last = -1 if own is None else int(own.max(initial=-1))
        if first + last >= 2**63:
            got, fits = "has sequence numbers that are too high", "have lower ones: other files continue the count"
            refuse(file.path, got, fits)
        numbers.append(None if own is None else np.where(own < 0, own, own + first))
        first += last + 1
    return numbers


def open_file(spec: FileSpec, head: LmHead | None = None) -> ScoresFile:
    """The open file of scores or hidden states; `head` is its head, if already open."""
    if spec.parts:
        return _open_joined(spec.parts, head, spec.span)
    kind = spec.given_kind if spec.head is None else HIDDEN_NAMES[0]
    file = read_scores(format_of(spec.path), spec.path, spec.array, kind, spec.targets_array, spec.field)
    if spec.head is not None:
        head = head or open_lm_head(spec.head.spec, file.shape[-1], spec.head.logit_scale, spec.head.softcap)
        if head.weight.shape[1] != file.shape[-1]:
            got, fits = f"has hidden states of {file.shape[-1]} features", f"fit the head of {head.weight.shape[1]}"
            refuse(spec.path, got, fits)
        file = dataclasses.replace(file, shape=(*file.shape[:-1], len(head.weight)), lm_head=head)
        if spec.kind and spec.head_facts != head.facts():
            _refuse_changed(spec.head.spec)
    facts = file.kind, file.shape, file.dtype.name, _stamp(spec.path)
    if spec.kind and (spec.kind, spec.shape, spec.dtype, spec.stamp) != facts:
        _refuse_changed(spec.path)
    return file


def _stamp(path: str) -> tuple[int, int] | None:
    """Size and time of the last change of a file; None for a directory."""
    status = Path(path).stat()
    return None if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)


def _refuse_changed(path: str) -> NoReturn:
    """Raise an error that a file has changed."""
    refuse(path, "changed after it was opened", "stay as it is while it is read")


def opened_specs(paths: Sequence[str], asked: FileSpec) -> tuple[FileSpec, ...]:
    """The headers of all files, which must have the same kind and number of classes; `asked` has the options."""
    specs: list[FileSpec] = []
    head = None
    for path in paths:
        file = open_file(asked._replace(path=path, kind=""), head)
        head, types = file.lm_head, "none"
        if file.targets is not None:
            is_soft = file.targets.ndim == len(file.shape) and file.targets.shape[-1] == file.shape[-1]
            types = "distributions" if is_soft else "class ids"
        elif file.input_ids is not None:
            types = "input ids"
        spec = asked._replace(
            path=path, kind=file.kind, shape=file.shape, dtype=file.dtype.name, row_bytes=file.row_bytes,
            target_type=types, has_text=file.tokens is not None,
            head_files=head.files if head else (), head_facts=head.facts() if head else None,
            stamp=_stamp(path), n_listed=file.sketch.top if file.sketch else 0,
        )  # fmt: skip
        if specs and (spec.kind, spec.classes) != (specs[0].kind, specs[0].classes):
            got = f"contains {spec.kind} of {spec.classes} classes"
            fits = f"contain {specs[0].kind} of {specs[0].classes}, as {specs[0].path} does"
            refuse(path, got, fits)
        specs.append(spec)
    return tuple(specs)


def open_scores(
    paths: _Paths,
    targets: _Paths = (),
    *,
    segment_ids: _Paths = (),
    array: str | None = None,
    targets_array: str | None = None,
    kind: Kind | None = None,
    shift: bool | None = None,
    ignore_index: int | None = -100,
    window: int | None = None,
    stride: int | None = None,
    tokenizer: _Path | None = None,
) -> Scores:
    """Open files of scores, the shards of one text, and check their headers.

    Parameters
    ----------
    paths : path or paths
        A .npy, .npz or .safetensors file, a Zarr store (a directory or a .zip file), or a file of logits that
        llama.cpp's ``llama-perplexity --kl-divergence-base`` wrote. Or several files, the shards of one text; a pattern
        of their names, in the order of their numbers; or their directory. With two .npy files, the second may contain
        the class ids.
    targets : path or paths, optional
        A .npy file of targets for each file of scores, or one for all; by default, the files of scores contain them.
    segment_ids : path or paths, optional
        .npy files with the number of each token's sequence: one for each file of scores, with numbers of its own; or
        one for all, where a sequence may continue in the next file. By default the arrays ``segment_ids`` or
        ``cu_seqlens`` in the files, or else each of N texts (N, T, V).
    array : str, optional
        Name of the array of scores, if the file names its arrays. By default the array named after a kind.
    targets_array : str, optional
        Name of the array of targets, if the file names its arrays. By default ``targets``, or else ``labels``. A file
        without targets may contain ``token_ids`` or ``input_ids``, with `shift`. If it contains ``attention_mask``,
        padding is left out when targets are shifted; otherwise targets must be ignored where the mask is 0.
    kind : {"logits", "log_probs", "probs"}, optional
        Kind of the scores. By default the name of their array, or logits if that is not a kind.
    shift : bool, optional
        Whether targets are the input ids of a causal model, where row j predicts id j + 1 of its sequence. By default
        they are not, unless the function that scores the files sets `shift`.
    ignore_index : int or None, default -100
        Target value that marks tokens to ignore, such as padding; None to ignore none.
    window : int, optional
        Number of tokens in each window, if the files contain a text longer than a model's context, window by window, as
        with `tokenloss.windows`. Scores of shape (N, T, V) are N windows, in order over all files; the last one may be
        shorter, or padded. Targets are input ids: the ids of each window, or in a .npy file the ids of the text without
        padding. Each window is a sequence.
    stride : int, optional
        Number of tokens between the starts of successive windows, with `window`.
    tokenizer : path, optional
        The tokenizer of the class ids: its own file, or the folder of its model, as in `tokenloss.token_bytes`, for
        bits per byte of the scored tokens. A special token has no bytes, but its loss counts: mask or ignore it to
        leave it out. A space that the tokenizer adds before a text (SentencePiece) does not count, unless several ids
        before it are ignored, like the ids of a prompt. If it drops white space (WordPiece), ``text`` is needed, too.
        Tables and pages show its text of the tokens, in place of the text in the files.

    Returns
    -------
    Scores
        A source for `tokenloss.evaluate` and other functions; no file stays open. `Scores.blocks` reads the scores.

    Raises
    ------
    TypeError, ValueError
        If an option is invalid, or a file is damaged or is not a file of scores; the message names the file, the byte
        if it is known, the value found and what is accepted.
    OSError
        If a file cannot be read.
    ImportError
        If the format needs a package that is not installed: zarr, or ml_dtypes for bfloat16.

    See Also
    --------
    open_hidden_states : The same for hidden states.
    tokenloss.formats.llama_cpp.write : Writes a file as llama.cpp does.

    Notes
    -----
    Files are memory-mapped block by block where possible; compressed ones are read as a stream. The page "Files and
    their arrays" of the reference describes formats, arrays and what is refused.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from tokenloss import cross_entropy
    >>> from tokenloss.formats import open_scores
    >>> with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
    ...     path = pathlib.Path(directory) / "scores.npz"
    ...     np.savez(path, logits=np.float32([[2, 1, 0], [0, 3, 0]]), targets=[0, 1])
    ...     scores = open_scores(path)
    ...     print(scores.kind, scores.shape)
    ...     [round(cross_entropy(block, [target]), 4) for block, target in zip(scores.blocks(1), scores.targets)]
    logits (2, 3)
    [0.4076, 0.0949]
    """
    check_choice("kind", kind, KINDS)
    asked = FileSpec("", "", (), "", 0, array=array, given_kind=kind, targets_array=targets_array)
    options = _token_options(targets, segment_ids, shift, ignore_index, window, stride, tokenizer)
    return _scores(paths, asked, options)


def open_hidden_states(
    paths: _Paths,
    lm_head: _Path,
    targets: _Paths = (),
    *,
    array: str | None = None,
    logit_scale: float | None = None,
    softcap: float | None = None,
    segment_ids: _Paths = (),
    targets_array: str | None = None,
    shift: bool | None = None,
    ignore_index: int | None = -100,
    window: int | None = None,
    stride: int | None = None,
    tokenizer: _Path | None = None,
) -> Scores:
    """Open files of hidden states, which a projection onto the vocabulary turns into logits.

    Parameters
    ----------
    paths : path or paths
        Files of hidden states (..., D) after the model's final norm, in any format of `open_scores` except llama.cpp's.
        A .safetensors file of one layer, written by vLLM's hidden-states connector, is one sequence.
    lm_head : path
        The projection: ``FILE`` or ``FILE:NAME``. FILE is a model's .safetensors file, the index of its shards
        (``model.safetensors.index.json``), its directory, or a .npz or .npy file. The weight, of shape (V, D) or (D,
        V), is found by its usual names, or by the names of the embedding if ``config.json`` next to it ties the two. A
        bias next to the weight is used, too. ``config.json`` applies to the logits with or without a NAME.
    array : str, optional
        Name of the array of hidden states, if the file names its arrays. By default ``hidden_states`` or ``hidden``.
    logit_scale : float, optional
        Multiplier of the logits (1 / temperature), in place of the model's own; by default the one in ``config.json``
        next to `lm_head`, or 1.
    softcap : float, optional
        Cap of the logits, which become ``softcap * tanh(logit_scale * logits / softcap)``; 0 for none. By default the
        cap in ``config.json``, if any. Logits of -inf stay -inf.
    targets, segment_ids, targets_array, shift, ignore_index, window, stride, tokenizer
        As in `open_scores`.

    Returns
    -------
    Scores
        A source of kind "hidden_states"; `Scores.blocks` reads the hidden states.

    Raises
    ------
    TypeError, ValueError, OSError, ImportError
        As in `open_scores`. Also if ``config.json`` has a key that may change the logits of that type of model in an
        unknown way.

    See Also
    --------
    open_scores : The same for scores.
    tokenloss.linear_token_scores : Scores of tokens from hidden states and such a projection.

    Notes
    -----
    The weight is memory-mapped, never loaded whole. If a file has no targets, its ``token_ids`` or ``input_ids`` are
    `ScoresFile.input_ids`, to be shifted. `ScoresFile.lm_head` has the ``logit_scale`` and ``softcap`` of the logits,
    for functions such as `tokenloss.linear_token_scores`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss.formats import open_hidden_states
    >>> with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
    ...     hidden, head = (pathlib.Path(directory) / name for name in ("hidden.npy", "head.npy"))
    ...     np.save(hidden, np.ones((3, 4)))
    ...     np.save(head, np.ones((4, 10)))
    ...     states = open_hidden_states(hidden, head)
    ...     states.kind, states.shape, states.file.lm_head.weight.shape
    ('hidden_states', (3, 10), (10, 4))
    """
    scale, cap = head_transform(logit_scale, softcap)
    head = HeadSpec(as_path("lm_head", lm_head), scale, cap)
    asked = FileSpec("", "", (), "", 0, array=array, targets_array=targets_array, head=head)
    options = _token_options(targets, segment_ids, shift, ignore_index, window, stride, tokenizer)
    return _scores(paths, asked, options)


def _scores(paths: Any, asked: FileSpec, options: TokenOptions) -> Scores:
    """The source of files; the second of two may contain the class ids."""
    given, files = located(paths)
    if not options.targets and len(files) == 2 and _is_file_of_class_ids(files[1], files[0], asked):
        files, options = files[:1], options._replace(targets=(files[1],))
    check_different([*files, *options.targets, *options.segment_ids])
    head = {} if asked.head is None else {"logit_scale": asked.head.logit_scale, "softcap": asked.head.softcap}
    said = {"array": asked.array, "kind": asked.given_kind, "targets_array": asked.targets_array, **head}
    return Scores(tuple(files), said, options, opened_specs(files, asked), tuple(given))


def _token_options(
    targets: Any, segment_ids: Any, shift: Any, ignore_index: Any, window: Any, stride: Any, tokenizer: Any
) -> TokenOptions:
    """The checked options that match rows with tokens."""
    size, step = _checked_windows(window, stride, shift, segment_ids)
    given = {"targets": targets, "segment_ids": segment_ids}
    ids, segments = (tuple(resolved(as_paths(name, value))) for name, value in given.items())
    for one in (*ids, *segments):
        npy.locate(one, is_targets=True)
    others: Any = {"targets": ids, "segment_ids": segments, "window": size, "stride": step}
    said = TokenOptions.checked(shift, ignore_index, tokenizer, **others)
    return said._replace(shift=True) if size else said


def _checked_windows(window: Any, stride: Any, shift: bool | None, segment_ids: Any) -> tuple[int, int]:
    """Length and stride of windows; 0 without windows."""
    if window is None or stride is None:
        refuse_given({"stride": stride}, "left out without {}", "window")
        refuse_given({"window": window}, "left out without {}", "stride")
        return 0, 0
    refuse_given({"segment_ids": segment_ids}, "left out if {} is given", "window")
    if shift is False:
        raise_error("option", name="shift", got=shift, fits=f"True, or left out, if {named('window')} is given")
    window = check_integer("window", window, "an integer >= 2", least=2)
    fits = f"an integer from 1 to {window}, the window"
    return window, check_integer("stride", stride, fits, least=1, most=window)


def _is_file_of_class_ids(path: str, scores_path: str, asked: FileSpec) -> bool:
    """Whether a file is an integer .npy array, which then contains the class ids of the scores."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        if file.read(len(npy.MAGIC)) != npy.MAGIC:
            return False
    scores, array = open_file(asked._replace(path=scores_path, kind="")), npy.open_array(path)
    batch, is_integer = scores.shape[:-1], array.dtype.kind in "iu"
    if scores.targets is not None:
        if is_integer and array.shape == batch:
            got = f"contains {array.dtype}, like targets, but {scores_path} has targets"
            refuse(path, got, f"come with {named('targets', ...)} to replace them")
        return False
    if array.dtype.kind in "iub" and array.shape == scores.shape:
        got = f"has dtype {array.dtype} and the shape of {scores.kind}"
        refuse(path, got, f"come with {named('targets', ...)} to be distributions")
    if array.dtype.kind == "f" and array.shape == batch:
        got = f"has dtype {array.dtype} and the shape of targets"
        refuse(path, got, "contain integers, to be class ids: save it with .astype(int)")
    return is_integer
