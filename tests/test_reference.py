"""The reference: its pages name every key of JSON, every column, option and environment variable, and no other."""

import argparse
import contextlib
import functools
import inspect
import io
import itertools
import json
import re
from base64 import b64encode
from types import SimpleNamespace

import clients
import laid_texts
import numpy as np
import pages
import pytest
from places import ROOT
from reference_pages import codes, json_schema, tables_of

import tokenloss
import tokenloss.dask
from tokenloss import (
    compare,
    compare_files,
    compare_samples,
    compare_texts,
    evaluate,
    formats,
    page,
    plots,
    results,
    sequence_losses,
    sinks,
    testing,
    token_scores,
)
from tokenloss._command.arguments import make_parser
from tokenloss._command.cli import main
from tokenloss._core._core import KINDS
from tokenloss._core.arguments import DIVERGENCES
from tokenloss._core.signature import _FIELDS
from tokenloss.formats import scores_file
from tokenloss.formats.logprobs import FIELDS
from tokenloss.formats.readers import FORMATS

pytestmark = [
    pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process"),
    pytest.mark.skipif(not pages.DOCS.exists(), reason="an sdist has no .github"),
]


def is_of(meaning, *kinds):
    """Whether a row is of any of these kinds of input; those of some alone begin with their names."""
    of = re.match(r"\*([^*]+):\*", meaning)
    return of is None or bool({*kinds} & {*of[1].split(", ")})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of every kind that the command reads."""
    path, rng = tmp_path_factory.mktemp("reference"), np.random.default_rng(3)
    logits, targets = rng.normal(size=(40, 11), scale=3).astype(np.float32), rng.integers(9, size=40)
    words = np.array([" a", "b", " 1", ",", " "] * 8)
    for name, noise in ("base", 0), ("twin", 0.01), ("q8", 0.1), ("q4", 0.5):
        (path / name).mkdir()
        scores = logits + noise * rng.normal(size=logits.shape).astype(np.float32)
        for i, part in enumerate(np.split(np.arange(40), 2)):
            parts = {"targets": targets[part], "tokens": words[part], "segment_ids": part // 8}
            np.savez(path / name / f"part-{i}.npz", logits=scores[part], **parts)
    np.save(path / "head.npy", rng.normal(size=(11, 4)))
    states = rng.normal(size=(3, 8, 5, 4))
    states /= np.sqrt((states**2).mean(-1, keepdims=True))  # as after the final norm
    for name, hidden in zip(("hidden", "hidden-other", "hidden-twin"), states, strict=True):
        np.savez(path / f"{name}.npz", hidden_states=hidden, targets=targets.reshape(8, 5))
    (path / "text.txt").write_text("a few words")
    answer = {
        "message": {"content": "a"},
        "logprobs": {"content": [{"token": "a", "logprob": -0.5 - i} for i in range(4)]},
    }
    clients.save_lines(path / "rollout.jsonl", *[{"choices": [answer]}] * 5)
    np.save(path / "trainer.npy", -rng.exponential(size=(5, 4)))
    (path / "ranks.tiktoken").write_text("".join(f"{b64encode(bytes([n])).decode()} {n}\n" for n in range(11)))
    responses = clients.responses()["vllm/run_batch_out.jsonl"]
    for name, digit in ("responses", ""), ("responses-other", "1"), ("responses-twin", "2"):
        other = re.sub(r'("logprob": ?-)', rf"\g<1>{digit}", responses)
        (path / f"{name}.jsonl").write_text(other, "utf-8", newline="")
    for model in "base", "noise":
        (path / model).mkdir(exist_ok=True)
        for task in "mc", "rolling":
            (path / f"{model}-{task}.jsonl").write_text(clients.samples()[f"{model}/{task}.jsonl"], "utf-8", newline="")
    (path / "t.txt").write_text("to be, or not to be")
    laid_texts.model(path, "a", [laid_texts.words("to be, or not to be")])
    laid_texts.model(path, "b", [laid_texts.cut("to be, or not to be", 2)])
    names = [*path.iterdir()]
    return SimpleNamespace(**{name.name.replace(".", "_").replace("-", "_"): name for name in names})


@functools.cache
def printed(*argv):
    """What a command prints as JSON, which is run once."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main([*argv, "--json"]) == 0
    return out.getvalue()


def emitted(*argv):
    """The JSON that a command prints."""
    return json.loads(printed(*map(str, argv)))


