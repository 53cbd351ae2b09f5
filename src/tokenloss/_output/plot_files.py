"""The plots of losses and of KL divergences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tokenloss._core.text import title
from tokenloss._evaluation.sink import Sink
from tokenloss._output import plots
from tokenloss._output.base import TokenSink, compared_title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._evaluation.sink import Candidate


class LossPlot(TokenSink):
    """A plot of the losses along the text, their histogram and the calibration: ``tokenloss score --plot``.

    It is a .png, .svg or .pdf file.

    Parameters
    ----------
    path : path-like
        File to write. An existing file is replaced when the new one is complete.

    Raises
    ------
    ValueError
        If the name has another suffix.
    ImportError
        If matplotlib is not installed.

    See Also
    --------
    tokenloss.plots.draw_losses : The same of arrays.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import evaluate, sinks
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = pathlib.Path(directory) / "losses.png"
    ...     _ = evaluate([(np.zeros((2, 3, 4)), np.ones((2, 3), int))], sinks=[sinks.LossPlot(path)])
    ...     path.read_bytes()[1:4]
    b'PNG'
    """

    __module__ = "tokenloss.sinks"

    option = "--plot"
    help = "draw the losses: a .png, .svg or .pdf file"
    top_k = 1
    columns: ClassVar[Sequence[str] | None] = (
        "nll", "kept", "is_greedy", "top_logprobs", "is_greedy_known", "file", "sequences",
    )  # fmt: skip

    def __init__(self, path: str) -> None:
        plots.check(path)
        super().__init__(path)

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        columns = self.collected()
        greedy: dict[str, Any] = {}
        if "top_logprobs" in columns:  # if there are classes
            greedy = {"greedy_logprobs": columns["top_logprobs"][:, 0], "is_greedy": columns["is_greedy"]}
        if self._of_responses:
            logprobs = np.where(columns["is_greedy_known"], greedy.pop("greedy_logprobs"), np.nan)
            greedy = greedy | {"greedy_logprobs": logprobs} if not np.isnan(logprobs).all() else {}
        name = title(summary["files"])
        starts = np.diff(columns["file"], prepend=0) | np.diff(columns["sequences"], prepend=0)
        ids = np.cumsum(starts != 0)  # of the sequences of all files
        figure = plots.draw_losses(columns["nll"], where=columns["kept"], segment_ids=ids, title=name, **greedy)
        plots.save(figure, self.path)


class DivergencePlot(Sink):
    """A plot of the quantiles of the divergence, and of several candidates' means over sizes: ``compare --plot``.

    It is a .png, .svg or .pdf file.

    Parameters
    ----------
    path : path-like
        File to write. An existing file is replaced when the new one is complete.

    Raises
    ------
    ValueError
        If the name has another suffix.
    ImportError
        If matplotlib is not installed.

    See Also
    --------
    tokenloss.plots.draw_divergences, tokenloss.plots.draw_candidates : The same of arrays.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_files, sinks
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     base, q4, path = (pathlib.Path(directory, name) for name in ("base.npz", "q4.npy", "kl.png"))
    ...     np.savez(base, logits=4 * np.eye(4), targets=np.arange(4))
    ...     np.save(q4, 2 * np.eye(4))
    ...     _ = compare_files(base, q4, sinks=[sinks.DivergencePlot(path)])
    ...     path.read_bytes()[1:4]
    b'PNG'
    """

    __module__ = "tokenloss.sinks"

    option = "--plot"
    help = "draw the KL divergences: a .png, .svg or .pdf file"

    def __init__(self, path: str) -> None:
        plots.check(path)
        super().__init__(path)

    def finish(self, summary: dict[str, Any], result: Sequence[Candidate]) -> None:
        if len(result) > 1:
            sizes = {one.name: one.size for one in result if one.size is not None}
            comparisons = {one.name: one.comparison for one in result}
            figure = plots.draw_candidates(comparisons, sizes=sizes, title=compared_title(summary, result))
        else:
            one = result[0]
            of = one.comparison
            figure = plots.draw_divergences(of.kl, where=of.kept, segment_ids=of._segment_ids, title=one.name)
        plots.save(figure, self.path)
