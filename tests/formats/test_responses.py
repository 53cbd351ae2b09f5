"""Real responses of servers are read as their full logits say: losses, ids, ranks, greedy tokens, likeliest classes."""

import dataclasses
import gzip
import inspect
import json
import re

import clients
import numpy as np
import pytest

from tokenloss.formats import Response, Responses, open_responses, records
from tokenloss.formats.responses import Failed, dialects

REFERENCES = clients.references()
SHIFTED = [f"llama_cpp_python/completion_echo_{i:02}.json" for i in range(10)]  # refused: off by one
ONE_TOKEN = ["vllm/completion_08.json", "llama_cpp_python/completion_echo_bos_08.json", "sglang/generate_08.json"]
PROMPTS = [name for name in REFERENCES if name not in [*SHIFTED, *ONE_TOKEN, "llama_server/completion_00.json"]]


@pytest.fixture
def read(tmp_path):
    """Reads responses by their names."""

    def read(*names, **options):
        return list(open_responses(clients.save(tmp_path / "responses.json", *names), **options))

    return read


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_have_the_losses_of_their_full_logits(name, read):
    (response,) = read(name)
    reference = REFERENCES[name]
    n = len(response.ids)  # a BOS is not echoed
    assert response.is_prompt.all()
    assert response.n_uncovered_bytes == 0
    assert np.flatnonzero(np.isnan(response.logprobs)).tolist() == [0]
    np.testing.assert_allclose(response.logprobs[1:], reference.logprobs[-n:][1:], rtol=0, atol=1e-5)
    is_known = response.ids >= 0
    assert is_known[1:].all() == ("llama_cpp_python" not in name)
    np.testing.assert_array_equal(response.ids[is_known], reference.ids[-n:][is_known])


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_have_the_ranks_of_their_full_logits(name, read):
    (response,) = read(name)
    ranks = REFERENCES[name].ranks[-len(response.ids) :]
    assert response.rank[0] == -1
    assert response.is_greedy_known.tolist() == [False, *[True] * (len(ranks) - 1)]
    np.testing.assert_array_equal(response.is_greedy[1:], ranks[1:] == 1)
    has_rank = response.rank > 0
    np.testing.assert_array_equal(response.rank[has_rank], ranks[has_rank])
    if "vllm" in name:
        assert has_rank[1:].all()
    else:
        assert has_rank[1:].sum() >= ((ranks < 5) & (ranks > 0))[1:].sum() - response.n_short_lists


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_have_the_likeliest_classes_of_their_full_logits(name, read):
    (response,) = read(name)
    n = len(response.ids)
    logprobs = REFERENCES[name].top_logprobs[-n:]
    is_there = ~np.isnan(response.top_logprobs)
    assert not is_there[0].any()
    assert (~is_there[1:].any(1)).sum() == response.n_short_lists  # all 5 or none, or 4 if the token is the fifth
    assert is_there[1:].sum(1)[is_there[1:].any(1)].min() >= (4 if "llama_cpp_python" in name else 5)
    np.testing.assert_allclose(response.top_logprobs[is_there], logprobs[is_there], rtol=0, atol=1e-5)
    if "llama_cpp_python" not in name:
        ids = REFERENCES[name].top_ids[-n:]
        np.testing.assert_array_equal(response.top_ids[1:], ids[1:])
    assert not any(text is not None for text in response.top_tokens[~is_there])


@pytest.mark.parametrize("name", ["vllm/chat_00.json", "vllm/chat_01.json", "vllm/chat_02.json"])
@pytest.mark.parametrize("part", ["prompt", "generated", "all"])
def test_chats_have_the_losses_of_another_engine(name, part, read):
    (response,) = read(name, part=part)
    reference = clients.other_references()[name]
    parts = [
        ("prompt", "prompt_target_logprobs", "prompt_token_ids"),
        ("generated", "output_logprobs", "output_token_ids"),
    ]
    chosen = [keys for keys in parts if part in (keys[0], "all")]
    expected = np.concatenate([np.array(reference[logprobs], float) for _, logprobs, _ in chosen])
    np.testing.assert_allclose(response.logprobs, expected, rtol=0, atol=1e-5)
    ids = np.concatenate([reference[ids] for *_, ids in chosen])
    is_known = response.ids >= 0
    np.testing.assert_array_equal(response.ids[is_known], ids[is_known])
    assert response.is_prompt.sum() == (len(reference["prompt_token_ids"]) if part != "generated" else 0)


