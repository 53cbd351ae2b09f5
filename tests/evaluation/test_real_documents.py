"""Documents that real models scored, with the figures of other tools: `data/clients`."""

import json
import math

import numpy as np
import pytest
from places import CLIENTS
from reference import statistic
from reference_sequences import scores_of

from tokenloss import LossMeter, evaluate, formats, sequence_losses

LN2 = math.log(2)


@pytest.fixture(scope="module")
def documents():
    with np.load(CLIENTS / "compare.npz") as file:
        return dict(file), json.loads((CLIENTS / "compare.json").read_text())


def scores_and_bytes(arrays, model, targets):
    """Scores of the tokens, and bytes of the documents."""
    ids, nll = arrays[targets], arrays[f"{model}_nll"]
    n_bytes = np.bincount(arrays["segment_ids"], arrays["token_bytes"] * (ids >= 0)).astype(int)
    return scores_of(nll, ids >= 0, arrays[f"{model}_argmax"] == ids), n_bytes


each_targets = pytest.mark.parametrize("targets", ["targets", "targets_masked"])
each_model = pytest.mark.parametrize("model", ["base", "other"])


@each_targets
@each_model
def test_documents_of_a_real_model(documents, model, targets):
    arrays, reference = documents
    scores, n_bytes = scores_and_bytes(arrays, model, targets)
    expected = reference["targets"][targets][model]["per_document"]
    for layout in ("cu_seqlens", "segment_ids"):
        result = sequence_losses(scores, n_bytes=n_bytes, **{layout: arrays[layout]})
        assert result.sequence.tolist() == [each["document"] for each in expected]
        assert result.count.tolist() == [each["tokens"] for each in expected]
        assert result.n_bytes.tolist() == [each["bytes"] for each in expected]
        assert result.is_greedy.tolist() == [bool(each["is_greedy"]) for each in expected]
        np.testing.assert_allclose(result.nll, [each["total_nll"] for each in expected], rtol=1e-14)


@each_model
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


@each_targets
@each_model
def test_meter_of_documents_of_a_real_model(documents, model, targets):
    arrays, reference = documents
    expected = reference["targets"][targets][model]
    scores, n_bytes = scores_and_bytes(arrays, model, targets)
    meter, tokens = LossMeter(), LossMeter()
    meter.update(sequence_losses(scores, segment_ids=arrays["segment_ids"], n_bytes=n_bytes))
    tokens.update(scores)
    assert (meter.count, meter.n_sequences, meter.n_bytes) == (expected["tokens"], 10, expected["bytes"])
    assert meter.is_clustered
    actual = {
        "micro": meter.loss,
        "micro_stderr_clustered": meter.loss.stderr,
        "micro_stderr_independent": tokens.loss.stderr,
        "macro": meter.sequence_loss,
        "macro_stderr": meter.sequence_loss.stderr,
        "perplexity": meter.perplexity,
        "total_nll": meter.total,
        "bits_per_byte": meter.bits_per_byte,
        "bits_per_byte_stderr_clustered": meter.bits_per_byte.stderr,
    }
    for name, value in actual.items():
        assert value == pytest.approx(expected[name], rel=1e-13), name


@pytest.mark.usefixtures("any_loss_is_taken")
@each_targets
def test_meter_of_differences_of_two_real_models(documents, targets):
    arrays, reference = documents
    expected, kept = reference["targets"][targets]["other_minus_base"], arrays[targets] >= 0
    differences = arrays["other_nll"] - arrays["base_nll"]
    meter, tokens = LossMeter(), LossMeter()
    meter.update(sequence_losses(differences, where=kept, cu_seqlens=arrays["cu_seqlens"]))
    tokens.update(differences, kept)
    assert (meter.count, meter.n_sequences) == (expected["tokens"], expected["documents"])
    actual = {
        "micro": meter.loss,
        "micro_stderr_clustered": meter.loss.stderr,
        "micro_stderr_independent": tokens.loss.stderr,
        "macro": meter.sequence_loss,
        "macro_stderr": meter.sequence_loss.stderr,
        "perplexity_ratio": meter.perplexity,
    }
    for name, value in actual.items():  # differences of rounded losses
        assert value == pytest.approx(expected[name], rel=1e-12), name


