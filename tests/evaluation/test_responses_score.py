"""evaluate and `tokenloss score` of responses of servers: their figures, tables and pages, and what they refuse."""

import json
import math
import os
import re
from types import SimpleNamespace

import clients
import numpy as np
import pytest
from clients import COMPLETIONS, chat
from commands import LOGITS, TARGETS, assert_refused
from files import held_at_most

import tokenloss._evaluation.responses as score
from tokenloss import evaluate, sinks
from tokenloss._evaluation.results import ResponseFigures
from tokenloss._evaluation.sequences import Sources
from tokenloss.formats import open_responses
from tokenloss.formats.rounding import Rounding

CONTINUED = [name for name in COMPLETIONS if "08" not in name]


@pytest.fixture
def completions(tmp_path):
    """Ten completions of vLLM in one file."""
    return clients.save(tmp_path / "completions.jsonl", *COMPLETIONS)


def clustered(sums, counts):
    """Mean of all tokens, and its standard error by sequences."""
    sums, counts = np.array(sums), np.array(counts)
    n, mean = len(sums), np.sum(sums) / np.sum(counts)
    return mean, math.sqrt(n / (n - 1) * np.sum((sums - mean * counts) ** 2)) / np.sum(counts)


# -- figures -----------------------------------------------------------------------------------------------------------


