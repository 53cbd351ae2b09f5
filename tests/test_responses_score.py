"""evaluate and `tokenloss score` of responses of servers: their figures, tables and pages, and what they refuse."""

import csv
import json
import math
import re
from html.parser import HTMLParser

import clients
import numpy as np
import pytest
from commands import LOGITS, TARGETS, assert_refused

import tokenloss._evaluation.responses as score
from tokenloss import evaluate, sinks
from tokenloss._evaluation.rounding import Rounding

COMPLETIONS = [f"vllm/completion_{i:02}.json" for i in range(10)]  # the prompt of 08 is a single token
CONTINUED = [name for name in COMPLETIONS if "08" not in name]


@pytest.fixture
def completions(tmp_path):
    """Ten completions of vLLM in one file."""
    return clients.save(tmp_path / "completions.jsonl", *COMPLETIONS)


def chat(*tokens, custom_id=None):
    """A response of a chat, or a line of a batch: tokens are pairs of text and log-probability, or with a list."""
    content = [
        {"token": text, "logprob": logprob, "top_logprobs": [{"token": t, "logprob": x} for t, x in (*others, [])[0]]}
        if others else {"token": text, "logprob": logprob, "top_logprobs": []}
        for text, logprob, *others in tokens
    ]  # fmt: skip
    text = "".join(token[0] for token in tokens)
    body = {"choices": [{"index": 0, "message": {"content": text}, "logprobs": {"content": content}}]}
    return body if custom_id is None else batch(custom_id, body)


def batch(custom_id, body, status=200, error=None):
    return {"custom_id": custom_id, "response": {"status_code": status, "body": body}, "error": error}


def clustered(sums, counts):
    """Mean of all tokens, and its standard error by sequences."""
    sums, counts = np.array(sums), np.array(counts)
    n, mean = len(sums), np.sum(sums) / np.sum(counts)
    return mean, math.sqrt(n / (n - 1) * np.sum((sums - mean * counts) ** 2)) / np.sum(counts)


# -- figures -----------------------------------------------------------------------------------------------------------


