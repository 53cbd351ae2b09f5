"""--window and --stride: a text that was stored window by window, of which each token is scored once."""

import math
import re

import numpy as np
import pytest
from arrays import fails
from commands import assert_refused
from places import TESTS

from tokenloss import LossMeter, compare, compare_files, evaluate, sequence_losses, sinks, token_scores, windows
from tokenloss.formats import blocks, open_hidden_states, open_scores

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")

SIZE, STRIDE, N, V = 16, 6, 16 + 3 * 6 + 2, 11  # the last of five windows has 12 tokens
RNG = np.random.default_rng(35)
IDS = RNG.integers(V, size=N)
STARTS = range(0, N - SIZE + STRIDE, STRIDE)
WINDOWS = [np.arange(start, min(start + SIZE, N)) for start in STARTS]
LOGITS = [RNG.standard_normal((len(window), V), np.float32) for window in WINDOWS]  # other logits in each window


def meter_of(logits, ids, size, stride):
    """Exact sums of the loop that `windows` is for, given the logits that each window had."""
    meter = LossMeter()
    for rows, (inputs, targets, where) in zip(logits, windows(len(ids), size, stride), strict=True):
        length = inputs.stop - inputs.start
        meter.update(sequence_losses(token_scores(rows[:length], ids[targets], where=where)))
    return meter


def padded(arrays, value):
    """Arrays of windows as one, with this value after the last."""
    result = np.full((len(arrays), SIZE, *arrays[0].shape[1:]), value, arrays[0].dtype)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return result


def batch(path, **others):
    np.savez(path / "a.npz", logits=padded(LOGITS, 99), **others)
    return [path / "a.npz"]


def masked(path):
    mask = padded([np.ones(len(window), int) for window in WINDOWS], 0)
    return batch(path, input_ids=padded([IDS[window] for window in WINDOWS], 0), attention_mask=mask)


def ignored(path):
    return batch(path, targets=padded([IDS[window] for window in WINDOWS], -100))


def labels(path):
    """As transformers' loop has them: context is ignored, too."""
    ids = padded([IDS[window] for window in WINDOWS], -100)
    ids[1:, : SIZE - STRIDE] = -100
    return batch(path, labels=ids)


def flat(path):
    np.save(path / "a.npy", np.concatenate(LOGITS))
    np.save(path / "ids.npy", IDS[np.concatenate(WINDOWS)])
    return [path / "a.npy", path / "ids.npy"]


def flat_and_text(path):
    np.save(path / "a.npy", np.concatenate(LOGITS))
    np.save(path / "ids.npy", IDS[None].astype(np.uint8))  # a batch of one
    return [path / "a.npy", path / "ids.npy"]


def a_file_each(path):
    for number, (rows, window) in enumerate(zip(LOGITS, WINDOWS, strict=True)):
        np.savez(path / f"{number}.npz", logits=rows[None], input_ids=IDS[window][None])
    return [path / "*.npz"]


def two_files(path):
    for number, part in enumerate((slice(0, 2), slice(2, 5))):
        ids = np.concatenate([IDS[window] for window in WINDOWS[part]])
        np.savez(path / f"{number}.npz", logits=np.concatenate(LOGITS[part]), input_ids=ids)
    return [path / "*.npz"]


def a_file_each_and_text(path):
    for number, rows in enumerate(LOGITS):
        np.save(path / f"w{number}.npy", rows)
    np.save(path / "ids.npy", IDS)
    return [path / "w*.npy", "--targets", path / "ids.npy"]


LAYOUTS = [masked, ignored, labels, flat, flat_and_text, a_file_each, two_files, a_file_each_and_text]
OPTIONS = ["--window", SIZE, "--stride", STRIDE]
IN_WINDOWS = {"window": SIZE, "stride": STRIDE}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_window_of_every_layout_scores_each_token_once(layout, score_json, tmp_path):
    argv = [*layout(tmp_path), *OPTIONS]
    result = score_json(*argv, "--per-token", tmp_path / "tokens.csv", "--top", 50)
    expected = meter_of(LOGITS, IDS, SIZE, STRIDE)
    assert (result["count"], result["n_sequences"]) == (N - 1, 5)
    assert (result["loss"], result["stderr"]) == (expected.loss, expected.loss.stderr)
    assert (result["window"], result["stride"]) == (SIZE, STRIDE)
    left_out = result["n_context"] + result["n_ignored"] + result["n_without_next"]
    assert (left_out + N - 1, result["n_context"]) == (math.prod(result["shape"][:-1]), 4 * (SIZE - STRIDE - 1))
    table = np.genfromtxt(tmp_path / "tokens.csv", delimiter=",", names=True)
    table = table[~np.isnan(table["nll"])]
    assert table["target"].tolist() == IDS[1:].tolist()


