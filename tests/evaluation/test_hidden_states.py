"""Files of hidden states, and the heads that make logits of them: score, evaluate and what is refused."""

import json
import math
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import safetensors.numpy
from arrays import BFLOAT16
from commands import assert_refused
from files import SAVERS, WITHOUT_TARGETS, held_at_most, save_npz, save_zarr
from places import DATA

import tokenloss
from tokenloss import NormWarning, ShiftWarning, evaluate
from tokenloss._evaluation import plan
from tokenloss._evaluation import rows as shard_rows
from tokenloss._evaluation import score as shard_run
from tokenloss.formats import llama_cpp, open_hidden_states, open_scores
from tokenloss.formats.lm_head import HEAD_FILES

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
RNG = np.random.default_rng(19)
D, V, N = 12, 37, 40


def after_norm(states):
    """Hidden states with a root mean square of 1, as a final norm makes them."""
    return (states / np.sqrt(np.mean(np.square(states), -1, keepdims=True))).astype(np.float32)


HIDDEN = after_norm(RNG.normal(size=(N, D)))
WEIGHT, BIAS = RNG.normal(size=(V, D)).astype(np.float32), RNG.normal(size=V).astype(np.float32)
TARGETS = RNG.integers(V, size=N)
TARGETS[::7] = -100


def product(hidden=HIDDEN, weight=WEIGHT, bias=None):
    """The logits, in long double."""
    logits = reference.wide(hidden) @ reference.wide(weight).T
    return logits if bias is None else logits + reference.wide(bias)


def loss_of(logits, targets=TARGETS, **options):
    return reference.cross_entropy(np.asarray(logits, np.float64), targets, **options)


@pytest.fixture
def path(tmp_path):
    """Hidden states and targets, and a head, as .npy files."""
    for name, array in (("hidden", HIDDEN), ("targets", TARGETS), ("head", WEIGHT)):
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path


@pytest.fixture
def arguments(path):
    return path / "hidden.npy", "--targets", path / "targets.npy", "--lm-head", path / "head.npy"


# -- where the head is ------------------------------------------------------------------------------------------------


def save_model(path, **tensors):
    """A model's file: tensors by name, dots written as double underscores."""
    named = {name.replace("__", "."): array for name, array in tensors.items()}
    safetensors.numpy.save_file(named, path)
    return path