def test_loss_and_error_are_those_of_the_full_logits(completions, score_json):
    result = score_json(completions)
    references = [clients.references()[name] for name in CONTINUED]
    sums = [float(-np.nansum(reference.logprobs)) for reference in references]
    counts = [len(reference.ids) - 1 for reference in references]
    mean, stderr = clustered(sums, counts)
    assert result["loss"] == pytest.approx(mean, abs=1e-6)
    assert result["stderr"] == pytest.approx(stderr, rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    assert result["is_clustered"]
    assert result["sequence_loss"] == pytest.approx(np.mean(np.divide(sums, counts)), abs=1e-6)
    assert (result["count"], result["n_sequences"], result["n_responses"]) == (sum(counts), 9, 10)
    ranks = np.concatenate([reference.ranks[1:] for reference in references])
    assert result["accuracy"] == np.mean(ranks == 1)
    assert result["n_greedy_known"] == result["count"]
    assert [row["sequence"] for row in result["sequences"]] == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    for row, total, count in zip(result["sequences"], sums, counts, strict=True):
        assert row["nll"] == pytest.approx(total, abs=1e-4)
        assert (row["count"], row["line"], row["choice"], row["custom_id"]) == (count, row["sequence"] + 1, 0, None)


@pytest.mark.parametrize(("pattern", "layout", "first"), [
    (r"sglang/generate_0\d", "SGLang", 1),
    (r"llama_cpp_python/completion_echo_bos_0\d", "completions", 2),  # the BOS is not in the response
])  # fmt: skip
def test_loss_of_other_servers(pattern, layout, first, tmp_path):
    names = [name for name in clients.references() if re.match(pattern, name) and "08" not in name]
    assert len(names) == 9
    result = evaluate([clients.save(tmp_path / "responses.jsonl", *names)]).figures
    references = [clients.references()[name].logprobs[first:] for name in names]
    assert result["loss"] == pytest.approx(float(-np.mean(np.concatenate(references))), abs=1e-5)
    assert (result["dialect"], result["kind"], result["part"]) == (layout, "responses", "prompt")
    assert result["n_sequences"] == len(names)


def test_part(completions, score_json):
    losses = {part: score_json(completions, "--part", part) for part in ("prompt", "generated", "all")}
    assert losses["prompt"]["count"] + losses["generated"]["count"] == losses["all"]["count"]
    generated = [clients.response(name)["choices"][0]["logprobs"]["token_logprobs"] for name in COMPLETIONS]
    assert losses["generated"]["loss"] == pytest.approx(-np.mean(generated))
    assert losses["generated"]["part"] == "generated"
    assert score_json(completions)["loss"] == losses["prompt"]["loss"]


def test_tokens_without_a_number_are_counted(completions, score_json, command):
    result = score_json(completions)
    assert (result["n_without_number"], result["n_sentinels"], result["n_ignored"]) == (10, 0, 10)
    assert re.search(r"tokens +\d+ +10 without a log-probability\n", command("score", completions)[1])


def test_sentinels_are_not_averaged_as_atom_wrote_them(score_json, tmp_path):
    result = score_json(clients.save(tmp_path / "sentinel.json", "vllm/rendered_sentinel_prompt_logprobs.json"))
    entries = clients.response("vllm/rendered_sentinel_prompt_logprobs.json")["choices"][0]["prompt_logprobs"]
    own = [next(iter(entry.values()))["logprob"] for entry in entries if entry]
    assert own.count(-9999.0) == result["n_sentinels"] == 1
    assert result["loss"] == pytest.approx(-np.mean([x for x in own if x != -9999.0]))
    assert result["n_ignored"] == result["n_without_number"] + 1
    table = tmp_path / "tokens.npy"
    evaluate([tmp_path / "sentinel.json"], sinks=[sinks.TokenTable(table)])
    columns = ("kept", "nll", "probability", "rank", "argmax", "is_greedy")
    assert np.load(table)[list(columns)][own.index(-9999.0) + 1].tolist() == pytest.approx(
        (False, np.nan, np.nan, -1, -1, False), nan_ok=True
    )


def test_accuracy_is_of_the_tokens_where_it_is_known(score_json, command, tmp_path):
    tokens = [("a", -0.5, [("a", -0.5), ("b", -2)]), ("b", -2.0, [("a", -0.5), ("b", -2)]), ("c", -1.0)]
    path = clients.save_lines(tmp_path / "chats.jsonl", chat(*tokens))
    result = score_json(path)
    assert (result["accuracy"], result["n_greedy_known"], result["count"]) == (0.5, 2, 3)
    assert re.search(r"greedy accuracy +50.00 % +of 2 tokens where it is known\n", command("score", path)[1])
    clients.save_lines(path, chat(("c", -1.0), ("d", -2.0)))
    result = score_json(path)
    assert result["accuracy"] is None
    assert result["sequences"][0]["is_greedy"] is None
    assert "greedy accuracy" not in command("score", path)[1]


def test_a_response_is_greedy_only_where_that_is_known(tmp_path):
    best, other = ("a", -0.5, [("a", -0.5), ("b", -2)]), ("b", -2.0, [("a", -0.5), ("b", -2)])
    unknown = ("c", -1.0)
    missed = ("c", -9999.0)  # below what was returned, so that another is the likeliest
    lines = [chat(best, best), chat(best, unknown), chat(other, unknown), chat(unknown), chat(best, missed)]
    evaluation = evaluate([clients.save_lines(tmp_path / "chats.jsonl", *lines)])
    assert evaluation.sequences["is_greedy_known"].tolist() == [True, False, True, False, True]
    assert evaluation.sequences["is_greedy"].tolist() == [True, False, False, False, False]
    assert evaluation.figures["n_greedy_known"] == 5


def test_bits_per_byte_are_of_the_responses_own_text(score_json, tmp_path):
    names = COMPLETIONS[:6:2]
    result = score_json(clients.save(tmp_path / "c.jsonl", *names))
    sizes, losses = [], []
    for name in names:
        first = clients.response(name)["choices"][0]["prompt_logprobs"]
        texts = [next(iter(entry.values()))["decoded_token"] for entry in first if entry]
        sizes.append(len("".join(texts).encode()))
        losses.append(-float(np.nansum(clients.references()[name].logprobs)) / math.log(2))
    mean, stderr = clustered(losses, sizes)
    assert result["n_bytes"] == sum(sizes)
    assert result["bits_per_byte"] == pytest.approx(mean, rel=1e-6)
    assert result["bits_per_byte_stderr"] == pytest.approx(stderr, rel=1e-5)
    assert result["bytes_are_by_sequence"]


def test_bits_per_byte_by_bytes_and_text(completions, score_json, tmp_path):
    (tmp_path / "text").write_text("ten bytes!", encoding="utf-8")
    plain = score_json(completions)
    for option, value in ("--n-bytes", 10), ("--text", tmp_path / "text"):
        result = score_json(completions, option, value)
        assert result["n_bytes"] == 10 != plain["n_bytes"]
        assert not result["bytes_are_by_sequence"]
    lengths = np.arange(1, 10)
    assert evaluate([completions], n_bytes=lengths).figures["n_bytes"] == 45


def test_bits_per_byte_are_left_out_where_bytes_are_not_known(score_json, command, tmp_path):
    path = clients.save(tmp_path / "g.jsonl", "sglang/generate_00.json", "sglang/generate_01.json")  # 01 has no text
    result = score_json(path)
    assert (result["n_bytes"], result["bits_per_byte"]) == (0, None)
    assert re.search("bits per byte +not known +the text of some tokens is not known\n", command("score", path)[1])


@pytest.mark.parametrize(("null", "n_bytes"), [(0, 0), (2, 0), (3, 3), (None, 5)])
def test_bits_per_byte_do_not_count_a_character_that_is_scored_in_part(null, n_bytes, tmp_path):
    texts = ["", "", "\N{SNOWMAN}", "ab"]  # vLLM gives all of a character to its last token
    entries = [{str(9 + i): {"logprob": -1.0, "rank": 2, "decoded_token": text}} for i, text in enumerate(texts)]
    if null is not None:
        entries[null][str(9 + null)]["logprob"] = -9999.0
    choice = {"index": 0, "text": "", "prompt_logprobs": entries, "prompt_token_ids": [9, 10, 11, 12]}
    path = clients.save_lines(tmp_path / "c.jsonl", {"choices": [choice]})
    assert evaluate([path]).figures["n_bytes"] == n_bytes


def test_bits_per_byte_of_a_first_token_without_text(tmp_path):
    tokens = {"tokens": ["", "ab"], "token_logprobs": [None, -1.0], "top_logprobs": [None, None]}
    choice = {"index": 0, "text": "ab", "logprobs": tokens}
    usage = {"prompt_tokens": 2, "completion_tokens": 0}
    path = clients.save_lines(tmp_path / "c.jsonl", {"choices": [choice], "usage": usage})
    assert evaluate([path]).figures["n_bytes"] == 2


@pytest.mark.parametrize("end", ["<|im_end|>", "</s>"])
@pytest.mark.parametrize("has_bytes", [True, False])
def test_bits_per_byte_do_not_count_an_end_of_text_that_the_text_does_not_hold(end, has_bytes, tmp_path):
    body = chat(("Yes", -1.0), (end, -0.5))
    for entry in body["choices"][0]["logprobs"]["content"]:
        entry["bytes"] = list(entry["token"].encode()) if has_bytes else None
    path = clients.save_lines(tmp_path / "chats.jsonl", body)
    assert evaluate([path]).figures["n_bytes"] == 3 + len(end)
    body["choices"][0]["message"]["content"] = "Yes"
    clients.save_lines(path, body)
    assert evaluate([path]).figures["n_bytes"] == 3
    assert evaluate([path]).figures["bits_per_byte"] == pytest.approx(1.5 / 3 / math.log(2))
    body["choices"][0]["message"]["content"] = ""
    body["choices"][0]["logprobs"]["content"][:1] = []
    clients.save_lines(path, body)
    assert evaluate([path]).figures["n_bytes"] == 0
    clients.save_lines(path, body, chat(("Yes", -1.0)))
    assert evaluate([path]).figures["bits_per_byte"] == pytest.approx(1.5 / 3 / math.log(2))


def test_classes_that_are_not_known_are_not_shown(score_json, command, tmp_path):
    path = clients.save_lines(tmp_path / "chats.jsonl", chat(("a", -1.0), ("b", -2.0)))
    tokens = score_json(path)["highest_loss_tokens"]
    assert [(token["target"], token["text"], token["position"]) for token in tokens] == [(None, "b", 1), (None, "a", 0)]
    assert re.search(r"\n +sequence +position +nll +probability +text\n", command("score", path)[1])


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
    assert "the generated tokens; log-probabilities rounded to 4 decimals\n" in command("score", path)[1]


def test_a_loss_of_certainty_is_0_and_of_impossibility_inf(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(chat(("a", -0.0), ("b", 0.0), ("c", -math.inf))), encoding="utf-8")
    tokens = tmp_path / "tokens.npy"
    with pytest.warns(UserWarning, match="1 of 3 tokens has an infinite loss"):
        result = evaluate([path], sinks=[sinks.TokenTable(tokens)])
    nll = np.load(tokens)["nll"]
    assert nll.tolist() == [0, 0, math.inf]
    assert not np.signbit(nll).any()
    assert (result.meter.loss, result.figures["n_without_number"]) == (math.inf, 0)


# -- failed lines, short lists -----------------------------------------------------------------------------------------


def test_failed_lines_end_the_run(command, tmp_path):
    path = clients.save(tmp_path / "batch.jsonl", "vllm/run_batch_out.jsonl")
    assert_refused(command("score", path, "--format", "json"), f"{path}: line 2", "request-bad-model", "does not exist")


def test_skip_failed(score_json, command, tmp_path):
    path = clients.save(tmp_path / "batch.jsonl", "vllm/run_batch_out.jsonl")
    result = score_json(path, "--skip-failed")
    assert result["n_skipped"] == 2
    assert [(entry["file"], entry["line"], entry["custom_id"]) for entry in result["failed"]] == [
        (str(path), 2, "request-bad-model"), (str(path), 5, "request-too-long"),
    ]  # fmt: skip
    assert all(entry["reason"] for entry in result["failed"])
    assert [(row["line"], row["custom_id"]) for row in result["sequences"]] == [
        (1, "request-0"), (3, "request-1"), (4, "request-2"),
    ]  # fmt: skip
    status, out, err = command("score", path, "--skip-failed")
    assert (status, err) == (0, "")
    assert re.search(r"failed lines +2 +left out; line 2 \(request-bad-model\): ", out)
    assert re.search(r"sequence +line +choice .*custom_id\n +2 +4 +0 .*request-2\n", out)
    source = open_responses(path, skip_failed=True)
    assert evaluate(source).sequences["custom_id"].tolist() == ["request-0", "request-1", "request-2"]


def named(name, *logprobs, error=None):
    """A line of a batch, with a choice for each log-probability."""
    choices = [chat(("a", logprob))["choices"][0] | {"index": i} for i, logprob in enumerate(logprobs)]
    response = {"status_code": 400, "body": None} if error else {"status_code": 200, "body": {"choices": choices}}
    return {"custom_id": name, "response": response, "error": error}


@pytest.mark.parametrize("options", [[], ["--state", "state"], ["--per-token", "tokens.npy"]])
def test_custom_id_that_comes_twice_is_refused(options, command, tmp_path, monkeypatch):
    """As after `cat out1.jsonl out2.jsonl`, in one file or in two, also where one is resumed from a state."""
    monkeypatch.chdir(tmp_path)
    first = clients.save_lines(tmp_path / "1.jsonl", named("x", -1.0), named("a", -1.0, -2.0), named("b", -1.0))
    second = clients.save_lines(tmp_path / "2.jsonl", named("c", -1.0), named("b", -3.0), named("a", -4.0, -5.0))
    both = tmp_path / "both.jsonl"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    words = "also on line 3 of {}; it must come once in all files, since its tokens would count twice"
    for argv, path, line, other in ([both], both, 5, both), ([first, second], second, 2, first):
        for _ in range(2):
            refused = command("score", *argv, *options)
            assert_refused(refused, f"{path}: line {line}: the custom_id 'b' is {words.format(other)}")
        (tmp_path / "state").unlink(missing_ok=True)
    assert not (tmp_path / "tokens.npy").exists()


def test_custom_id_of_a_failed_line_may_come_again(score_json, tmp_path):
    failed = named("a", error={"message": "too long"})
    path = clients.save_lines(tmp_path / "1.jsonl", failed, named("b", -1.0))
    again = clients.save_lines(tmp_path / "2.jsonl", named("a", -3.0), named("c", -2.0), chat(("a", -2.0)))
    result = score_json(path, again, clients.save_lines(tmp_path / "3.jsonl", chat(("a", -2.0))), "--skip-failed")
    assert (result["count"], result["loss"]) == (5, 2.0)


def test_custom_ids_take_little_memory():
    n, fields = 100_000, {"dialect": "", "part": "", "rounding": Rounding(), "failed": []}
    names_of_counts = ("n_responses", "n_without_number", "n_sentinels", "n_greedy_known", "n_short_lists")
    counts = dict.fromkeys((*names_of_counts, "n_uncovered_bytes"), n)
    names = np.array([f"request-{i}" for i in range(n)], object)
    sources = Sources(np.arange(n), np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, bool), names)
    results = [SimpleNamespace(responses=ResponseFigures(**fields, **counts, sources=sources))]
    with held_at_most(100 * n):
        score.check_names(["a.jsonl"], results)
    names[-1] = names[0]
    with pytest.raises(ValueError, match=r"a.jsonl: line 99999: the custom_id 'request-0' is also on line 0"):
        score.check_names(["a.jsonl"], results)