def test_window_of_one_that_is_not_full_and_of_disjoint_ones(score_json, npz):
    result = score_json(npz(logits=LOGITS[4], input_ids=IDS[WINDOWS[4]]), *OPTIONS)
    assert (result["count"], result["n_context"]) == (len(WINDOWS[4]) - 1, 0)
    disjoint = IDS[:32].reshape(2, SIZE)
    result = score_json(npz(logits=np.stack(LOGITS[:2]), input_ids=disjoint), "--window", SIZE, "--stride", SIZE)
    assert result["loss"] == meter_of(LOGITS[:2], IDS[:32], SIZE, SIZE).loss
    assert (result["count"], result["n_context"], result["n_without_next"]) == (30, 0, 2)


def test_window_of_hidden_states(npz, tmp_path):
    head = RNG.standard_normal((V, 4), np.float32)
    np.save(tmp_path / "head.npy", head)
    hidden = RNG.standard_normal((4, SIZE, 4), np.float32)
    path = npz(hidden_states=hidden, input_ids=np.stack([IDS[window] for window in WINDOWS[:4]]))
    with pytest.warns(UserWarning, match="final norm"):
        result = evaluate(open_hidden_states(path, tmp_path / "head.npy", **IN_WINDOWS))
    assert result.meter.loss == pytest.approx(meter_of(hidden @ head.T, IDS[: N - 2], SIZE, STRIDE).loss, rel=1e-5)


def test_window_prints_what_is_context(command, tmp_path):
    out = command("score", *ignored(tmp_path), *OPTIONS)[1]
    assert re.search("tokens +35 +4 ignored, 36 only as context, 5 without a next token\n", out)


def test_state_of_a_window_knows_its_place(command, tmp_path):
    a_file_each(tmp_path)
    files = sorted(tmp_path.glob("?.npz"))
    source = open_scores(files[1:], **IN_WINDOWS)
    first, again = (evaluate(source, state=tmp_path / "state") for _ in range(2))
    assert first.meter == again.meter == evaluate(source).meter
    refused = command("score", *files, *OPTIONS, "--state", tmp_path / "state")  # 1.npz is no longer the first
    assert_refused(refused, "state: contains the result of", "1.npz", "changed")
    refused = command("score", *files[1:], "--shift", "--state", tmp_path / "state")
    assert_refused(refused, "was written with window 16")


def test_texts_in_windows_are_merged_if_these_are_equal(npz):
    def of(name, **options):
        path = npz(name, logits=LOGITS[0], input_ids=IDS[:SIZE] % (1 + len(name)))
        return evaluate(open_scores(path, window=SIZE, **options))

    one, other = of("a.npz", stride=STRIDE), of("bb.npz", stride=STRIDE)
    assert (one + other).meter.count == 30
    with pytest.raises(ValueError, match="stride is 6 in one and 5 in the other"):
        one + of("ccc.npz", stride=5)


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({}, "--window 16", "--window is given; it must be left out without --stride"),
        ({}, "--stride 16", "--stride is given; it must be left out without --window"),
        ({}, "--window 16 --stride 17", "--stride is 17; it must be an integer from 1 to 16, the window"),
        ({}, "--window 1 --stride 1", "argument --window: must be an integer >= 2, not '1'"),
        ({}, "--window 16 --stride 6 --no-shift", "--shift is False; it must be True, or left out, if"),
        ({}, "--window 16 --stride 6 --segment-ids x.npy", "--segment-ids is given"),
        ({}, "--window 16 --stride 5", "windows 0 and 1 have different ids where they overlap; it must contain"),
        ({}, "--window 15 --stride 6", "contains windows of 16 tokens; it must contain windows of 15"),
        ({}, "--window 17 --stride 6", "contains windows of 16 tokens; it must contain windows of 17"),
        ({"segment_ids": np.zeros((5, 16), int)}, "--window 16 --stride 6", "contains segment_ids or cu_seqlens; it"),
        ({"input_ids": None}, "--window 16 --stride 6", "has no targets"),
        ({"logits": np.zeros((26, V)), "input_ids": IDS[:26]}, "--window 16 --stride 6", "ends with a window of 10"),
    ],
)  # fmt: skip
def test_window_that_does_not_fit_is_refused(arrays, options, words, command, npz):
    good = {"logits": padded(LOGITS, 0), "input_ids": padded([IDS[window] for window in WINDOWS], -100)}
    path = npz(**{name: array for name, array in (good | arrays).items() if array is not None})
    assert_refused(command("score", path, *options.split()), words)


