"""`tokenloss sketch`: the file that `write_sketch` writes, from any files of scores; and `compare` with it."""

import json
import re
from importlib.util import find_spec

import numpy as np
import pytest
from commands import assert_refused
from places import DATA

from tokenloss import token_scores
from tokenloss.formats import open_scores, open_sketch, write_sketch

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
N, T, V = 6, 5, 400


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The rows of texts with their ids: in a file, in shards, and as a text that goes on in the next shard."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    logits, ids = rng.normal(0, 2, (N, T, V)).astype(np.float32), rng.integers(0, V, (N, T))
    np.savez("all.npz", logits=logits, input_ids=ids)
    np.savez("other.npz", logits=logits * np.float32(0.9), input_ids=ids)
    for folder, shape in (("texts", (N // 3, T)), ("text", (N // 3 * T,))):
        (tmp_path / folder).mkdir()
        for i in range(3):
            part = slice(2 * i, 2 * i + 2)
            np.savez(f"{folder}/{i}.npz", logits=logits[part].reshape(*shape, V), input_ids=ids[part].reshape(shape))
    for i in range(3):
        np.save(f"numbers-{i}.npy", np.zeros(2 * T, int))
    np.save("numbers.npy", np.zeros(N * T, int))
    np.savez("no-ids.npz", logits=logits)
    np.savez("soft.npz", probs=np.full((2, 4), 0.25), targets=np.full((2, 4), 0.25))
    targets = np.where(np.arange(T) == T - 1, -100, np.roll(ids, -1, 1))
    write_sketch("wanted.sketch", [(logits, targets)], seed=3)
    return tmp_path


def test_files_of_any_sharding_become_what_write_sketch_writes(files, command):
    wanted = (files / "wanted.sketch").read_bytes()
    for given in (["all.npz"], ["texts"], ["texts/0.npz", "texts/1.npz", "texts/2.npz"], ["texts/*.npz"]):
        status, out, err = command("sketch", *given, "a.sketch", "--shift", "--seed", 3, "--workers", 1)
        assert (status, err) == (0, "")
        assert "24 tokens scored" in out
        assert (files / "a.sketch").read_bytes() == wanted
    for i in range(3):
        command("sketch", f"texts/{i}.npz", "b.sketch", "--shift", "--seed", 3, *(["--append"] if i else []))
    assert (files / "b.sketch").read_bytes() == wanted


def test_a_text_goes_on_in_the_next_shard(files, command):
    assert command("sketch", "text", "--segment-ids", "numbers.npy", "a.sketch", "--shift", "--json")[0] == 0
    result = json.loads(command("sketch", "text", "--segment-ids", "numbers.npy", "a.sketch", "--shift", "--json")[1])
    assert (result["rows"], result["n_scored"], result["classes"]) == (N * T, N * T - 1, V)
    assert result["n_bytes"] == (files / "a.sketch").stat().st_size


def test_compare_takes_it_as_its_base(files, command):
    status, out, _ = command("compare", "wanted.sketch", "Q=other.npz", "--shift", "--divergences", "tv,js", "--json")
    exact = json.loads(command("compare", "all.npz", "Q=other.npz", "--shift", "--divergences", "tv,js", "--json")[1])
    (one,), (other,) = json.loads(out)["candidates"], exact["candidates"]
    assert status == 0
    for name in ("perplexity", "perplexity_ratio", "perplexity_ratio_stderr", "same_top", "rms_delta_p"):
        assert one[name] == other[name], name
    for name in ("kl", "tv", "js"):
        assert abs(one[f"mean_{name}"] - other[f"mean_{name}"]) < 4.5 * one["sketch"]["draws_stderr"][name] + 1e-8
    assert "1" not in one["kl_quantiles"]
    text = command("compare", "wanted.sketch", "Q=other.npz", "--max-kl", 9, "--html", "page.html")
    assert text[0] == 0
    assert "estimated from 32 classes and 48 draws" in text[1]
    assert (files / "page.html").stat().st_size > 10_000


def test_hidden_states_and_files_of_llama_cpp_become_sketches(files, command):
    rng = np.random.default_rng(4)
    hidden, head = rng.normal(size=(N * T, 8)).astype(np.float32), rng.normal(size=(V, 8)).astype(np.float32)
    ids = np.arange(N * T)
    for name, array in (("hidden", hidden), ("head", head), ("ids", ids)):
        np.save(f"{name}.npy", array)
    argv = ["hidden.npy", "a.sketch", "--targets", "ids.npy", "--lm-head", "head.npy", "--seed", 5]
    assert command("sketch", *argv, "--logit-scale", 0.5)[0] == 0
    write_sketch("b.sketch", [(0.5 * (hidden @ head.T), ids)], seed=5)
    (own,), (wanted,) = (open_sketch(name).blocks(N * T) for name in ("a.sketch", "b.sketch"))
    np.testing.assert_array_equal(own["ids"], wanted["ids"])
    np.testing.assert_allclose(own["target_logprobs"], wanted["target_logprobs"], 1e-5)
    kld = open_scores(DATA / "llama-cpp.kld")
    assert command("sketch", DATA / "llama-cpp.kld", "c.sketch")[0] == 0
    (rows,) = open_sketch("c.sketch").blocks(kld.file.rows)
    kept = rows["supports"] >= 0
    wanted = token_scores(next(iter(kld.blocks(kld.file.rows))), kld.targets.reshape(-1), kind="log_probs", top_k=32)
    np.testing.assert_array_equal(rows["ids"][kept, :32], wanted.top_ids[kept])
    np.testing.assert_allclose(-rows["target_logprobs"][kept], wanted.nll[kept], 1e-4)


WORDS = {  # of a page, and of a card, by the number of draws; and the statuses of gates that hold, and that fail
    0: ("Lower bound on the KL divergence", "Lower bound on the mean KL divergence", (4, 3)),
    8: ("Estimated KL divergence", "Mean KL divergence from the base", (0, 3)),
    48: ("Estimated KL divergence", "Mean KL divergence from the base", (0, 3)),
}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("tail", WORDS)
def test_outputs_say_what_a_sketch_tells(tail, several, files, command):
    assert command("sketch", "all.npz", "base.sketch", "--shift", "--tail", tail)[0] == 0
    others = ["Q=other.npz", *(["R=all.npz"] if several else [])]
    of_page, of_card, statuses = WORDS[tail]
    outputs = ["--html", "page.html", *(["--plot", "plot.svg"] if find_spec("matplotlib") else [])]
    status, out, _ = command("compare", "base.sketch", *others, "--shift", *outputs)
    text = re.sub(r"<[^>]+>", " ", (files / "page.html").read_text("utf-8"))
    assert status == 0
    assert of_page in text
    assert ("99.9 % quantile" in text) == (tail != 8)
    assert "Maximum KLD" not in out or not tail
    if find_spec("matplotlib"):
        plot = (files / "plot.svg").read_text("utf-8")
        assert of_page.lower() in plot.lower()
        assert ("nothing to draw" in plot) == (tail == 8)
    assert of_card in command("compare", "base.sketch", *others, "--shift", "--format", "card")[1]
    for limit, wanted in zip((9, 1e-9), statuses, strict=True):
        assert command("compare", "base.sketch", "Q=other.npz", "--shift", "--max-kl", limit)[0] == wanted


WRONG = {
    "no output": (["all.npz"], "FILE all.npz: is the only file"),
    "another name": (["all.npz", "a.npz"], "a name that ends in .sketch"),
    "no ids": (["no-ids.npz", "a.sketch"], "has no targets"),
    "no shift": (["all.npz", "a.sketch"], "contains input ids and no targets"),
    "distributions": (["soft.npz", "a.sketch"], "contain class ids, which a sketch keeps"),
    "a sketch": (["wanted.sketch", "a.sketch"], "is a sketch"),
    "another seed": (["all.npz", "wanted.sketch", "--shift", "--append"], "has seed 3"),
    "no number": (["all.npz", "a.sketch", "--top", "0"], "argument --top"),
    "no folder": (["all.npz", "none/a.sketch", "--shift"], "none/a.sketch: cannot be written: No such file"),
    "nothing to go on from": (["all.npz", "a.sketch", "--shift", "--append"], "a.sketch: cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_writes_nothing(name, files, command):
    argv, message = WRONG[name]
    before = {path: path.read_bytes() for path in files.iterdir() if path.is_file()}
    assert_refused(command("sketch", *argv), message)
    assert {path: path.read_bytes() for path in files.iterdir() if path.is_file()} == before