@pytest.mark.parametrize(
    ("name", "reference", "tolerance"),
    [
        ("vllm/completion_00.json", "sglang/generate_00.json", 1e-5),
        ("sglang/generate_00.json", "sglang/generate_00.json", 1e-5),
        ("llama_server/completion_00.json", "llama_server/completion_00.json", 5e-4),  # its cache is float16
    ],
)
def test_first_new_tokens_have_the_classes_of_the_full_logits(name, reference, tolerance, read):
    (response,) = read(name, part="generated")
    expected = REFERENCES[reference].next_top_logprobs[:5]
    np.testing.assert_allclose(response.top_logprobs[0], expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(response.logprobs[0], expected[0], rtol=0, atol=tolerance)
    assert response.is_greedy[0]
    assert response.top_tokens[0, 0] == response.tokens[0] == " the"


@pytest.mark.parametrize(
    ("name", "prompt", "generated"),
    [
        ("vllm/completion_echo.json", 25, 3), ("vllm/completion_echo_only.json", 25, 0),
        ("vllm/completion_echo_logprobs0.json", 15, 1), ("vllm/completion_echo_token_ids.json", 16, 1),
        ("vllm/rendered_echo_no_top.json", 25, 3), ("vllm/sentinel_completion_echo_allowed_tokens.json", 8, 2),
        ("sglang/openai_completion_echo.json", 16, 1), ("llama_cpp_python/completion_echo_bos_06.json", 25, 1),
        ("vllm/tokens_generate.json", 4, 2), ("vllm/chat_echo.json", 23, 1), ("sglang/generate_start_len5.json", 10, 2),
        ("vllm/completion_prompt_logprobs0.json", 15, 0), ("vllm/completion_token_prompt.json", 5, 1),
    ],
)  # fmt: skip
def test_parts_are_told_apart(name, prompt, generated, read):
    (response,) = read(name, part="all")
    assert response.is_prompt.tolist() == [True] * prompt + [False] * generated
    assert len(read(name)[0].ids) == prompt
    if generated:
        assert len(read(name, part="generated")[0].ids) == generated
    else:
        with pytest.raises(ValueError, match="no log-probabilities of generated tokens"):
            read(name, part="generated")


@pytest.mark.parametrize("name", ["vllm/completion_echo.json", "vllm/completion_echo_only.json"])
def test_an_echo_alone_reads_as_objects_do(name, tmp_path):
    value = clients.response(name)
    (full,) = open_responses(clients.save_lines(tmp_path / "a.json", value), part="all")
    value["choices"][0]["prompt_logprobs"] = None
    (echo,) = open_responses(clients.save_lines(tmp_path / "b.json", value), part="all")
    for column in ("tokens", "n_bytes", "logprobs", "is_prompt", "is_sentinel"):
        np.testing.assert_array_equal(getattr(full, column), getattr(echo, column))
    both = full.is_greedy_known & echo.is_greedy_known
    assert both.sum() > 20
    np.testing.assert_array_equal(full.is_greedy[both], echo.is_greedy[both])
    for i in range(1, len(full.ids)):
        there = echo.top_logprobs[i][~np.isnan(echo.top_logprobs[i])]
        np.testing.assert_array_equal(there, full.top_logprobs[i][: len(there)])
    assert np.isnan(echo.top_logprobs[1:]).all(1).sum() == echo.n_short_lists < 12


@pytest.mark.parametrize("name", ["sglang/generate_flat.json", "sglang/generate_flat_b64.json"])
def test_flat_lists_are_the_nested_ones(name, read):
    (flat,), (nested,) = read(name), read("sglang/generate_02.json")
    np.testing.assert_array_equal(flat.top_ids, nested.top_ids)
    np.testing.assert_array_equal(flat.top_logprobs, nested.top_logprobs)


DIALECTS = [
    ("vllm/run_batch_out.jsonl", "chat", [0, 0, 0]), ("sglang/generate_batch.json", "SGLang", [0, 0, 0]),
    ("llama_server/completion_batch.json", "llama.cpp", [0, 1]), ("vllm/tokens_generate.json", "tokens", [0]),
    ("vllm/completions_batch.json", "completions", [0, 1, 2, 3]),
]  # fmt: skip


def test_each_dialect_is_in_the_table_and_tested():
    functions = [value for value in vars(dialects).values() if inspect.isfunction(value)]
    readers = {each for each in functions if each.__annotations__.get("return") == "list[Choice]"}
    assert readers == {reader for _, reader in dialects._DIALECTS.values()}
    assert {name for _, name, _ in DIALECTS} == dialects._DIALECTS.keys() - {"stream"}  # which is refused


@pytest.mark.parametrize(("name", "dialect", "choices"), DIALECTS)
def test_choices_of_each_dialect(name, dialect, choices, tmp_path):
    file = open_responses(clients.save(tmp_path / "responses.json", name), skip_failed=True)
    assert file.dialect == dialect
    for _ in range(2):  # each pass starts from the beginning
        assert [response.choice for response in file] == choices


def test_default_part_is_the_prompt_where_there_is_one(tmp_path, read):
    assert [len(response.ids) for response in read("vllm/completion_08.json", "vllm/completion_00.json")] == [1, 8]
    assert [
        len(response.ids) for response in read("sglang/generate_08.json", "sglang/generate_default_start.json")
    ] == [2, 2]
    file = open_responses(clients.save(tmp_path / "r.json", "vllm/completion_08.json"))
    assert (file.part, len(next(iter(file)).ids)) == ("generated", 1)


def test_a_batch_names_its_requests(tmp_path):
    path = clients.save(tmp_path / "batch.jsonl", "vllm/run_batch_out.jsonl")
    file = open_responses(path, skip_failed=True)
    assert [(response.line, response.custom_id) for response in file] == [
        (1, "request-0"),
        (3, "request-1"),
        (4, "request-2"),
    ]
    assert [(failed.line, failed.custom_id) for failed in file.failed] == [
        (2, "request-bad-model"),
        (5, "request-too-long"),
    ]
    assert file.failed[0] == Failed(2, "request-bad-model", file.failed[0].reason)
    assert "`no-such-model` does not exist" in file.failed[0].reason
    list(file)
    assert len(file.failed) == 2
    message = r"line 2: request 'request-bad-model' failed: The model `no-such-model`.* tiny; it must have succeeded"
    with pytest.raises(ValueError, match=message):
        list(open_responses(path))


def test_compressed_files_and_lists(tmp_path):
    values = [clients.response(f"vllm/completion_{i:02}.json") for i in range(4)]
    lines = list(open_responses(clients.save_lines(tmp_path / "a.jsonl", *values)))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(values, indent=1).encode()))
    listed = list(open_responses(tmp_path / "b.json.gz"))
    assert len(lines) == len(listed) == 4
    for x, y in zip(lines, listed, strict=True):
        np.testing.assert_array_equal(x.logprobs, y.logprobs)