@pytest.mark.parametrize("n", [N - 6, N, N + 5, 5 * 16 - 1])
def test_window_and_ids_of_another_text_are_refused(n, command, tmp_path):
    """Also those of the text before its padding: the last window might as well have been moved back to be full."""
    np.save(tmp_path / "a.npy", padded(LOGITS, 0))
    np.save(tmp_path / "ids.npy", np.zeros(n, int))
    refused = command("score", tmp_path / "a.npy", tmp_path / "ids.npy", *OPTIONS)
    assert_refused(
        refused, f"has shape ({n},); it must contain 40 ids, of the text in these windows, or 80, one for each"
    )


def test_window_in_files_of_another_order_is_refused(command, tmp_path):
    a_file_each(tmp_path)
    paths = [tmp_path / f"{number}.npz" for number in (1, 0, 2)]
    assert_refused(command("score", *paths, *OPTIONS), "0.npz: windows 1 and 2 have different ids")
    paths = [tmp_path / f"{number}.npz" for number in (4, 0, 1)]
    assert_refused(command("score", *paths, *OPTIONS), "4.npz: ends with a window of 12; it must contain windows of 16")


def test_window_is_for_files_of_scores(command):
    refused = command("score", TESTS / "data" / "vllm.json", *OPTIONS)
    assert_refused(refused, "--window is for scores; ", "vllm.json has responses")
    with pytest.raises(TypeError, match="window"):
        blocks([(LOGITS[0], IDS[:16])], window=SIZE)


# -- comparisons -------------------------------------------------------------------------------------------------------

NOISE = [rows + RNG.normal(scale=0.3, size=rows.shape).astype(np.float32) for rows in LOGITS]  # another model


def other_model(layout, folder):
    """The scores of another model in the files of a layout, without ids."""
    folder.mkdir()
    if layout in (flat, flat_and_text):
        np.save(folder / "a.npy", np.concatenate(NOISE))
        return folder / "a.npy"
    if layout in (a_file_each, a_file_each_and_text):
        for number, rows in enumerate(NOISE):
            np.save(folder / f"w{number}.npy", rows[None] if layout is a_file_each else rows)
    elif layout is two_files:
        for number, part in enumerate((slice(0, 2), slice(2, 5))):
            np.savez(folder / f"{number}.npz", logits=np.concatenate(NOISE[part]))
    else:
        np.savez(folder / "a.npz", logits=padded(NOISE, 99))
        return folder / "a.npz"
    return folder


