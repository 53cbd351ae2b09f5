"""The types that users see: each is what comes at run time, and what mypy and pyright, which read this file, say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest

import tokenloss
import tokenloss.dask
from tokenloss import formats, page, plots, results

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

LOGITS = np.array([[2, 1, 0], [0, 3, 0]], np.float32)
PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
IDS = [0, 1]


def is_float(value: object) -> bool:
    """Whether it is a Python float, not one of NumPy's."""
    return type(value) is float


def is_array(value: object, dtype: npt.DTypeLike = np.float64) -> bool:
    """Whether it is an array of this dtype."""
    return isinstance(value, np.ndarray) and value.dtype == dtype


def test_losses_are_floats() -> None:
    assert is_float(assert_type(tokenloss.cross_entropy_loss(IDS, PROBS, epsilon=1e-9), float))
    assert is_float(assert_type(tokenloss.nll_loss(np.log(PROBS), IDS, reduction="sum", axis=-1), float))
    assert is_float(assert_type(tokenloss.cross_entropy(LOGITS, IDS, softcap=30, where=[True, False]), float))
    assert is_float(assert_type(tokenloss.linear_cross_entropy(PROBS, PROBS, IDS, lm_head_bias=[0, 1]), float))
    assert is_float(assert_type(tokenloss.kl_divergence(LOGITS, PROBS, reduction="mean"), float))


def test_losses_of_each_position_are_arrays() -> None:
    assert is_array(assert_type(tokenloss.cross_entropy_loss(IDS, PROBS, reduction="none"), Floats))
    assert is_array(assert_type(tokenloss.nll_loss(-PROBS, IDS, reduction="none", weight=[1, 1, 2]), Floats))
    assert is_array(assert_type(tokenloss.cross_entropy(LOGITS, IDS, reduction="none", z_loss=0.1), Floats))
    assert is_array(assert_type(tokenloss.linear_cross_entropy(PROBS, PROBS, IDS, reduction="none"), Floats))
    assert is_array(assert_type(tokenloss.kl_divergence(LOGITS, PROBS, reduction="none"), Floats))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_reduction_that_is_not_known_gives_either(reduction: Literal["mean", "sum", "none"]) -> None:
    loss = assert_type(tokenloss.cross_entropy(LOGITS, IDS, reduction=reduction), "float | Floats")
    assert is_array(loss) if reduction == "none" else is_float(loss)


def test_gradients_are_arrays_or_what_was_given() -> None:
    loss, gradient = tokenloss.cross_entropy_and_grad(LOGITS, IDS)
    assert is_float(assert_type(loss, float))
    assert is_array(assert_type(gradient, Array), np.float32)
    out: Floats = np.empty(PROBS.shape)
    losses, same = tokenloss.cross_entropy_and_grad(PROBS, IDS, reduction="none", out=out)
    assert is_array(assert_type(losses, Floats))
    assert assert_type(same, Floats) is out


def test_softmax_has_the_dtype_of_logits() -> None:
    assert is_array(assert_type(tokenloss.softmax(LOGITS), npt.NDArray[np.float32]), np.float32)
    assert is_array(assert_type(tokenloss.log_softmax([[2.0, 1.0]], axis=-1), Array))
    out = np.empty_like(LOGITS)
    assert assert_type(tokenloss.log_softmax(LOGITS, out=out), npt.NDArray[np.float32]) is out
    assert is_array(assert_type(tokenloss.logsumexp(LOGITS), Floats))


def test_class_log_probs_are_an_array() -> None:
    assert is_array(assert_type(tokenloss.class_log_probs(LOGITS, IDS, where=[True, False]), Floats))


def test_scores_and_comparisons_have_typed_fields() -> None:
    scores = assert_type(tokenloss.token_scores(LOGITS, IDS, top_k=1), results.TokenScores)
    assert is_array(assert_type(scores.rank, npt.NDArray[np.int64]), np.int64)
    assert is_array(assert_type(scores.top_logprobs, "Floats | None"))
    assert is_float(assert_type(scores.perplexity, float))
    assert_type(tokenloss.linear_token_scores(PROBS, PROBS, IDS), results.TokenScores)
    comparison = assert_type(tokenloss.compare(LOGITS, PROBS, IDS, definitions="exact"), results.Comparison)
    assert_type(comparison.kl_quantiles[0.5], results.Estimate)
    assert is_array(assert_type(comparison.is_same_top, npt.NDArray[np.bool_]), np.bool_)
    meter = tokenloss.ComparisonMeter(definitions="exact")
    meter.update(LOGITS, PROBS, IDS)
    assert_type(meter.result(), results.Comparison)
    meter = tokenloss.ComparisonMeter(classes=1)
    meter.update(LOGITS, {"a": LOGITS, "b": PROBS}, [0, 0])
    actual = assert_type(meter.results(), results.Comparisons[results.Comparison])["b"]
    assert is_float(assert_type(actual.mean_kl.interval, tuple[float, float])[0])
    assert is_float(assert_type(actual.left_out, "float | None"))
    assert is_array(assert_type(actual.by(["x", "y"]), dict[str, npt.NDArray[Any]])["kl"])


