"""The page of errors: each message is what a call gives, and of the errors of the package, none is missing."""

import contextlib
import io
import json
import pickle
import re
import shlex
import sys
import warnings
from base64 import b64encode

import laid_texts
import numpy as np
import pages
import pytest

import tokenloss
from tokenloss import formats
from tokenloss._command.cli import main
from tokenloss._core.errors import _ERRORS

pytestmark = [
    pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process"),
    pytest.mark.skipif(not pages.DOCS.exists(), reason="an sdist has no .github"),
]

# calls in Python and commands, of which the page has the messages
CALLS = [
    "cross_entropy(x, [1, 2, 3, 5])",
    "cross_entropy(x, [1, 2, 3, 255])",
    "cross_entropy(x, t[:3])",
    "cross_entropy(np.zeros((2, 5, 3)), np.zeros((2, 3), int))",
    "cross_entropy(x, t.astype(float))",
    "cross_entropy(x, None)",
    "cross_entropy(p.repeat(2, 0), t.repeat(2))",
    "compare(p.repeat(2, 0), x.repeat(2, 0), t.repeat(2))",
    "cross_entropy_loss([0, 1, 1, 0], [0.1, 0.9, 0.8, 0.2])",
    "cross_entropy(x.astype(int), t)",
    'cross_entropy({"logits": x}, t)',
    "cross_entropy([[1.0, 2.0], [1.0]], [0, 0])",
    "cross_entropy(np.ma.masked_array(x, x > 1), t)",
    "cross_entropy(torch.zeros(4, 5, requires_grad=True), t)",
    "cross_entropy(on_gpu, t)",
    "softmax(x, out=x.astype(np.float32))",
    "cross_entropy_loss(t, x - 1)",
    'token_scores(p + 0.5, t, kind="probs")',
    "cross_entropy(x, t, where=[1, 1, 1, 0])",
    "cross_entropy(x, t, where=[True, False])",
    'token_scores(p, t, kind="probs", softcap=30.0)',
    "LossMeter().update([-0.36, -0.02])",
    "sequence_losses(np.zeros((4, 4)), segment_ids=t)",
    "sequence_losses(np.zeros(4), cu_seqlens=[0, 2])",
    "next_token(x[None], t[None], [[0.0, -1e9, 0.0, 0.0]])",
    "evaluate(x)",
    'formats.open_scores("scores.npz", window=2, stride=1, segment_ids="ids.npy")',
    'evaluate("scores.npz") + evaluate("scores.npz")',
    "tokenloss score missing.npz",
    "tokenloss score 'part-*.npz'",
    "tokenloss score notes.txt",
    "tokenloss score model.pt",
    "tokenloss score cut.npy",
    "tokenloss score ragged.npy ids.npy",
    "tokenloss score empty-folder",
    "tokenloss score scores.npz --per-token tokens.parquet",
    "tokenloss score other-name.npz",
    "tokenloss score weights.npz",
    "tokenloss score no-targets.npz",
    "tokenloss score inputs.npz",
    "tokenloss score hidden.npz",
    "tokenloss score hidden.npz --lm-head scores.npz",
    "tokenloss score logits.npy float-ids.npy",
    "tokenloss score logits.npy short.npy",
    "tokenloss score probs.npz",
    "tokenloss score log2.npz",
    "tokenloss score padded.npz",
    "tokenloss score scores.npz wide.npz",
    "tokenloss score scores.npz --shift --tokenizer five.tiktoken --text other-text.txt",
    "tokenloss score scores.npz --tokenizer five.tiktoken --text first-cut.txt",
    "tokenloss score scores.npz --tokenizer two.tiktoken",
    "tokenloss score scores.npz --tokenizer word-piece.json",
    "tokenloss compare scores.npz two-documents.npz --text text.txt --tokenizer-a five.tiktoken",
    "tokenloss compare scores.npz two-documents.npz --text text.txt --tokenizer-a five.tiktoken "
    "--tokenizer-b five.tiktoken",
    "tokenloss score responses.txt",
    "tokenloss score joined.jsonl",
    'evaluate({"id": 1})',
    "tokenloss score one-token.json --part prompt",
    "tokenloss score prompt.json chat.json",
    "tokenloss compare chat.json responses",
    "tokenloss score no-logprobs.json",
    "tokenloss score failed.jsonl",
    "tokenloss score cut.jsonl",
    "tokenloss score twice.jsonl",
    "tokenloss score samples.jsonl",
    "tokenloss compare scores.npz wide.npz",
    "tokenloss compare hidden.npz scores.npz --base-lm-head narrow-head.npy --logit-scale 0.5",
    "tokenloss compare scores.npz other-targets.npz",
    "tokenloss compare chat.json other-chat.json",
    "tokenloss compare samples.jsonl other-samples.jsonl",
    "tokenloss compare scores.npz logits.npy --margin 0.1",
    "tokenloss compare chat.json other-chat.json --divergences js",
    "tokenloss compare trainer.npy chat.json",
    "tokenloss score chat.json --window 8",
    "tokenloss score scores.npz --tops 3",
    "tokenloss score scores.npz --plot losses.jpg",
    "tokenloss score scores.npz --state a.state --per-token tokens.csv",
    "tokenloss score unshifted.npz",
    "tokenloss score shifted.npz --shift",
    "tokenloss score words.npz --tokenizer word-piece.json --text words.txt",
    "tokenloss score words-padded.npz --tokenizer tekken.json",
    "tokenloss compare scores.npz words.npz",
    "tokenloss score no-norm.npz --lm-head head.npy",
    "tokenloss score model-a.npz model-b.npz",
    "tokenloss score certain.npz",
    "evaluate([(x * np.nan, t)])",
    'compare(p, np.eye(5)[[1, 1, 2, 3]], t, kind="probs")',
]
# errors that say all that can be said of them, or that no example can show
CLEAR = {
    "changed", "scalar", "axis", "negative view", "read-only", "overlap", "self-overlap", "empty", "sometimes", "twice",
    "candidates", "sizes",
}  # fmt: skip


