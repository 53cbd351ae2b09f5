"""The programs of the examples: they run on a reader's own files, and an engine's own loss is ours."""

import ast
import contextlib
import importlib.util
import json
import sys
from pathlib import Path

import clients
import needs
import numpy as np
import pages
import pytest
import recorded_server

from tokenloss import compare_files, evaluate

pytestmark = [pytest.mark.slow, pytest.mark.thread_unsafe(reason="changes the working directory")]
PROGRAMS = sorted((pages.ROOT / "benchmarks" / "examples").glob("*.py"))
STAND_INS = {path.stem for path in pages.STAND_INS.iterdir()} - {"__pycache__"}
MODEL, TEXTS = "tests/data/model", "tests/data/texts.txt"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a program with arguments, in a folder that holds tests/data; what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # or torch's threads wait for each other on a busy machine
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    pages.prepare(tmp_path)

    def run(name, *arguments, status=0):
        for module in needs.of_file(pages.ROOT / "benchmarks" / "examples" / name):
            pytest.importorskip(module)
        with pages.stand_ins():
            result, printed = pages.call(f"python benchmarks/examples/{name} {' '.join(arguments)}")
        assert result == status, printed
        return printed

    return run


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_help_tells_what_a_program_does(program, run):
    printed = run(program.name, "--help")
    assert ast.get_docstring(ast.parse(program.read_text("utf-8"))) in printed


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_programs_are_short(program):
    assert len(program.read_text("utf-8").splitlines()) <= 70


@pytest.fixture
def engine(run):
    """Makes what an engine reads: the folder or file of its model."""

    def engine(name):
        if name == "with_onnxruntime.py":
            pytest.importorskip("onnx")
            import onnx_llama

            onnx_llama.export(MODEL, "onnx")
            return "onnx"
        return MODEL

    return engine


def losses_by_transformers():
    """The loss of each text that transformers computes, by a model in float32."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    batches = [torch.tensor([tokenizer(text)["input_ids"]]) for text in Path(TEXTS).read_text().splitlines()]
    with torch.inference_mode():
        return [model(ids, labels=ids).loss.item() for ids in batches]


def losses_by_onnxruntime():
    """The loss of each text that onnxruntime's own operator finds."""
    from onnx import TensorProto, helper
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

    node = helper.make_node("SoftmaxCrossEntropyLoss", ["logits", "targets"], ["loss"])
    inputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "classes"]),
        helper.make_tensor_value_info("targets", TensorProto.INT64, ["n"]),
    ]
    outputs = [helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])]
    graph = helper.make_graph([node], "loss", inputs, outputs)
    graph = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    loss, model = InferenceSession(graph.SerializeToString()), InferenceSession("onnx/model.onnx")
    tokenizer = Tokenizer.from_file("onnx/tokenizer.json")
    past = {node.name: np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32) for node in model.get_inputs()[3:]}
    result = []
    for text in Path(TEXTS).read_text().splitlines():
        ids = np.array([tokenizer.encode(text).ids])
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.size)[None]}
        (logits,) = model.run(["logits"], feed | past)
        result.extend(loss.run(None, {"logits": logits[0, :-1], "targets": ids[0, 1:]}))
    return result


@pytest.mark.parametrize("name", ["with_transformers.py", "with_onnxruntime.py", "with_llama_cpp.py"])
def test_loss_of_the_engine_is_ours(name, run, engine):
    options = "" if "llama" in name else "--batch-size 3"  # so that texts are padded
    run(name, engine(name), TEXTS, "--per-token tokens.npy", options)
    tokens = np.load("tokens.npy")
    tokens = tokens[tokens["kept"]]
    counts = np.bincount(tokens["sequence"])
    result = np.bincount(tokens["sequence"], tokens["nll"]) / counts
    own = losses_by_onnxruntime() if "onnx" in name else losses_by_transformers()
    np.testing.assert_allclose(result, own, rtol=2e-6)  # the engines add up in float32


@pytest.mark.parametrize("name", ["with_transformers.py", "with_onnxruntime.py", "with_llama_cpp.py"])
def test_a_run_that_was_cut_off_goes_on(name, run, engine):
    model = engine(name)
    printed = run(name, model, TEXTS, "--state run.state")
    state = Path("run.state")
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) * 2 // 3])
    assert pages.agrees(printed, run(name, model, TEXTS, "--state run.state"))
    assert state.read_bytes() == whole


def test_vllm_writes_responses(run):
    run("with_vllm.py", MODEL, TEXTS, "out.jsonl", "--top-k 2")
    evaluation = evaluate("out.jsonl")
    np.testing.assert_allclose(evaluation.sequences["loss"], losses_by_transformers(), rtol=2e-6)
    assert evaluation.sequences["custom_id"].tolist() == [f"text-{number}" for number in range(20)]


def test_vllm_goes_on_after_a_line_that_was_cut_short(run):
    options = """--batch-size 7 --options '{"max_model_len": 256}'"""
    run("with_vllm.py", MODEL, TEXTS, "out.jsonl", options)
    out = Path("out.jsonl")
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    run("with_vllm.py", MODEL, TEXTS, "out.jsonl", options)
    assert out.read_bytes() == whole
    assert len([json.loads(line) for line in whole.splitlines()]) == 20