def test_loss_and_error_are_those_of_the_full_logits(completions, score_json):
    found = score_json(completions)
    references = [clients.references()[name] for name in CONTINUED]
    sums = [float(-np.nansum(reference.logprobs)) for reference in references]
    counts = [len(reference.ids) - 1 for reference in references]
    mean, stderr = clustered(sums, counts)
    assert found["loss"] == pytest.approx(mean, abs=1e-6)
    assert found["stderr"] == pytest.approx(stderr, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    assert found["is_clustered"]
    assert found["sequence_loss"] == pytest.approx(np.mean(np.divide(sums, counts)), abs=1e-6)
    assert (found["tokens"], found["n_sequences"], found["responses"]) == (sum(counts), 9, 10)
    ranks = np.concatenate([reference.ranks[1:] for reference in references])
    assert found["accuracy"] == np.mean(ranks == 1)
    assert found["greedy_known"] == found["tokens"]
    assert [row["sequence"] for row in found["sequences"]] == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    for row, total, count in zip(found["sequences"], sums, counts, strict=True):
        assert row["nll"] == pytest.approx(total, abs=1e-4)
        assert (row["tokens"], row["line"], row["choice"], row["custom_id"]) == (count, row["sequence"] + 1, 0, None)


@pytest.mark.parametrize(("pattern", "layout", "first"), [
    (r"sglang/generate_0\d", "SGLang", 1),
    (r"llama_cpp_python/completion_echo_bos_0\d", "completions", 2),  # the BOS is not in the response
])  # fmt: skip
def test_loss_of_other_servers(pattern, layout, first, tmp_path):
    names = [name for name in clients.references() if re.match(pattern, name) and "08" not in name]
    assert len(names) == 9
    found = evaluate([clients.save(tmp_path / "responses.jsonl", *names)]).figures
    references = [clients.references()[name].logprobs[first:] for name in names]
    assert found["loss"] == pytest.approx(float(-np.mean(np.concatenate(references))), abs=1e-5)
    assert (found["dialect"], found["kind"], found["part"]) == (layout, "responses", "prompt")
    assert found["n_sequences"] == len(names)


def test_part(completions, score_json):
    losses = {part: score_json(completions, "--part", part) for part in ("prompt", "generated", "all")}
    assert losses["prompt"]["tokens"] + losses["generated"]["tokens"] == losses["all"]["tokens"]
    generated = [clients.response(name)["choices"][0]["logprobs"]["token_logprobs"] for name in COMPLETIONS]
    assert losses["generated"]["loss"] == pytest.approx(-np.mean(generated))
    assert losses["generated"]["part"] == "generated"
    assert score_json(completions)["loss"] == losses["prompt"]["loss"]


def test_tokens_without_a_number_are_counted(completions, score_json, command):
    found = score_json(completions)
    assert (found["without_number"], found["sentinels"], found["ignored"]) == (10, 0, 10)
    assert re.search(r"tokens +\d+ +10 without a number\n", command("score", completions)[1])


def test_sentinels_are_not_averaged_as_atom_wrote_them(score_json, tmp_path):
    found = score_json(clients.save(tmp_path / "sentinel.json", "vllm/rendered_sentinel_prompt_logprobs.json"))
    entries = clients.response("vllm/rendered_sentinel_prompt_logprobs.json")["choices"][0]["prompt_logprobs"]
    own = [next(iter(entry.values()))["logprob"] for entry in entries if entry]
    assert own.count(-9999.0) == found["sentinels"] == 1
    assert found["loss"] == pytest.approx(-np.mean([x for x in own if x != -9999.0]))
    assert found["ignored"] == found["without_number"] + 1


def test_accuracy_is_of_the_tokens_where_it_is_known(score_json, command, tmp_path):
    tokens = [("a", -0.5, [("a", -0.5), ("b", -2)]), ("b", -2.0, [("a", -0.5), ("b", -2)]), ("c", -1.0)]
    path = clients.save_lines(tmp_path / "chats.jsonl", chat(*tokens))
    found = score_json(path)
    assert (found["accuracy"], found["greedy_known"], found["tokens"]) == (0.5, 2, 3)
    assert "50.00 %    of 2 tokens where it is known" in command("score", path)[1]
    clients.save_lines(path, chat(("c", -1.0), ("d", -2.0)))
    found = score_json(path)
    assert found["accuracy"] is None
    assert found["sequences"][0]["is_greedy"] is None
    assert "greedy accuracy" not in command("score", path)[1]


def test_a_response_is_greedy_only_where_that_is_known(tmp_path):
    best, other = ("a", -0.5, [("a", -0.5), ("b", -2)]), ("b", -2.0, [("a", -0.5), ("b", -2)])
    unknown = ("c", -1.0)
    lines = [chat(best, best), chat(best, unknown), chat(other, unknown), chat(unknown)]
    sequences = evaluate([clients.save_lines(tmp_path / "chats.jsonl", *lines)]).sequences
    assert sequences["is_greedy_known"].tolist() == [True, False, True, False]
    assert sequences["is_greedy"].tolist() == [True, False, False, False]


def test_bits_per_byte_are_of_the_responses_own_text(score_json, tmp_path):
    names = COMPLETIONS[:6:2]
    found = score_json(clients.save(tmp_path / "c.jsonl", *names))
    sizes, losses = [], []
    for name in names:
        first = clients.response(name)["choices"][0]["prompt_logprobs"]
        texts = [next(iter(entry.values()))["decoded_token"] for entry in first if entry]
        sizes.append(len("".join(texts).encode()))
        losses.append(-float(np.nansum(clients.references()[name].logprobs)) / math.log(2))
    mean, stderr = clustered(losses, sizes)
    assert found["n_bytes"] == sum(sizes)
    assert found["bits_per_byte"] == pytest.approx(mean, rel=1e-6)
    assert found["bits_per_byte_stderr"] == pytest.approx(stderr, rel=1e-5)
    assert found["bytes_are_by_sequence"]


def test_bits_per_byte_by_bytes_and_text(completions, score_json, tmp_path):
    (tmp_path / "text").write_text("ten bytes!", encoding="utf-8")
    plain = score_json(completions)
    for option, value in ("--bytes", 10), ("--text", tmp_path / "text"):
        found = score_json(completions, option, value)
        assert found["n_bytes"] == 10 != plain["n_bytes"]
        assert not found["bytes_are_by_sequence"]
    lengths = np.arange(1, 10)
    assert evaluate([completions], n_bytes=lengths).figures["n_bytes"] == 45


def test_bits_per_byte_are_left_out_where_bytes_are_not_known(score_json, command, tmp_path):
    path = clients.save(tmp_path / "g.jsonl", "sglang/generate_00.json", "sglang/generate_01.json")  # 01 has no text
    found = score_json(path)
    assert (found["n_bytes"], found["bits_per_byte"]) == (0, None)
    assert "bits per byte" not in command("score", path)[1]


@pytest.mark.parametrize(("null", "n_bytes"), [(0, 0), (2, 0), (3, 3), (None, 5)])
def test_bits_per_byte_do_not_count_a_character_that_is_scored_in_part(null, n_bytes, tmp_path):
    texts = ["", "", "\N{SNOWMAN}", "ab"]  # vLLM gives all of a character to its last token
    entries = [{str(9 + i): {"logprob": -1.0, "rank": 2, "decoded_token": text}} for i, text in enumerate(texts)]
    if null is not None:
        entries[null][str(9 + null)]["logprob"] = -9999.0
    choice = {"index": 0, "text": "", "prompt_logprobs": entries, "prompt_token_ids": [9, 10, 11, 12]}
    path = clients.save_lines(tmp_path / "c.jsonl", {"choices": [choice]})
    assert evaluate([path]).figures["n_bytes"] == n_bytes


@pytest.mark.parametrize(("values", "words"), [
    ([-0.5, -12.25], "2 decimals"),
    ([-1.2346, -3.1, 0.0, -math.inf], "4 decimals"),
    ([-3.0], "0 decimals"),
    ([-0.1], "1 decimal"),
    (np.log(np.arange(1, 50) / 50).astype(np.float32), "float32"),
    (np.log(np.arange(1, 50) / 50).astype(np.float16), "float16"),
    ((np.log(np.arange(1, 50) / 50).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32), "bfloat16"),
    ([float(f"{x:.9g}") for x in np.log(np.arange(1, 50) / 50)], "9 digits"),
    (np.log(np.arange(1, 50) / 50), "float64"),
    ([-1e-300, -1e300], "float64"),
    ([0.0, np.nan], ""),
])  # fmt: skip
def test_rounding(values, words):
    values = np.array(values, np.float64)
    assert str(Rounding.of(values)) == words
    parts = Rounding.of(values[:1]) + Rounding.of(values[1:])
    assert parts == Rounding.of(values)
    assert str(parts + Rounding()) == words


def test_rounding_is_told(completions, score_json, command, tmp_path):
    assert score_json(completions)["rounding"] == "float32"
    path = clients.save_lines(tmp_path / "chats.jsonl", chat(("a", -1.2346), ("b", -0.5)))
    assert score_json(path)["rounding"] == "4 decimals"
    assert "1 responses (chat), what was generated; log-probabilities of 4 decimals\n" in command("score", path)[1]


def test_a_loss_of_certainty_is_0_and_of_impossibility_inf(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(chat(("a", -0.0), ("b", 0.0), ("c", -math.inf))), encoding="utf-8")
    tokens = tmp_path / "tokens.npy"
    found = evaluate([path], sinks=[sinks.TokenTable(tokens)])
    nll = np.load(tokens)["nll"]
    assert nll.tolist() == [0, 0, math.inf]
    assert not np.signbit(nll).any()
    assert (found.meter.loss, found.figures["without_number"]) == (math.inf, 0)


# -- failed lines, short lists -----------------------------------------------------------------------------------------


def test_failed_lines_end_the_run(command, tmp_path):
    path = clients.save(tmp_path / "batch.jsonl", "vllm/run_batch_out.jsonl")
    assert_refused(command("score", path, "--json"), f"{path}: line 2", "request-bad-model", "does not exist")


def test_skip_failed(score_json, command, tmp_path):
    path = clients.save(tmp_path / "batch.jsonl", "vllm/run_batch_out.jsonl")
    found = score_json(path, "--skip-failed")
    assert found["skipped"] == 2
    assert [(entry["file"], entry["line"], entry["custom_id"]) for entry in found["failed"]] == [
        (str(path), 2, "request-bad-model"), (str(path), 5, "request-too-long"),
    ]  # fmt: skip
    assert all(entry["reason"] for entry in found["failed"])
    assert [(row["line"], row["custom_id"]) for row in found["sequences"]] == [
        (1, "request-0"), (3, "request-1"), (4, "request-2"),
    ]  # fmt: skip
    status, out, err = command("score", path, "--skip-failed")
    assert (status, err) == (0, "")
    assert re.search(r"failed lines +2 +left out; line 2 \(request-bad-model\): ", out)
    assert re.search(r"sequence +line +choice .*custom_id\n +2 +4 +0 .*request-2\n", out)
    assert evaluate([path], skip_failed=True).sequences["custom_id"].tolist() == ["request-0", "request-1", "request-2"]


def test_a_file_of_failed_lines_alone(score_json, command, tmp_path):
    failed = clients.save(tmp_path / "failed.json", "vllm/error_too_long.json")
    other = clients.save(tmp_path / "other.json", COMPLETIONS[0])
    found = score_json(failed, other, "--skip-failed")
    assert (found["n_sequences"], found["skipped"], found["part"]) == (1, 1, "prompt")
    assert score_json(failed, "--skip-failed")["loss"] is None
    assert "0 responses (all failed)" in command("score", failed, "--skip-failed")[1]


def test_lists_that_lost_classes_of_the_same_text_as_of_vllm_44319(score_json, command, tmp_path):
    path = clients.save(tmp_path / "echo.json", "llama_cpp_python/completion_echo_bos_07.json")
    status, out, err = command("score", path)
    assert status == 0
    assert re.fullmatch(r"tokenloss: warning: (\d+) positions list fewer classes than others: [^\n]+\n", err)
    n = int(re.search(r"\d+", err)[0])
    assert evaluate([path]).figures["lost_tops"] == n > 0
    assert re.search(rf"short lists +{n} ", out)


# -- tables, pages, plots ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "csv", "parquet"])
def test_per_token_has_no_entropy_but_what_is_known(suffix, completions, command, tmp_path):
    path = tmp_path / f"tokens.{suffix}"
    if suffix == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is optional")
    assert command("score", completions, "--per-token", path)[0] == 0
    if suffix == "npy":
        table = np.load(path)
        columns = {name: table[name].tolist() for name in table.dtype.names}
    elif suffix == "csv":
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        read = {"True": True, "False": False}
        columns = {name: [read.get(row[name], float(row[name]) if row[name] not in read else 0) for row in rows]
                   for name in rows[0]}  # fmt: skip
    else:
        columns = parquet.read_table(path).to_pydict()
    assert list(columns) == [
        "target", "kept", "nll", "probability", "rank", "argmax", "is_greedy", "file", "sequence", "position",
        "is_greedy_known", "is_prompt",
    ]  # fmt: skip
    references = [clients.references()[name] for name in COMPLETIONS]
    logprobs = np.concatenate([reference.logprobs for reference in references]).astype(float)
    kept = ~np.isnan(logprobs)
    assert np.array_equal(columns["kept"], kept)
    ids = np.concatenate([reference.ids for reference in references])
    is_known = np.array(columns["target"]) >= 0  # of the first token not, where prompt_token_ids are not returned
    assert (is_known | ~kept).all()
    assert np.array_equal(np.array(columns["target"])[is_known], ids[is_known])
    np.testing.assert_allclose(columns["nll"], np.where(kept, -logprobs, 0), atol=1e-5)
    assert np.array_equal(columns["rank"], np.concatenate([reference.ranks for reference in references]))
    top = np.concatenate([reference.top_ids[:, 0] for reference in references])
    assert np.array_equal(columns["argmax"], top)
    lengths = [len(reference.ids) for reference in references]
    assert np.array_equal(columns["sequence"], np.repeat(np.arange(10), lengths))
    assert columns["position"] == [i for length in lengths for i in range(length)]
    assert all(columns["is_prompt"])
    assert np.array_equal(columns["is_greedy_known"], kept)


def test_per_sequence_says_where_a_sequence_comes_from(command, tmp_path):
    path = clients.save(tmp_path / "batch.json", "vllm/completions_batch.json")
    table = tmp_path / "sequences.npy"
    assert command("score", path, "--per-sequence", table)[0] == 0
    table = np.load(table)
    assert table.dtype.names == (
        "file", "sequence", "tokens", "nll", "loss", "perplexity", "is_greedy", "line", "choice", "is_greedy_known",
    )  # fmt: skip
    assert table["line"].tolist() == [1] * 4
    assert table["choice"].tolist() == table["sequence"].tolist() == [0, 1, 2, 3]


def test_tables_of_scores_have_the_columns_that_they_had(npz, tmp_path):
    path, tokens, rows = npz(logits=LOGITS, targets=TARGETS), tmp_path / "t.npy", tmp_path / "s.npy"
    evaluate([path], sinks=[sinks.TokenTable(tokens), sinks.SequenceTable(rows)])
    assert np.load(tokens).dtype.names[-4:] == ("entropy", "file", "sequence", "position")
    assert np.load(rows).dtype.names[-1] == "is_greedy"


def test_a_sink_may_be_used_for_responses_and_for_scores(completions, npz, tmp_path):
    sink = sinks.TokenTable(tmp_path / "t.npy")
    for path, has_entropy in (completions, False), (npz(logits=LOGITS, targets=TARGETS), True), (completions, False):
        evaluate([path], sinks=[sink])
        assert ("entropy" in np.load(tmp_path / "t.npy").dtype.names) == has_entropy


def test_blocks_tell_what_is_known(completions):
    class Kept(sinks.Sink):
        needs_tokens, top_k = True, 3

        def __init__(self):
            self.blocks = []

        def add(self, block):
            self.blocks.append(block)

    sink = Kept()
    evaluate([completions], sinks=[sink])
    (block,) = sink.blocks
    names = [clients.references()[name] for name in COMPLETIONS]
    assert block.top_tokens.shape == block.scores.top_ids.shape == (len(block.ids), 3)
    assert np.array_equal(block.scores.top_ids, np.concatenate([reference.top_ids[:, :3] for reference in names]))
    top = np.concatenate([reference.top_logprobs[:, :3] for reference in names]).astype(float)
    np.testing.assert_allclose(block.scores.top_logprobs, top, atol=1e-5)
    assert np.isnan(block.scores.entropy).all()
    assert block.is_prompt.all()
    assert np.array_equal(block.is_greedy_known, block.scores.kept)
    entry = clients.response(COMPLETIONS[0])["choices"][0]["prompt_logprobs"][1]
    texts = [item["decoded_token"] for item in sorted(entry.values(), key=lambda item: item["rank"])]
    assert block.top_tokens[1].tolist() == texts[:3]


class Page(HTMLParser):
    """Paragraphs of a page, and the data of its tokens."""

    def __init__(self, path):
        super().__init__()
        self.tag, self.paragraphs, self.data, self.words = "", [], None, ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tag = tag if tag != "script" else dict(attributes).get("id", "script")
        if tag == "p" and not attributes:
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        self.tag = ""

    def handle_data(self, text):
        if self.tag == "data":
            self.data = self.data or json.loads(text)
        elif self.tag == "i":
            self.paragraphs[-1] += text
        else:
            self.words += text


def test_html_shows_each_response_and_its_alternatives_by_their_text(command, tmp_path):
    names = ["llama_cpp_python/completion_echo_bos_00.json", "llama_cpp_python/completion_echo_bos_01.json"]
    path, page = clients.save(tmp_path / "echo.jsonl", *names), tmp_path / "page.html"
    assert command("score", path, "--html", page)[0] == 0
    found = Page(page)
    texts = [clients.response(name)["choices"][0]["logprobs"]["tokens"][:-1] for name in names]
    assert found.paragraphs == ["".join(tokens) for tokens in texts]
    data = found.data
    tokens = [text for one in texts for text in one]
    assert data["token"] == tokens
    assert data["id"] == data["top"][:: data["k"]] == [None] * len(tokens)
    assert "entropy" not in data
    assert "-1" not in json.dumps([data["id"], data["top"], data["rank"]])
    assert 0 not in data["rank"]
    tops = clients.response(names[0])["choices"][0]["logprobs"]["top_logprobs"]
    best = max(tops[2], key=tops[2].get)
    assert (data["named"][2 * data["k"]], data["logprob"][2 * data["k"]]) == (
        best,
        pytest.approx(tops[2][best], rel=1e-5),
    )
    assert data["sequence"] == [0] * len(texts[0]) + [1] * len(texts[1])
    assert data["position"] == [*range(len(texts[0])), *range(len(texts[1]))]


def test_html_without_what_is_not_known(command, tmp_path):
    path, page = clients.save_lines(tmp_path / "c.jsonl", chat(("a", -1.0), ("b", -2.0))), tmp_path / "page.html"
    assert command("score", path, "--html", page)[0] == 0
    found = Page(page)
    assert (found.data["rank"], found.data["id"]) == ([None] * 2, [None] * 2)
    assert set(found.data["named"]) == {None}
    assert "accuracy" not in found.words
    clients.save_lines(path, chat(("a", -1.0, [("a", -1.0), ("b", -2.0)]), ("b", -2.0)))
    assert command("score", path, "--html", page)[0] == 0
    assert "of 1 tokens where it is known" in Page(page).words


def test_plot(completions, command, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is optional")
    assert command("score", completions, "--plot", tmp_path / "plot.svg")[0] == 0
    assert (tmp_path / "plot.svg").read_text("utf-8").startswith("<?xml")


@pytest.mark.parametrize("name", ["vllm/completion_prompt_logprobs0.json", "vllm/rendered_echo_no_top.json"])
def test_plot_without_lists_does_not_take_own_tokens_for_the_likeliest(name, command, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is optional")
    from tokenloss import plots

    given = {}
    monkeypatch.setattr(plots, "draw_losses", lambda nll, **options: given.update(options) or plots._figure("", (1, 1)))
    assert command("score", clients.save(tmp_path / "c.json", name), "--plot", tmp_path / "p.png")[0] == 0
    assert "greedy_logprobs" not in given


# -- many responses, files, checkpoints --------------------------------------------------------------------------------


def test_results_do_not_depend_on_how_responses_are_gathered(completions, monkeypatch, tmp_path):
    path = clients.save(tmp_path / "more.jsonl", *COMPLETIONS, "vllm/completion_prompt_logprobs0.json", *COMPLETIONS)
    found = []
    for entries in (1, 100, score._BLOCK_ENTRIES):
        monkeypatch.setattr(score, "_BLOCK_ENTRIES", entries)
        table = tmp_path / f"{entries}.npy"
        one = evaluate([path], sinks=[sinks.TokenTable(table)])
        figures = {name: value for name, value in one.as_dict().items() if name not in ("seconds", "gb_per_second")}
        found.append((figures, one.meter, table.read_bytes()))
    assert found[0] == found[1] == found[2]
    assert found[0][0]["n_sequences"] == 19


def test_many_short_responses_are_scored_together(tmp_path, monkeypatch):
    blocks = []
    scored = score._token_scores
    monkeypatch.setattr(score, "_token_scores", lambda *args: blocks.append(0) or scored(*args))
    lines = [json.dumps(chat(("a", -1.0), ("b", -2.0)))] * 5000
    found = evaluate([clients.save_lines(tmp_path / "chats.jsonl", *lines)])
    assert found.meter.n_sequences == 5000
    assert len(blocks) == 1


def test_several_files(score_json, tmp_path):
    paths = [clients.save(tmp_path / f"part-{i}.jsonl", name) for i, name in enumerate(COMPLETIONS[:3])]
    whole = clients.save(tmp_path / "whole.jsonl", *COMPLETIONS[:3])
    several, one = score_json(tmp_path / "part-*.jsonl"), score_json(whole)
    for name in ("loss", "stderr", "tokens", "n_bytes", "bits_per_byte", "accuracy", "without_number", "responses"):
        assert several[name] == one[name]
    assert [row["file"] for row in several["sequences"]] == list(map(str, paths))
    assert [row["sequence"] for row in several["sequences"]] == [0, 0, 0]


def test_files_of_different_parts_are_refused(command, score_json, tmp_path):
    prompt = clients.save(tmp_path / "a.json", COMPLETIONS[0])
    generated = clients.save(tmp_path / "b.json", "llama_server/completion_00.json")
    assert_refused(command("score", prompt, generated), generated, "'generated'", "--part")
    assert score_json(prompt, generated, "--part", "generated")["dialect"] == "completions, llama.cpp"


def test_state(completions, score_json, command, tmp_path):
    other = clients.save(tmp_path / "batch.jsonl", "vllm/run_batch_out.jsonl")
    argv = completions, other, "--skip-failed", "--state", tmp_path / "state"
    first, again = score_json(*argv), score_json(*argv)
    assert again["bytes"] == 0 < first["bytes"] == completions.stat().st_size + other.stat().st_size
    for name in first.keys() - {"seconds", "gb_per_second", "bytes"}:
        assert again[name] == first[name]
    assert_refused(command("score", completions, *argv[3:]), "written with skip_failed True")
    clients.save(completions, *COMPLETIONS[:2])
    assert_refused(command("score", *argv), "changed")


@pytest.mark.parametrize("change", [
    {"without_number": 9}, {"without_number": -1, "sentinels": 11}, {"greedy_known": 0}, {"greedy_known": 10**6},
    {"dialect": None}, {"failed": [["x", None, "y"]]}, {"rounding": []}, {"rounding": [1, 1, 1, 1, 1, 1]},
    {"sources": {}}, {"lost_tops": 0.5}, {"responses": "1"},
])  # fmt: skip
def test_state_that_was_changed_is_refused(change, completions, score_json, command, tmp_path):
    state = tmp_path / "state"
    score_json(completions, "--state", state)
    content = json.loads(state.read_text())
    content["done"][0]["found"]["responses"] |= change
    state.write_text(json.dumps(content))
    assert_refused(command("score", completions, "--state", state), state)


def test_scheduler(completions, score_json, tmp_path):
    distributed = pytest.importorskip("distributed", reason="Dask is optional")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as cluster:
        here = score_json(completions)
        there = score_json(completions, "--scheduler", cluster.scheduler_address)
    for name in here.keys() - {"seconds", "gb_per_second"}:
        assert there[name] == here[name]


# -- what does not apply -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "name"), [
    (["--targets", "t.npy"], "targets"), (["--segment-ids", "s.npy"], "segment_ids"), (["--array", "x"], "array"),
    (["--kind", "logits"], "kind"), (["--shift"], "shift"), (["--no-shift"], "shift"), (["--ignore-index", "0"],
    "ignore_index"),
])  # fmt: skip
def test_options_of_scores_are_refused(options, name, completions, command):
    assert_refused(command("score", completions, *options), f"{name} is 'given'", "responses of servers")


def test_part_and_skip_failed_are_refused_of_scores(npz, command):
    path = npz(logits=LOGITS, targets=TARGETS)
    assert_refused(command("score", path, "--part", "all"), "part is 'given'", "no responses")
    assert_refused(command("score", path, "--skip-failed"), "skip_failed is 'given'", "no responses")
    for options in ({"part": "prompt"}, {"skip_failed": True}):
        with pytest.raises(ValueError, match="left out where the source is blocks"):
            evaluate([(LOGITS, TARGETS)], **options)
    with pytest.raises(ValueError, match="part is 'answer'; it must be 'prompt', 'generated', 'all'"):
        evaluate([path], part="answer")


def test_responses_and_scores_together_are_refused(completions, npz, command):
    scores = npz(logits=LOGITS, targets=TARGETS)
    for argv in (completions, scores), (scores, completions):
        assert_refused(command("score", *argv), f"{scores}: is a file of scores or targets", "responses")


def test_nothing_is_printed_or_written_before_an_error(command, tmp_path):
    path = clients.save_lines(tmp_path / "c.jsonl", chat(("a", -1.0)), chat(("a", math.nan)))
    table = tmp_path / "tokens.csv"
    assert_refused(command("score", path, "--per-token", table), f"{path}: line 2", "logprob")
    assert not table.exists()


def test_an_output_does_not_replace_responses(completions, command):
    before = completions.read_bytes()
    assert_refused(command("score", completions, "--state", completions), "would replace")
    assert completions.read_bytes() == before


# -- files of scores: the sequence of a token --------------------------------------------------------------------------


def test_highest_loss_tokens_name_their_sequence(npz, score_json, command):
    rng = np.random.default_rng(0)
    path = npz(logits=rng.standard_normal((3, 4, 5)), targets=rng.integers(5, size=(3, 4)))
    for token in score_json(path, "--top", 12)["highest_loss_tokens"]:
        assert token["sequence"] == token["position"] // 4
    assert re.search(r"sequence +position +target +loss", command("score", path)[1])
    flat = npz(logits=LOGITS, targets=TARGETS)
    assert all(token["sequence"] is None for token in score_json(flat)["highest_loss_tokens"])
    assert "sequence" not in command("score", flat)[1]
    given = npz(logits=LOGITS, targets=TARGETS, segment_ids=np.array([7, -1, 7, 3]))
    found = {token["position"]: token["sequence"] for token in score_json(given)["highest_loss_tokens"]}
    assert found == {0: 7, 1: None, 2: 7, 3: 3}
