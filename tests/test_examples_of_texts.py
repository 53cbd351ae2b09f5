"""Programs that store what a model makes of texts: figures are those of each text alone, without padding."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pages
import pytest

from tokenloss import compare_samples, evaluate
from tokenloss.formats import open_hidden_states, open_scores

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.thread_unsafe(reason="changes the working directory")]

TEXTS = [
    "And God said, Let there be light.",
    "Selah.",
    "The words of Agur the son of Jakeh, even the prophecy:",
    "A man",
]
QUESTIONS = [
    {"question": "And God said, Let there be", "choices": ["light", "an hundred and forty", "Ægypt"], "answer": 0},
    {"question": "The heaven and the", "choices": ["sea", "earth. And God said"], "answer": 1},
    {"question": "And", "choices": ["he", "it came to pass"], "answer": 0},
]
PROGRAMS = {"store_logits.py": 1e-3, "store_packed_logits.py": 1e-3, "store_hidden_states.py": 1e-5}  # and tolerances


def random_model(kind, **options):
    """A model of random weights: the first finds positions by differences, the second has learned ones."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "llama":
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, initializer_range=1.0,
            **sizes, **options,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config).eval()
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, initializer_range=0.5, **sizes, **options)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(params=["llama", "gpt2"])
def model(request, tmp_path, monkeypatch):
    """A model that is saved in `model`, with a tokenizer that would pad on the left and has no token for it."""
    pages.prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = random_model(request.param)
    model.save_pretrained("model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"tests/data/model/{name}", f"model/{name}")
    settings = json.loads(Path("model/tokenizer_config.json").read_text("utf-8"))
    del settings["pad_token"]
    Path("model/tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}), "utf-8")
    Path("texts.txt").write_text("\n".join(TEXTS) + "\n", "utf-8")
    return model


def losses_of(model, text):
    """The losses of one text by itself, without padding."""
    ids = torch.tensor([transformers.AutoTokenizer.from_pretrained("tests/data/model")(text)["input_ids"]])
    with torch.inference_mode():
        logits = model(ids).logits[0, :-1].double()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").numpy()


def run(program, *arguments):
    """Run a program on the model; its exit status, and what it prints."""
    return pages.call(f"python benchmarks/examples/{program} model {' '.join(arguments)}")


def check_figures(result, losses, tolerance):
    """Loss, standard error by text and the sum of each text are those of texts alone."""
    mean, count = np.mean(np.concatenate(losses)), sum(map(len, losses))
    clusters = sum((part.sum() - mean * len(part)) ** 2 for part in losses) * len(losses) / (len(losses) - 1)
    assert result.count == count
    assert result.loss == pytest.approx(mean, rel=tolerance)
    assert result.loss.stderr == pytest.approx(np.sqrt(clusters) / count, rel=10 * tolerance)
    np.testing.assert_allclose(result.sequences["nll"], [part.sum() for part in losses], rtol=tolerance)
    np.testing.assert_array_equal(result.sequences["count"], list(map(len, losses)))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("out", ["out.npz", "folder"])
def test_figures_are_those_of_texts_alone(program, out, model):
    options = () if out.endswith(".npz") else ("--row-length=20",) if "packed" in program else ("--batch-size=2",)
    status, printed = run(program, "texts.txt", out, *options)
    assert status == 0, printed
    files = [out] if out.endswith(".npz") else sorted(map(str, Path(out).iterdir()))
    assert len(files) == 1 or not out.endswith(".npz")
    assert len(files) > 1 or out.endswith(".npz")
    source = open_hidden_states(files, "model") if "hidden" in program else open_scores(files)
    check_figures(evaluate(source, shift=True), [losses_of(model, text) for text in TEXTS], PROGRAMS[program])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_hidden_states_keep_their_precision(dtype, model):
    for out in "out.npz", "out.safetensors":
        status, printed = run("store_hidden_states.py", "texts.txt", out, f"--dtype={dtype}")
        assert status == 0, printed
        figures = evaluate(open_hidden_states(out, "model"), shift=True).loss
        assert figures == pytest.approx(np.mean(np.concatenate([losses_of(model, text) for text in TEXTS])), rel=0.02)
    assert np.load("out.npz")["hidden_states"].dtype == np.float16
    with safetensors.safe_open("out.safetensors", "pt") as file:
        assert file.get_tensor("hidden_states").dtype == getattr(torch, dtype)


@pytest.mark.parametrize("program", ["store_logits.py", "store_hidden_states.py"])
def test_long_texts_are_cut(program, model):
    assert run(program, "texts.txt", "out.npz", "--max-length=5")[0] == 0
    assert np.load("out.npz")["input_ids"].shape == (4, 5)


def test_texts_are_cut_to_the_context_if_the_tokenizer_has_no_limit(model):
    settings = Path("model/tokenizer_config.json")
    settings.write_text(json.dumps(json.loads(settings.read_text("utf-8")) | {"model_max_length": int(1e30)}), "utf-8")
    random_model(model.config.model_type, max_position_embeddings=5).save_pretrained("model")
    assert run("store_logits.py", "texts.txt", "out.npz") == (0, "2 of 4 texts cut to 5 tokens\n")
    assert np.load("out.npz")["input_ids"].shape == (4, 5)


def test_a_folder_that_exists_is_refused(model):
    Path("out").mkdir()
    status, printed = run("store_logits.py", "texts.txt", "out")
    assert status == 2
    assert "error: out exists; OUT must be a new folder, or end in .npz" in printed


@pytest.mark.filterwarnings("ignore:copy. identical to base")
def test_answers_are_chosen_by_their_own_losses(model):
    Path("questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS), "utf-8")
    status, printed = run("answer_questions.py", "questions.jsonl", "out.jsonl")
    assert status == 0, printed
    right = []
    for line, written in zip(QUESTIONS, Path("out.jsonl").read_text("utf-8").splitlines(), strict=True):
        start = len(losses_of(model, line["question"]))
        sums = [losses_of(model, f"{line['question']} {choice}")[start:].sum() for choice in line["choices"]]
        sample = json.loads(written)
        np.testing.assert_allclose([-score for score, _ in sample["filtered_resps"]], sums, rtol=1e-5)
        per_letter = np.divide(sums, [len(choice) for choice in line["choices"]])
        assert [sample["chosen"], sample["chosen_norm"]] == [np.argmin(sums), np.argmin(per_letter)]
        right.append([np.argmin(sums) == line["answer"], np.argmin(per_letter) == line["answer"]])
        assert [sample["acc"], sample["acc_norm"]] == right[-1]
    for line, mean in zip(printed.strip().splitlines(), np.mean(right, axis=0), strict=True):
        assert f" {mean:.2f} ± " in line
    metrics = {metric.name: metric for metric in compare_samples("out.jsonl", {"copy": "out.jsonl"})["copy"].metrics}
    assert not metrics["acc"].is_derived
    assert metrics["target_loglikelihood"].difference == 0


def test_one_question_has_no_error(model):
    Path("questions.jsonl").write_text(json.dumps(QUESTIONS[0]), "utf-8")
    status, printed = run("answer_questions.py", "questions.jsonl", "out.jsonl")
    assert status == 0, printed
    assert len(re.findall(r" [01]\.00 \(1 question: no error\)$", printed, re.MULTILINE)) == 2


def test_questions_beyond_the_context_are_refused(model):
    long = QUESTIONS[1] | {"question": "The heaven and the earth " * 500 + "and"}
    Path("questions.jsonl").write_text(f"{json.dumps(QUESTIONS[0])}\n{json.dumps(long)}", "utf-8")
    status, printed = run("answer_questions.py", "questions.jsonl", "out.jsonl")
    assert status == 1
    assert re.search(r"^error: line 2: \d+ tokens, more than the (1024|2048) of the model$", printed, re.MULTILINE)
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize("question", ["", "In the beginning God created the "])
def test_questions_without_an_end_are_refused(question, model):
    Path("questions.jsonl").write_text(json.dumps(QUESTIONS[0] | {"question": question}), "utf-8")
    status, printed = run("answer_questions.py", "questions.jsonl", "out.jsonl")
    assert status == 1
    assert "error: line 1: empty, or ends in a space or within a token" in printed
    assert not Path("out.jsonl").exists()


@pytest.mark.skipif(not pages.DOCS.exists(), reason="an sdist has no .github")
@pytest.mark.parametrize("model", ["llama"], indirect=True)
@pytest.mark.parametrize("side", ["right", "left"])
def test_page_of_padded_batches_has_figures_of_texts_alone(side, model, monkeypatch):
    tokenizer = transformers.AutoTokenizer.from_pretrained("tests/data/model", padding_side=side)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: model)
    names = {}
    blocks = [block.text for block in pages.blocks_of(pages.DOCS / "how-to" / "padded-batch.md")]
    for block in [block for block in blocks if "batches()" in block or "np.savez(" in block]:
        exec(block, names)  # noqa: S102 -- code of this repository's page
    losses = [losses_of(model, text) for text in names["texts"]]
    check_figures(names["result"], losses, 1e-5)
    check_figures(evaluate("mine.npz", shift=True), losses, 1e-3)
    starts = [tokenizer(text, return_offsets_mapping=True)["offset_mapping"][0][1] for text in names["texts"]]
    n_bytes = sum(len(text[start:].encode()) for text, start in zip(names["texts"], starts, strict=True))
    bits = sum(part.sum() for part in losses) / np.log(2)  # of all tokens but the first ones
    assert names["result"].bits_per_byte == pytest.approx(bits / n_bytes, rel=1e-5)
