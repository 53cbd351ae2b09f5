"""`evaluate(calibration=True)` and `score --calibration`: the bits of `calibration` on all arrays at once."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from tokenloss import calibration, compare_files, evaluate, sinks
from tokenloss._command.cli import main
from tokenloss._evaluation import run
from tokenloss.formats import blocks, open_hidden_states, open_scores
from tokenloss.results import Evaluation

RNG = np.random.default_rng(3)


def sample(classes, dtype="f4", texts=6, length=20, rng=RNG):
    """Logits (texts, length, classes), and targets of which some are ignored."""
    logits = 2 * rng.normal(size=(texts, length, classes))
    targets = (logits + 2 * rng.gumbel(size=logits.shape)).argmax(-1)
    targets[2, 7:] = -100
    return logits.astype(dtype), targets


def expected_of(logits, targets, ids=None, note="blocks are read only once", **options):
    """The calibration of the arrays: with a temperature if the note is empty."""
    ids = np.arange(len(logits))[:, None] if ids is None else ids
    has_brier = not note  # for many classes, blocks are spared a second pass over each row
    result = calibration(logits, targets, segment_ids=ids, temperature=not note, brier=has_brier, **options)
    return dataclasses.replace(result, temperature_note=note)


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(700, "f4"), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((4, "f4"), (10, "f2"), (30, "f8")))],
)
def test_blocks_shards_and_states_have_the_bits_of_arrays(tmp_path, classes, dtype):
    logits, targets = sample(classes, dtype)
    of_files, of_blocks = (expected_of(logits, targets, note=note) for note in ("", "blocks are read only once"))
    for i, rows in enumerate((slice(0, 2), slice(2, 3), slice(3, 6))):
        np.savez(tmp_path / f"part-{i}.npz", logits=logits[rows], targets=targets[rows])
    np.savez(tmp_path / "whole.npz", logits=logits, targets=targets)
    parts, state = [tmp_path / f"part-{i}.npz" for i in range(3)], tmp_path / "state"

    def engine(first):
        return ((logits[i : i + 1], targets[i : i + 1]) for i in range(first, 6))

    for result, expected in (
        (evaluate([(logits, targets)], calibration=True), of_blocks),
        (evaluate(engine(0), calibration=True), of_blocks),
        *((evaluate(engine, calibration=True, state=tmp_path / "of blocks"), of_blocks) for _ in range(2)),
        (evaluate(tmp_path / "whole.npz", calibration=True, workers=2), of_files),
        *((evaluate(parts, calibration=True, state=state), of_files) for _ in range(2)),  # then from the state
        (pickle.loads(pickle.dumps(evaluate(parts, calibration=True))), of_files),  # noqa: S301 -- pickled here
        (
            Evaluation.of_parts([evaluate(path, calibration=True) for path in parts]),
            dataclasses.replace(of_blocks, temperature_note="parts have it one by one", brier=of_files.brier),
        ),
    ):
        assert result.calibration == expected
        assert result.figures["calibration"]["ece"] == expected.ece
    assert evaluate(parts).calibration is None
    assert "calibration" not in evaluate(parts).figures


def of_workers(function, units, _):
    """What stands in for a cluster: pickled units and results, in another order."""
    function, units, _ = pickle.loads(pickle.dumps((function, units, 0)))  # noqa: S301 -- pickled here
    yield from [*enumerate(map(function, units))][::-1]


def test_passes_run_on_a_cluster_and_are_named_in_the_progress(tmp_path, monkeypatch):
    logits, targets = sample(4)
    for i in range(3):
        np.savez(tmp_path / f"{i}.npz", logits=logits[2 * i : 2 * i + 2], targets=targets[2 * i : 2 * i + 2])
    parts, labels = [tmp_path / f"{i}.npz" for i in range(3)], []
    progress = run.Progress
    monkeypatch.setattr(run, "Progress", lambda total, label="": labels.append((total, label)) or progress(None))
    expected = evaluate(parts, calibration=True, progress=True)
    assert expected.calibration == expected_of(logits, targets, note="")
    (whole, first), *passes = labels
    assert first == ""
    assert 2 <= len(passes) <= 6
    assert all(total == whole == logits.nbytes and "calibration at temperature" in label for total, label in passes)
    monkeypatch.setattr("tokenloss._evaluation.cluster.map_shards", of_workers)
    assert evaluate(parts, calibration=True, scheduler="x") == expected


def test_a_sequence_may_go_on_in_other_blocks_and_files(tmp_path):
    logits, targets = (array.reshape(120, *array.shape[2:]) for array in sample(5))
    ids = np.arange(120) // 9 - 1  # the first tokens are in no sequence
    expected = expected_of(logits, targets, ids)
    cuts = [slice(0, 25), slice(25, 80), slice(80, 120)]
    result = evaluate([(logits[cut], targets[cut], None, ids[cut]) for cut in cuts], calibration=True)
    assert result.calibration == expected
    for i, cut in enumerate(cuts):
        np.save(tmp_path / f"{i}.npy", logits[cut])
    np.save(tmp_path / "targets.npy", targets)
    np.save(tmp_path / "ids.npy", ids)
    files = [tmp_path / f"{i}.npy" for i in range(3)]
    source = open_scores(files, targets=tmp_path / "targets.npy", segment_ids=tmp_path / "ids.npy")
    assert evaluate(source, calibration=True).calibration == expected_of(logits, targets, ids, note="")
    for i, cut in enumerate(cuts):  # ids of each file's own, which are too high to be counted on
        np.savez(tmp_path / f"own-{i}.npz", logits=logits[cut], targets=targets[cut], segment_ids=2**62 + ids[cut])
    result = evaluate([tmp_path / f"own-{i}.npz" for i in range(3)], calibration=True).calibration
    own = ids + 1000 * np.repeat(np.arange(3), [25, 55, 40])
    assert result == expected_of(logits, targets, own + 1, note="")


@pytest.mark.parametrize("kind", ["probs", "log_probs"])
def test_other_kinds(kind, tmp_path):
    logits, targets = sample(6, "f8")
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scores = np.exp(scores) if kind == "probs" else scores
    result = evaluate(blocks([(scores, targets)], kind=kind), calibration=True).calibration
    assert result == expected_of(scores, targets, kind=kind)
    np.savez(tmp_path / "a.npz", **{kind: scores, "targets": targets})
    assert evaluate(tmp_path / "a.npz", calibration=True).calibration == expected_of(
        scores, targets, note="", kind=kind
    )


@pytest.fixture
def models(tmp_path):
    """A base with targets in three files, and two candidates, one of probabilities; and the calibration of each."""
    rng = np.random.default_rng(49)
    logits, targets = sample(4, "f8", rng=rng)
    probs = np.exp(logits / 2)
    arrays = {"base": logits, "Q8": 3 * logits + rng.normal(size=logits.shape), "Q4": probs / probs.sum(-1)[..., None]}
    kinds = {"base": "logits", "Q8": "logits", "Q4": "probs"}
    for name, array in arrays.items():
        (tmp_path / name).mkdir()
        for i, rows in enumerate((slice(0, 2), slice(2, 3), slice(3, 6))):
            own = {"targets": targets[rows]} if name == "base" else {}
            np.savez(tmp_path / name / f"{i}.npz", **{kinds[name]: array[rows]}, **own)
    expected = {name: expected_of(array, targets, note="", kind=kinds[name]) for name, array in arrays.items()}
    return tmp_path, expected


@pytest.mark.slow
def test_models_are_calibrated_beside_their_base(models, monkeypatch):
    folder, expected = models
    files = folder / "base", {name: folder / name for name in ("Q8", "Q4")}
    result = compare_files(*files, calibration=True)
    plain = compare_files(*files, state=folder / "state")
    resumed = compare_files(*files, calibration=True, state=folder / "state")
    monkeypatch.setattr("tokenloss._evaluation.cluster.map_shards", of_workers)
    for same in (result, resumed, compare_files(*files, calibration=True, scheduler="x")):
        for name, one in pickle.loads(pickle.dumps(same)).items():  # noqa: S301 -- pickled here
            assert one.calibration == expected[name]
            assert one.base_calibration == expected["base"]
            assert one.mean_kl == plain[name].mean_kl
    assert plain["Q8"].calibration is None
    assert "calibration" not in json.dumps(plain.to_dict())
    figures, columns = result.to_dict(), result.columns()
    assert figures["base_calibration"] == expected["base"].to_dict()
    for row, name in enumerate(columns["name"].tolist()):
        assert figures["candidates"][row]["calibration"] == expected[name].to_dict()
        assert columns["calibration_ece"][row] == expected[name].ece
        assert columns["base_calibration_temperature"][row] == expected["base"].temperature
    text = result.summary()
    for one in expected.values():
        assert f"{one.ece:.5f}" in text
        assert f"{one.temperature:.4g}" in text
    single = compare_files(files[0], folder / "Q8", calibration=True)
    assert all(f"{expected['Q8'].ece:.5f}" in one.summary() for one in (single, *single.values(), result["Q8"]))


@pytest.mark.slow
def test_gates_of_the_calibration_error(models, capsys):
    folder, expected = models
    result = pickle.loads(pickle.dumps(compare_files(folder / "base", folder / "Q8", calibration=True)))  # noqa: S301
    (comparison,) = result.values()
    evaluation = evaluate(folder / "base", calibration=True)
    for one, own in ((comparison, expected["Q8"]), (evaluation, expected["base"]), (expected["Q8"], expected["Q8"])):
        low, high = own.ece.interval
        for limit, verdict in ((high + 1e-9, "holds"), ((low + high) / 2, "cannot tell"), (low - 1e-9, "fails")):
            if limit >= 0:
                (gate,) = one.check(max_ece=limit).gates
                assert (gate.verdict, gate.figure, gate.interval) == (verdict, own.ece, pytest.approx((low, high)))
        (wide,), (narrow,) = (one.check(max_ece=0.1, confidence=level).gates for level in (0.99, 0.8))
        assert wide.interval[0] <= narrow.interval[0] < narrow.interval[1] < wide.interval[1]
    for one in (compare_files(folder / "base", folder / "Q8"), evaluate(folder / "base")):
        with pytest.raises(ValueError, match="max_ece limits calibration errors, which need calibration=True"):
            one.check(max_ece=0.1)
    base, other = str(folder / "base"), str(folder / "Q8")
    for command, own in (["compare", base, other], expected["Q8"]), (["score", base], expected["base"]):
        for limit, status in ("1", 0), ("0", 3 if own.ece.interval[0] > 0 else 4):
            assert main([*command, "--calibration", "--max-ece", limit]) == status
        assert main([*command, "--max-ece", "0.1"]) == 2
        assert "--max-ece is given; it needs --calibration" in capsys.readouterr().err


def test_pages_show_reliability(models):
    folder, expected = models
    files = folder / "base", {name: folder / name for name in ("Q8", "Q4")}
    compare_files(*files, calibration=True, sinks=[sinks.DivergencePage(folder / "compare.html")])
    evaluate(folder / "base", calibration=True, sinks=[sinks.HtmlPage(folder / "score.html")])
    for page, names in (("compare.html", ["Q8", "base", "Q4", "base"]), ("score.html", ["base"])):
        text = (folder / page).read_text("utf-8")
        assert text.count('<figure class="reliability">') == len(names) - len(names) // 2
        assert text.count("<circle") == sum(expected[name].bins["count"].size for name in names)
        for name in names:
            first = expected[name].bins
            assert f'cx="{100 * first["confidence"][0]:.2f}" cy="{100 - 100 * first["accuracy"][0]:.2f}"' in text
            assert f"best temperature {expected[name].temperature:#.4g}" in text
    evaluate(folder / "base", sinks=[sinks.HtmlPage(folder / "score.html")])
    assert "reliability" not in (folder / "score.html").read_text("utf-8").partition("</style>")[2]


def test_what_has_no_calibration_is_refused(tmp_path):
    np.savez(tmp_path / "h.npz", hidden_states=RNG.normal(size=(4, 5)), targets=np.arange(4) % 3)
    np.save(tmp_path / "head.npy", RNG.normal(size=(3, 5)))
    np.savez(tmp_path / "soft.npz", logits=np.zeros((4, 3)), targets=np.full((4, 3), 1 / 3))
    np.save(tmp_path / "logprobs.npy", np.full(4, -1.0))
    for name in ("other", "copy"):
        np.save(tmp_path / f"{name}.npy", RNG.normal(size=(4, 3)))
    for source, words in (
        (
            open_hidden_states(tmp_path / "h.npz", tmp_path / "head.npy"),
            "contains hidden states; it must contain scores of all",
        ),
        (tmp_path / "soft.npz", "has distributions as targets; it must contain class ids, for calibration=True"),
        (tmp_path / "logprobs.npy", "calibration"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(source, calibration=True)
    with pytest.raises(ValueError, match=r"h\.npz: contains hidden states; it must contain scores of all"):
        compare_files(
            open_hidden_states(tmp_path / "h.npz", tmp_path / "head.npy"), tmp_path / "other.npy", calibration=True
        )
    with pytest.raises(ValueError, match="has no targets; it must contain class ids, for calibration=True"):
        compare_files(tmp_path / "other.npy", tmp_path / "copy.npy", calibration=True)
    one, other = ((np.zeros((1, 2, 3)), np.zeros((1, 2), int)) for _ in range(2))
    with pytest.raises(ValueError, match="calibration is True in one and False in the other"):
        evaluate([one], calibration=True) + evaluate([other])


@pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
def test_command(tmp_path, capsys):
    logits, targets = sample(4)
    np.savez(tmp_path / "a.npz", logits=logits, targets=targets)
    assert main(["score", str(tmp_path / "a.npz"), "--calibration"]) == 0
    out = capsys.readouterr().out
    assert "calibration error, bins of equal mass" in out
    assert "confidence above" in out
    assert main(["score", str(tmp_path / "a.npz"), "--calibration", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calibration"] == expected_of(logits, targets, note="").to_dict()
