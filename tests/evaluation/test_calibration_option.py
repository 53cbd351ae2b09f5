"""`evaluate(calibration=True)` and `score --calibration`: the bits of `calibration` on all arrays at once."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from tokenloss import calibration, evaluate
from tokenloss._command.cli import main
from tokenloss._evaluation import run
from tokenloss.formats import blocks, open_hidden_states, open_scores
from tokenloss.results import Evaluation

RNG = np.random.default_rng(3)


def sample(classes, dtype="f4", texts=6, length=20):
    """Logits (texts, length, classes), and targets of which some are ignored."""
    logits = 2 * RNG.normal(size=(texts, length, classes))
    targets = (logits + 2 * RNG.gumbel(size=logits.shape)).argmax(-1)
    targets[2, 7:] = -100
    return logits.astype(dtype), targets


def expected_of(logits, targets, ids=None, note="blocks are read only once", **options):
    """The calibration of the arrays: with a temperature if the note is empty."""
    ids = np.arange(len(logits))[:, None] if ids is None else ids
    found = calibration(logits, targets, segment_ids=ids, temperature=not note, brier=True, **options)
    return dataclasses.replace(found, temperature_note=note)


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(4, "f4"), (700, "f4"), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((10, "f2"), (30, "f8")))],
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

    for found, expected in (
        (evaluate([(logits, targets)], calibration=True), of_blocks),
        (evaluate(engine(0), calibration=True), of_blocks),
        *((evaluate(engine, calibration=True, state=tmp_path / "of blocks"), of_blocks) for _ in range(2)),
        (evaluate(tmp_path / "whole.npz", calibration=True, workers=2), of_files),
        *((evaluate(parts, calibration=True, state=state), of_files) for _ in range(2)),  # then from the state
        (pickle.loads(pickle.dumps(evaluate(parts, calibration=True))), of_files),  # noqa: S301 -- pickled here
        (
            Evaluation.of_parts([evaluate(path, calibration=True) for path in parts]),
            dataclasses.replace(of_blocks, temperature_note="parts have it one by one"),
        ),
    ):
        assert found.calibration == expected
        assert found.figures["calibration"]["ece"] == expected.ece
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
    found = evaluate([(logits[cut], targets[cut], None, ids[cut]) for cut in cuts], calibration=True)
    assert found.calibration == expected
    for i, cut in enumerate(cuts):
        np.save(tmp_path / f"{i}.npy", logits[cut])
    np.save(tmp_path / "targets.npy", targets)
    np.save(tmp_path / "ids.npy", ids)
    files = [tmp_path / f"{i}.npy" for i in range(3)]
    source = open_scores(files, targets=tmp_path / "targets.npy", segment_ids=tmp_path / "ids.npy")
    assert evaluate(source, calibration=True).calibration == expected_of(logits, targets, ids, note="")
    for i, cut in enumerate(cuts):  # ids of each file's own, which are too high to be counted on
        np.savez(tmp_path / f"own-{i}.npz", logits=logits[cut], targets=targets[cut], segment_ids=2**62 + ids[cut])
    found = evaluate([tmp_path / f"own-{i}.npz" for i in range(3)], calibration=True).calibration
    own = ids + 1000 * np.repeat(np.arange(3), [25, 55, 40])
    assert found == expected_of(logits, targets, own + 1, note="")


@pytest.mark.parametrize("kind", ["probs", "log_probs"])
def test_other_kinds(kind, tmp_path):
    logits, targets = sample(6, "f8")
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scores = np.exp(scores) if kind == "probs" else scores
    found = evaluate(blocks([(scores, targets)], kind=kind), calibration=True).calibration
    assert found == expected_of(scores, targets, kind=kind)
    np.savez(tmp_path / "a.npz", **{kind: scores, "targets": targets})
    assert evaluate(tmp_path / "a.npz", calibration=True).calibration == expected_of(
        scores, targets, note="", kind=kind
    )


def test_what_has_no_calibration_is_refused(tmp_path):
    np.savez(tmp_path / "h.npz", hidden_states=RNG.normal(size=(4, 5)), targets=np.arange(4))
    np.save(tmp_path / "head.npy", RNG.normal(size=(8, 5)))
    np.savez(tmp_path / "soft.npz", logits=np.zeros((4, 3)), targets=np.full((4, 3), 1 / 3))
    np.save(tmp_path / "logprobs.npy", np.full(4, -1.0))
    for source, words in (
        (
            open_hidden_states(tmp_path / "h.npz", tmp_path / "head.npy"),
            "holds hidden states; it must hold scores of all",
        ),
        (tmp_path / "soft.npz", "holds distributions as targets; it must hold class ids, for calibration=True"),
        (tmp_path / "logprobs.npy", "calibration"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(source, calibration=True)
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