def test_lengths_of_tokens(read):
    (response,) = read("vllm/completion_echo.json")
    assert response.n_bytes.sum() == len("The naïve café owner paid 12 € —".encode())
    (response,) = read("vllm/completion_07.json")  # without the first token, whose text is not there
    assert response.n_bytes[1:].sum() == len("ello 🙂 world 你好".encode())
    (response,) = read("llama_server/completion_07.json")
    assert response.n_bytes.sum() == len('\n\n"I am sure')
    for name in ("rendered_v0_10_completion_06.json", "completion_echo_token_ids.json"):  # U+FFFD, no text
        assert (read(f"vllm/{name}")[0].n_bytes == -1).all()
    for name in ("sglang/openai_completion_echo.json", "llama_cpp_python/completion_echo_bos_07.json"):
        assert (read(name)[0].n_bytes == -1).all()  # Latin-1; nothing


@pytest.mark.parametrize(("n", "rest"), [(2, "o 🙂 world 你好"), (4, None), (7, None), (8, " world 你好")])
def test_a_character_that_began_in_the_first_token_has_no_known_length(n, rest, tmp_path):
    value = clients.response("vllm/completion_07.json")
    value["choices"][0]["prompt_logprobs"][1:n] = []  # then it starts with what comes before token n
    (response,) = open_responses(clients.save_lines(tmp_path / "cut.json", value))
    if rest is None:
        assert (response.n_bytes == -1).all()
    else:
        assert response.n_bytes[1:].sum() == len(rest.encode())


def test_public_types(tmp_path):
    file = open_responses(clients.save(tmp_path / "r.json", "vllm/completion_00.json"))
    assert isinstance(file, Responses)
    (response,) = file
    assert isinstance(response, Response)
    assert repr(response) == "Response(line=1, choice=0, tokens=8, with_number=7)"
    dtypes = {
        name: getattr(response, name).dtype.str[1:]
        for name in vars(response)
        if hasattr(getattr(response, name), "dtype")
    }
    assert dtypes == {
        "tokens": "O", "n_bytes": "i8", "ids": "i8", "logprobs": "f8", "is_sentinel": "b1", "is_prompt": "b1",
        "rank": "i8", "is_greedy": "b1", "is_greedy_known": "b1", "top_tokens": "O", "top_ids": "i8",
        "top_logprobs": "f8",
        "asked_ids": "i8",
        "asked_logprobs": "f8",
    }  # fmt: skip
    with pytest.raises(ValueError, match="part is 'both'; it must be 'prompt', 'generated', 'all'"):
        open_responses(tmp_path / "r.json", part="both")