def keys_of(value, path="", result=None):
    """The keys of all objects within a value, by the path of the object as `jq` writes it."""
    result = {} if result is None else result
    if isinstance(value, list):
        for element in value:
            keys_of(element, f"{path}[]", result)
    elif isinstance(value, dict) and not all(re.fullmatch(r"[\d.]+", key) for key in value):  # quantiles by fraction
        result.setdefault(path or ".", set()).update(value)
        for key, element in value.items():
            if key != "left_out" or not isinstance(element, dict):  # by the name of a metric
                keys_of(element, f"{path}.{key}", result)
    return result


def described_keys(command, kind):
    """The keys of a command that the page describes for a kind of input, by path."""
    result = {}
    of_hidden = "hidden states", "scores"
    kinds = {"hidden states": of_hidden, "windows": ("windows", *of_hidden), "scores": ("scores", "calibrated")}
    of_kind = kinds.get(kind, (kind,))
    for heading, head, rows in tables_of("json"):
        if heading == f"`tokenloss {command}`":
            for keys, _, meaning in rows:
                if is_of(meaning, *of_kind):
                    for path in codes(head[0]):
                        result.setdefault(path, set()).update(codes(keys))
    return result


def commands_of(files, kind):
    """Commands whose JSON has every key of a kind of input, by their name."""
    by = "--by", "position"
    skip, of_loss = ("--skip-failed",), ("--max-loss", "99", *by)
    of_bytes = "--tokenizer", files.ranks_tiktoken
    of_kl, of_ratio = (
        ("--detect", "0.1", "--max-kl", "99", "--divergences", ",".join(DIVERGENCES), *by),
        ("--detect", "0.1", "--max-perplexity-ratio", "1e300", *by),
    )
    return {
        "scores": [
            ("score", files.base, "--calibration", *of_bytes, "--n-words", 5, *of_loss),
            (
                "compare",
                files.base,
                f"q8={files.q8}",
                f"q4={files.q4}",
                "--size",
                "q4=1",
                "--noise",
                files.twin,
                "--temperature=0.9",
                "--calibration",
                *of_kl,
            ),
        ],
        "hidden states": [
            ("score", files.hidden_npz, "--lm-head", files.head_npy, *of_bytes, *of_loss),
            (
                "compare",
                files.hidden_npz,
                files.hidden_other_npz,
                "--lm-head",
                files.head_npy,
                "--noise",
                files.hidden_twin_npz,
                "--temperature=0.9",
                *of_kl,
            ),
        ],
        "windows": [
            ("score", files.hidden_npz, "--lm-head", files.head_npy, "--window", 5, "--stride", 5, *of_bytes, *of_loss),
        ],
        "responses": [
            ("score", files.responses_jsonl, *skip, *of_loss),
            (
                "compare",
                files.responses_jsonl,
                files.responses_other_jsonl,
                *skip,
                "--noise",
                files.responses_twin_jsonl,
                *of_ratio,
            ),
        ],
        "drafts": [("compare", files.base, f"q8={files.q8}", "--draft", "--cost-ratio", "0.1", "--size", "q8=1")],
        "logprobs": [
            ("score", files.trainer_npy, "--logprobs", *of_loss),
            ("compare", files.trainer_npy, files.rollout_jsonl, "--logprobs", "--max-k3", "99", *by),
        ],
        "samples": [("compare", files.base_mc_jsonl, files.noise_mc_jsonl, "--margin", "0.1", "--detect", "0.1")],
        "all": [("info",)],
    }[kind]


KINDS_OF_JSON = "scores", "hidden states", "windows", "drafts", "responses", "logprobs", "samples", "all"


@pytest.mark.parametrize("kind", KINDS_OF_JSON)
def test_keys_of_json_are_described_and_it_fits_the_schema(files, kind):
    for argv in commands_of(files, kind):
        value = emitted(*argv)
        assert errors_of(value, argv[0]) == []
        result, described = keys_of(value), described_keys(argv[0], kind)
        if "tiers" in result.get(".", ()) and ".tiers[]" not in result:  # of a single candidate
            del described[".tiers[]"]
        if kind == "samples":
            del described[".candidates[].groups[]"]  # of folders; its keys are those of `metrics`
            del described[".noise"]
        if kind in ("drafts", "logprobs"):
            described = {path: keys for path, keys in described.items() if not path.startswith(".noise")}
        if kind == "hidden states":  # without text, and in one file
            for model in ".candidates[]", ".noise":
                described.pop(f"{model}.by_token_type[]", None)
                for path, key in (model, "by_token_type"), (f"{model}.sequences[]", "file"):
                    described.get(path, set()).discard(key)
        assert result == described


