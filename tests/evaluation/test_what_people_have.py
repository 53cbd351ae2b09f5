"""Arrays under the names that people save, and files and blocks that are something else, which the error names."""

import math
import pickle
import zipfile

import clients
import numpy as np
import pytest
import safetensors.numpy
from commands import assert_refused
from files import save_zarr

from tokenloss import (
    LossMeter,
    compare,
    compare_files,
    cross_entropy,
    evaluate,
    next_token,
    sequence_losses,
    token_scores,
)
from tokenloss.formats import open_scores

RNG = np.random.default_rng(44)
LOGITS, IDS = RNG.normal(size=(3, 7, 9), scale=3).astype(np.float32), RNG.integers(9, size=(3, 7))
LEFT, RIGHT = np.arange(7) >= [[3], [0], [1]], np.arange(7) < [[7], [2], [4]]
DOCUMENTS = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 2, 2, 0, 0], [3, 3, 3, 3, 3, 3, 3]])
SAVES = {
    ".npz": lambda path, **arrays: np.savez(path, **arrays),
    ".safetensors": lambda path, **arrays: safetensors.numpy.save_file(arrays, path),
    ".zarr": lambda path, **arrays: save_zarr(path, **arrays),
}


@pytest.fixture(params=SAVES)
def save(request, tmp_path):
    """Saves arrays in each format."""

    def save(name="arrays", **arrays):
        SAVES[request.param](path := tmp_path / f"{name}{request.param}", **arrays)
        return path

    return save


def test_targets_by_other_names(save):
    """Labels as torch has them, of which -100 are left out; targets are taken before labels, and a name before both."""
    labels = np.where(RIGHT, IDS, -100)
    expected = cross_entropy(LOGITS, labels)
    assert evaluate(save(logits=LOGITS, labels=labels)).meter.loss == expected
    assert evaluate(save(logits=LOGITS, labels=IDS, targets=labels)).meter.loss == expected
    path = save(logits=LOGITS, labels=IDS, targets=IDS, y=labels)
    assert evaluate(open_scores(path, targets_array="y")).meter.loss == expected
    soft = np.full(LOGITS.shape, 1 / 9)
    path = save(logits=LOGITS, y=soft)
    assert evaluate(open_scores(path, targets_array="y")).meter.loss == cross_entropy(LOGITS, soft)


@pytest.mark.parametrize("mask", [LEFT, RIGHT, DOCUMENTS, None])
@pytest.mark.parametrize("name", ["input_ids", "token_ids", "labels", "targets"])
def test_what_a_causal_model_was_given(name, mask, save, command):
    """Its ids are shifted, and its mask leaves out padding, as `next_token` does."""
    masks = {} if mask is None else {"attention_mask": mask.astype(np.int64)}
    path = save(logits=LOGITS, **{name: IDS}, **masks)
    logits, ids, where = next_token(LOGITS, IDS, None if mask is None else mask.astype(np.int64))
    expected = LossMeter()
    expected.update(sequence_losses(token_scores(logits, ids, where=where)))
    assert evaluate(path, shift=True).meter == expected
    if "ids" in name:
        words = (
            "it must contain targets, or come with --targets or --targets-array; if these ids are the model's input, "
        )
        assert_refused(command("score", path), f"{path}: contains input ids and no targets; {words}add --shift")
    elif mask is not None:
        assert_refused(command("score", path), f"{path}: attention_mask[", "or come with --shift if they are input ids")


@pytest.mark.parametrize("mask", [[1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1, 1], [1, 1, 1, 2, 2, 2, 2]])
def test_a_mask_leaves_out_the_same_tokens_of_shards(mask, save):
    """A shard's last row does not predict the next one's first id where the mask says that it is of another text."""
    mask = np.array(mask)
    arrays = {"logits": LOGITS[0], "input_ids": IDS[0], "attention_mask": mask}
    shards = [save(f"{i}", **{name: array[part] for name, array in arrays.items()})
              for i, part in enumerate((slice(0, 3), slice(3, 7)))]  # fmt: skip
    whole, parts = evaluate(save(**arrays), shift=True), evaluate(shards, shift=True)
    assert parts.meter == whole.meter
    assert parts.figures["n_ignored"] == whole.figures["n_ignored"]
    assert parts.figures["n_without_next"] == whole.figures["n_without_next"]


def test_masks_that_are_added_to_attention_are_refused(save):
    """They are 0 of tokens and negative of padding, the other way round."""
    mask = np.where(LEFT, 0.0, -np.inf)
    path, other = save(logits=LOGITS, input_ids=IDS, attention_mask=mask), save("other", logits=LOGITS * 0.9)
    message = r"attention_mask\[0, 0\] is -inf; it must be 0 for padding and positive for tokens"
    with pytest.raises(ValueError, match=message):
        evaluate(path, shift=True)
    with pytest.raises(ValueError, match=message):
        compare_files(path, other, shift=False)


def test_documents_of_a_mask_are_told_apart_or_refused_without_an_index_to_ignore(save):
    path = save(logits=LOGITS[2:], input_ids=IDS[2:], attention_mask=np.array([[1, 1, 1, 2, 2, 2, 2]]))
    with pytest.raises(ValueError, match=r"attention_mask\[0, 3\] is 2, but its token would be scored"):
        evaluate(open_scores(path, ignore_index=None), shift=True)