def test_a_file_of_failed_lines_alone(score_json, command, tmp_path):
    failed = clients.save(tmp_path / "failed.json", "vllm/error_too_long.json")
    other = clients.save(tmp_path / "other.json", COMPLETIONS[0])
    result = score_json(failed, other, "--skip-failed")
    assert (result["n_sequences"], result["n_skipped"], result["part"]) == (1, 1, "prompt")
    assert score_json(failed, "--skip-failed")["loss"] is None
    out = command("score", failed, "--skip-failed")[1]
    assert "0 responses (all failed)" in out
    assert re.search(r"failed lines +1 +left out; line 1: This model's .{80,90}\N{HORIZONTAL ELLIPSIS}\n", out)


def test_lists_that_lost_classes_of_the_same_text_as_of_vllm_44319(score_json, command, tmp_path):
    path = clients.save(tmp_path / "echo.json", "llama_cpp_python/completion_echo_bos_07.json")
    status, out, err = command("score", path)
    assert (status, err) == (0, "")
    n = evaluate([path]).figures["n_short_lists"]
    assert n > 0
    assert re.search(rf"short lists +{n} +lists lost tokens, since two of them have the same text", out)


def content_without_tokens(is_spelled):
    """A chat of four letters, of which the server listed the first and the last."""
    value = clients.chat(("a", -1.0), ("b", -3.0))
    value["choices"][0]["message"]["content"] = "azzb"
    for entry in value["choices"][0]["logprobs"]["content"]:
        entry |= {"bytes": list(entry["token"].encode())} if is_spelled else {}
    return value


