"""Bad input of sequence_losses, and of a LossMeter that takes sequences: what is named, and that nothing changes."""

import math

import numpy as np
import pytest
from arrays import fails
from reference_sequences import scores_of

from tokenloss import LossMeter, sequence_losses
from tokenloss._core import threads

NAN = math.nan


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"cu_seqlens": [1, 10]}, ValueError, ["cu_seqlens", 1, 0]),
        ({"cu_seqlens": [0, 9]}, ValueError, ["cu_seqlens", 9, 10]),
        ({"cu_seqlens": [0, 11]}, ValueError, ["cu_seqlens", 11, 10]),
        ({"cu_seqlens": [0, 7, 3, 10]}, ValueError, ["cu_seqlens", 3]),
        ({"cu_seqlens": np.array([0, 7, 3, 10], np.uint8)}, ValueError, ["cu_seqlens", 3]),
        ({"cu_seqlens": np.array([0, 7, 3, 10], np.uint64)}, ValueError, ["cu_seqlens", 3]),
        ({"cu_seqlens": np.array([0, 2**64 - 1, 10], np.uint64)}, ValueError, ["cu_seqlens", ""]),
        ({"cu_seqlens": [0, -4, 10]}, ValueError, ["cu_seqlens", -4]),
        ({"cu_seqlens": [[0, 10]]}, ValueError, ["cu_seqlens", (1, 2)]),
        ({"cu_seqlens": 10}, ValueError, ["cu_seqlens", ()]),
        ({"cu_seqlens": np.zeros(0, int)}, ValueError, ["cu_seqlens", ""]),
        ({"cu_seqlens": [0.0, 10.0]}, TypeError, ["cu_seqlens", "float64"]),
        ({"cu_seqlens": ["a"]}, TypeError, ["cu_seqlens", "U1"]),
        ({"segment_ids": [1, 2, 3]}, ValueError, ["segment_ids", (3,), (2, 5)]),
        ({"segment_ids": np.zeros((2, 2, 5), int)}, ValueError, ["segment_ids", (2, 2, 5), (2, 5)]),
        ({"segment_ids": np.zeros((2, 5))}, TypeError, ["segment_ids", "float64"]),
        ({"segment_ids": np.zeros((2, 5), bool)}, TypeError, ["segment_ids", "bool"]),
        ({"segment_ids": np.full((2, 5), 2**63, np.uint64)}, ValueError, ["segment_ids", 2**63]),
        ({"segment_ids": np.zeros((2, 5), int), "cu_seqlens": [0, 10]}, ValueError, ["segment_ids", "cu_seqlens"]),
        ({"where": np.ones(3, bool)}, ValueError, ["where", (3,), (2, 5)]),
        ({"where": np.ones((2, 5), np.int8)}, TypeError, ["where", "int8", "bool"]),
        ({"sample_weight": np.ones(3)}, ValueError, ["sample_weight", (3,), (2, 5)]),
        ({"sample_weight": [[-0.5], [1]]}, ValueError, ["sample_weight", -0.5]),
        ({"sample_weight": NAN}, ValueError, ["sample_weight", "nan"]),
        ({"n_bytes": 100}, ValueError, ["n_bytes", (), (2,), "one for each sequence"]),
        ({"n_words": [100]}, ValueError, ["n_words", (1,), (2,), "one for each sequence"]),
        ({"n_bytes": [3, -1]}, ValueError, ["n_bytes", -1, 0]),
        ({"n_words": -2}, ValueError, ["n_words", -2, 0]),
        ({"n_bytes": [1, 2, 3]}, ValueError, ["n_bytes", (3,), (2,)]),
        ({"n_words": [[1, 2]]}, ValueError, ["n_words", (1, 2), (2,)]),
        ({"n_bytes": [1, 2], "segment_ids": np.zeros((2, 5), int)}, ValueError, ["n_bytes", (2,), (1,)]),
        ({"n_bytes": [1, 2], "cu_seqlens": [0, 3, 5, 10]}, ValueError, ["n_bytes", (2,), (3,)]),
        ({"n_bytes": [1.0, 2.0]}, TypeError, ["n_bytes", "float64"]),
        ({"n_words": "x"}, TypeError, ["n_words"]),
        ({"n_words": np.array([1, 2**63], np.uint64)}, ValueError, ["n_words", 2**63]),
    ],
)  # fmt: skip
def test_wrong_options(options, error, words):
    for nll in (np.ones((2, 5)), scores_of(np.ones((2, 5)))):
        with fails(error, *words):
            sequence_losses(nll, **options)


