"""Sketches as sources, and their writer for an engine's loop: `open_sketch` and `write_sketch`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenloss._core._core import KINDS
from tokenloss._core.arguments import as_path, check_choice
from tokenloss._core.dtypes import as_array, as_float_array
from tokenloss._core.errors import raise_error, refuse, with_file_names
from tokenloss._core.threads import check_workers
from tokenloss._core.validation import check_integer, check_mask
from tokenloss._statistics.sequences import check_segment_ids
from tokenloss.formats import sketch_file
from tokenloss.formats.readers import check_different, format_of, located
from tokenloss.formats.scores import Scores, open_scores, opened_specs
from tokenloss.formats.scores_file import FileSpec
from tokenloss.formats.sources import Blocks, TokenOptions, made_blocks
from tokenloss.formats.sources import blocks as as_blocks

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    from tokenloss._core.types import Array, Kind

_HAS = "is a sketch, which has the most likely classes and some drawn from the others"


@dataclass(frozen=True, eq=False, repr=False)
class Sketch(Scores):
    """Sketches, the shards of one text; `open_sketch` returns them.

    Attributes
    ----------
    specs, given_paths, paths, options, token_options
        As in `Scores`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss.formats import open_sketch, write_sketch
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "base.sketch"
    >>> write_sketch(path, [(np.zeros((3, 500), np.float32), [1, 2, 3])])
    >>> open_sketch(path)
    Sketch(base.sketch, 3 x 500, float32, class ids)
    """

    __module__ = "tokenloss.formats"

    level = "sketch"
    holds = "a sketch"
    _lacking = MappingProxyType({"rows": _HAS})

    def like(self, paths: Any) -> Any:
        """Open other files as scores: a second run of the base has all classes."""
        return open_scores(paths)


def is_sketch(path: str) -> bool:
    """Whether a file is a sketch, by its name."""
    return path.lower().endswith(sketch_file.SKETCH_FORMAT.suffixes)


def open_sketch(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Sketch:
    """Open sketches of a base model, which `tokenloss.compare_files` compares with rows or responses of others.

    Parameters
    ----------
    paths : path or paths
        A .sketch file, as `write_sketch` and ``tokenloss sketch`` write it; or several, the shards of one text; a
        pattern of their names, in the order of their numbers; or their directory.
    tokenizer : path, optional
        The tokenizer of the class ids, for their text in tables and pages, as in `open_scores`.

    Returns
    -------
    Sketch
        A source for `tokenloss.compare_files`; no file stays open.

    Raises
    ------
    TypeError, ValueError, OSError
        If an option is invalid, or a file is damaged, is not a sketch, or cannot be read.

    See Also
    --------
    write_sketch : Writes one from an engine's loop.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_files
    >>> from tokenloss.formats import open_sketch, write_sketch
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> rng = np.random.default_rng(0)
    >>> logits = rng.normal(0, 2, (400, 5000)).astype(np.float32)
    >>> noisy = logits + rng.normal(0, 0.1, logits.shape).astype(np.float32)
    >>> write_sketch(folder / "base.sketch", [(logits, np.zeros(400, int))])
    >>> np.save(folder / "q4.npy", noisy)
    >>> comparisons = compare_files(open_sketch(folder / "base.sketch"), folder / "q4.npy")
    >>> next(iter(comparisons.values()))
    Comparison(mean_kl=0.004993 ± 4.55e-05, count=400, perplexity=35386.7, base_perplexity=35326.7, same_top=0.9025)
    """
    given, files = located(paths)
    check_different(files)
    for path in files:
        if format_of(path) is not sketch_file.SKETCH_FORMAT:
            refuse(path, "does not have the name of a sketch", "have one that ends in .sketch")
    said = TokenOptions(tokenizer=None if tokenizer is None else as_path("tokenizer", tokenizer))
    specs = opened_specs(files, FileSpec("", "", (), "", 0))
    return Sketch(tuple(files), {}, said, specs, tuple(given))


def write_sketch(
    path: str | os.PathLike[str],
    source: Iterable[tuple[Any, ...]] | Callable[[int], Iterable[tuple[Any, ...]]] | Blocks,
    *,
    top: int = 32,
    tail: int = 48,
    seed: int = 0,
    kind: Kind | None = None,
    ignore_index: int | None = -100,
    append: bool = False,
    workers: int | None = None,
) -> None:
    """Write a sketch of a model's predictions, so that others can be compared with it without all of its logits.

    At each position, it has the likeliest classes, classes drawn from the others, the logarithm of the sum of all, the
    entropy, and the target with its log-probability and rank: 532 bytes with the defaults, if logits have 16 bits.

    Parameters
    ----------
    path : str or path
        File to write, whose name ends in .sketch. An existing file is replaced when the new one is complete.
    source : iterable of blocks, or function that makes blocks
        Blocks ``(logits, targets)``, ``(logits, targets, where)`` or ``(logits, targets, where, segment_ids)``, as in
        `blocks`. Targets are the tokens that rows predict: they are not shifted; or None, in all blocks.
    top, tail : int, default 32 and 48
        Number of the most likely classes, and of those drawn from the others. Without the latter, divergences are lower
        bounds.
    seed : int, default 0
        Seed of the draws. They depend only on it, on the number of the sequence and on the position in it.
    kind : {"logits", "log_probs", "probs"}, optional
        Kind of the scores; by default logits.
    ignore_index : int or None, default -100
        Target value that marks tokens to ignore. Their rows are kept, but empty, so that the numbers of rows match
        other models.
    append : bool, default False
        Whether to append to the rows that the file has, with the same options: the result has the bytes of a file
        that is written at once.
    workers : int, optional
        Number of threads, as in `cross_entropy`. The file is the same for any number.

    Raises
    ------
    IndexError, TypeError, ValueError
        If an argument is invalid; the message names the block. No file is written then.
    OSError
        If the file cannot be written.

    See Also
    --------
    open_sketch : Opens it, as the base of a comparison.

    Notes
    -----
    Each of s draws takes class j of the tail with probability ``(p_j / T + 0.1 / N) / 1.1``, where T is the mass of the
    tail, and N its number of possible classes; draw i inverts the cumulative sum at ``(i + u) / s``. Uniforms u come
    from Philox. Draws for distillation were described by Anshumann et al., "Sparse Logit Sampling" (ACL 2025,
    arXiv:2503.16870).

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss.formats import open_sketch, write_sketch
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "base.sketch"
    >>> rows = np.random.default_rng(0).normal(size=(3, 4, 1000)).astype(np.float16)
    >>> write_sketch(path, [(rows, np.zeros((3, 4), int))])
    >>> open_sketch(path), path.stat().st_size
    (Sketch(base.sketch, 12 x 1,000, float16, class ids), 7336)
    """
    place = checked_path(path)
    top, tail, seed = checked_sizes(top, tail, seed)
    check_choice("kind", kind, KINDS)
    if isinstance(source, Blocks):
        fits = "blocks without options, which write_sketch takes"
        if {*source.options.values(), *source.token_options} - {None, -100, (), 0}:
            raise_error("option", name="source", got=source, fits=fits)
    else:
        source = as_blocks(source)
    if ignore_index is not None:
        ignore_index = check_integer("ignore_index", ignore_index, "an integer or None")
    with sketch_file.sketch_writer(place, top, tail, seed, append, check_workers(workers)) as writer:
        for number, values in enumerate(made_blocks(source, 0)):
            with with_file_names(f"block {number}"):
                _add(writer, values, kind or "logits", ignore_index)


def checked_path(path: Any) -> str:
    """The checked path of a file to write."""
    place = as_path("path", path)
    if not is_sketch(place):
        raise_error("option", name="path", got=place, fits="a name that ends in .sketch")
    return place


def checked_sizes(top: Any, tail: Any, seed: Any) -> tuple[int, int, int]:
    """The checked options of draws."""
    most = sketch_file.MOST_LISTED
    top = check_integer("top", top, f"an integer from 1 to {most}", least=1, most=most)
    tail = check_integer("tail", tail, f"an integer from 0 to {most}", least=0, most=most)
    return top, tail, check_integer("seed", seed, "an integer from 0 to 2**64 - 1", least=0, most=2**64 - 1)


def _add(writer: sketch_file.SketchWriter, values: Any, kind: str, ignore_index: int | None) -> None:
    """Add a block."""
    if not isinstance(values, tuple | list) or not 2 <= len(values) <= 4:
        fits = "(logits, targets[, where[, segment_ids]])"
        raise_error("type", name="a block", got=type(values).__name__, fits=fits)
    logits, targets, where, segment_ids = (*values, None, None)[:4]
    scores, code = as_float_array("logits", logits)
    if scores.ndim < 2:
        raise_error("shape", name="logits", got=scores.shape, fits="(..., V)")
    batch, n = scores.shape[:-1], math.prod(scores.shape[:-1])
    kept: Array = np.ones(n, np.bool_) if where is None else check_mask(where, batch).reshape(-1).copy()
    ids = None
    if targets is not None:
        ids, _ = as_array("targets", targets)
        if ids.dtype.kind not in "iu" or ids.shape != batch:
            raise_error("shape", name="targets", got=f"{ids.dtype} {ids.shape}", fits=f"integers of shape {batch}")
        ids = ids.reshape(-1)
        kept &= True if ignore_index is None else ids != ignore_index
    sequences = None
    if segment_ids is not None:
        sequences = check_segment_ids(segment_ids, batch).reshape(-1)
    elif len(batch) > 1:
        sequences = writer.n_sequences + np.arange(n) // (n // batch[0] or 1)
    writer.add(sketch_file.flat_rows(scores, code), kind, ids, kept, sequences)