def comparison_of_texts(files):
    """The arguments of a comparison of two models with different tokenizers."""
    options = "--text", files.t_txt, "--tokenizer-a", files.a_json, "--tokenizer-b", files.b_json
    return "compare", files.a_npz, files.b_npz, *options, "--shift", "--detect", "0.1"


def test_keys_of_json_of_texts_are_described_and_it_fits_the_schema(files):
    value = emitted(*comparison_of_texts(files))
    assert errors_of(value, "compare-text") == []
    assert keys_of(value) == described_keys("compare --text", "texts")


@functools.cache
def checked_schema():
    """The JSON Schema, after a check that it is valid."""
    schema = json_schema()
    pytest.importorskip("jsonschema").Draft202012Validator.check_schema(schema)
    return schema


@functools.cache
def validator(name):
    """A validator for one part of the JSON Schema."""
    jsonschema = pytest.importorskip("jsonschema")
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": checked_schema()["$defs"]})


def errors_of(value, name):
    """The places where a result does not fit its part of the JSON Schema."""
    return [error.json_path for error in validator(name).iter_errors(value)]


def test_json_of_models_fits_the_schema(files):
    assert errors_of(emitted("score", f"A={files.q8}", f"B={files.q4}"), "score of models") == []


@pytest.mark.parametrize(
    ("change", "places"),
    [
        ({"loss": "0.3"}, ["$.loss"]),
        ({"perplexity_interval": [1.0]}, ["$.perplexity_interval"]),
        ({"sequences": [{"count": 1.5}]}, ["$.sequences[0].count"]),
        ({"count": True}, ["$.count"]),
    ],
)
def test_json_that_does_not_fit_the_schema(files, change, places):
    value = emitted("score", files.base)
    changed = value | change
    if "sequences" in change:
        changed["sequences"] = [value["sequences"][0] | change["sequences"][0]]
    assert errors_of(changed, "score") == places
    assert errors_of({key: one for key, one in value.items() if key != "loss"}, "score") == ["$"]


def test_fields_of_signatures_are_described():
    ((_, _, rows),) = (table for table in tables_of("json") if table[0] == "Signatures")
    assert [name for names, _ in rows for name in codes(names)] == [*_FIELDS]


def test_models_side_by_side_have_the_keys_of_each(files):
    result = emitted("score", f"A={files.q8}", f"B={files.q4}", "--max-loss", "99")
    assert [*result] == ["A", "B"]
    assert keys_of(result["B"]) == keys_of(emitted("score", files.q4, "--max-loss", "99"))


# -- columns -----------------------------------------------------------------------------------------------------------

TITLES = ("A token", "A sequence", "A token of two models", "A sequence of two models",
          "A token of a trainer and a sampler", "A sequence of a trainer and a sampler")  # fmt: skip