@pytest.mark.parametrize("model", ["base", "noise"])
def test_meter_of_documents_of_lm_evaluation_harness(model):
    reference = json.loads((CLIENTS / "rolling.json").read_text())[model]
    total, meter = reference["total"], LossMeter()
    with np.load(CLIENTS / "rolling.npz") as file:
        nll = np.split(file[f"{model}_nll"], file["cu_seqlens"][1:-1])
    for losses, document in zip(nll, reference["documents"], strict=True):
        meter.update(sequence_losses(losses, n_bytes=document["bytes"], n_words=document["words"]))
    assert (meter.count, meter.n_bytes, meter.n_words) == tuple(total[name] for name in ("tokens", "bytes", "words"))
    for name, value in {
        "loglikelihood": -meter.total,
        "loss_per_token": meter.loss,
        "loss_per_token_stderr_clustered": meter.loss.stderr,
        "word_perplexity": meter.word_perplexity,
        "bits_per_byte": meter.bits_per_byte,
        "bits_per_byte_stderr_clustered": meter.bits_per_byte.stderr,
        "byte_perplexity": 2**meter.bits_per_byte,
    }.items():
        assert value == pytest.approx(total[name], rel=1e-13), name
    low, high = meter.word_perplexity.interval
    low, loss, high = map(math.log, (low, meter.word_perplexity, high))  # in nats per word, by its logarithm
    error = math.log(high / low) / 2 * loss / meter._by_words.interval_factor
    assert error == pytest.approx(total["log_word_perplexity_stderr_clustered"], rel=1e-12)
    assert math.sqrt(low * high) == pytest.approx(loss, rel=1e-12)
    for name, value in total["lm_eval"].items():  # of sums in float32
        actual = 2**meter.bits_per_byte if name == "byte_perplexity" else getattr(meter, name)
        assert actual == pytest.approx(value, rel=1e-6), name


@pytest.mark.usefixtures("any_loss_is_taken")
def test_bits_per_byte_of_the_difference_of_two_runs_of_lm_evaluation_harness():
    reference = json.loads((CLIENTS / "rolling.json").read_text())
    with np.load(CLIENTS / "rolling.npz") as file:
        differences, offsets = file["noise_nll"] - file["base_nll"], file["cu_seqlens"]
    n_bytes = [document["bytes"] for document in reference["base"]["documents"]]
    meter = LossMeter()
    meter.update(sequence_losses(differences, cu_seqlens=offsets, n_bytes=n_bytes))
    expected = reference["noise_minus_base_bits_per_byte"]
    assert meter.bits_per_byte == pytest.approx(expected["mean"], rel=1e-11)
    assert meter.bits_per_byte.stderr == pytest.approx(expected["stderr_clustered"], rel=1e-11)


@each_model
@pytest.mark.parametrize("rows", [288, 50, 1])
def test_evaluate_of_real_documents(documents, model, rows):
    arrays, reference = documents
    expected = reference["targets"]["targets"][model]
    nll, kept = np.nan_to_num(arrays[f"{model}_nll"]), arrays["targets"] >= 0
    with np.errstate(divide="ignore"):
        log_probs = np.stack([-nll, np.log(-np.expm1(-nll))], -1)  # of the target, and of all others
    targets, ids = np.where(kept, 0, -100), arrays["segment_ids"]
    blocks = [
        (log_probs[at : at + rows], targets[at : at + rows], None, ids[at : at + rows]) for at in range(0, 288, rows)
    ]
    n_bytes = [each["bytes"] for each in expected["per_document"]]
    source = formats.blocks(blocks, kind="log_probs", shift=False)
    result = evaluate(source, n_bytes=n_bytes)
    meter = result.meter
    for name, figure in {
        "loss": "micro", "stderr": "micro_stderr_clustered", "sequence_loss": "macro",
        "sequence_loss_stderr": "macro_stderr", "bits_per_byte": "bits_per_byte",
        "bits_per_byte_stderr": "bits_per_byte_stderr_clustered",
    }.items():  # fmt: skip
        assert statistic(meter, name) == pytest.approx(expected[figure], rel=1e-13), name
    assert result.sequences["count"].tolist() == [each["tokens"] for each in expected["per_document"]]
    total = evaluate(source, n_bytes=sum(n_bytes)).meter
    assert total.bits_per_byte == meter.bits_per_byte
    assert total.bits_per_byte.stderr < 0.7 * meter.bits_per_byte.stderr  # lengths in proportion to tokens