def in_windows(paths):
    """The source of what a layout returns."""
    source, *ids = (path for path in paths if path != "--targets")
    return open_scores(source, *ids, **IN_WINDOWS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_models_in_windows_are_compared_at_each_token_once(layout, tmp_path):
    base, path = in_windows(layout(tmp_path)), other_model(layout, tmp_path / "other")
    own = open_scores(path, *base.token_options.targets, **IN_WINDOWS)  # says the same once more
    (result, again) = (compare_files(base, {"other": one})["other"] for one in (path, own))
    assert result == again
    spans = [*windows(N, SIZE, STRIDE)]
    kept = [np.flatnonzero(where) for _, _, where in spans]
    rows = [np.concatenate([model[number][some] for number, some in enumerate(kept)]) for model in (LOGITS, NOISE)]
    targets = np.concatenate([IDS[ids][some] for (_, ids, _), some in zip(spans, kept, strict=True)])
    assert targets.tolist() == IDS[1:].tolist()
    expected = compare(*rows, targets)
    assert (result.count, result.n_sequences) == (N - 1, 5)
    for name in ("nll", "base_nll", "kl", "is_same_top"):
        np.testing.assert_array_equal(getattr(result, name)[result.kept], getattr(expected, name), name)
    for logits, loss in (LOGITS, result.base_nll[result.kept]), (NOISE, result.nll[result.kept]):
        meter = meter_of(logits, IDS, SIZE, STRIDE)
        assert loss.mean() == pytest.approx(meter.loss, rel=1e-12)
    one, counts = (
        evaluate(base),
        ("count", "n_sequences", "n_ignored", "n_without_next", "window", "stride", "n_context"),
    )
    assert math.log(result.base_perplexity) == pytest.approx(one.loss, rel=1e-12)
    assert [result.to_dict()[name] for name in counts] == [one.figures[name] for name in counts]
    assert result.to_dict()["signature"] == re.sub(r"\|bytes:\d+", "", one.figures["signature"])


def test_models_in_windows_have_the_losses_of_evaluate(tmp_path):
    base, path = in_windows(masked(tmp_path)), other_model(masked, tmp_path / "other")
    result = compare_files(base, {"other": path})["other"]
    with np.load(tmp_path / "a.npz") as file:
        ids = {name: file[name] for name in ("input_ids", "attention_mask")}
    np.savez(tmp_path / "other.npz", logits=padded(NOISE, 99), **ids)
    models = evaluate(base), evaluate(open_scores(tmp_path / "other.npz", **IN_WINDOWS))
    columns = (result.base_perplexity, result.perplexity), (result.base_nll, result.nll)
    for model, perplexity, losses in zip(models, *columns, strict=True):
        assert perplexity == pytest.approx(model.perplexity, rel=1e-14)
        assert (result.count, math.fsum(losses[result.kept])) == (model.count, model.meter.total)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": SIZE, "stride": 5}, "was opened with stride=5; it must have 6, as the base has, or be opened with"),
        ({"window": 8, "stride": STRIDE}, "was opened with window=8; it must have 16"),
        ({"ignore_index": 3}, "was opened with ignore_index=3; it must have -100"),
        ({"targets": "ids.npy"}, "was opened with targets=("),
        ({"segment_ids": "ids.npy"}, "was opened with segment_ids=("),
        ({"shift": False}, "was opened with shift=False; it must have True"),
    ],
)
def test_a_candidate_that_was_told_otherwise_than_its_base_is_refused(options, words, tmp_path):
    base, path = in_windows(masked(tmp_path)), other_model(masked, tmp_path / "other")
    np.save(tmp_path / "ids.npy", np.zeros((5, SIZE), int))
    options = {name: tmp_path / value if value == "ids.npy" else value for name, value in options.items()}
    written = sinks.TokenTable(tmp_path / "tokens.csv")
    with fails(ValueError, f"a.npz: {words}"):
        compare_files(base, {"other": open_scores(path, **options)}, sinks=[written])
    assert not (tmp_path / "tokens.csv").exists()


@pytest.mark.parametrize("shift", [True, False, None])
def test_a_candidate_whose_opener_shifts_is_of_a_base_that_does(shift, npz):
    """An opener that left the shift out takes that of the base, also beside other options."""
    base = npz("base.npz", logits=LOGITS[0], input_ids=IDS[:SIZE])
    other = npz("other.npz", logits=NOISE[0])
    candidate = open_scores(other, shift=shift)
    if shift is False:
        with fails(ValueError, "other.npz: was opened with shift=False; it must have True"):
            compare_files(open_scores(base, shift=True), {"other": candidate})
        with fails(ValueError, "shift is True; it must be False, or left out, since ", "other.npz was opened"):
            compare_files(base, {"other": candidate}, shift=True)
        return
    result = compare_files(open_scores(base, shift=True, ignore_index=-1), {"other": candidate})["other"]
    assert result == compare_files(open_scores(base, ignore_index=-1), {"other": other}, shift=True)["other"]
    assert result.count == SIZE - 1
    again = open_scores(other, ignore_index=-1, shift=shift)
    assert compare_files(open_scores(base, shift=True, ignore_index=-1), {"other": again})["other"] == result
    if shift:
        with fails(ValueError, "other.npz: was opened with shift=True; it must have None"):
            compare_files(base, {"other": candidate})