def tables_in_memory(files):
    """Columns of every table of tokens and sequences, by the heading of the page and the kind of input."""
    scores = formats.open_scores(files.base, tokenizer=files.ranks_tiktoken)
    responses = formats.open_responses(files.responses_jsonl, skip_failed=True)
    for kind, source in ("scores", scores), ("responses", responses):
        tokens, sequences = sinks.TokenTable(top_k=2), sinks.SequenceTable()
        evaluation = evaluate(source, sinks=[tokens, sequences])
        yield TITLES[0], kind, tokens.columns()
        yield TITLES[1], kind, sequences.columns() | evaluation.columns()
        tokens, sequences = sinks.TokenTable(), sinks.SequenceTable()
        other = files.q8 if kind == "scores" else responses.like(files.responses_other_jsonl)
        wanted = {"divergences": (*DIVERGENCES,)} if kind == "scores" else {}
        result = compare_files(source, {"a": other}, sinks=[tokens, sequences], **wanted)
        yield TITLES[2], kind, tokens.columns()
        yield TITLES[3], kind, sequences.columns()
        yield TITLES[2], "arrays" if kind == "scores" else "response arrays", result["a"].columns()
    tokens, sequences = sinks.TokenTable(columns=["acceptance"]), sinks.SequenceTable(columns=["acceptance"])
    result = compare_files(files.base, files.q8, temperature=1, sinks=[tokens, sequences])
    yield TITLES[2], "drafts", tokens.columns()
    yield TITLES[3], "drafts", sequences.columns()
    (one,) = result.values()
    yield TITLES[2], "draft arrays", one.acceptance().columns()
    tokens, sequences = sinks.TokenTable(), sinks.SequenceTable()
    trainer = formats.open_logprobs(files.trainer_npy)
    result = compare_files(trainer, {"a": files.rollout_jsonl}, sinks=[tokens, sequences])
    yield TITLES[4], "logprobs", tokens.columns()
    yield TITLES[5], "logprobs", sequences.columns()
    yield TITLES[4], "arrays", result["a"].columns()
    spans, documents = sinks.TokenTable(), sinks.SequenceTable()
    a, b = (
        formats.open_scores(path, tokenizer=own)
        for path, own in ((files.a_npz, files.a_json), (files.b_npz, files.b_json))
    )
    result = compare_texts(a, b, text=files.t_txt, shift=True, sinks=[spans, documents])
    for columns in documents.columns(), result.documents:
        yield "A document of two models with different tokenizers", "texts", columns
    for columns in spans.columns(), result.columns():
        yield "A span of two models with different tokenizers", "texts", columns
    questions = sinks.SequenceTable()
    compare_samples(files.base_mc_jsonl, files.noise_mc_jsonl, sinks=[questions])
    yield "A question of two models", "samples", questions.columns()
    logits, targets = np.zeros((2, 3, 5)), np.array([[1, 2, -100], [0, 1, 2]])
    scores = token_scores(logits, targets, top_k=2)
    lengths = {"n_bytes": [3, 4], "n_words": [1, 2], "sample_weight": np.ones((2, 3))}
    yield TITLES[0], "arrays", scores.columns()
    yield TITLES[1], "arrays", sequence_losses(scores, **lengths).columns()
    yield TITLES[2], "arrays", compare(logits, logits, targets, divergences=(*DIVERGENCES,)).columns()


def test_columns_are_described(files):
    page = {heading: rows for heading, _, rows in tables_of("columns")}
    for heading, kind, columns in tables_in_memory(files):
        described = {}
        for names, dtypes, meaning, *_ in page[heading]:
            if is_of(meaning, kind):  # each name has a dtype, or all have the last one
                dtype = itertools.chain(dtypes.split("; "), itertools.repeat(dtypes.split("; ")[-1]))
                described |= dict(zip(codes(names), dtype, strict=False))
        result = {name: str(column.dtype).replace("object", "text") for name, column in columns.items()}
        assert result == described, (heading, kind)


def test_columns_that_are_not_scored_hold_what_is_described():
    logits, targets = np.zeros((2, 3, 5)), np.array([[1, 2, -100], [0, 1, 2]])
    tokens = sinks.TokenTable(top_k=2)
    evaluate([(logits, targets)], sinks=[tokens])
    pairs = ("A token", tokens.columns()), ("A token", token_scores(logits, targets, top_k=2).columns())
    for heading, columns in (*pairs, ("A token of two models", compare(logits, logits, targets).columns())):
        ((*_, rows),) = (table for table in tables_of("columns") if table[0] == heading)
        for names, _, _, value in rows:
            for name in codes(names):
                if name in columns and value != "as it is":
                    assert str(columns[name][2]) == value, name


def test_columns_of_models_are_keys_of_json(files):
    responses = formats.open_responses(files.responses_jsonl, skip_failed=True)
    kinds = {
        "scores": (files.base, files.q8),
        "responses": (responses, responses.like(files.responses_other_jsonl)),
    }
    for kind, (base, other) in kinds.items():
        keys = described_keys("compare", kind)
        result = {*compare_files(base, {"a": other}).columns()}
        assert result <= keys["."] | keys[".candidates[]"]
    samples = compare_samples(files.base_mc_jsonl, {"a": files.noise_mc_jsonl}, margin=0.1)
    keys = described_keys("compare", "samples")[".candidates[].metrics[]"]
    ends = {name.replace("_interval", end) for name in keys for end in ("", "_low", "_high")}
    assert {*samples.columns()} <= ends | {"metric"}
    assert [*samples["a"].metrics[0].columns()] == ["doc_id", "base", "other", "sample_weight"]