@pytest.mark.parametrize("engine", ["mlx", "exllamav3"])
def test_quantized_logits_are_of_the_tokens_of_the_base(engine, run):
    run("store_logits.py", MODEL, TEXTS, "base.npz", "--max-length 40")
    run("store_quantized_logits.py", engine, MODEL, "base.npz", "out.npz")
    with pages.stand_ins():
        import transformed
        from torch import from_numpy

        logits_of = transformed.load(MODEL)
    with np.load("base.npz") as base:
        ids, mask, shape = base["input_ids"], base["attention_mask"].astype(bool), base["logits"].shape
    with np.load("out.npz") as file:
        result = file["logits"]
        np.testing.assert_array_equal(file["input_ids"], ids)
        np.testing.assert_array_equal(file["attention_mask"], mask)
    assert result.shape == shape
    for row, where, own in zip(result, mask, ids, strict=True):
        assert not row[~where].any()
        logits = logits_of(from_numpy(own[np.newaxis, where]))[0].numpy()
        np.testing.assert_allclose(row[where].astype(float), logits, rtol=1e-3, atol=1e-4)  # of float16


def test_rounded_weights(run):
    run("store_logits.py", MODEL, TEXTS, "base.npz", "--max-length 40")
    printed = run("round_weights.py", MODEL, "base.npz", "out", "--bits 8 2 --group 64 --models")
    names, sizes = ["Q8g64", "Q2g64"], [182592, 54336]
    lines = [f"{name}=out/{name}.npz --size {name}={size}" for name, size in zip(names, sizes, strict=True)]
    assert printed.splitlines() == lines
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    with np.load("base.npz") as base:
        ids, mask, logits = (base[name] for name in ("input_ids", "attention_mask", "logits"))
    errors = []
    for name, bits in zip(names, (8, 2), strict=True):
        model = transformers.AutoModelForCausalLM.from_pretrained(f"out/models/{name}", dtype="float32")
        for weights in model.parameters():
            if weights.ndim == 2:
                assert max(len(group.unique()) for group in weights.detach().reshape(-1, 64)[:50]) <= 2**bits
        with torch.inference_mode():
            again = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.half().numpy()
        result = np.load(f"out/{name}.npz")["logits"]
        np.testing.assert_allclose(result[mask > 0].astype(float), again[mask > 0], rtol=2e-3, atol=1e-3)
        errors.append(np.square(result[mask > 0].astype(float) - logits[mask > 0]).mean())
    assert errors[0] < errors[1] / 1000


@pytest.mark.parametrize("program", ["round_weights.py", "store_quantized_logits.py"])
def test_quantized_logits_of_a_folder(program, run):
    """They are those of the same texts in one file."""
    result = []
    for base, options in (("base.npz", ""), ("base", "--batch-size 7")):
        run("store_logits.py", MODEL, TEXTS, base, "--max-length 40", options)
        if program == "round_weights.py":
            printed = run(program, MODEL, base, "quants", "--bits 4 --group 64 --models")
            others = dict([printed.split()[0].split("=")])
            assert Path("quants/models/Q4g64/model.safetensors").exists()
        else:
            others = {"mlx": f"mlx{Path(base).suffix}"}
            run(program, "mlx", MODEL, base, *others.values())
        result += compare_files(base, others, shift=True).values()
    one, many = result
    assert one.count == many.count == 780
    assert many.mean_kl == pytest.approx(one.mean_kl, rel=1e-3, abs=1e-7)
    assert many.perplexity == pytest.approx(one.perplexity, rel=1e-5)


def test_quantized_logits_of_other_texts_are_refused(run):
    texts = Path(TEXTS).read_text("utf-8").splitlines()
    Path("others.txt").write_text("\n".join([texts[1], texts[0], *texts[2:]]), "utf-8")
    for name, path in (("base", TEXTS), ("other", "others.txt")):
        run("store_logits.py", MODEL, path, f"{name}.npz", "--max-length 40")
    run("round_weights.py", MODEL, "other.npz", "quants", "--bits 4 --group 64")
    with pytest.raises(ValueError, match=r"Q4g64\.npz: its targets differ from those in base\.npz"):
        compare_files("base.npz", {"Q4": "quants/Q4g64.npz"}, shift=True)


def test_texts_that_are_cut_are_told(run):
    assert run("store_logits.py", MODEL, TEXTS, "cut.npz", "--max-length 40") == "20 of 20 texts cut to 40 tokens\n"
    Path("texts.txt").write_text("And\n" + " ".join(Path(TEXTS).read_text("utf-8").splitlines()), "utf-8")
    assert run("store_logits.py", MODEL, "texts.txt", "long.npz") == "1 of 2 texts cut to 256 tokens\n"
    assert not run("store_logits.py", MODEL, TEXTS, "whole.npz")


@pytest.mark.parametrize("server", ["vllm", "echo", "sglang", "llama.cpp"])
def test_what_a_server_answers_to_a_wrong_request_is_told(server, run):
    Path("prompts.txt").write_text("Who?\n", "utf-8")
    with recorded_server.serving():
        url = "http://localhost:8000"
        printed = run("ask_server.py", url, "prompts.txt", "out.jsonl", "--server", server, status=1)
    assert "'Who?': status 501, no response to /" in printed
    assert Path("out.jsonl").read_text("utf-8") == ""


def test_ask_server_without_a_server(run):
    Path("prompts.txt").write_text("Who?\n", "utf-8")
    assert "no server answers" in run("ask_server.py", "http://localhost:1", "prompts.txt", "out.jsonl", status=1)
    assert "begins with http" in run("ask_server.py", "localhost:1", "prompts.txt", "out.jsonl", status=2)


def test_requests_have_responses():
    names = [request["file"] for request in recorded_server.requests()]
    assert len(set(names)) == len(names) > 90
    assert set(names) <= set(clients.responses())


@pytest.mark.parametrize("name", sorted(STAND_INS))
def test_stand_ins_are_forgotten(name):
    before = importlib.util.find_spec(name)
    with pages.stand_ins(), contextlib.suppress(ImportError):
        assert importlib.import_module(name).__file__.startswith(str(pages.STAND_INS))
    assert name not in sys.modules or before is not None
    assert importlib.util.find_spec(name) == before