def test_results_speak_one_protocol() -> None:
    evaluation = assert_type(tokenloss.evaluate([(LOGITS, IDS)]), results.Evaluation)
    assert is_float(float(assert_type(evaluation.loss, results.Estimate)))
    assert type(assert_type(evaluation.count, int)) is int
    assert_type(evaluation.perplexity.interval, tuple[float, float])
    assert is_array(assert_type(evaluation.columns(), dict[str, npt.NDArray[Any]])["loss"])
    assert assert_type(evaluation.to_dict(), dict[str, Any])["count"] == 2
    assert "perplexity" in assert_type(evaluation.summary(), str)
    calibrated = assert_type(tokenloss.calibration(LOGITS, IDS), results.Calibration)
    assert is_float(float(assert_type(calibrated.ece, results.Estimate)))
    sequences = assert_type(tokenloss.sequence_losses([[1.0, 2.0]]), results.SequenceLosses)
    assert is_array(assert_type(sequences.columns(), dict[str, npt.NDArray[Any]])["nll"])


def test_meters_add_up() -> None:
    meter = tokenloss.LossMeter()
    meter.update([0.5, 0.25], n_bytes=3)
    total = assert_type(meter + meter, tokenloss.LossMeter)
    assert_type(sum([meter, meter], tokenloss.LossMeter()), tokenloss.LossMeter)
    assert type(assert_type(total.count, int)) is int
    assert is_float(float(assert_type(total.bits_per_byte, results.Estimate)))
    assert_type(total.perplexity.interval, tuple[float, float])


def test_config_is_printed_or_returned(capsys: pytest.CaptureFixture[str]) -> None:
    tokenloss.show_config()
    assert capsys.readouterr().out
    assert "workers" in assert_type(tokenloss.show_config("dicts"), dict[str, Any])


def test_files_hold_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "scores.npz", logits=LOGITS, targets=IDS)
    source = assert_type(formats.open_scores(tmp_path / "scores.npz", kind="logits"), formats.Scores)
    assert_type(source.file, formats.ScoresFile)
    for block in source.blocks(1):
        assert is_array(assert_type(block, Array), np.float32)


def test_sources_and_paths_are_taken_alike(tmp_path: Path) -> None:
    np.savez(tmp_path / "scores.npz", logits=LOGITS, targets=IDS)
    np.savez(tmp_path / "logprobs.npz", logprobs=[-0.5, -1.0])
    source = formats.open_scores(tmp_path / "scores.npz")
    logprobs = assert_type(formats.open_logprobs(tmp_path / "logprobs.npz"), formats.Logprobs)
    blocks = assert_type(formats.blocks([(LOGITS, IDS)], kind="logits"), formats.Blocks)
    sources: list[formats.Source] = [source, logprobs, blocks, source.like(tmp_path / "scores.npz")]
    for one in sources:
        assert assert_type(tokenloss.evaluate(one), results.Evaluation).count == 2
    assert_type(tokenloss.evaluate(tmp_path / "scores.npz"), results.Evaluation)
    for name in ("q4", "q8"):
        np.savez(tmp_path / f"{name}.npz", logits=LOGITS * int(name[1:]))
    result = tokenloss.compare_files(source, {"q4": tmp_path / "q4.npz", "q8": source.like(tmp_path / "q8.npz")})
    assert [*result] == ["q4", "q8"]


def test_pages_and_plots(tmp_path: Path) -> None:
    scores = tokenloss.token_scores(LOGITS, IDS, top_k=1)
    page.write_page(tmp_path / "page.html", scores, IDS, tokens=["a", None])
    figure: Figure = plots.draw_losses(scores.nll, where=scores.kept)
    plots.save(figure, tmp_path / "plot.svg")
    models = {"q4": tokenloss.compare(LOGITS, LOGITS, IDS)}
    page.write_comparison_page(tmp_path / "page.html", models, IDS, base_scores=scores, scores={"q4": scores})
    plots.save(plots.draw_candidates(models, sizes={"q4": 5}), tmp_path / "plot.svg")


def test_dask_gives_meters_and_arrays() -> None:
    logits = da.from_array(LOGITS)
    assert_type(tokenloss.dask.score(logits, da.from_array(IDS), where=[True, False]), tokenloss.LossMeter)
    assert isinstance(assert_type(tokenloss.dask.cross_entropy(logits, IDS, reduction="none"), da.Array), da.Array)


def test_tensors_of_any_library_are_taken() -> None:
    class Tensor:
        """A tensor that only speaks DLPack, and whose devices are its own."""

        def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None) -> object:
            return LOGITS.__dlpack__(stream=stream, max_version=max_version)

        def __dlpack_device__(self) -> tuple[object, int]:
            return LOGITS.__dlpack_device__()

    tensor = Tensor()
    assert is_float(assert_type(tokenloss.cross_entropy(tensor, IDS), float))
    assert assert_type(tokenloss.softmax(LOGITS, out=tensor), Tensor) is tensor
