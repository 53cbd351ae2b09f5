"""The plots of losses and of KL divergences."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from tokenloss import plots
from tokenloss._outputs._base import Output, Result, TokenCollector, title
from tokenloss.comparison import Comparison
from tokenloss.meter import LossMeter

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tokenloss._types import Array
    from tokenloss.scores import TokenScores


class _Plot(Output[Result]):
    """A .png, .svg or .pdf file."""

    option = "--plot"

    def __init__(self, path: str) -> None:
        """Check for matplotlib and the suffix of the path."""
        plots.check(path)
        self.path: str = path


class LossPlot(_Plot[LossMeter]):
    """The losses along the text, their histogram and the calibration."""

    help = "draw the losses: a .png, .svg or .pdf file"
    needs_tokens = True
    top_k = 1

    def open(self, batch: tuple[int, ...], rows: int, top_k: int) -> AbstractContextManager[object]:
        """Prepare to collect losses."""
        self._tokens = TokenCollector(top_k, ("nll", "kept", "is_greedy", "top_logprobs"))
        return contextlib.nullcontext()

    def add(self, scores: TokenScores, ids: Array, text: Array | None) -> None:
        """Collect the next losses."""
        self._tokens.add(scores, ids, text)

    def finish(self, summary: dict[str, Any], result: LossMeter) -> None:
        """Draw the losses, and the calibration if there are classes."""
        columns = self._tokens.columns()
        greedy = {}
        if "top_logprobs" in columns:
            greedy = {"greedy_logprobs": columns["top_logprobs"][:, 0], "is_greedy": columns["is_greedy"]}
        name = title(summary["files"])
        plots.save(plots.draw_losses(columns["nll"], where=columns["kept"], title=name, **greedy), self.path)


class DivergencePlot(_Plot[Comparison]):
    """The quantiles of the KL divergence."""

    help = "draw the KL divergences: a .png, .svg or .pdf file"

    def finish(self, summary: dict[str, Any], result: Comparison) -> None:
        """Draw the quantiles."""
        plots.save(plots.draw_divergences(result.kl, where=result.kept, title=summary["other"]), self.path)