@pytest.mark.parametrize(("is_spelled", "bits"), [(True, 2 / math.log(2)), (False, None)])
def test_text_that_no_listed_token_covers_is_said(is_spelled, bits, score_json, command, tmp_path):
    path = clients.save_lines(tmp_path / "a.jsonl", content_without_tokens(is_spelled), chat(("abc", -2.0)))
    result = score_json(path)
    assert (result["count"], result["n_uncovered_bytes"]) == (3, 2)
    assert result["bits_per_byte"] == (bits and pytest.approx(6 / 5 / math.log(2)))  # of the bytes of tokens
    out = command("score", path)[1]
    assert re.search(r"not covered +2 bytes +of the text are in no token that the server listed", out)


def test_a_piece_of_a_stream_without_log_probabilities_is_not_covered(score_json, command, tmp_path):
    def piece(text, logprob, end=None):
        tokens = None if logprob is None else {"tokens": [text], "token_logprobs": [logprob], "top_logprobs": [None]}
        return {"id": "x", "choices": [{"index": 0, "text": text, "logprobs": tokens, "finish_reason": end}]}

    pieces = [piece("é", -1.0), piece("zzé", None), piece("b", -3.0, "stop")]
    path = clients.save_lines(tmp_path / "s.txt", *(f"data: {json.dumps(one)}" for one in pieces))
    result = score_json(path)
    assert (result["count"], result["loss"], result["n_uncovered_bytes"], result["bits_per_byte"]) == (2, 2.0, 4, None)
    whole = clients.save_lines(tmp_path / "w.txt", *(f"data: {json.dumps(one)}" for one in (pieces[0], pieces[2])))
    assert score_json(whole)["n_uncovered_bytes"] == 0
    assert "not covered" not in command("score", whole)[1]