@pytest.mark.parametrize(
    ("nll", "error", "words"),
    [
        (1.5, ValueError, ["nll", ()]),
        (scores_of(1.5), ValueError, ["nll", ()]),
        (["a"], TypeError, ["nll", "U1"]),
        ([1j], TypeError, ["nll", "complex128"]),
        ([[True, False]], TypeError, ["nll", "bool"]),
        ([[-0.36, -0.02]], ValueError, ["nll", -0.36, "log-probabilities, pass -nll"]),
        (np.full((2, 3), -1, np.float16), ValueError, ["nll", -1.0, "log-probabilities, pass -nll"]),
        (scores_of([[NAN, -0.5]]), ValueError, ["nll", -0.5]),
        (None, TypeError, ["nll"]),
        ([[1.0], [1.0, 2.0]], TypeError, ["nll"]),
        (np.ma.masked_array([1.0], [True]), TypeError, ["nll", "masked", "where"]),
    ],
)
def test_wrong_losses(nll, error, words):
    with fails(error, *words):
        sequence_losses(nll)


@pytest.mark.parametrize("name", ["segment_ids", "where", "sample_weight"])
@pytest.mark.parametrize(
    ("got", "shape", "fits"),
    [
        ((3,), (3, 3), "(1, 3) or (3, 1), since it fits (3, 3) in two ways"),
        ((2,), (2, 5, 2), "(1, 1, 2) or (2, 1, 1)"),
        ((2, 2), (2, 2, 2), "(1, 2, 2) or (2, 2, 1)"),
        ((1, 2), (4, 2, 2), "(1, 1, 2) or (1, 2, 1)"),
    ],
)
def test_segment_ids_where_and_sample_weight_that_fit_in_two_ways_are_refused(name, got, shape, fits):
    value = np.ones(got, {"segment_ids": int, "where": bool, "sample_weight": float}[name])
    with fails(ValueError, f"{name} has shape", got, fits):
        sequence_losses(np.ones(shape), **{name: value})
    for clear in (value[(None,) * (len(shape) - len(got))], value[(..., *(None,) * (len(shape) - len(got)))]):
        sequence_losses(np.ones(shape), **{name: clear})


@pytest.mark.parametrize("name", ["segment_ids", "where", "sample_weight"])
@pytest.mark.parametrize(
    ("got", "shape"), [((), (3, 3)), ((1,), (3, 3)), ((3,), (1, 3)), ((3,), (2, 3)), ((3, 3), (3, 3))]
)
def test_segment_ids_where_and_sample_weight_that_fit_in_one_way_are_taken(name, got, shape):
    value = np.ones(got, {"segment_ids": int, "where": bool, "sample_weight": float}[name])
    assert sequence_losses(np.ones(shape), **{name: value}).count.sum() == np.prod(shape)


def test_options_are_keywords():
    with pytest.raises(TypeError):
        sequence_losses([1.0], [True])


def test_update_of_a_meter_with_wrong_arguments_changes_nothing():
    nll = [[1.0, 2.0], [4.0, 5.0]]
    plain, measured = sequence_losses(nll), sequence_losses(nll, n_bytes=[3, 4], n_words=[2, 2])
    meter = LossMeter()
    meter.update(measured)
    meter.update([0.5, 0.75], n_bytes=5, n_words=1)
    before = meter._to_json()
    for arguments, options, words in [
        ((plain, [True, True]), {}, ["where"]),
        ((plain,), {"where": True}, ["where"]),
        ((plain,), {"sample_weight": 1.0}, ["sample_weight"]),
        ((measured,), {"n_bytes": 7}, ["n_bytes"]),
        ((measured,), {"n_words": 7}, ["n_words"]),
        ((plain,), {"n_bytes": -1}, ["n_bytes", -1]),
        ((plain,), {"n_bytes": 3, "n_words": -1}, ["n_words", -1]),
        ((plain,), {"n_words": 1.5}, ["n_words", 1.5]),
        (([1.0, 2.0],), {"sample_weight": [1.0, -2.0]}, ["sample_weight", -2.0]),
        (([1.0, 2.0],), {"sample_weight": [1.0, math.inf]}, ["sample_weight", "inf"]),
        (([1.0, 2.0],), {"sample_weight": [1.0] * 3}, ["sample_weight", (3,), (2,)]),
        (([1.0, 2.0],), {"sample_weight": 1.0, "n_bytes": -3}, ["n_bytes", -3]),
        (([plain],), {}, ["nll"]),
    ]:
        with fails((TypeError, ValueError), *words):
            meter.update(*arguments, **options)
        assert meter._to_json() == before, words


def test_sample_weight_of_a_meter_is_a_keyword():
    with pytest.raises(TypeError):
        LossMeter().update([1.0], None, 0, 0, 1.0)


@pytest.mark.thread_unsafe(reason="changes how jobs are run")
def test_offsets_that_change_during_the_call(monkeypatch):
    offsets, run = np.array([0, 2, 5]), threads.run

    def run_later(*arguments):
        offsets[:] = 0  # as another thread might; a greater offset would lie beyond the losses
        return run(*arguments)

    monkeypatch.setattr(threads, "run", run_later)
    assert sequence_losses([1.0, 2.0, 4.0, 8.0, 16.0], cu_seqlens=offsets).nll.tolist() == [3.0, 28.0]
