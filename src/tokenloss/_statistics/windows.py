"""Windows of a text that is longer than a model's context."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokenloss._core.arguments import check_choice
from tokenloss._core.errors import raise_error
from tokenloss._core.validation import check_integer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    from tokenloss._core.types import BoolArray

_SCORES = ("new", "second_half", "all")


def windows(
    n_tokens: int, size: int, stride: int, *, score: Literal["new", "second_half", "all"] = "new"
) -> Iterator[tuple[slice, slice, BoolArray]]:
    """Cut a text that is longer than a model's context into windows, so that no token is scored twice.

    Parameters
    ----------
    n_tokens : int
        Number of tokens of the text.
    size : int
        Number of tokens of a window: the context of the model.
    stride : int
        Number of tokens from the start of one window to the start of the next, at most `size`: the smaller it is, the
        more tokens precede each one that is scored, and the longer it takes.
    score : {"new", "second_half", "all"}, default "new"
        Which tokens of a window are scored:

        - ``"new"``: tokens that no earlier window contained, as on transformers' page on the perplexity of fixed-length
          models. Each token but the first is scored once; with a stride of `size`, the first token of each window has
          nothing before it and is left out.
        - ``"second_half"``: tokens after position ``size // 2``, as in llama.cpp's ``llama-perplexity``, where `size`
          and `stride` are ``n_ctx``. Tokens at the end that do not fill a window are left out.
        - ``"all"``: all tokens that the model predicts, as in lm-evaluation-harness, where `size` and `stride` are
          ``max_length``. The last row of a window predicts the first token of the next one, and the last window reaches
          back to be full, so that each token but the first is scored once.

    Returns
    -------
    iterator of (slice, slice, array of bool)
        For each window: the tokens that the model reads; the tokens that it predicts, which are those shifted right by
        one; and for each of the latter whether it is scored in this window (the argument `where` of all functions).

    Raises
    ------
    TypeError, ValueError
        If an argument is not an integer or too small, if tokens would be scored twice or never read, or if no window
        would be full with "second_half".

    See Also
    --------
    next_token : Aligns the logits of a padded batch.
    evaluate : Scores files of logits that were stored window by window.

    Notes
    -----
    Nothing predicts the first token of a text. For a model that needs a BOS, the first token should be this BOS; in a
    later window, the BOS takes the place of the first token that is read, as in llama.cpp: ``model(np.append(bos,
    ids[inputs][1:]))``.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import LossMeter, token_scores, windows
    >>> ids = np.arange(100) % 7  # of a text
    >>> def model(ids):  # logits (tokens, vocabulary)
    ...     return 5 * np.eye(7)[(ids + 1) % 7]
    >>> meter = LossMeter()
    >>> for inputs, targets, where in windows(len(ids), size=16, stride=8):
    ...     meter.update(token_scores(model(ids[inputs]), ids[targets], where=where))
    >>> meter.count, round(meter.perplexity, 4)
    (99, 1.0404)

    The slices and the mask of each window:

    >>> for inputs, targets, where in windows(8, size=4, stride=2):
    ...     print(inputs, targets, where)
    slice(0, 3, None) slice(1, 4, None) [ True  True  True]
    slice(2, 5, None) slice(3, 6, None) [False  True  True]
    slice(4, 7, None) slice(5, 8, None) [False  True  True]
    """
    n_tokens = check_integer("n_tokens", n_tokens, "an integer >= 0", least=0)
    check_choice("score", score, _SCORES)
    least = 3 if score == "second_half" else 2
    size = check_integer("size", size, f"an integer >= {least}", least=least)
    least = {"new": 1, "second_half": size - 1 - size // 2, "all": size}[score]
    fits = f"{size}, the size, as windows are disjoint" if least == size else f"an integer from {least} to {size}"
    stride = check_integer("stride", stride, f"{fits}, with score={score!r}", least=least, most=size)
    if score == "second_half" and n_tokens < size:
        raise_error("option", name="n_tokens", got=n_tokens, fits=f"at least {size}, since windows must be full")
    return _windows(n_tokens, size, stride, score)


def _windows(n_tokens: int, size: int, stride: int, score: str) -> Iterator[tuple[slice, slice, BoolArray]]:
    """The windows, given checked arguments."""
    first = 1  # token that is scored
    for start in range(0, n_tokens, stride):
        stop = min(start + size, n_tokens)
        if score == "all":
            stop = min(start + size + 1, n_tokens)
            start = max(0, stop - size - 1)
        elif score == "second_half":
            if start + size > n_tokens:
                return
            first = start + size // 2 + 1
        if max(first, start + 1) < stop:
            yield slice(start, stop - 1), slice(start + 1, stop), np.arange(start + 1, stop) >= first
        first = stop