# -- the command -------------------------------------------------------------------------------------------------------


def commands():
    """The parsers of the commands, by name."""
    (action,) = (one for one in make_parser()._actions if isinstance(one, argparse._SubParsersAction))
    return action.choices


def options_of(parser):
    """The options of a command with the words of its help, by the title of their group."""
    result = {}
    for group in parser._action_groups:
        for action in group._group_actions:
            value = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else "")
            names = ", ".join(action.option_strings) or value
            takes_value = action.option_strings and action.nargs != 0
            result.setdefault(group.title, {})[f"{names} {value}" if takes_value else names] = action.help
    return result


@pytest.mark.parametrize("command", ["score", "compare", "sketch", "info"])
def test_options_are_described_in_the_words_of_the_help(command):
    described = {
        group: {option.strip("`"): meaning.replace("`", "") for option, meaning in rows}
        for heading, (group, _), rows in tables_of("command")
        if heading == f"`tokenloss {command}`"
    }
    result = options_of(commands()[command])
    assert described == {
        group: {option: words.replace("`", "") for option, words in options.items()}
        for group, options in result.items()
    }


def test_usage_is_that_of_the_help():
    blocks = [block.text for block in pages.blocks_of(pages.DOCS / "reference" / "command.md")]
    for parser in commands().values():
        assert parser.format_usage().replace("usage: ", "", 1).replace("\n       ", "\n") in blocks


# -- environment variables ---------------------------------------------------------------------------------------------


def test_environment_variables_are_described():
    sources = [ROOT / "setup.py", *ROOT.glob("src/**/*.py"), *ROOT.glob("tests/helpers/*.py")]
    text = "".join(path.read_text("utf-8") for path in sources)
    read = {*re.findall(r"environ(?:\.get\(|\[)\"(\w+)", text), *re.findall(r"_VARIABLE = \"(\w+)\"", text)} - {"PATH"}
    described = {name for _, _, rows in tables_of("environment") for names, *_ in rows for name in codes(names)}
    assert read <= described
    assert {name for name in described if name.startswith("TOKENLOSS_")} <= read


# -- files -------------------------------------------------------------------------------------------------------------


def test_arrays_of_files_are_described():
    names = {*KINDS, *scores_file.HIDDEN_NAMES, *scores_file.PARTS, *scores_file.TARGETS, *scores_file.INPUT_IDS}
    tables = {heading: rows for heading, _, rows in tables_of("files")}
    assert {name for names, *_ in tables["The arrays"] for name in codes(names)} == names | {scores_file.MASK}
    words = " ".join(cell for row in tables["How content is recognized"] for cell in row)
    for one in FORMATS:
        assert all(suffix in words for suffix in one.suffixes), one.words
        assert one.magic in (b"", b"PK") or one.magic.decode("latin1").replace("\x93", r"\x93") in words


def test_openers_are_described_with_their_options():
    ((_, _, rows),) = (table for table in tables_of("files") if table[0] == "Openers")
    described = {}
    for call, _, options in rows:
        (name,) = re.findall(r"`(\w+)\(", call)
        described[name] = {*codes(options)} - {"open_scores"}
    described["open_hidden_states"] ^= described["open_scores"]  # those of scores, except `kind`
    openers = [name for name in formats.__all__ if name.startswith("open_") or name == "blocks"]
    result = {name: inspect.signature(getattr(formats, name)).parameters.values() for name in openers}
    assert described == {
        name: {one.name for one in parameters if one.kind is one.KEYWORD_ONLY} for name, parameters in result.items()
    }


def test_names_of_log_probabilities_are_described():
    tables = {heading: rows for heading, _, rows in tables_of("files")}
    described = {codes(name)[0]: codes(mask)[0] for name, mask, _ in tables["Log-probabilities of tokens"]}
    assert described == {name: mask or "--mask NAME" for name, mask in FIELDS.items()}


def test_functions_and_results_are_listed():
    listed = re.findall(r"^   (tokenloss\.\S+)$", (pages.DOCS / "reference/api.md").read_text("utf-8"), re.MULTILINE)
    modules = (tokenloss, tokenloss.dask, formats, page, plots, results, sinks, testing)
    public = [f"{module.__name__}.{name}" for module in modules for name in module.__all__ if name != "KINDS"]
    assert sorted(listed) == sorted([*public, "tokenloss.formats.llama_cpp.write"])