# -- many responses, files, checkpoints --------------------------------------------------------------------------------


def test_results_do_not_depend_on_how_responses_are_gathered(completions, monkeypatch, tmp_path):
    path = clients.save(tmp_path / "more.jsonl", *COMPLETIONS, "vllm/completion_prompt_logprobs0.json", *COMPLETIONS)
    result = []
    for entries in (1, 100, score._BLOCK_ENTRIES):
        monkeypatch.setattr(score, "_BLOCK_ENTRIES", entries)
        table = tmp_path / f"{entries}.npy"
        one = evaluate([path], sinks=[sinks.TokenTable(table)])
        figures = {name: value for name, value in one.to_dict().items() if name not in ("seconds", "gb_per_second")}
        result.append((figures, one.meter, table.read_bytes()))
    assert result[0] == result[1] == result[2]
    assert result[0][0]["n_sequences"] == 19


@pytest.mark.slow
def test_many_short_responses_are_scored_together(tmp_path, monkeypatch):
    blocks = []
    scored = score.scores_of_responses
    monkeypatch.setattr(score, "scores_of_responses", lambda *args: blocks.append(0) or scored(*args))
    lines = [json.dumps(chat(("a", -1.0), ("b", -2.0)))] * 5000
    result = evaluate([clients.save_lines(tmp_path / "chats.jsonl", *lines)])
    assert result.meter.n_sequences == 5000
    assert len(blocks) == 1


