"""What made others publish wrong numbers: each is an error that says so, or is counted, and never a number."""

import copy
import json
import math

import clients
import numpy as np
import pytest

from tokenloss.formats import open_responses

UUID = "cmpl-4e8a67a1-28fe-43cc-829d-566d6ffca631"  # as llama-cpp-python has them
FIELDS = {  # where a log-probability stands: of a response with prompt and new tokens in each layout
    "choices[0].logprobs.token_logprobs[1]": (
        "vllm/completion_echo.json", ["choices", 0, "logprobs", "token_logprobs", 1]
    ),
    "choices[0].logprobs.content[1].logprob": (
        "vllm/chat_00.json", ["choices", 0, "logprobs", "content", 1, "logprob"]
    ),
    'prompt_logprobs[1]["457"].logprob': ("vllm/chat_00.json", ["prompt_logprobs", 1, "457", "logprob"]),
    'prompt_logprobs[1]["719"].logprob': ("vllm/chat_00.json", ["prompt_logprobs", 1, "719", "logprob"]),
    "meta_info.input_token_logprobs[2][0]": ("sglang/generate_00.json", ["meta_info", "input_token_logprobs", 2, 0]),
    "meta_info.input_top_logprobs[2][3][0]": ("sglang/generate_00.json", ["meta_info", "input_top_logprobs", 2, 3, 0]),
    "completion_probabilities[2].logprob": (
        "llama_server/completion_00.json", ["completion_probabilities", 2, "logprob"]
    ),
    "completion_probabilities[2].top_logprobs[4].logprob": (
        "llama_server/completion_00.json", ["completion_probabilities", 2, "top_logprobs", 4, "logprob"]
    ),
    "choices[0].logprobs.top_logprobs[1][' n']": (
        "vllm/completion_echo.json", ["choices", 0, "logprobs", "top_logprobs", 1, " n"]
    ),
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    """Reads responses, each on a line."""

    def read(*values, **options):
        return list(open_responses(clients.save_lines(tmp_path / "responses.jsonl", *values), **options))

    return read


def echo(tokens, logprobs, tops=None, *, text=None, usage=None, **more):
    """A response in the layout of OpenAI's completions; `usage` counts tokens of the prompt and new ones."""
    lists = {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": [-1] * len(tokens)}
    text = "".join(tokens) if text is None else text
    counts = {} if usage is None else {"usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}
    choice = {"index": 0, "text": text, "logprobs": lists, "finish_reason": more.pop("finish_reason", "length")}
    return {"id": "cmpl-1", "object": "text_completion", "choices": [choice], **counts, **more}


def objects(*positions, **more):
    """A response of vLLM; each position lists id, log-probability and rank, the prompt's token first."""
    entries = [
        {str(i): {"logprob": x, "rank": r, "decoded_token": f" {i}"} for i, x, r in position} for position in positions
    ]
    return {"choices": [{"index": 0, "text": " x", "logprobs": None, "prompt_logprobs": [None, *entries], **more}]}


def chat(*tokens, has_bytes=True):
    """A chat; each token has a text, a log-probability and a list of such pairs."""

    def entry(text, logprob):
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if has_bytes else None}

    content = [entry(text, x) | {"top_logprobs": [entry(*top) for top in tops]} for text, x, tops in tokens]
    message = {"role": "assistant", "content": "".join(text for text, *_ in tokens)}
    return {"choices": [{"index": 0, "message": message, "logprobs": {"content": content}}]}


def changed(name, keys, value):
    """A real response of which one value is another."""
    response = clients.response(name)
    at = response
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    return response


# -- what is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["empty", "null", "chat", "SGLang", "no logprobs"])
def test_an_empty_echo_is_not_a_loss_of_zero_as_in_llama_cpp_27174(kind, read):
    value = {
        "empty": clients.response("vllm/rendered_echo_ignored_empty.json"),
        "null": clients.response("vllm/rendered_echo_ignored_null.json"),
        "chat": clients.response("llama_server/openai_completion_echo.json"),
        "SGLang": clients.response("sglang/generate_default_start.json"),
        "no logprobs": clients.response("vllm/completion_echo_without_logprobs.json"),
    }[kind]
    with pytest.raises(ValueError, match="line 1: the server returned no prompt log-probabilities: it ignored echo"):
        read(value, part="prompt")
    if kind in ("empty", "null", "no logprobs"):
        with pytest.raises(ValueError, match="generated tokens or of a prompt: the server ignored echo"):
            read(value)


@pytest.mark.parametrize("part", [None, "prompt", "all"])
def test_one_echo_that_was_ignored_among_others_is_an_error(part, read):
    right, wrong = (clients.response(f"vllm/{name}.json") for name in ("completion_01", "completions_n2"))
    for choice in wrong["choices"]:
        choice["prompt_logprobs"] = None
    with pytest.raises(ValueError, match="line 2: the server returned no prompt log-probabilities"):
        read(right, wrong, part=part)


def test_a_prompt_of_which_all_is_null_is_an_error(read):
    right = echo(["a", "b", "c"], [None, -1.0, -2.0], usage=(2, 1))
    wrong = echo(["a", "b", "c"], [None, None, -2.0], usage=(2, 1))
    with pytest.raises(ValueError, match="line 2: the server returned no prompt log-probabilities"):
        read(right, wrong)
    with pytest.raises(ValueError, match="line 1: the server returned no prompt log-probabilities"):
        read(wrong, part="prompt")


def test_a_null_is_not_known_rather_than_a_certain_token(read):
    (response,) = read(echo(["a", "b", "c", "d"], [None, -1.0, None, -2.0], usage=(4, 0)))
    np.testing.assert_array_equal(response.logprobs, [np.nan, -1, np.nan, -2])
    assert not response.is_greedy_known.any()


def test_a_prompt_of_one_token_has_no_number_and_is_no_error_among_others(read):
    one, more = echo(["a"], [None], usage=(1, 0)), echo(["a", "b"], [None, -1.0], usage=(2, 0))
    assert [len(response.ids) for response in read(one, more)] == [1, 2]
    with pytest.raises(ValueError, match="has no log-probability"):
        read(one, one, part="prompt")


def test_a_prompt_after_what_was_generated_needs_a_choice(read):
    generated, prompt = echo(["x"], [-1.0], usage=(3, 1)), echo(["a", "b"], [None, -1.0], usage=(2, 0))
    with pytest.raises(ValueError, match=r"line 2: it has log-probabilities of the prompt, .* choose the part"):
        read(generated, prompt)
    with pytest.raises(ValueError, match="line 2: it has log-probabilities of the prompt"):
        read(generated, prompt, part="all")


def test_nothing_generated_is_no_error_if_the_server_says_so(read):
    nothing = echo([], [], usage=(3, 0))
    assert [len(response.ids) for response in read(echo(["x"], [-1.0], usage=(3, 1)), nothing)] == [1, 0]
    with pytest.raises(ValueError, match="line 2: it has no log-probabilities of generated tokens"):
        read(echo(["x"], [-1.0], usage=(3, 1)), echo([], [], usage=(3, 1)))


# -- what is no number ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5, 2, -(10**400), "-1.5", True, [], None])
@pytest.mark.parametrize("field", FIELDS)
def test_what_is_no_log_probability_is_an_error_that_names_its_field(field, value, read):
    name, keys = FIELDS[field]
    response = changed(name, keys, value)
    if "echo" in name:
        del response["choices"][0]["prompt_logprobs"]
    part = "generated" if "content" in field or "llama" in name else "prompt"
    if value is None and "top" not in field and '["' not in field:
        assert np.isnan(read(response, part=part)[0].logprobs).any()  # not known
        return
    with pytest.raises(ValueError, match=r"line 1: .*it must be a log-probability") as caught:
        read(response, part=part)
    assert field in str(caught.value)


def test_minus_9999_is_a_sentinel_of_vllm_and_openai_and_is_not_averaged(read):
    (response,) = read(clients.response("vllm/rendered_sentinel_prompt_logprobs.json"))
    assert np.flatnonzero(response.is_sentinel).tolist() == [3]
    assert np.isnan(response.logprobs[3])
    assert not response.is_greedy[3]
    assert response.top_logprobs[np.isfinite(response.top_logprobs)].min() > -100
    assert sorted((~np.isnan(response.top_logprobs[1:])).sum(1)) == [4, *[5] * 13]  # one of a list is left out
    for value in (-9999.0, -9999):
        (response,) = read(
            echo(["a", "b", "c"], [None, value, -1.0], [None, {"b": value, "x": -0.1}, {"c": -1.0}], usage=(3, 0))
        )
        assert response.is_sentinel.tolist() == [False, True, False]


def test_the_least_float32_of_llama_cpp_is_a_sentinel_and_no_loss_of_1e38(read):
    value = clients.response("llama_server/completion_00.json")
    for entry in (value["completion_probabilities"][1], value["completion_probabilities"][2]["top_logprobs"][-1]):
        entry["logprob"] = -3.4028234663852886e38  # of a probability of 0
    (response,) = read(value)
    assert np.flatnonzero(response.is_sentinel).tolist() == [1]
    assert np.flatnonzero(np.isnan(response.logprobs)).tolist() == [1]
    assert not response.is_greedy[1]
    assert np.nanmin(response.top_logprobs) > -100
    assert np.flatnonzero(np.isnan(response.top_logprobs).any(1)).tolist() == [2]


def test_minus_infinity_is_a_loss_of_infinity(read):
    (response,) = read(echo(["a", "b"], [None, -math.inf], [None, {"b": -math.inf, "x": -0.1}], usage=(2, 0)))
    assert response.logprobs[1] == -math.inf
    assert not response.is_sentinel.any()
    assert response.top_tokens[1].tolist() == ["x"]


def test_probabilities_after_sampling_are_not_the_models(read):
    with pytest.raises(ValueError, match="has probabilities after sampling, not the model's own"):
        read(clients.response("llama_server/completion_post_sampling.json"))
    old = {"content": " a", "completion_probabilities": [{"content": " a", "probs": [{"tok_str": " a", "prob": 0.9}]}]}
    with pytest.raises(ValueError, match="has probabilities after sampling"):
        read(old)


# -- which entry is the prompt's token --------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["ids", "keys", "probability"])
@pytest.mark.parametrize("i", range(1, 8, 2))
def test_sorted_keys_of_vllm_are_refused_without_ids(order, i, read):
    value = clients.response(f"vllm/completion_{i:02}.json")
    by = {
        "ids": lambda item: int(item[0]),
        "keys": lambda item: item[0],
        "probability": lambda item: -item[1]["logprob"],
    }
    lists = value["choices"][0]["prompt_logprobs"]
    lists[:] = [entries and dict(sorted(entries.items(), key=by[order])) for entries in lists]
    with pytest.raises(
        ValueError, match=r"do not show which entry is the prompt's own token; .* request return_token_ids"
    ):
        read(value)


@pytest.mark.parametrize("i", range(0, 8, 2))
def test_sorted_keys_of_vllm_are_read_with_ids(i, read):
    value = clients.response(f"vllm/completion_{i:02}.json")
    (expected,) = read(value)
    (result,) = read(json.dumps(value, sort_keys=True))
    for name in ("ids", "logprobs", "rank", "is_greedy", "top_ids", "top_logprobs"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))


@pytest.mark.parametrize("order", ["ids", "reversed", "probability"])
def test_the_one_entry_beyond_the_k_likeliest_is_the_prompts_token_in_any_order(order, read):
    orders = {"ids": lambda x: int(x[0]), "reversed": lambda x: -int(x[0]), "probability": lambda x: -x[1]["logprob"]}
    value = clients.response("vllm/sentinel_chat_top_p.json")  # k = 1, and no ids
    (expected,) = read(value)
    value["prompt_logprobs"] = [x and dict(sorted(x.items(), key=orders[order])) for x in value["prompt_logprobs"]]
    (result,) = read(value)
    for name in ("ids", "logprobs", "rank"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
    # an order of its own for each object
    (response,) = read(objects([(9, -4.0, 3), (3, -1.0, 1)], [(2, -0.5, 1), (5, -2.0, 4)], [(7, -0.1, 1)]))
    assert response.ids.tolist() == [-1, 9, 5, 7]
    with pytest.raises(ValueError, match="do not show which entry"):  # k may be 2, of which one is not there
        read(objects([(2, -0.5, 1), (5, -2.0, 2)], [(7, -0.1, 1)]))


def test_ids_of_what_was_generated_are_not_those_of_a_prompt_of_as_many_tokens(read):
    value = clients.response("vllm/completion_08.json")  # one token each
    (response,) = read(value, part="generated")
    assert response.ids.tolist() == value["choices"][0]["token_ids"] != value["choices"][0]["prompt_token_ids"]


def test_a_short_prompt_is_read_as_the_others_of_its_file(read):
    short = objects([(7, -0.5, 1), (4, -2.0, 2)])  # the own token is the likeliest, or the list is sorted
    with pytest.raises(ValueError, match="do not show which entry"):
        read(short)
    proof = clients.response("vllm/completion_01.json")
    for values in ((short, proof), (proof, short)):
        assert sorted(len(response.ids) for response in read(*values)) == [2, 15]
    in_another_order = objects([(7, -0.5, 1), (4, -3.0, 3), (5, -2.0, 2)])
    with pytest.raises(ValueError, match=r"line 2: .* do not show which entry"):
        read(proof, in_another_order)
    for choice in proof["choices"]:
        choice["prompt_logprobs"][1:] = [dict(sorted(x.items())) for x in choice["prompt_logprobs"][1:]]
    with pytest.raises(ValueError, match=r"line 1: .* do not show which entry"):
        read(short, proof)


def test_a_token_of_no_entry_is_refused(read):
    value = objects([(5, -1.0, 1), (6, -2.0, 2)], prompt_token_ids=[1, 7])
    with pytest.raises(ValueError, match=r"choices\[0\].prompt_logprobs\[1\] does not list the prompt's token 7"):
        read(value)
    with pytest.raises(ValueError, match=r"choices\[0\].prompt_logprobs has 2 elements; it must have 3"):
        read(objects([(5, -1.0, 1)], prompt_token_ids=[1, 5, 6]))


def test_a_tie_at_the_last_rank_is_not_taken_for_the_prompts_token(read):
    # of bfloat16 logits: the second class is as likely as two that are not listed, and its rank 4 is above k = 2
    proof = [(9, -4.0, 7), (3, -1.0, 1), (4, -1.5, 2)]
    (response,) = read(objects(proof, [(5, -0.5, 1), (2, -2.0, 4)]))
    assert response.ids.tolist() == [-1, 9, 5]
    assert response.is_greedy.tolist() == [False, False, True]
    with pytest.raises(ValueError, match="do not show which entry"):
        read(objects([(2, -0.5, 1), (5, -2.0, 4)]))


def test_a_token_far_beyond_the_likeliest_is_certain(read):
    (response,) = read(objects([(3, -0.5, 1), (4, -9.0, 700)], [(8, -1.0, 1)]))
    assert response.ids.tolist() == [-1, 4, 8]
    assert response.top_ids.tolist() == [[-1], [3], [8]]


def test_a_tie_goes_to_the_lowest_id(read):
    tied = [(5, -0.5, 2), (3, -0.5, 2)]
    (response,) = read(
        objects(tied, [(3, -0.5, 2), (5, -0.5, 2)], [(9, -2.0, 2), (5, -1.0, 1)], prompt_token_ids=[0, 5, 3, 9])
    )
    assert response.is_greedy.tolist() == [False, False, True, False]
    assert response.is_greedy_known[1:].all()


@pytest.mark.parametrize("part", ["all", "generated"])
def test_a_choice_without_log_probabilities_beside_one_with_them_is_refused(part, tmp_path):
    """Neither has a prompt, so that neither repeats one."""
    value = clients.chat(("a", -1.0))
    value["choices"].append({"index": 1, "message": {"content": "b"}, "logprobs": None})
    file = open_responses(clients.save_lines(tmp_path / "responses.jsonl", value), part=part)
    with pytest.raises(ValueError, match="line 1: it has no log-probabilities"):
        list(file)


def test_the_last_class_of_sglang_is_not_class_0(read):
    value = clients.response("sglang/generate_last_class.json")
    (response,) = read(value)
    assert response.ids.tolist() == [-1, 300, -1, 14]  # it is 2556 that was reported as 0
    assert response.tokens.tolist() == [None] * 4
    reported = value["meta_info"]["input_token_logprobs"][2][0]
    for id_ in (0, 2556):
        value["meta_info"]["input_top_logprobs"][2][1] = [reported, id_, "<x>"]
        (response,) = read(value)
        assert (response.ids[2], response.tokens[2]) == (id_, "<x>")
    value["meta_info"]["input_top_logprobs"][2][:2] = [[reported, 7, "<y>"], [reported, 2556, "<x>"]]  # either of both
    (response,) = read(value)
    assert (response.ids[2], response.tokens[2]) == (-1, None)


# -- lists by text ----------------------------------------------------------------------------------------------------


def test_texts_that_fall_together_are_counted_as_in_vllm_44319_and_sglang_32290(read):
    tops = [None, {"b": -1.0, "x": -2.0, "y": -3.0}, {"": -0.5, "c": -1.0}, {"d": -1.0, "x": -2.0, "y": -3.0}]
    (response,) = read(echo(["a", "b", "c", "d"], [None, -1.0, -1.0, -1.0], tops, usage=(4, 0)))
    assert response.n_short_lists == 1
    assert response.is_greedy_known.tolist() == [False, True, False, True]
    assert np.isnan(response.top_logprobs[2]).all()
    assert response.rank.tolist() == [-1, 1, -1, 1]


def test_a_token_that_took_the_place_of_another_as_in_llama_cpp_python(read):
    # the likeliest class was a special one, whose text is empty as the token's own: {"": -1.7, "err": -2.5, ...}
    tops = [None, {"": -13.9, "err": -2.5, "ign": -2.9}, {"b": -1.0, "x": -2.0, "y": -3.0}]
    (response,) = read(echo(["a", "", "b"], [None, -13.9, -1.0], tops, text="a\u00e9b", usage=(3, 0)))
    assert response.n_short_lists == 1
    assert np.isnan(response.top_logprobs[1]).all()  # "err" is not the likeliest
    assert not response.is_greedy[1]


def test_a_list_of_the_token_alone_does_not_show_that_it_is_greedy(read):
    own = [None, {"b": -3.0}, {"c": -2.0}]
    (response,) = read(echo(["a", "b", "c"], [None, -3.0, -2.0], own, usage=(3, 0)))
    assert not response.is_greedy_known.any()
    assert response.top_logprobs.shape == (3, 0)
    (response,) = read(
        echo(["a", "b", "c"], [None, -3.0, -2.0], [None, {"b": -3.0, "x": -1.0}, {"c": -2.0}], usage=(3, 0))
    )
    assert response.is_greedy_known.tolist() == [False, True, True]
    assert response.is_greedy.tolist() == [False, False, True]
    assert response.top_tokens.tolist() == [[None], ["x"], ["c"]]


@pytest.mark.parametrize("has_bytes", [True, False])
def test_a_sampled_token_of_vllms_chats_is_not_among_the_likeliest(has_bytes, read):
    # vLLM puts it first and cuts the list at k, so that one of a single class says nothing
    (response,) = read(chat(("x", -3.0, [("x", -3.0)]), ("y", -0.1, [("y", -0.1)]), has_bytes=has_bytes))
    assert not response.is_greedy_known.any()
    (response,) = read(
        chat(("x", -3.0, [("x", -3.0), ("a", -1.0)]), ("y", -0.1, [("y", -0.1), ("b", -2.0)]), has_bytes=has_bytes)
    )
    assert response.is_greedy.tolist() == [False, True]
    assert response.top_tokens.tolist() == [["a", None], ["y", "b"]]


def test_a_token_of_the_same_text_as_a_listed_class_is_not_that_class(read):
    tops = [None, {"": -0.5, "b": -1.0, "c": -2.0}, {"d": -0.5, "b": -1.0, "c": -2.0}]
    (response,) = read(echo(["a", "", "d"], [None, -9.0, -0.5], tops, usage=(3, 0)))
    assert response.is_greedy.tolist() == [False, False, True]
    assert response.rank[1] == -1


def test_two_classes_of_one_text_are_noticed_where_the_token_is_below_the_likeliest(read):
    tops = [
        None,
        {"x": -0.5, "y": -1.5, "z": -2.5, "b": -6.0},
        {"x": -0.5, "y": -1.5, "c": -6.0},
        {"x": -0.5, "y": -1.5, "z": -2.5},
    ]
    (response,) = read(echo(["a", "b", "c", "y"], [None, -6.0, -6.0, -1.5], tops, usage=(4, 0)))
    assert response.top_tokens.tolist() == [[None] * 3, ["x", "y", "z"], [None] * 3, ["x", "y", "z"]]
    assert response.n_short_lists == 1  # of "c": it may be the third, or one of two with the text "x" or "y" is lost
    assert response.is_greedy_known.tolist() == [False, True, True, True]
    assert not response.is_greedy.any()
    assert response.rank.tolist() == [-1, -1, -1, 2]


@pytest.mark.parametrize("ids", [("7", "07"), ("0", "00")])
def test_two_spellings_of_one_id_are_refused(ids, read):
    entries = {id_: {"logprob": -1.0 - i, "rank": 1 + i, "decoded_token": "a"} for i, id_ in enumerate(ids)}
    value = {"choices": [{"text": "", "prompt_logprobs": [None, entries]}]}
    with pytest.raises(ValueError, match=rf'choices\[0\].prompt_logprobs\[1\]\["{ids[1]}"\] is not an id'):
        read(value)


# -- choices and echoes -----------------------------------------------------------------------------------------------


def test_a_prompt_that_choices_repeat_is_counted_once(read):
    value = clients.response("vllm/completions_n2.json")
    assert [(response.choice, len(response.ids)) for response in read(value)] == [(0, 8)]
    assert [response.is_prompt.sum() for response in read(value, part="all")] == [8, 0]
    assert [len(response.ids) for response in read(value, part="generated")] == [3, 3]
    value["choices"].reverse()
    assert [response.tokens[0] for response in read(value, part="generated")] == [" such", " aston"]
    del value["usage"]
    assert len(read(value)) == 1


def test_a_batch_that_holds_a_prompt_twice_counts_it_twice(read):
    value = clients.response("vllm/completions_n2.json")
    value["usage"]["prompt_tokens"] = 16
    assert [response.choice for response in read(value)] == [0, 1]
    four = copy.deepcopy(value)
    four["choices"] += copy.deepcopy(value["choices"])
    four["usage"]["completion_tokens"] = 12
    for i, choice in enumerate(four["choices"]):
        choice["index"] = i
    assert [response.choice for response in read(four)] == [0, 2]  # n = 2 of a batch of two
    four["usage"]["prompt_tokens"] = 32
    assert [response.choice for response in read(four)] == [0, 1, 2, 3]


def batch(usage, *choices, finish_reason="length"):
    """A response of several choices that echo."""
    value = echo(*choices[0], usage=usage, finish_reason=finish_reason)
    value["choices"] = [
        echo(*choice, finish_reason=finish_reason)["choices"][0] | {"index": i} for i, choice in enumerate(choices)
    ]
    return value


def test_echoes_of_a_batch_end_where_usage_says(read):
    choices = (["a", "b", "x"], [None, -1.0, -2.0]), (["c", "d", "e", "y"], [None, -1.0, -1.5, -3.0])
    assert [response.tokens.tolist() for response in read(batch((5, 2), *choices))] == [["a", "b"], ["c", "d", "e"]]
    assert [response.tokens.tolist() for response in read(batch((7, 2), *choices))] == [
        ["a", "b", "x"],
        ["c", "d", "e", "y"],
    ]
    for value in (batch((5, 2), *choices, finish_reason="stop"), batch(None, *choices), batch((4, 3), *choices)):
        with pytest.raises(ValueError, match="several choices echo their prompts, and nothing shows where these end"):
            read(value)


def test_an_echo_that_nothing_divides_is_only_read_as_a_whole(read):
    value = echo(["a", "b", "x"], [None, -1.0, -2.0])
    for part in (None, "prompt", "generated"):
        with pytest.raises(ValueError, match="nothing shows where the echoed prompt ends"):
            read(value, part=part)
    assert len(read(value, part="all")[0].ids) == 3
    with pytest.raises(ValueError, match="an echo of 3 tokens, but usage counts 5 of the prompt and 1"):
        read(echo(["a", "b", "x"], [None, -1.0, -2.0], usage=(5, 1)))


def test_an_echo_of_as_many_tokens_as_either_a_bos_or_a_new_token_would_leave_is_not_guessed(read):
    value = echo(["a", "b"], [None, -0.1], [None, {"b": -0.1, "x": -3.0}], usage=(2, 1))
    with pytest.raises(ValueError, match="nothing shows where the echoed prompt ends"):
        read(value)
    (response,) = read(echo(["a", "b"], [None, -2.0], [None, {"b": -2.0, "x": -0.1}], usage=(2, 1)))  # of vLLM
    assert response.is_prompt.tolist() == [True, True]


def test_a_list_with_part_of_a_character_that_is_as_long_as_others_lost_no_class(read):
    tops = [{"a": -0.1, "b": -3.0}, {"c": -0.1, "\ufffd": -3.0}]
    (response,) = read(echo(["a", "c"], [-0.1, -0.1], tops, usage=(1, 2)))
    assert response.n_short_lists == 0
    assert response.top_tokens.tolist() == [["a", "b"], ["c", "\ufffd"]]
    (response,) = read(echo(["a", "c"], [-0.1, -0.1], [tops[0], {"\ufffd": -0.1}], text="ac", usage=(1, 2)))
    assert response.n_short_lists == 1


def test_an_echo_of_openai_that_generated_nothing_counts_the_prompt_alone(read):
    value = echo(["a", "b"], [None, -1.0])
    (response,) = read(value | {"usage": {"prompt_tokens": 2, "total_tokens": 2}})
    assert response.is_prompt.tolist() == [True, True]


def test_an_end_of_text_that_is_not_counted_makes_no_echo(read):
    value = echo(["x", "y", "</s>"], [-1.0, -2.0, -3.0], text="xy", usage=(1, 2))
    (response,) = read(value)
    assert not response.is_prompt.any()
    (response,) = read(echo(["a", "b", "x", "y"], [-5.0, -1.0, -2.0, -3.0], usage=(2, 2)), part="all")  # after a BOS
    assert response.is_prompt.tolist() == [True, True, False, False]


def test_an_echo_of_another_tokens_values_is_refused(read):
    value = clients.response("vllm/completion_echo.json")
    value["choices"][0]["logprobs"]["token_logprobs"][4] -= 1
    with pytest.raises(
        ValueError, match=r"choices\[0\].prompt_logprobs\[4\] and .*token_logprobs\[4\] are .* for the same token"
    ):
        read(value)


@pytest.mark.parametrize("has_id", [True, False])
@pytest.mark.parametrize(
    "name", [f"completion_echo_{i}" for i in [*(f"{j:02}" for j in range(10)), "logprobs0", "logprobs1", "max_tokens0"]]
)
def test_the_echo_of_llama_cpp_python_1983_that_is_off_by_one_is_refused(name, has_id, read):
    value = clients.response(f"llama_cpp_python/{name}.json")
    if not has_id:
        value["id"] = "x"
    for part in (None, "all", "generated"):
        with pytest.raises(ValueError, match=r"\(.* off by one position .*, issue 1983\); it must give"):
            read(value, part=part)


def test_an_echo_of_llama_cpp_python_1983_that_ended_or_stopped_is_refused(read):
    tokens, logprobs = ["a", "b", "c"], [None, -9.0, -9.0]
    for usage, finish in [((3, 0), "stop"), ((2, 2), "stop"), ((2, 1), "stop"), ((2, 1), "length")]:
        with pytest.raises(ValueError, match="issue 1983"):
            read(echo(tokens, logprobs, usage=usage, finish_reason=finish, id=UUID))
    assert read(echo(tokens, logprobs, usage=(4, 0), finish_reason="stop", id=UUID))[0].tokens.tolist() == tokens
    assert read(echo(tokens, logprobs, usage=(3, 1), id=UUID))[0].tokens.tolist() == tokens[:2]
    with pytest.raises(ValueError, match="issue 1983"):  # the new token is no ASCII
        read(echo(["你", "好"], [None, -9.0], text="你好吗", usage=(2, 1)))


def test_special_tokens_that_the_text_lacks_are_no_error(read):
    tokens, logprobs = ["<s>", "a", " b", "</s>"], [None, -1.0, -2.0, -3.0]
    assert len(read(echo(tokens, logprobs, text="a b", usage=(3, 1)))[0].ids) == 3
    stripped = read(echo(["a", "b", "c"], [None, -1.0, -2.0], text="a b c", usage=(3, 0)))[0]
    assert (stripped.n_bytes == -1).all()  # of a tokenizer whose tokens lose their blanks


# -- lines that are no response ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"custom_id": "q", "response": {"status_code": 500, "body": None}, "error": None}, "status 500"),
        ({"custom_id": "q", "response": None, "error": {"code": "x", "message": "expired"}}, "expired"),
        ({"custom_id": "q", "response": {"status_code": 200, "body": None}, "error": None}, "it has no response"),
        (
            {"custom_id": "q", "response": {"status_code": 200, "body": {"choices": []}}, "error": "timed\nout"},
            "timed out",
        ),
        (
            {"custom_id": "q", "response": {"status_code": 200, "body": {"error": {"message": "no"}}}, "error": None},
            "no",
        ),
        ({"custom_id": "q", "error": {"error": {"message": "deep"}}}, "deep"),
        ({"error": {"message": "bare", "code": 404}}, "bare"),
        ({"object": "error", "message": "old vLLM", "code": 400}, "old vLLM"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"text": "", "meta_info": {"finish_reason": {"type": "abort", "message": "too long"}}}, "too long"),
    ],
)
def test_failed_lines_are_an_error_or_counted(line, reason, tmp_path):
    right = clients.response("vllm/completion_00.json")
    path = clients.save_lines(tmp_path / "batch.jsonl", right, line, right)
    with pytest.raises(ValueError, match=rf"line 2: .* failed: {reason}; .* \(skip_failed=True\)"):
        list(open_responses(path))
    file = open_responses(path, skip_failed=True)
    assert [response.line for response in file] == [1, 3]
    assert [tuple(failed) for failed in file.failed] == [(2, line.get("custom_id"), reason)]


