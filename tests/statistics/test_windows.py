"""windows: which tokens are scored after which others, beside llama.cpp, transformers and lm-evaluation-harness."""

import itertools

import numpy as np
import pytest
from arrays import fails
from places import DATA

from tokenloss import LossMeter, cross_entropy, log_softmax, token_scores, windows


def transformers_loop(n, size, stride):
    """As on transformers' page: labels of earlier tokens are ignored, and the model shifts the others by one."""
    done = 0
    for begin in range(0, n, stride):
        end = min(begin + size, n)
        labels = np.arange(begin, end)
        labels[: len(labels) - (end - done)] = -100
        yield from ((begin, token) for token in labels[1:].tolist() if token != -100)
        done = end
        if end == n:
            break


def llama_cpp_loop(n, size, stride):
    """As `llama-perplexity`: logits from position n_ctx / 2 on, of chunks that are full."""
    for start in range(0, n - size + 1, stride):
        yield from ((start, start + j + 1) for j in range(size // 2, size - 1))


def lm_eval_loop(n, size, stride):
    """As `get_rolling_token_windows` with a context of one token: the last window has `size` tokens, too."""
    predicted = 1  # token 0 is the prefix
    while predicted < n:
        end = min(predicted + stride, n)
        yield from ((max(0, end - 1 - size), token) for token in range(predicted, end))
        predicted = end


LOOPS = {"new": transformers_loop, "second_half": llama_cpp_loop, "all": lm_eval_loop}
STRIDES = {
    "new": lambda size: range(1, size + 1),
    "second_half": lambda size: range(size - 1 - size // 2, size + 1),
    "all": lambda size: [size],
}


@pytest.mark.parametrize("score", LOOPS)
@pytest.mark.parametrize("size", [2, 3, 4, 7, 8])
def test_score_of_windows_is_what_the_tools_score(score, size):
    if score == "second_half" and size == 2:
        return  # scores nothing
    for stride, n in itertools.product(STRIDES[score](size), range(size if score == "second_half" else 0, 30)):
        result = []
        for inputs, targets, where in windows(n, size, stride, score=score):
            assert 0 <= inputs.start < inputs.stop < n
            assert inputs.stop - inputs.start <= size
            assert (targets.start, targets.stop) == (inputs.start + 1, inputs.stop + 1)
            assert (where.dtype, where.shape) == (bool, (targets.stop - targets.start,))
            assert where.any()
            result += [(inputs.start, token) for token in np.arange(n)[targets][where].tolist()]
        assert result == [*LOOPS[score](n, size, stride)], (stride, n)
        tokens = [token for _, token in result]
        left_out = set(range(size, n, size)) if score == "new" and stride == size else set()
        if score != "second_half":
            assert tokens == [token for token in range(1, n) if token not in left_out]  # each exactly once
        assert len(set(tokens)) == len(tokens)


def test_score_of_second_halves_prints_what_llama_cpp_prints():
    """Perplexities after each of 10 chunks of 64 tokens; what `windows` leaves out would be nan, or no class."""
    with np.load(DATA / "llama-cpp.npz") as file:
        rows, classes = file["logits"].reshape(10, 31, -1), file["targets"].reshape(10, 31)
    logits, ids = np.full((10, 64, rows.shape[-1]), np.nan), np.full((10, 64), 999)
    logits[:, 32:63], ids[:, 33:] = rows, classes  # rows from n_ctx / 2 on
    logits, ids, meter, result = logits.reshape(640, -1), ids.ravel(), LossMeter(), []
    for inputs, targets, where in windows(640, 64, 64, score="second_half"):
        meter.update(token_scores(logits[inputs], ids[targets], where=where))
        result.append(meter.perplexity)
    printed = (DATA / "llama-cpp.txt").read_text("utf-8")
    assert result == pytest.approx([float(line.split()[1]) for line in printed.splitlines()[:10]], rel=2e-6)
    assert meter.count == 310
    assert meter.perplexity * meter.loss.stderr == pytest.approx(13.192590, rel=1e-5)


@pytest.fixture(scope="module")
def model():
    """A small model as a function of ids, and the ids of a text."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    causal = transformers.AutoModelForCausalLM.from_pretrained(DATA / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATA / "model")
    text = (DATA / "texts.txt").read_text("utf-8")[:400]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # others would wait for each other

    def function(ids, labels=None):
        with torch.inference_mode():
            output = causal(torch.tensor(ids[None]), labels=None if labels is None else torch.tensor(labels[None]))
        return output.logits[0].double().numpy() if labels is None else float(output.loss)

    yield function, np.array([0, *tokenizer(text)["input_ids"]])
    torch.set_num_threads(threads)


@pytest.mark.parametrize("stride", [16, 40, 64])
def test_stride_of_new_tokens_equals_a_loop_of_transformers(stride, model):
    function, ids = model
    meter, total, count, done = LossMeter(), 0.0, 0, 0
    for inputs, targets, where in windows(len(ids), 64, stride):
        meter.update(token_scores(function(ids[inputs]), ids[targets], where=where))
    for begin in range(0, len(ids), stride):
        end = min(begin + 64, len(ids))
        labels = np.where(np.arange(begin, end) < done, -100, ids[begin:end])
        new = int((labels[1:] != -100).sum())
        total, count, done = total + new * function(ids[begin:end], labels), count + new, end
        if end == len(ids):
            break
    assert meter.count == count == len(ids) - 1 - ((len(ids) - 1) // 64 if stride == 64 else 0)
    assert meter.loss == pytest.approx(total / count, rel=1e-6)


@pytest.mark.parametrize("bos", [None, 0])
@pytest.mark.parametrize(("score", "stride"), [("new", 20), ("new", 31), ("second_half", 32), ("all", 32)])
def test_score_of_windows_equals_each_token_alone(score, stride, bos, model):
    """Also where the BOS takes the place of the first token that a window reads."""
    function, ids = model[0], model[1][:90]
    for inputs, targets, where in windows(len(ids), 32, stride, score=score):
        read = ids[inputs] if bos is None else np.append(bos, ids[inputs][1:])
        losses = cross_entropy(function(read), ids[targets], where=where, reduction="none")[where]
        alone = [-log_softmax(function(read[: i + 1])[-1])[ids[targets][i]] for i in np.flatnonzero(where)]
        np.testing.assert_allclose(losses, alone, rtol=1e-4)


def test_bos_of_each_window_changes_no_row_that_is_scored_as_of_transformers_40524(model):
    """The loop of that page gave a BOS to the first window alone; whoever added it shifted the labels of the others."""
    function, ids = model
    scored = {}
    for bos in ("first", "each"):
        scored[bos] = []
        for inputs, targets, where in windows(len(ids), 32, 32):
            read = ids[inputs] if bos == "first" else np.append(ids[0], ids[inputs][1:])
            losses = cross_entropy(function(read), ids[targets], where=where, reduction="none")[where]
            scored[bos].append((ids[targets][where], losses))
    for number, (first, each) in enumerate(zip(scored["first"], scored["each"], strict=True)):
        np.testing.assert_array_equal(first[0], each[0])
        assert np.array_equal(first[1], each[1]) is (number == 0)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((-1, 4, 2), ValueError, ["n_tokens is -1", ">= 0"]),
        ((8.0, 4, 2), TypeError, ["n_tokens is 8.0", "an integer"]),
        ((8, 1, 1), ValueError, ["size is 1", ">= 2"]),
        ((8, "4", 2), TypeError, ["size is '4'"]),
        ((8, 4, 0), ValueError, ["stride is 0", "from 1 to 4"]),
        ((8, 4, 5), ValueError, ["stride is 5", "from 1 to 4"]),
        ((8, 4, 2, "all"), ValueError, ["stride is 2", "must be 4"]),
        ((64, 16, 6, "second_half"), ValueError, ["stride is 6", "from 7 to 16"]),
        ((64, 2, 2, "second_half"), ValueError, ["size is 2", ">= 3"]),
        ((63, 64, 64, "second_half"), ValueError, ["n_tokens is 63", "at least 64", "full"]),
        ((8, 4, 2, "last"), ValueError, ["score is 'last'", "'new', 'second_half', 'all'"]),
    ],
    ids=str,
)
def test_windows_that_do_not_fit_are_refused(arguments, error, words):
    """At once, not when the first window is asked for."""
    with fails(error, *words):
        windows(*arguments[:3], score=arguments[3] if arguments[3:] else "new")