def test_several_files(score_json, tmp_path):
    paths = [clients.save(tmp_path / f"part-{i}.jsonl", name) for i, name in enumerate(COMPLETIONS[:3])]
    whole = clients.save(tmp_path / "whole.jsonl", *COMPLETIONS[:3])
    several, one = score_json(tmp_path / "part-*.jsonl"), score_json(whole)
    for name in ("loss", "stderr", "count", "n_bytes", "bits_per_byte", "accuracy", "n_without_number", "n_responses"):
        assert several[name] == one[name]
    assert [row["file"] for row in several["sequences"]] == list(map(str, paths))
    assert [row["sequence"] for row in several["sequences"]] == [0, 0, 0]


def test_a_folder_is_its_files(tmp_path):
    paths = [clients.save(tmp_path / f"part-{i}.json", name) for i, name in enumerate(CONTINUED)]
    for name in "notes.md", ".part-0.json":
        (tmp_path / name).write_text("not a response")
    folder, files = evaluate(tmp_path), evaluate(paths)
    assert folder.meter == files.meter
    assert folder.figures["files"] == list(map(str, paths))


def test_files_of_different_parts_are_refused(command, score_json, tmp_path):
    prompt = clients.save(tmp_path / "a.json", COMPLETIONS[0])
    generated = clients.save(tmp_path / "b.json", "llama_server/completion_00.json")
    assert_refused(command("score", prompt, generated), generated, "'generated'", "--part")
    assert_refused(command("score", prompt, generated), "or all with --part generated")
    assert score_json(prompt, generated, "--part", "generated")["dialect"] == "completions, llama.cpp"


@pytest.mark.parametrize("options", [(), ("--part", "prompt")])
def test_a_file_without_a_token_to_score_is_counted_as_a_line_is(options, command, score_json, tmp_path):
    (tmp_path / "many").mkdir()
    for name in reversed(COMPLETIONS):
        clients.save(tmp_path / "many" / name.replace("/", "-"), name)
    one = score_json(clients.save(tmp_path / "one.jsonl", *COMPLETIONS), *options)
    several = score_json(tmp_path / "many", *options)
    for name in ("loss", "stderr", "count", "n_bytes", "n_responses", "n_without_number", "n_unscored", "part"):
        assert several[name] == one[name]
    assert (one["n_responses"], one["n_sequences"], one["n_unscored"]) == (10, 9, 1)
    assert re.search("not scored +1 +of 10 responses, without any log-prob", command("score", tmp_path / "many")[1])
    for files in [COMPLETIONS[8:9], COMPLETIONS[8:9] * 2]:  # but not if there are no others
        paths = [clients.save(tmp_path / f"{i}.json", name) for i, name in enumerate(files)]
        words = "has no log-probability of a prompt (no server returns one for its first token)"
        assert_refused(command("score", *paths, "--part", "prompt"), paths[0], words)
        assert score_json(*paths)["part"] == "generated"