def chat(text, logprob=-0.25):
    """A response in OpenAI's layout of chats."""
    content = {"token": text, "logprob": logprob, "top_logprobs": [{"token": text, "logprob": logprob}]}
    return {"choices": [{"message": {"content": text}, "logprobs": {"content": [content]}}]}


def echo(*logprobs):
    """A response in OpenAI's layout of completions: the prompt alone."""
    texts = ["A", " b"][: len(logprobs)]
    logprobs = {"tokens": texts, "token_logprobs": [*logprobs], "top_logprobs": [None] * len(texts)}
    usage = {"prompt_tokens": len(texts), "completion_tokens": 0}
    return {"choices": [{"text": "".join(texts), "logprobs": logprobs}], "usage": usage}


def sample(number):
    """A sample of lm-evaluation-harness."""
    return {"doc_id": number, "doc": {"question": number}, "filtered_resps": ["A"], "acc": 1}


class OnGpu:
    """A tensor on a GPU, as DLPack shows it."""

    def __dlpack__(self, **_):
        raise AssertionError

    def __dlpack_device__(self):
        return 2, 0


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """The names that the page of errors uses, and a folder of files that are wrong as their names say."""
    path, x, t = tmp_path_factory.mktemp("wrong"), np.zeros((4, 5)), np.arange(4)
    p, rng = np.full((4, 5), 0.2), np.random.default_rng(0)
    ids, certain = rng.integers(9, size=100), np.full((6, 5), -np.inf)
    certain[:, 0] = 0
    arrays = {
        "trainer.npy": [[-0.5, -1.5], [-0.25, np.nan]],
        "logits.npy": x, "ids.npy": t, "float-ids.npy": t.astype(float), "short.npy": t[:3],
        "ragged.npy": np.array([[1], [1, 2]], object), "head.npy": rng.normal(size=(9, 8)),
        "narrow-head.npy": rng.normal(size=(9, 5)),
    }  # fmt: skip
    archives = {
        "scores": {"logits": x, "targets": t}, "other-name": {"scores": x, "targets": t}, "no-targets": {"logits": x},
        "inputs": {"logits": x, "input_ids": t}, "hidden": {"hidden_states": x, "targets": t},
        "probs": {"logits": p, "targets": t}, "log2": {"log_probs": np.log2(p), "targets": t},
        "padded": {"logits": np.zeros((2, 2, 5)), "targets": t.reshape(2, 2), "attention_mask": [[1, 0], [1, 1]]},
        "wide": {"logits": np.zeros((4, 7)), "targets": t}, "other-targets": {"logits": x, "targets": t[::-1]},
        "unshifted": {"logits": 5 * np.eye(9)[np.roll(ids, -1)], "targets": ids},
        "shifted": {"logits": 5 * np.eye(9)[ids], "targets": ids},
        "words": {"logits": np.zeros((2, 1)), "targets": [0, 0]},
        "words-padded": {"logits": np.zeros((4, 2)), "targets": [1, 0, 0, 0]},
        "no-norm": {"hidden_states": np.exp(rng.normal(size=(100, 1))) * rng.normal(size=(100, 8)), "targets": ids},
        "model-a": {"logits": np.zeros((100, 9)), "targets": ids},
        "weights": {"model.norm.weight": np.ones(5), "lm_head.weight": x},
        "certain": {"log_probs": certain, "targets": np.zeros(6, int)},
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(path / name, array)
    for name, held in {**archives, "model-b": archives["model-a"]}.items():
        np.savez(path / f"{name}.npz", **held)
    batch = {"custom_id": "a", "response": {"status_code": 200, "body": chat("Yes")}, "error": None}
    failed = {"custom_id": "a", "response": {"status_code": 400, "body": None}, "error": {"message": "too long"}}
    lines = {
        "no-logprobs.json": [{"choices": [{"text": "Yes", "logprobs": None}]}], "chat.json": [chat("Yes")],
        "other-chat.json": [chat("No")], "failed.jsonl": [failed], "twice.jsonl": [batch, batch],
        "one-token.json": [echo(None)], "prompt.json": [echo(None, -0.5)], "responses.txt": [chat("Yes")],
        "samples.jsonl": [sample(0), sample(1)], "other-samples.jsonl": [sample(0), sample(2)],
    }  # fmt: skip
    for name, records in lines.items():
        (path / name).write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (path / "notes.txt").write_text("no scores")
    for name, n in ("five", 5), ("two", 2):
        ranks = [f"{b64encode(bytes([97 + i])).decode()} {i}\n" for i in range(n)]
        (path / f"{name}.tiktoken").write_text("".join(ranks))
    word_piece = {"version": "1.0", "model": {"vocab": {"a": 0}}, "decoder": {"type": "WordPiece", "prefix": "##"}}
    (path / "word-piece.json").write_text(json.dumps(word_piece))
    laid_texts.tokenizer(path / "tekken.json", [b"a"])
    (path / "words.txt").write_text("a a")
    (path / "other-text.txt").write_text("abCd")
    (path / "first-cut.txt").write_text("xabcd")
    (path / "text.txt").write_text("abcd")
    np.savez(path / "two-documents.npz", logits=x, targets=t, segment_ids=[0, 0, 1, 1])
    (path / "joined.jsonl").write_text(2 * json.dumps(chat("Yes")))
    (path / "responses").mkdir()
    for name in "chat.json", "chat-2.json":
        (path / "responses" / name).write_text(json.dumps(chat("Yes")))
    (path / "model.pt").write_bytes(pickle.dumps({}))
    (path / "cut.npy").write_bytes((path / "logits.npy").read_bytes()[:-8])
    (path / "cut.jsonl").write_text('{"choices": [\n')
    (path / "empty-folder").mkdir()
    names = {name: getattr(tokenloss, name) for name in tokenloss.__all__}
    return path, names | {"formats": formats, "np": np, "x": x, "p": p, "t": t, "on_gpu": OnGpu()}


def message_of(call, names, monkeypatch):
    """What a call in Python raises or warns of, as Python prints it; or what a command prints on stderr."""
    if call.endswith(".parquet"):
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # as if it were not installed
    if call.startswith("tokenloss "):
        err = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            main(shlex.split(call)[1:])
        return re.sub("^tokenloss: (error: )?", "", err.getvalue().rstrip("\n"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            eval(call, dict(names))  # noqa: S307 -- of this file
    except Exception as error:  # of any type
        return f"{type(error).__name__}: {error}"
    return None


def messages():
    """The messages of the page of errors: what each item begins with."""
    text = (pages.DOCS / "reference" / "errors.md").read_text("utf-8")
    return [" ".join(message.split()) for message in re.findall(r"^- `([^`]+)`\\$", text, re.MULTILINE)]


@pytest.mark.parametrize("call", CALLS)
def test_messages_are_those_that_calls_give(call, wrong, monkeypatch):
    path, names = wrong
    monkeypatch.chdir(path)
    if "torch" in call:
        names = names | {"torch": pytest.importorskip("torch")}
    given = " ".join((message_of(call, names, monkeypatch) or "no error").split())
    assert sum(pages.agrees(message, given) for message in messages()) == 1, given


def test_each_message_is_that_of_a_call():
    assert len(messages()) == len({*messages()}) == len(CALLS)


def test_messages_say_contains_not_holds():
    assert [message for message in messages() if re.search(r"\bholds?\b", message)] == []


def test_every_error_of_the_package_is_described():
    for name, (_, words) in _ERRORS.items():
        pattern = ".*".join(map(re.escape, re.split(r"{.*?}", words)))
        assert name in CLEAR or any(re.search(f"{pattern}$", message) for message in messages()), words