def test_models_are_compared_by_input_ids_or_without_targets(save):
    base, other = save("base", logits=LOGITS, input_ids=IDS), save("other", logits=LOGITS * 0.9)
    with pytest.raises(ValueError, match=r"contains input ids and no targets; .*; for divergences only, shift=False$"):
        compare_files(base, other)
    logits, ids, where = next_token(LOGITS, IDS, None)
    shifted, alone = (next(iter(compare_files(base, other, shift=shift).values())) for shift in (True, False))
    assert shifted.mean_kl == compare(logits, logits * np.float32(0.9), ids, where=where).mean_kl
    assert shifted.count == 18
    assert alone.count == 21
    assert math.isnan(alone.perplexity)


def test_streams_are_compared(tmp_path):
    names = "vllm/completion_stream.txt", "llama_cpp_python/completion_echo_stream.txt"
    base, other = (clients.save(tmp_path / f"{i}.txt", name) for i, name in enumerate(names))
    ((_, result),) = compare_files(base, other).items()
    assert result.count == 4
    assert abs(result.log_perplexity_ratio) < 1e-3


def test_ids_of_other_tokens_do_not_matter_beside_targets(save, tmp_path):
    """The prompt's own ids, say, beside logits of what came next."""
    path = save(logits=LOGITS, input_ids=np.arange(5))
    np.save(tmp_path / "targets.npy", IDS)
    assert evaluate(open_scores(path, tmp_path / "targets.npy")).meter.loss == cross_entropy(LOGITS, IDS)


def test_a_file_without_targets_says_what_it_holds(save, command):
    others = {"y": IDS, "input_ids": np.arange(5)}
    path = save(logits=LOGITS, **others)
    refused = command("score", path)
    assert_refused(
        refused,
        f"{path}: has no targets, but ",
        "; it must contain targets, or come with --targets or --targets-array",
    )
    names = refused[2].split("no targets, but ")[1].split(";")[0].split(", ")
    assert {*names} == {"logits", "input_ids"} | ({"y"} if path.suffix != ".zarr" else set())  # looks up known names
    for name in "z", "logits":
        refused = command("score", path, "--targets-array", name)
        assert_refused(refused, f"{path}: contains ", f"it must contain the targets '{name}' next to logits")


def test_targets_beside_scores_that_cannot_be_taken(tmp_path, command):
    logits, ids, scores = tmp_path / "logits.npy", tmp_path / "ids.npy", tmp_path / "scores.npz"
    np.save(logits, LOGITS)
    np.savez(scores, logits=LOGITS, targets=IDS)
    np.save(ids, IDS.astype(np.float32))
    refused = command("score", logits, ids)
    assert_refused(
        refused, f"{ids}: has dtype float32 and the shape of targets; it must contain integers, to be class ids"
    )
    np.save(ids, IDS)
    refused = command("score", scores, ids)
    words = f"{ids}: contains int64, like targets, but {scores} has targets; it must come with --targets to "
    assert_refused(refused, words)
    losses = {evaluate(source).loss for source in (open_scores(scores, ids), open_scores(logits, ids), [logits, ids])}
    assert losses == {cross_entropy(LOGITS, IDS)}


def test_files_without_names_have_no_targets_array(tmp_path, command):
    np.save(tmp_path / "a.npy", LOGITS)
    refused = command("score", tmp_path / "a.npy", "--targets-array", "y")
    assert_refused(refused, f"{tmp_path / 'a.npy'}: contains one array without a name; it must name 'y'")


class Output(dict):
    """The output of a model of transformers, which is a mapping with attributes."""

    logits = LOGITS


def test_what_is_something_else(tmp_path, command):
    with zipfile.ZipFile(tmp_path / "new.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}))
    for protocol in range(2, 6):
        (tmp_path / f"old-{protocol}.bin").write_bytes(pickle.dumps({"logits": LOGITS}, protocol))
    for path in tmp_path.glob("*-?.bin"), tmp_path.glob("*.pt"):
        for one in path:
            refused = command("score", one)
            assert_refused(
                refused,
                f"{one}: is a pickle, such as torch.save writes; it must be saved by numpy.save, or by numpy.savez or ",
            )
    np.savez(tmp_path / "ragged.npz", logits=np.array([LOGITS[0], LOGITS[1, :2]], dtype=object))
    refused = command("score", tmp_path / "ragged.npz")
    assert_refused(refused, "logits: cannot be read: it has Python objects; rows of different lengths must be padded")
    (tmp_path / "samples.jsonl").write_text('{"doc_id": 0, "resps": [], "filtered_resps": []}\n')
    (tmp_path / "results.json").write_text('{"results": {}, "configs": {}}\n')
    for name, words in {
        "samples.jsonl": " contains samples of lm-evaluation-harness, which tokenloss compare BASE OTHER compares; ",
        "results.json": ": line 1: it is a sample of lm-evaluation-harness; it must be a response; two models' samples",
    }.items():
        assert_refused(command("score", tmp_path / name), f"{name}{words}")
    for block, message in [
        (Output(logits=LOGITS), r"block 0 is 'Output'; it must be \(logits, .*\), as \(output.logits, ids, mask > 0\)"),
        ({"logits": LOGITS, "labels": IDS}, r"block 0 is 'dict'; it must be \(logits, targets.* of its values"),
        (LOGITS, "block 0 is 'ndarray'"),
    ]:
        with pytest.raises(TypeError, match=message):
            evaluate([block])