def test_a_state_of_another_part_is_refused(command, score_json, tmp_path):
    single, other = (clients.save(tmp_path / f"{name[-7:-5]}.json", name) for name in (COMPLETIONS[8], COMPLETIONS[0]))
    assert score_json(single, "--state", tmp_path / "state")["part"] == "generated"
    outcome = command("score", single, other, "--state", tmp_path / "state")
    assert_refused(outcome, single, "was scored with the part 'generated'", "'prompt' and a new state")


def test_names_of_files_of_responses(completions, command, score_json, tmp_path):
    text = completions.read_bytes()
    (tmp_path / "a.ndjson").write_bytes(text)
    assert score_json(tmp_path / "a.ndjson")["sequences"][1]["line"] == 2
    (tmp_path / "a.txt").write_bytes(text)
    assert_refused(command("score", tmp_path / "a.txt"), "begins like JSON", ".json or .jsonl")
    (tmp_path / "b.txt").write_text("notes")
    assert_refused(command("score", tmp_path / "b.txt"), "is not a file of scores", "; or responses (.json, .jsonl)")


def test_state(completions, score_json, command, tmp_path):
    other = clients.save(tmp_path / "batch.jsonl", "vllm/run_batch_out.jsonl")
    argv = completions, other, "--skip-failed", "--state", tmp_path / "state"
    first, again = score_json(*argv), score_json(*argv)
    assert again["n_bytes_read"] == 0 < first["n_bytes_read"] == completions.stat().st_size + other.stat().st_size
    for name in first.keys() - {"seconds", "gb_per_second", "n_bytes_read"}:
        assert again[name] == first[name]
    assert_refused(command("score", completions, *argv[3:]), "was written with skip_failed True")
    status, text = completions.stat(), completions.read_bytes()
    completions.write_bytes(text.replace(b":-1", b":-2"))
    assert completions.read_bytes() != text
    os.utime(completions, ns=(status.st_atime_ns, status.st_mtime_ns))  # with its size and time
    assert_refused(command("score", *argv), "changed")
    clients.save(completions, *COMPLETIONS[:2])
    assert_refused(command("score", *argv), "changed")


def test_scheduler(completions, score_json, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as cluster:
        here = score_json(completions)
        there = score_json(completions, "--scheduler", cluster.scheduler_address)
    for name in here.keys() - {"seconds", "gb_per_second"}:
        assert there[name] == here[name]


# -- what does not apply -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    "--targets t.npy", "--segment-ids s.npy", "--array x", "--kind logits", "--shift", "--no-shift", "--ignore-index 0",
])  # fmt: skip
def test_options_of_scores_are_refused(options, completions, command):
    option = options.split()[0]
    if "shift" in option:  # responses are aligned already
        here, there = command("score", completions), command("score", completions, option)
        assert here == there
        return
    assert_refused(
        command("score", completions, *options.split()),
        f"{option} is for scores; {completions} has responses",
    )


def test_part_and_skip_failed_are_refused_of_scores(npz, command):
    path = npz(logits=LOGITS, targets=TARGETS)
    for option in ["--part", "all"], ["--skip-failed"]:
        assert_refused(command("score", path, *option), f"{option[0]} is for responses; {path} has scores")
    with pytest.raises(ValueError, match="part is 'answer'; it must be 'prompt', 'generated', 'all'"):
        open_responses(path, part="answer")


def test_responses_and_scores_together_are_refused(completions, npz, command):
    scores = npz(logits=LOGITS, targets=TARGETS)
    for argv in (completions, scores), (scores, completions):
        words = [f"{argv[1]}: contains scores; it must contain responses, as {argv[0]} does"]
        words = (
            words
            if argv[1] == scores
            else [f"{completions}: contains responses; it must contain scores, as {scores} does"]
        )
        assert_refused(command("score", *argv), *words)


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
        assert token["sequence"] == token["row"] // 4
    assert re.search(r" +row +sequence +position +target +nll", command("score", path)[1])
    flat = npz(logits=LOGITS, targets=TARGETS)
    assert all(token["sequence"] is None for token in score_json(flat)["highest_loss_tokens"])
    assert "sequence" not in command("score", flat)[1]
    given = npz(logits=LOGITS, targets=TARGETS, segment_ids=np.array([7, -1, 7, 3]))
    result = {token["row"]: token["sequence"] for token in score_json(given)["highest_loss_tokens"]}
    assert result == {0: 7, 1: None, 2: 7, 3: 3}
