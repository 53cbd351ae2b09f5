"""`--format github`, `junit` and `card`: workflow commands, JUnit's XML by its schema, and a model-index in YAML."""

import contextlib
import json
import re
import urllib.parse
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from clients import chat, save_lines
from places import DATA

from tokenloss import compare_files, evaluate
from tokenloss._output.reports import _yaml

NAMES = "q4", "a: 100 %, b"
GATES = "--max-kl", "0.02", "--min-same-top", "0.9"


@pytest.fixture
def argv(models):
    """The arguments of a comparison with two candidates, one of which equals the base nearly."""
    near = models.path / "near.npy"
    np.save(near, models.base.reshape(24, 9) + np.float32(1e-3))
    return ["compare", models.path / "base.npz", f"{NAMES[0]}={models.path / 'other.npy'}", f"{NAMES[1]}={near}"]


def commands_in(out):
    """The workflow commands in an output, as the runner of GitHub decodes them: their name, title and message."""
    result = re.findall(r"^\s*::(\w+) title=([^,:]*)::(.*)$", out, re.MULTILINE)
    assert len(result) == len(re.findall(r"^\s*(?:::|##\[)", out, re.MULTILINE))
    return [(name, *map(urllib.parse.unquote, texts)) for name, *texts in result]


def test_github_has_a_line_for_each_gate_that_does_not_hold(argv, models, command, tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    status, out, err = command(*argv, *GATES, "--format", "github")
    verdicts = compare_files(models.path / "base.npz", {"q4": models.path / "other.npy"}).check(
        max_kl=0.02, min_same_top=0.9
    )
    assert (status, err) == (3, "")
    lines = commands_in(out)
    kinds = {"fails": "error", "cannot tell": "warning"}
    expected = [(kinds[one.verdict], f"q4: {one.gate}") for one in verdicts.gates if one.verdict != "holds"]
    assert [line[:2] for line in lines if line[1].startswith("q4")] == expected
    assert ("warning", f"{NAMES[1]}: min_same_top") in [line[:2] for line in lines]
    assert all(line[2].startswith(f"{ {'error': 'fails', 'warning': 'cannot tell'}[line[0]] }: ") for line in lines)
    assert out.startswith(command(*argv, *GATES)[1].rstrip("\n"))
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert command(*argv, *GATES, "--format", "github") == (3, out, "")
    assert summary.read_text("utf-8") == f"before\n{command(*argv, *GATES, '--format', 'markdown')[1]}\n"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    status, out, err = command(*argv, "--format", "github")
    assert (status, out) == (2, "")
    assert "cannot be written" in err


def test_no_line_of_a_table_is_a_workflow_command(models, command, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    names = "::error::owned", "##[error]owned", "x\n::warning::owned", "a%0Ab"
    (models.path / "b").mkdir()
    argv = [f"{name}={models.path / 'other.npz'}" for name in names[:1]]
    _, out, _ = command("compare", models.path / "base.npz", *argv, "--format", "github", "--max-kl", "0.001")
    ((kind, title, _),) = commands_in(out)
    assert (kind, title) == ("error", "::error::owned: max_kl")
    argv = [f"{name}={models.path / 'base.npz'}" for name in names]
    _, out, _ = command("score", *argv, "--format", "github", "--max-loss", "0.5")
    titles = [title for _, title, _ in commands_in(out)]
    assert titles == [f"{name}: max_loss".replace("\n", "\\n") for name in names]


@pytest.fixture(scope="module")
def schema():
    """The schema of JUnit's XML."""
    etree = pytest.importorskip("lxml.etree", reason="validates XML")
    return etree.XMLSchema(etree.parse(DATA / "junit.xsd"))


def test_junit_is_valid_by_its_schema_which_refuses_other_xml(argv, command, schema):
    from lxml import etree

    call = [*argv, *GATES, "--max-decisive-flips", "0"]
    out = command(*call, "--format", "junit")[1].encode()
    schema.assertValid(etree.fromstring(out))
    assert b"<failure" in out
    for old, new in (
        (b' tests="', b' test="'), (b' id="1"', b' id="0"'), (b' errors="', b' errors="-'), (b' type="', b' kind="'),
        (b"<error ", b"<errors/><error "), (b"<system-out></system-out>", b""), (b' timestamp="', b' timestamp="on '),
        (b' classname="tokenloss', b' class="tokenloss'), (b"<properties>", b"<properties><property/>"),
        (b' time="0"', b' time=""'),
    ):  # fmt: skip
        assert old in out
        assert not schema.validate(etree.fromstring(out.replace(old, new, 1))), new


@pytest.mark.parametrize("kind", ["comparison", "evaluation", "models"])
def test_junit_has_a_test_case_for_each_gate(argv, models, command, kind):
    base = models.path / "base.npz"
    call = {"comparison": [*argv, *GATES], "evaluation": ["score", base, "--max-loss", "1", "--max-perplexity", "1e9"],
            "models": ["score", f"A={base}", f"B<&>={base}", "--max-loss", "1"]}[kind]  # fmt: skip
    status, out, err = command(*call, "--format", "junit")
    root = ET.fromstring(out)  # noqa: S314 - our own
    with contextlib.suppress(ImportError):
        from lxml import etree

        etree.XMLSchema(etree.parse(DATA / "junit.xsd")).assertValid(etree.fromstring(out.encode()))
    verdicts = json.loads(command(*call, "--json")[1])
    of_models = {
        "comparison": lambda: {one["name"]: one for one in verdicts["candidates"]},
        "evaluation": lambda: {str(base): verdicts},
        "models": lambda: verdicts,
    }[kind]()
    assert {suite.get("name") for suite in root} == {*of_models}
    assert [int(suite.get("id")) for suite in root] == [*range(len(root))]
    elements = {"fails": ["failure"], "cannot tell": ["error"], "holds": []}
    for suite in root:
        one = of_models[suite.get("name")]
        cases = suite.findall("testcase")
        assert [case.get("name") for case in cases] == [gate["gate"] for gate in one["gates"]]
        assert [[child.tag for child in case] for case in cases] == [elements[gate["verdict"]] for gate in one["gates"]]
        assert int(suite.get("tests")) == len(cases)
        for name in "failure", "error":
            assert int(suite.get(f"{name}s")) == len(suite.findall(f"testcase/{name}"))
        assert suite.find("properties/property[@name='signature']").get("value") == one["signature"]
    assert (status, err) == ({"comparison": 3, "evaluation": 3, "models": 3}[kind], "")


def metadata_of(out):
    """The YAML of a card, below its Markdown."""
    yaml = pytest.importorskip("yaml")
    table, _, block = out.partition("```yaml\n")
    assert table.startswith("**Results**")
    return yaml.safe_load(block.removesuffix("```\n"))


def test_card_has_the_metrics_of_each_model_in_a_model_index(argv, models, command):
    base = models.path / "base.npz"
    status, out, err = command(*argv, "--format", "card")
    assert (status, err) == (0, "")
    index = metadata_of(out)["model-index"]
    assert [one["name"] for one in index] == [*NAMES]
    one = compare_files(base, {"q4": models.path / "other.npy"})["q4"]
    types = {
        "kl_divergence": one.mean_kl, "perplexity": one.perplexity, "perplexity_ratio": one.perplexity_ratio,
        "top_1_agreement": one.same_top,
    }  # fmt: skip
    ((result,),) = (of_model["results"] for of_model in index[:1])
    assert result["dataset"] == {"type": str(base), "name": str(base)}
    assert {metric["type"] for metric in result["metrics"]} == {*types}
    for metric in result["metrics"]:
        value, args = types[metric["type"]], metric["args"]
        assert metric["value"] == float(value)
        assert args["stderr"] == value.stderr
        assert args["interval"] == [*value.interval]
        assert args["n"] == one.count == 24
        assert (args["n_sequences"], args["errors_by"], args["signature"]) == (4, "sequences", one.signature)
        assert args["direction"] == ("higher is better" if metric["type"] == "top_1_agreement" else "lower is better")
        assert f"| {metric['name']} " in out
    evaluation = evaluate(base)
    (of_score,) = metadata_of(command("score", base, "--format", "card")[1])["model-index"]
    (result,) = of_score["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "perplexity": evaluation.perplexity, "loss": evaluation.loss, "accuracy": evaluation.accuracy,
    }  # fmt: skip


def test_cards_are_read_by_hugging_face(argv, command):
    hub = pytest.importorskip("huggingface_hub")
    block = command(*argv[:3], "--format", "card")[1].partition("```yaml\n")[2].removesuffix("```\n")
    card = hub.ModelCard(f"---\n{block}---\nText.", ignore_metadata_errors=False)
    assert card.data.model_name == "q4"
    assert [one.metric_type for one in card.data.eval_results] == [
        "perplexity", "kl_divergence", "perplexity_ratio", "top_1_agreement",
    ]  # fmt: skip
    assert all({"unit", "direction", "n", "stderr", "interval", "signature"} <= {*one.metric_args}
               for one in card.data.eval_results)  # fmt: skip


def test_cards_of_responses_log_probabilities_samples_and_drafts(argv, command, tmp_path):
    for name, shift in ("base", 0.0), ("other", 0.25):
        tops = [("a", -0.5 - shift), ("b", -1.5)]
        save_lines(tmp_path / f"{name}.jsonl", *(chat(("a", -0.5 - shift - 1e-9 * i, tops)) for i in range(3)))
        save_lines(tmp_path / f"{name}.lp.jsonl", *({"logprobs": [-0.5 - shift - i / 9]} for i in range(3)))
        samples = [{"doc_id": i, "filtered_resps": [], "acc": float(i % 2)} for i in range(4)]
        (tmp_path / f"{name}.samples.json").write_text(json.dumps(samples))
    expected = {
        "base.jsonl": {"perplexity", "kl_divergence_bound", "perplexity_ratio", "top_1_agreement"},
        "base.lp.jsonl": {"kl_divergence_k3", "effective_sample_size"},
        "base.samples.json": {"acc"},
    }
    for name, types in expected.items():
        other = tmp_path / name.replace("base", "other")
        (model,) = metadata_of(command("compare", tmp_path / name, f"m={other}", "--format", "card")[1])["model-index"]
        metrics = model["results"][0]["metrics"]
        assert {one["type"] for one in metrics} == types
        assert all(isinstance(one["value"], float) for one in metrics)
        assert model["results"][0]["dataset"]["name"] == str(tmp_path / name)
    (model,) = metadata_of(command(*argv[:3], "--draft", "--format", "card")[1])["model-index"]
    assert [one["type"] for one in model["results"][0]["metrics"]] == ["acceptance"]


def test_small_and_large_numbers_stay_numbers_in_yaml():
    yaml = pytest.importorskip("yaml")
    value = {
        "x": [
            {
                "a": 1e-05,
                "b": 1e22,
                "c": -3e-10,
                "d": "ids:12e34",
                "e": None,
                "f": True,
                "g": [1e-7, 2.5],
                "h": "é\U0001f600",
            }
        ]
    }
    assert yaml.safe_load("\n".join(_yaml(value))) == value


OF_TEXTS = ["--text", "t", "--tokenizer-a", "a", "--tokenizer-b", "b"]


@pytest.mark.parametrize("form", ["junit", "card", "github"])
def test_formats_that_do_not_apply(argv, command, form):
    calls = [([*argv[:3], *OF_TEXTS], f"--format {form} does not apply to models with different tokenizers (--text)")]
    if form == "junit":
        calls += [(call, "--format junit is for gates, such as --max-") for call in (argv, ["score", argv[1]])]
    for call, message in calls:
        status, out, err = command(*call, "--format", form)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err