def test_mixed_layouts_are_refused_with_their_line(read):
    values = [clients.response(name) for name in ("vllm/completion_00.json", "sglang/generate_00.json")]
    with pytest.raises(ValueError, match="line 2: it has the layout SGLang; it must have the layout completions"):
        read(*values)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1, "b": 2}, "it has a, b; it must be a response with choices"),
        (
            {"choices": [{"index": 0}]},
            r"its first choice has index; it must also have text \(of completions\), message",
        ),
        ({}, "it has nothing"),
        ({"choices": []}, "it has choices"),
        ({"custom_id": "q", "method": "POST", "url": "/v1/completions", "body": {}}, "it is a request"),
        ({"choices": [{"index": 0, "delta": {"content": "a"}}]}, "the stream breaks off"),
        ({"content": " a", "tokens_predicted": 1, "stop": False}, "the stream breaks off"),
        ({"choices": [{"text": " a", "logprobs": None, "finish_reason": None}]}, "the stream breaks off"),
        ({"text": " a", "meta_info": {"finish_reason": None}}, "it is a piece of a stream"),
        (echo(["a"], [None, -1.0], text="a"), r"choices\[0\].logprobs.tokens has 1 elements; it must have 2"),
        (echo(["a", 3], [None, -1.0], text="a"), r"choices\[0\].logprobs.tokens\[1\] is 3"),
        (echo(["a", "b"], [None, -1.0], [None]), r"choices\[0\].logprobs.top_logprobs has 1 elements"),
        (objects([(1, -1.0, 0)]), r'choices\[0\].prompt_logprobs\[1\]\["1"\].rank is 0'),
        (objects([("x", -1.0, 1)]), r'choices\[0\].prompt_logprobs\[1\]\["x"\] is not an id'),
        (objects([("1" * 19, -1.0, 1)]), '1"\\] is not an id'),
        (objects([]), r"choices\[0\].prompt_logprobs\[1\] is empty"),
        (changed("sglang/generate_flat.json", ["meta_info", "input_top_logprobs_shape"], [14, 4]), "shape is"),
        (changed("sglang/generate_flat_b64.json", ["meta_info", "input_top_logprobs_val_flat_b64"], "?"), "decoded"),
        (
            changed("sglang/generate_00.json", ["meta_info", "input_token_logprobs", 1], [-1.0]),
            r"logprobs\[1\] is \[-1.0\]",
        ),
        (
            (
                changed("llama_server/completion_00.json", ["completion_probabilities", 0, "bytes"], [256]),
                r"bytes\[0\] is 256; it must be a byte",
            ),
            r"bytes\[0\] is 256; it must be a byte",
        ),
        (changed("llama_server/completion_00.json", ["completion_probabilities", 0, "id"], 1 << 64), r"\[0\].id is"),
    ],
)
def test_what_is_no_response_is_refused(value, message, read):
    with pytest.raises(ValueError, match=f"line 1: .*{message}" if not message.startswith("it ") else message):
        read(value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['data: {"choices": [{"text": " a", "finish_reason": null}]}'], "line 1: the stream breaks off"),
        (['data: {"content": " a", "stop": false}'], "line 1: the stream breaks off"),
        (["", 'data: {"choices": [}'], "line 2: byte 20: Expecting value"),
        (["data: [DONE]"], "has no log-probability"),
        (["data: [1]"], r"line 1: is \[1\]; it must be a JSON object"),
        (["data: {}", "date: {}"], r"line 2: is b'date: \{\}'; it must be data: and a JSON object"),
        (['data: {"choices": [{"index": "0"}]}'], r"line 1: choices\[0\].index is '0'"),
        (['data: {"choices": 3}'], "line 1: choices is 3; it must be a list"),
        (['data: {"text": "a", "meta_info": {}}'], "line 1: it is a piece of a stream of SGLang's own endpoint"),
        (
            ['data: {"id": "x", "choices": []}', 'data: {"id": "x", "error": {"message": "oh"}}'],
            "the request failed: oh",
        ),
        (['data: {"id": "x", "choices": []}', 'data: {"error": {"message": "oh"}}'], "the request failed: oh"),
        (
            [f"data: {json.dumps(echo(['a'], [-1.0]))}"] * 2,
            r"line 2: choices\[0\] continues after its finish_reason; it must belong to a response with",
        ),
    ],
)
def test_what_is_no_stream_of_responses_is_refused(lines, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        list(open_responses(clients.save_lines(tmp_path / "stream.txt", *lines)))


def test_pieces_of_a_stream_among_whole_responses_are_refused(read):
    piece = {"choices": [{"text": " a", "logprobs": None, "finish_reason": None}]}
    with pytest.raises(
        ValueError, match="line 2: it is a piece of a stream; it must be a whole response, like those bef"
    ):
        read(clients.chat(("a", -1.0)), piece)


def test_a_stream_may_be_of_several_responses_and_lack_lists(tmp_path):
    pieces = [
        {"index": i, "content": text, "stop": end}
        | {"completion_probabilities": [{"id": i, "token": text, "logprob": -1.0}]}
        for i, text, end in [(0, "a", False), (1, "b", False), (1, "c", True), (0, "d", True)]
    ]  # fmt: skip
    tokens = {"tokens": ["a"], "token_logprobs": [-1.0]}
    path = clients.save_lines(tmp_path / "stream.txt", *(f"data: {json.dumps(piece)}" for piece in pieces))
    assert [(r.line, r.choice, r.tokens.tolist()) for r in open_responses(path)] == [
        (2, 1, ["b", "c"]),
        (1, 0, ["a", "d"]),
    ]
    choices = [
        {"index": 1, "text": "a", "logprobs": tokens | {"top_logprobs": None}, "finish_reason": None},
        {"index": 0, "text": "a", "logprobs": tokens, "finish_reason": "stop"},
        {
            "index": 1,
            "text": "a",
            "logprobs": tokens | {"top_logprobs": [{"a": -1.0, "b": -2.0}]},
            "finish_reason": "stop",
        },
    ]
    path = clients.save_lines(tmp_path / "stream.txt", *(f"data: {json.dumps({'choices': [one]})}" for one in choices))
    alone, both = open_responses(path)
    assert (alone.choice, alone.tokens.tolist()) == (0, ["a"])
    assert (both.choice, both.tokens.tolist(), both.is_greedy_known.tolist()) == (1, ["a", "a"], [False, True])


def test_entries_in_the_order_of_their_ranks_do_not_tell_the_prompts_own_token(read):
    ranked = [(9, -0.1, 1), (3, -1.0, 2), (7, -2.0, 3)]  # as a tool may sort them
    with pytest.raises(ValueError, match="do not show which entry is the prompt's own token"):
        read(objects(ranked, ranked))
    (response,) = read(objects(ranked, [(7, -2.0, 3), (9, -0.1, 1), (3, -1.0, 2)]))
    assert response.ids.tolist() == [-1, 9, 7]


@pytest.mark.parametrize("ids", [(1, 2, 5), (2, 10, 30), (10, 2, 30)])
def test_sorted_ids_do_not_tell_the_prompts_own_token(ids, read):
    """A tool may have sorted them, as numbers or as text, so that the first one is not the prompt's."""
    with pytest.raises(ValueError, match="do not show which entry is the prompt's own token"):
        read(objects([*zip(ids, (-2.0, -0.1, -0.5), (3, 1, 2), strict=True)]))


def test_ids_of_a_prompt_alone_stand_beside_those_of_what_was_generated(read):
    value = echo(["a", "b", "c"], [None, -1.0, -2.0], usage=(3, 0))
    value["choices"][0] |= {"prompt_token_ids": [7, 8, 9], "token_ids": [4]}
    (response,) = read(value)
    assert (response.is_prompt.all(), response.ids.tolist()) == (True, [7, 8, 9])


def test_choices_of_a_stream_are_in_the_order_of_their_numbers(tmp_path):
    def piece(index, text):
        tokens = {"tokens": [text], "token_logprobs": [-1.0], "top_logprobs": None}
        return {"choices": [{"index": index, "text": text, "logprobs": tokens, "finish_reason": "stop"}]}

    lines = (f"data: {json.dumps(one)}" for one in (piece(2, "c"), piece(1, "b")))  # the server left out choice 0
    first, second = open_responses(clients.save_lines(tmp_path / "stream.txt", *lines))
    assert (first.tokens.tolist(), second.tokens.tolist()) == (["b"], ["c"])


def test_two_entries_may_tell_the_prompts_own_token(read):
    (response,) = read(
        objects([(5, -3.0, 2), (9, -0.1, 1)], [(9, -3.0, 2), (5, -0.1, 1)], [(10, -3.0, 2), (9, -0.1, 1)])
    )
    assert response.ids.tolist() == [-1, 5, 9, 10]
