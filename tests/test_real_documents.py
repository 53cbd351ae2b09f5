"""Documents that real models scored, with the figures of other tools: `data/clients`."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from reference_sequences import scores_of

from tokenloss import LossMeter, sequence_losses

CLIENTS = Path(__file__).parent / "data" / "clients"
LN2 = math.log(2)


@pytest.fixture(scope="module")
def documents():
    with np.load(CLIENTS / "compare.npz") as file:
        return dict(file), json.loads((CLIENTS / "compare.json").read_text())


@pytest.mark.parametrize("targets", ["targets", "targets_masked"])
@pytest.mark.parametrize("model", ["base", "other"])
def test_documents_of_a_real_model(documents, model, targets):
    arrays, reference = documents
    ids, expected = arrays[targets], reference["targets"][targets][model]["per_document"]
    scores = scores_of(arrays[f"{model}_nll"], ids >= 0, arrays[f"{model}_argmax"] == ids)
    n_bytes = np.bincount(arrays["segment_ids"], arrays["token_bytes"] * (ids >= 0)).astype(int)
    for layout in ("cu_seqlens", "segment_ids"):
        result = sequence_losses(scores, n_bytes=n_bytes, **{layout: arrays[layout]})
        assert result.ids.tolist() == [each["document"] for each in expected]
        assert result.count.tolist() == [each["tokens"] for each in expected]
        assert result.n_bytes.tolist() == [each["bytes"] for each in expected]
        assert result.is_greedy.tolist() == [bool(each["is_greedy"]) for each in expected]
        np.testing.assert_allclose(result.nll, [each["total_nll"] for each in expected], rtol=1e-14)


@pytest.mark.parametrize("model", ["base", "other"])
def test_spans_of_a_real_model(documents, model):
    arrays, reference = documents
    spans, number = reference["sequences"], 0
    for span in spans:
        at = slice(span["first_position"], span["first_position"] + span["tokens"])
        ids, greedy = arrays["targets"][at], arrays[f"{model}_argmax"][at] == arrays["targets"][at]
        result = sequence_losses(scores_of(arrays[f"{model}_nll"][at], ids >= 0, greedy))
        assert int(result.count) == span["tokens"]
        assert bool(result.is_greedy) == span[f"{model}_is_greedy"]
        assert float(result.nll) == pytest.approx(span[f"{model}_nll"], rel=1e-14)
        number += bool(result.is_greedy)
    assert 0 < number < len(spans)


@pytest.mark.parametrize("model", ["base", "noise"])
def test_documents_of_lm_evaluation_harness(model):
    expected = json.loads((CLIENTS / "rolling.json").read_text())[model]["documents"]
    n_bytes, n_words = ([each[name] for each in expected] for name in ("bytes", "words"))
    with np.load(CLIENTS / "rolling.npz") as file:
        result = sequence_losses(file[f"{model}_nll"], cu_seqlens=file["cu_seqlens"], n_bytes=n_bytes, n_words=n_words)
    assert result.count.tolist() == [each["tokens"] for each in expected]
    np.testing.assert_allclose(-result.nll, [each["loglikelihood"] for each in expected], rtol=1e-14)
    np.testing.assert_allclose(-result.nll, [each["lm_eval_loglikelihood"] for each in expected], atol=1e-4, rtol=0)
    bits = [-each["loglikelihood"] / LN2 / each["bytes"] for each in expected]
    np.testing.assert_allclose(result.bits_per_byte, bits, rtol=1e-14)