def save_shards(path, names):
    """A model in two shards and its index: in the first one the embedding, in the second one the head."""
    parts = {"model-00001-of-00002.safetensors": {"model.embed_tokens.weight": WEIGHT[::-1].copy()},
             "model-00002-of-00002.safetensors": dict.fromkeys(names, WEIGHT)}  # fmt: skip
    for name, tensors in parts.items():
        safetensors.numpy.save_file(tensors, path / name)
    index = {"weight_map": {tensor: name for name, tensors in parts.items() for tensor in tensors}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def heads(path):
    """Each way to name a head, and its bias."""
    np.save(path / "head.npy", WEIGHT)
    yield path / "head.npy", None
    np.save(path / "turned.npy", WEIGHT.T)
    yield path / "turned.npy", None
    np.save(path / "columns.npy", np.asfortranarray(WEIGHT))
    yield path / "columns.npy", None
    np.save(path / "double.npy", WEIGHT.astype(">f8"))
    yield path / "double.npy", None
    np.savez(path / "head.npz", hidden_states=HIDDEN, **{"lm_head.weight": WEIGHT, "lm_head.bias": BIAS})
    yield path / "head.npz", BIAS
    yield f"{path / 'head.npz'}:lm_head.weight", BIAS
    np.savez(path / "one.npz", anything=WEIGHT)
    yield path / "one.npz", None
    yield f"{path / 'one.npz'}:anything", None
    np.savez(path / "odd.npz", **{"my:head": WEIGHT, "head": -WEIGHT})
    yield f"{path / 'odd.npz'}:my:head", None
    tensors = {"model__embed_tokens__weight": WEIGHT[::-1].copy(), "model__norm__weight": np.ones(D, np.float32)}
    yield save_model(path / "gpt.safetensors", lm_head__weight=WEIGHT, lm_head__bias=BIAS, **tensors), BIAS
    yield save_model(path / "plain.safetensors", output__weight=WEIGHT, **tensors), None
    tied = {"model__embed_tokens__weight": WEIGHT, "model__norm__weight": np.ones(D, np.float32)}
    yield f"{save_model(path / 'tied.safetensors', **tied)}:model.embed_tokens.weight", None
    yield f"{save_model(path / 'odd:name.safetensors', my__head=WEIGHT, **tensors)}:my.head", None
    (path / "model").mkdir()
    save_shards(path / "model", ["lm_head.weight"])
    yield path / "model", None
    yield path / "model" / "model.safetensors.index.json", None
    yield path / "model" / "model-00002-of-00002.safetensors", None
    (path / "single").mkdir()
    save_model(path / "single" / "model.safetensors", **tied)
    (path / "single" / "config.json").write_text('{"tie_word_embeddings": true}')
    yield path / "single", None
    yield path / "single" / "model.safetensors", None
    yield f"{path / 'single'}:model.embed_tokens.weight", None


def test_lm_head_is_found(path, score_json):
    np.savez(path / "hidden.npz", hidden_states=HIDDEN, targets=TARGETS)
    for head, bias in heads(path):
        result = score_json(path / "hidden.npz", "--lm-head", head)
        assert result["loss"] == pytest.approx(loss_of(product(bias=bias)), abs=1e-6), head
        assert (result["kind"], result["shape"], result["lm_head"]) == ("hidden_states", [N, V], str(head))
        assert result["count"] == np.count_nonzero(TARGETS >= 0)


def test_lm_head_in_bfloat16(path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    hidden, weight = HIDDEN.astype(ml_dtypes.bfloat16), WEIGHT.astype(ml_dtypes.bfloat16)
    save_model(path / "model.safetensors", lm_head__weight=weight)
    save_model(path / "hidden.safetensors", hidden_states=hidden, targets=TARGETS)
    result = evaluate(open_hidden_states(path / "hidden.safetensors", path / "model.safetensors"))
    assert result.meter.loss == pytest.approx(loss_of(product(hidden.astype(float), weight.astype(float))), abs=1e-6)
    assert result.figures["dtype"] == "bfloat16"


def refused_head(path, head):
    with pytest.raises((ValueError, OSError)) as raised:
        open_hidden_states(path / "hidden.npy", head)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_lm_head_that_is_refused(path):
    np.save(path / "square.npy", np.ones((D, D), np.float32))
    assert f"square.npy: the head has shape ({D}, {D}); it must have shape (V, {D}) or ({D}, V)" in refused_head(
        path, path / "square.npy"
    )
    np.save(path / "other.npy", np.ones((V, D + 1), np.float32))
    assert f"has shape ({V}, {D + 1})" in refused_head(path, path / "other.npy")
    np.save(path / "flat.npy", np.ones(D, np.float32))
    assert f"has shape ({D},)" in refused_head(path, path / "flat.npy")
    np.save(path / "integers.npy", np.ones((V, D), np.int8))
    assert "dtype int8" in refused_head(path, path / "integers.npy")
    assert "contains one array without a name" in refused_head(path, f"{path / 'head.npy'}:lm_head")
    assert "No such file" in refused_head(path, path / "none.npy")
    assert "No such file" in refused_head(path, f"{path / 'none.npy'}:lm_head.weight")
    (path / "notes.txt").write_text("notes")
    assert f"notes.txt: is not a file of a head; it must be {HEAD_FILES}" in refused_head(path, path / "notes.txt")
    np.savez(path / "two.npz", first=WEIGHT, second=WEIGHT)
    assert (
        "two.npz: has no head with a usual name; it must have lm_head.weight, or be given as FILE:NAME"
        in refused_head(path, path / "two.npz")
    )
    assert "two.npz: has no third" in refused_head(path, f"{path / 'two.npz'}:third")
    np.savez_compressed(path / "small.npz", head=WEIGHT)
    assert "small.npz: head: is compressed" in refused_head(path, path / "small.npz")
    model = {"model__embed_tokens__weight": WEIGHT, "lm_head__qweight": np.ones((V, 3), np.int32)}
    assert "has no head" in refused_head(path, save_model(path / "quantized.safetensors", **model))
    biased = save_model(path / "biased.safetensors", lm_head__weight=WEIGHT, lm_head__bias=BIAS[1:])
    assert f"lm_head.bias is float32 of shape ({V - 1},)" in refused_head(path, biased)


def test_lm_head_in_shards_that_is_refused(path):
    """The embedding in one shard is no head, since another may hold that."""
    (path / "model").mkdir()
    save_shards(path / "model", ["lm_head.weight"])
    index = path / "model" / "model.safetensors.index.json"
    message = refused_head(path, path / "model" / "model-00001-of-00002.safetensors")
    assert "is one of several shards, without a head; it must be the model's index" in message
    (path / "model" / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refused_head(path, path / "model")
    for text, words in [
        ("{", "cannot be read"),
        ("[]", "it is not an object"),
        ('{"weight_map": 3}', "no object weight_map"),
        ('{"weight_map": {"lm_head.weight": "../head.safetensors"}}', "names '../head.safetensors' for lm_head.weight"),
        ('{"weight_map": {"lm_head.weight": "index.json"}}', "names 'index.json'"),
        ('{"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}', "has no lm_head.weight; it must"),
        ('{"weight_map": {"model.norm.weight": "a.safetensors", "b": "b.safetensors"}}', "has no head"),
    ]:
        index.write_text(text)
        assert words in refused_head(path, path / "model")
    index.write_text('{"weight_map": {}}')
    (path / "model" / "other.safetensors.index.json").write_text("{}")
    assert "model: has 2 indices of shards" in refused_head(path, path / "model")
    (path / "empty").mkdir()
    assert "empty: has 0 indices" in refused_head(path, path / "empty")


@pytest.mark.parametrize("damage", ["cut", "header", "rewritten"])
def test_lm_head_that_is_damaged(damage, path):
    model = save_model(path / "model.safetensors", lm_head__weight=WEIGHT)
    data = model.read_bytes()
    if damage == "rewritten":
        file = open_hidden_states(path / "hidden.npy", model).file
        os.utime(model, ns=(1, 1))
        with pytest.raises(ValueError, match=re.escape(f"{model}: changed after it was opened")):
            shard_rows.row_functions(file)[1](HIDDEN, TARGETS)
        return
    model.write_bytes(data[:-1] if damage == "cut" else b"\xff" * 8 + data[8:])
    assert f"{model}: byte " in refused_head(path, model)


def test_weight_is_never_loaded_whole(tmp_path):
    weight = np.zeros((60_000, 128), np.float32)  # 30 MB
    np.save(tmp_path / "head.npy", weight)
    np.savez(tmp_path / "hidden.npz", hidden=after_norm(RNG.normal(size=(30, 128))), targets=np.zeros(30, int))
    with held_at_most(24 << 20):
        result = evaluate(open_hidden_states(tmp_path / "hidden.npz", tmp_path / "head.npy"), workers=1)
    assert result.meter.loss == pytest.approx(math.log(60_000), abs=1e-6)


# -- hidden states ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", SAVERS)
def test_hidden_of_every_format(save, path, score_json):
    shape = 4, N // 4
    hidden = HIDDEN.reshape(*shape, D)
    file = save(path / "states", hidden, TARGETS.reshape(shape))  # named logits
    options = [] if save in WITHOUT_TARGETS else ["--hidden", "logits"]
    targets = ["--targets", path / "targets.npy"] if save in WITHOUT_TARGETS else []
    np.save(path / "targets.npy", TARGETS.reshape(shape))
    result = score_json(file, *targets, "--lm-head", path / "head.npy", *options)
    assert result["loss"] == pytest.approx(loss_of(product()), abs=1e-6)
    assert (result["shape"], result["n_sequences"]) == ([*shape, V], 4)


@pytest.mark.parametrize("name", ["hidden_states", "hidden"])
@pytest.mark.parametrize("save", [save_npz, save_zarr, save_model])
def test_hidden_is_found_by_its_name(save, name, path, command):
    file = path / {"save_npz": "s.npz", "save_zarr": "s.zarr", "save_model": "s.safetensors"}[save.__name__]
    if save is save_npz:
        np.savez(file, **{name: HIDDEN}, targets=TARGETS)
    else:
        save(file, **{name: HIDDEN}, targets=TARGETS)
    result = evaluate(open_hidden_states(file, path / "head.npy"))
    assert result.meter.loss == pytest.approx(loss_of(product()), abs=1e-6)
    assert_refused(command("score", file), f"{file}: contains {name} and no scores", "--lm-head FILE")


def test_hidden_that_is_refused(path, command):
    np.savez(path / "both.npz", hidden=HIDDEN, hidden_states=HIDDEN, targets=TARGETS)
    head = "--lm-head", path / "head.npy"
    assert_refused(
        command("score", path / "both.npz", *head), "both.npz: contains ", "exactly one of hidden_states, hidden"
    )
    assert_refused(command("score", path / "both.npz", *head, "--hidden", "logits"), "contain 'logits'")
    np.savez(path / "logits.npz", logits=HIDDEN, targets=TARGETS)
    assert_refused(command("score", path / "logits.npz", *head), "logits.npz: contains logits, targets")
    np.savez(path / "integers.npz", hidden=np.ones((N, D), int), targets=TARGETS)
    assert_refused(command("score", path / "integers.npz", *head), "dtype int64")
    np.savez(path / "beyond.npz", hidden=HIDDEN, targets=np.where(TARGETS[1] == TARGETS, V, TARGETS))
    assert_refused(command("score", path / "beyond.npz", *head), f"= {V} is out of range [0, {V})")
    np.savez(path / "text.npz", hidden=HIDDEN, targets=TARGETS[1:])
    assert_refused(command("score", path / "text.npz", *head), "targets has shape (39,)", "to fit hidden_states")
    np.savez(path / "hidden.npz", hidden=HIDDEN, targets=TARGETS)
    for option in ("--kind", "logits"), ("--array", "hidden"):
        refused = command("score", path / "hidden.npz", *head, *option)
        assert_refused(refused, f"{option[0]} is for scores; ", "hidden.npz has hidden states")
    for option in ("--hidden", "x"), ("--logit-scale", "2"), ("--softcap", "3"):
        refused = command("score", path / "logits.npz", *option)
        assert_refused(refused, f"{option[0]} is for hidden states; ", "logits.npz has scores")
    for option, words in [
        (("--logit-scale", "0"), "--logit-scale is 0.0"), (("--softcap", "-1"), "--softcap is -1.0"),
        (("--softcap", "x"), "argument --softcap: "),
    ]:  # fmt: skip
        assert_refused(command("score", path / "both.npz", *head, *option), words)


def test_token_ids_and_input_ids_are_not_chosen_from(path, command):
    np.savez(path / "two.npz", hidden_states=HIDDEN, token_ids=TARGETS, input_ids=TARGETS)
    refused = command("score", path / "two.npz", "--lm-head", path / "head.npy", "--shift")
    assert_refused(refused, "two.npz: contains token_ids and input_ids; it must contain only one of them")


def test_head_of_what_is_no_hidden_states_is_refused(path, command):
    responses = DATA / "vllm.json"
    refused = command("score", responses, "--lm-head", path / "head.npy")
    assert_refused(refused, f"--lm-head is for hidden states; {responses} has responses")
    with pytest.raises(TypeError, match="lm_head is 'int'; it must be a path"):
        open_hidden_states(path / "hidden.npy", 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4", BFLOAT16])
def test_hidden_of_any_dtype(dtype, path):
    hidden = HIDDEN.astype(dtype)
    np.save(path / "hidden.npy", hidden)
    result = evaluate(open_hidden_states(path / "hidden.npy", path / "head.npy", path / "targets.npy"))
    assert result.meter.loss == pytest.approx(loss_of(product(hidden.astype(np.float64))), abs=1e-6)


@pytest.mark.parametrize("options", [{"logit_scale": 1.7}, {"softcap": 3.0}, {"logit_scale": 0.6, "softcap": 2.5}])
def test_logit_scale_and_softcap(options, path, arguments, score_json):
    expected = loss_of(product(), **options)
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert score_json(*arguments, *words)["loss"] == pytest.approx(expected, abs=1e-6)
    result = evaluate(open_hidden_states(path / "hidden.npy", path / "head.npy", path / "targets.npy", **options))
    assert result.meter.loss == pytest.approx(expected, abs=1e-6)


def test_blocks_of_hidden_states(path, arguments, score_json, monkeypatch):
    """A block has as many rows as a product takes at a time, however small the blocks of scores are."""
    whole = score_json(*arguments)
    assert plan.rows_per_block(4 * 32, are_hidden=True) == plan.rows_per_block(2 * 4096, are_hidden=True) == 4096
    assert plan.rows_per_block(4 * 16384, are_hidden=True) == 1024
    monkeypatch.setattr(plan, "MAX_TILE_ROWS", 7)
    monkeypatch.setattr(plan, "_BLOCK_BYTES", 1)
    blocks = []
    monkeypatch.setattr(shard_rows, "check_map", lambda array: blocks.append(array.shape))
    parts = score_json(*arguments)
    assert blocks.count(TARGETS.shape) == math.ceil(N / 7)
    assert parts["loss"] == pytest.approx(whole["loss"], abs=1e-7)
    for name in ("count", "n_ignored", "accuracy", "kind", "norm_seems_missing"):
        assert parts[name] == whole[name]


def test_distributions(path, command):
    shares = np.asarray(reference.softmax(RNG.normal(size=(N, V))), np.float64)
    np.savez(path / "soft.npz", hidden=HIDDEN, targets=shares)
    result = evaluate(open_hidden_states(path / "soft.npz", path / "head.npy"))
    losses = -(reference.wide(shares) * reference.log_softmax(np.asarray(product(), np.float64))).sum(-1)
    assert result.meter.loss == pytest.approx(float(losses.mean()), abs=1e-6)
    assert result.figures["targets"] == "distributions"
    np.savez(path / "soft.npz", hidden=HIDDEN, targets=shares[:, 1:])
    assert_refused(command("score", path / "soft.npz", "--lm-head", path / "head.npy"), f"has shape ({N}, {V - 1})")


def test_outputs_of_every_token(path, arguments, command):
    files = [path / name for name in ("tokens.npy", "page.html")]
    assert command("score", *arguments, "--per-token", files[0], "--html", files[1])[0] == 0
    table = np.load(files[0])
    scores = tokenloss.token_scores(np.asarray(product(), np.float64), TARGETS)
    np.testing.assert_allclose(table["nll"], scores.nll, atol=1e-6)
    np.testing.assert_allclose(table["entropy"], scores.entropy, atol=2e-6)
    np.testing.assert_array_equal(table["rank"], scores.rank)
    assert files[1].read_text("utf-8").startswith("<!doctype html>")


def test_head_is_not_replaced_by_an_output(path, arguments, command):
    before = (path / "head.npy").read_bytes()
    assert_refused(command("score", *arguments, "--per-token", path / "head.npy"), "would replace", "head.npy")
    assert_refused(command("score", *arguments, "--state", path / "head.npy"), "would replace")
    assert (path / "head.npy").read_bytes() == before


# -- checkpoints and clusters -----------------------------------------------------------------------------------------


@pytest.fixture
def parts(path):
    """Three shards."""
    for name, rows in zip("abc", np.split(np.arange(N), [13, 30]), strict=True):
        np.savez(path / f"part-{name}.npz", hidden=HIDDEN[rows], targets=TARGETS[rows])
    return SimpleNamespace(pattern=path / "part-*.npz", head=path / "head.npy", state=path / "state")


def test_state(parts, command, score_json, monkeypatch):
    argv = parts.pattern, "--lm-head", parts.head
    whole, first = score_json(*argv), score_json(*argv, "--state", parts.state)
    monkeypatch.setattr(shard_run, "score_shard", None)  # nothing is left to score
    second = score_json(*argv, "--state", parts.state)
    for name in ("loss", "stderr", "highest_loss_tokens", "norm_seems_missing", "shards"):
        assert first[name] == second[name] == whole[name]
    assert whole["loss"] == pytest.approx(loss_of(product()), abs=1e-6)
    kept = parts.state.read_bytes()
    other_head = parts.head.with_name("other.npy")
    np.save(other_head, WEIGHT)
    for option, *words in [
        (["--softcap", "3"], f"{parts.state}: was written with softcap None; it must be another file, with 3.0"),
        (["--lm-head", other_head], f"{parts.state}: contains the result of", "part-a.npz", "its head changed"),
    ]:
        assert_refused(command("score", *argv, *option, "--state", parts.state), *words)
    changed = parts.head.stat().st_mtime_ns
    os.utime(parts.head, ns=(1, 1))
    refused = command("score", *argv, "--state", parts.state)
    assert_refused(refused, f"{parts.state}: contains the result of", "part-a.npz", "its head changed")
    assert parts.state.read_bytes() == kept
    os.utime(parts.head, ns=(changed, changed))
    weight = np.load(parts.head)
    np.save(parts.head, -weight)  # of the same size and time
    os.utime(parts.head, ns=(changed, changed))
    assert_refused(command("score", *argv, "--state", parts.state), "part-a.npz", "its head changed")


def test_scheduler(parts, score_json, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(parts.head.parent)
    np.savez("head.npz", **{"lm_head.weight": np.load(parts.head)})
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as cluster:
        for head in "head.npy", "head.npz:lm_head.weight":
            argv = "part-*.npz", "--lm-head", head
            here, there = score_json(*argv), score_json(*argv, "--scheduler", cluster.scheduler_address)
            for name in ("loss", "stderr", "count", "norm_seems_missing"):
                assert there[name] == here[name]
            assert there["lm_head"] == here["lm_head"] == head


def test_widths_of_shards_that_differ(parts, command):
    np.savez(parts.head.parent / "part-b.npz", hidden=HIDDEN[:, 1:], targets=TARGETS)
    refused = command("score", parts.pattern, "--lm-head", parts.head)
    assert_refused(refused, f"part-b.npz: has hidden states of {D - 1} features; it must fit the head of {D}")


# -- input ids, as vLLM writes them ------------------------------------------------------------------------------------


def requests(path, layers=1):
    """Files of two requests: hidden states (T, layers, D) and token_ids (T,)."""
    ids = [np.array([3, 5, 7, 11, 13]), np.array([2, 4, 8])]
    for number, row in enumerate(ids):
        states = HIDDEN[number : number + len(row), None].repeat(layers, 1) if layers else HIDDEN[number:][: len(row)]
        save_model(path / f"request-{number}.safetensors", hidden_states=states, token_ids=row)
    return ids


@pytest.mark.parametrize("layers", [0, 1])
def test_token_ids_of_requests_are_shifted(layers, path, command, score_json):
    """The last row of a request predicts nothing, least of all the first id of the next file."""
    ids = requests(path, layers)
    pattern, head = path / "request-*.safetensors", ("--lm-head", path / "head.npy")
    result = score_json(pattern, *head, "--shift")
    rows = [number + np.arange(len(row) - 1) for number, row in enumerate(ids)]
    losses = [loss_of(product(HIDDEN[some]), row[1:], reduction="sum") for some, row in zip(rows, ids, strict=True)]
    assert (result["count"], result["n_sequences"], result["n_without_next"]) == (6, 2, 2)
    assert result["loss"] == pytest.approx(sum(losses) / 6, abs=1e-6)
    refused = command("score", pattern, *head)
    assert_refused(
        refused, "request-0.safetensors: contains input ids and no targets; it must contain targets", "--shift"
    )


def test_targets_come_before_token_ids(path, score_json):
    """Then the rows are no request, whose ids would make them one sequence."""
    file = save_model(path / "s.safetensors", hidden_states=HIDDEN, targets=TARGETS, token_ids=np.zeros(N, int))
    result = score_json(file, "--lm-head", path / "head.npy")
    assert (result["shape"], result["n_sequences"]) == ([N, V], 0)
    assert result["loss"] == pytest.approx(loss_of(product()), abs=1e-6)


def test_several_layers_are_refused(path, command):
    requests(path, layers=3)
    refused = command("score", path / "request-0.safetensors", "--lm-head", path / "head.npy", "--shift")
    assert_refused(refused, f"hidden_states has shape (5, 3, {D}), 3 layers of each token", "only the last layer")


@pytest.mark.parametrize("save", [np.savez, save_zarr, save_model])
def test_input_ids_in_place_of_targets(save, path, score_json):
    ids = RNG.integers(V, size=(4, 10))
    file = path / {"savez": "s.npz", "save_zarr": "s.zarr", "save_model": "s.safetensors"}[save.__name__]
    save(file, hidden=HIDDEN.reshape(4, 10, D), input_ids=ids)
    result = score_json(file, "--lm-head", path / "head.npy", "--shift")
    rows = np.asarray(product(), np.float64).reshape(4, 10, V)[:, :-1]
    assert result["loss"] == pytest.approx(loss_of(rows, ids[:, 1:]), abs=1e-6)
    np.save(path / "own.npy", TARGETS.reshape(4, 10))  # targets that are given come before them
    result = score_json(file, "--lm-head", path / "head.npy", "--targets", path / "own.npy")
    assert result["loss"] == pytest.approx(loss_of(product()), abs=1e-6)


def test_shift_is_advised(path, command):
    """The states predict the next row's id: the ids should have been shifted."""
    ids = RNG.integers(V, size=300)
    unit = WEIGHT / np.linalg.norm(WEIGHT, axis=1, keepdims=True)
    hidden = 9 * unit[np.roll(ids, -1)]
    np.savez(path / "causal.npz", hidden=hidden, targets=ids)
    with pytest.warns(ShiftWarning):
        evaluate(open_hidden_states(path / "causal.npz", path / "head.npy"))
    status, _, err = command("score", path / "causal.npz", "--lm-head", path / "head.npy")
    assert status == 0
    assert "warning: the targets fit far better one row earlier" in err


# -- the final norm ---------------------------------------------------------------------------------------------------


def residual_stream(rows, depth, layers, seed):
    """States of a random transformer before its final norm: each layer adds to them, by what they hold."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(rows, depth), scale=0.1)
    for _ in range(layers):
        inner = np.maximum(after_norm(states) @ rng.normal(size=(depth, 4 * depth)) / math.sqrt(depth), 0)
        gate = np.exp(after_norm(states) @ rng.normal(size=(depth, 1)) / math.sqrt(depth))
        states += gate * (inner @ rng.normal(size=(4 * depth, depth)) / math.sqrt(4 * depth))
    return states


@pytest.mark.parametrize("seed", range(5))
def test_norm_seems_missing(seed, path, command):
    states = residual_stream(200, D, 6, seed)
    targets = RNG.integers(V, size=200)
    argv = path / "states.npz", "--lm-head", path / "head.npy"
    np.savez(argv[0], hidden=states, targets=targets)
    status, _, err = command("score", *argv)
    assert status == 0
    assert err == (
        "tokenloss: warning: the hidden states seem to lack the model's final norm, judging by their size; store "
        "them after it\n"
    )
    with pytest.warns(NormWarning, match="final norm") as caught:
        result = evaluate(open_hidden_states(argv[0], argv[2]), shift=False)
    assert caught[0].filename == __file__
    assert result.figures["norm_seems_missing"] is True
    gain = np.random.default_rng(seed).lognormal(sigma=0.05, size=D)
    np.savez(argv[0], hidden=after_norm(states) * gain, targets=targets)
    assert evaluate(open_hidden_states(argv[0], argv[2])).figures["norm_seems_missing"] is False


def test_norm_is_judged_by_rows_that_count():
    rms = np.exp(np.linspace(-1, 1, 40))
    states = HIDDEN * rms[:, None]
    sample = shard_rows.root_mean_squares(states, np.arange(40) % 2 == 0, 64)
    np.testing.assert_allclose(sample, rms[::2], rtol=1e-6)
    assert shard_rows.norm_seems_missing(sample)
    assert not shard_rows.norm_seems_missing(sample[:15])  # too few
    assert not shard_rows.norm_seems_missing([1.0] * 50 + [math.inf, math.nan, 0.0] * 20)
    assert not shard_rows.norm_seems_missing([1.0] * 60 + [1000.0] * 4)  # of the first tokens
    assert shard_rows.root_mean_squares(states, np.ones(40, bool), 3) == pytest.approx(rms[:3])
    assert shard_rows.root_mean_squares(states, np.ones(40, bool), -1) == ()


def test_targets_as_the_second_file(path, score_json):
    result = score_json(path / "hidden.npy", path / "targets.npy", "--lm-head", path / "head.npy")
    assert result["loss"] == pytest.approx(loss_of(product()), abs=1e-6)


def test_file_of_llama_cpp_holds_no_hidden_states(path):
    llama_cpp.write(path / "base.kld", np.arange(8), [np.zeros((3, 9))], 8)
    with pytest.raises(ValueError, match=r"contains log_probs of llama\.cpp; it must contain hidden_states"):
        open_hidden_states(path / "base.kld", path / "head.npy")


def test_scores_are_read_as_before(path):
    np.savez(path / "both.npz", logits=np.zeros((N, V)), hidden=HIDDEN, targets=TARGETS)
    assert open_scores(path / "both.npz").kind == "logits"
    assert open_hidden_states(path / "both.npz", str(path / "head.npy")).shape == (N, V)