STREAMS = {  # of each, a response to the same prompt that came at once
    "vllm/completion_stream.txt": "llama_server/completion_00.json",
    "vllm/completion_stream_echo.txt": "llama_server/completion_00.json",
    "vllm/chat_stream.txt": "vllm/chat_00.json",
    "llama_server/completion_stream.txt": "llama_server/completion_00.json",
    "llama_cpp_python/completion_echo_stream.txt": "llama_server/completion_00.json",
}


@pytest.mark.parametrize(("name", "whole"), STREAMS.items())
def test_a_stream_is_read_as_the_response_that_comes_at_once(name, whole, read, tmp_path):
    (response,) = open_responses(path := clients.save(tmp_path / "stream.txt", name), part="generated")
    (expected,) = read(whole, part="generated")
    pieces = [
        line[6:] for line in path.read_text().splitlines() if line and "[DONE]" not in line
    ]  # as clients save them
    (same,) = open_responses(clients.save_lines(tmp_path / "pieces.jsonl", *pieces), part="generated")
    assert same.logprobs.tolist() == response.logprobs.tolist()
    n = len(response.ids)
    assert 3 <= n <= len(expected.ids)
    for column in ("tokens", "n_bytes", "is_greedy", "is_greedy_known"):
        np.testing.assert_array_equal(getattr(response, column), getattr(expected, column)[:n])
    np.testing.assert_allclose(response.logprobs, expected.logprobs[:n], rtol=0, atol=5e-4)


def over_lines(text):
    """The same events, whose data are over several lines, with a comment and an id between them."""
    events = [line[6:] for line in text.splitlines() if line]
    lines = [json.dumps(json.loads(one), indent=1).split("\n") if one != "[DONE]" else [one] for one in events]
    return "\n\n".join("\nid: 7\n: more\n".join(f"data:{line}" for line in of_event) for of_event in lines)


FORMS_OF_A_STREAM = {  # as the specification of server-sent events has them
    "a byte order mark": lambda text: f"\ufeff{text}",
    "lines that end with CR": lambda text: text.replace("\n", "\r"),
    "lines that end with CR LF": lambda text: text.replace("\n", "\r\n"),
    "data over several lines": over_lines,
    "all of these": lambda text: "\ufeff" + over_lines(text).replace("\n", "\r"),
    "no blank lines": lambda text: text.replace("\n\n", "\n"),
}


@pytest.mark.parametrize("chunk", [13, 1 << 18])
@pytest.mark.parametrize("form", FORMS_OF_A_STREAM)
def test_a_stream_is_the_same_in_any_form_of_its_events(form, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_CHUNK", chunk)
    path = clients.save(tmp_path / "stream.txt", "vllm/chat_stream.txt")
    (expected,) = open_responses(path)
    path.write_bytes(FORMS_OF_A_STREAM[form](path.read_text("utf-8")).encode())
    (response,) = open_responses(path)
    for column in (one.name for one in dataclasses.fields(response) if one.name != "line"):
        np.testing.assert_array_equal(getattr(response, column), getattr(expected, column))


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_a_mistake_in_data_over_several_lines_has_its_place(end, tmp_path):
    path = tmp_path / "stream.txt"
    path.write_bytes(end.join(["\ufeffdata: {}", "", "data: {", 'data:  "choices": ?', "data: }"]).encode())
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: line 4: byte 19: Expecting value"):
        list(open_responses(path))
    path.write_bytes(end.join(['data: {"choices":', "", "data: 3}"]).encode())  # a blank line ends an event
    with pytest.raises(ValueError, match="line 1: a record ends too early"):
        list(open_responses(path))


def test_a_stream_that_echoes_its_prompt_and_others_after_it(read, tmp_path):
    names = ["vllm/completion_stream_echo.txt", "vllm/completion_stream.txt", "vllm/completion_stream_echo.txt"]
    path = clients.save(tmp_path / "streams.jsonl", *names)
    path.write_text(": a comment\n\nevent: message\n" + path.read_text().replace("data: [DONE]\n", ""), newline="\r\n")
    with pytest.raises(ValueError, match=r"line \d+: the server returned no prompt log-probabilities"):
        list(open_responses(path))
    echo, alone, again = open_responses(path, part="generated")
    assert [echo.line, alone.line, again.line] == [4, 12, 22]
    assert echo.tokens.tolist() == again.tokens.tolist() == alone.tokens.tolist()
    (expected,) = read("vllm/completion_00.json")
    response = next(iter(open_responses(path)))
    np.testing.assert_array_equal(response.tokens[1:], expected.tokens[1:])
    np.testing.assert_allclose(response.logprobs, expected.logprobs, rtol=0, atol=1e-5)
