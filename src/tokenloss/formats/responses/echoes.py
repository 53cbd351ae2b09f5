"""Echoes, which are lists of a prompt and the text generated after it, and prompts that several choices repeat."""

from __future__ import annotations

import dataclasses
import itertools
import operator
import re
from typing import TYPE_CHECKING, Any

from tokenloss._core._core import is_log_prob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss.formats.records import Place
    from tokenloss.formats.responses.columns import Listed

_LLAMA_CPP_PYTHON = re.compile("cmpl-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # the ids of its responses
_SAME = 1e-5  # difference of two roundings of a log-probability
_ISSUE = "values of llama-cpp-python are off by one position if there is no BOS: abetlen/llama-cpp-python, issue 1983"


def split_echoes(
    value: dict[str, Any], choices: Sequence[dict[str, Any]], all_parts: Sequence[dict[str, Listed]],
    usage: tuple[int | None, int | None], place: Place,
) -> None:  # fmt: skip
    """The parts of the tokens "listed" in each choice: the prompt, if included, and the generated text."""
    with_lists = [i for i, parts in enumerate(all_parts) if "listed" in parts]
    counted = usage[1]
    total = sum(len(all_parts[i]["listed"]) for i in with_lists)
    is_echo = counted is not None and total > counted + len(with_lists)  # an end of text may be listed, not counted
    n_prompts: list[int | None] = []
    for i in with_lists:
        listed = all_parts[i]["listed"]
        if not (is_echo or listed.logprobs[0] is None):
            n_prompts.append(0)
            continue
        _check_text(value, choices[i], f"choices[{i}]", listed, usage, place)
        n_prompts.append(_n_prompt(choices[i], all_parts[i], len(listed)))
    if None in n_prompts:
        n_prompts = _by_usage(
            value, [choices[i] for i in with_lists], [all_parts[i]["listed"] for i in with_lists], usage, place
        )
    for i, n_prompt in zip(with_lists, n_prompts, strict=True):
        parts, listed = all_parts[i], all_parts[i].pop("listed")
        if n_prompt is None:
            parts["all"] = listed
        elif not n_prompt:
            parts["generated"] = listed
        else:
            echo = listed.part(0, n_prompt)
            parts["prompt"] = _with_texts(parts["prompt"], echo, f"choices[{i}]", place) if "prompt" in parts else echo
            if n_prompt < len(listed):
                parts["generated"] = listed.part(n_prompt, None)


def _n_prompt(choice: dict[str, Any], parts: dict[str, Listed], n: int) -> int | None:
    """Number of the prompt's tokens in an echo, if the choice itself shows it."""
    if "prompt" in parts:
        return min(len(parts["prompt"]), n)
    if choice.get("prompt_token_ids") is not None:
        return min(len(choice["prompt_token_ids"]), n)
    if choice.get("token_ids") is not None and len(choice["token_ids"]) < n:
        return n - len(choice["token_ids"])
    return None


def _with_texts(prompt: Listed, echo: Listed, field: str, place: Place) -> Listed:
    """A prompt with the texts of its echo, which must be of the same tokens."""
    n = len(prompt)
    if len(echo) != n:
        place.refuse(f"{field} echoes {len(echo)} tokens", f"echo {n}, as prompt_logprobs does")
    for i in range(n):
        x, y = prompt.logprobs[i], echo.logprobs[i]
        if is_log_prob(x) and is_log_prob(y) and abs(x - y) > _SAME:
            got = f"{field}.prompt_logprobs[{i}] and {field}.logprobs.token_logprobs[{i}] are {x} and {y}"
            place.refuse(got, "be equal, for the same token")
    texts = [own if own is not None else text for own, text in zip(prompt.texts, echo.texts[:n], strict=True)]
    return dataclasses.replace(prompt, texts=texts, lengths=echo.lengths[:n])


def _check_text(
    value: dict[str, Any], choice: dict[str, Any], field: str, listed: Listed, usage: tuple[int | None, int | None],
    place: Place,
) -> None:  # fmt: skip
    """Refuse an echo whose tokens do not make up its text, since log-probabilities may then belong to other tokens."""
    text: Any = choice.get("text")
    texts: Any = listed.texts
    if not isinstance(text, str) or None in texts:
        return
    is_right = _is_covered(text, texts)
    if isinstance(value.get("id"), str) and _LLAMA_CPP_PYTHON.fullmatch(value["id"]):
        is_right &= _is_shifted_rightly(text, texts, choice.get("finish_reason"), usage)
    if not is_right:
        got = f"the response leaves it unclear whether {field}.logprobs matches {field}.text ({_ISSUE})"
        place.refuse(got, "give each token its own log-probability; score the model's logits instead")


def _ascii(text: str) -> str:
    """The characters that no tokenizer splits."""
    return text.encode("ascii", "ignore").decode()


def _is_covered(text: str, texts: Sequence[str]) -> bool:
    """Whether these tokens may make up the text; some may be special, or parts of characters."""
    joined, last = "".join(texts), texts[-1]
    if joined == text or _is_within(text, joined):
        return True
    if "".join(text.split()) == "".join(joined.split()):  # some servers lose the blank that a token starts with
        return text[len(text.rstrip()) :] == joined[len(joined.rstrip()) :]
    is_lossy = any(not token or "\ufffd" in token or "\x7f" < token < "\u0100" for token in texts)
    if not is_lossy or not _is_within(_ascii(text), _ascii(joined)):
        return False
    spelled = last.encode("latin-1", "ignore")
    return not last or "\ufffd" in last or text.endswith(last) or text.encode().endswith(spelled)


def _is_within(text: str, joined: str) -> bool:
    """Whether the characters of a text are in another one, in their order."""
    if text in joined:
        return True
    characters: Any = iter(joined)
    return len(text) <= len(joined) and all(map(operator.contains, itertools.repeat(characters), text))


def _is_shifted_rightly(text: str, texts: Sequence[str], finish: Any, usage: tuple[int | None, int | None]) -> bool:
    """Whether an echo from llama-cpp-python is known to be of a prompt with a BOS.

    It lists the tokens for which there are rows, less the BOS. Without one it has all tokens of a prompt after which it
    ended, and else misses the last token. After a stop text this cannot be known.
    """
    n_prompt, n_generated = usage
    if n_prompt is not None and n_generated is not None and len(texts) != n_prompt + n_generated - 1:
        return False
    if n_generated == 0:
        return True
    joined = "".join(texts)
    return finish == "length" and (joined == text or (bool(texts[-1]) and _ascii(joined) == _ascii(text)))


def _by_usage(
    value: dict[str, Any], choices: Sequence[dict[str, Any]], listed: Sequence[Listed],
    usage: tuple[int | None, int | None], place: Place,
) -> list[int | None]:  # fmt: skip
    """Numbers of the prompts' tokens in echoes, by the counts of the server."""
    n_prompt, n_generated = usage
    if len(listed) == 1:
        if n_prompt is None or n_generated is None:
            return [None]
        return [_one_by_usage(value, listed[0], n_prompt, n_generated, place)]
    if n_prompt is not None and n_generated is not None and len(listed) == len(choices):
        is_long = all(choice.get("finish_reason") == "length" for choice in choices)
        each, rest = divmod(n_generated, len(listed))
        for n in [each] * (is_long and not rest) + [0] * (each <= 1 and not rest):
            sizes = [len(tokens) - n for tokens in listed]
            if min(sizes) >= 0 and _block(sizes, n_prompt):
                return list(sizes)
    got = "several choices echo their prompts, and nothing shows where these end"
    return place.refuse(got, "come with prompt_token_ids (request return_token_ids), or be one choice each")


def _one_by_usage(value: dict[str, Any], listed: Listed, n_prompt: int, n_generated: int, place: Place) -> int | None:
    """Number of a prompt's tokens in an echo; None if it cannot be determined."""
    n = len(listed)
    if n == n_prompt + n_generated:
        return n_prompt
    if n != n_prompt + n_generated - 1:
        counts = f"{n_prompt} of the prompt and {n_generated} that were generated"
        place.refuse(f"an echo of {n} tokens, but usage counts {counts}", "contain all of them")
    if n_generated != 1 or _LLAMA_CPP_PYTHON.fullmatch(str(value.get("id"))):
        return n - n_generated  # the BOS is not listed
    tops = listed.tops
    lists = [(text, *span) for text, span in zip(listed.texts, tops.spans(), strict=True) if span[1] > span[0]]
    if any(tops.texts[start] != text for text, start, _ in lists if text is not None):
        return n - 1  # likewise
    values = [tops.logprobs[start:end] for _, start, end in lists]
    if any(all(map(is_log_prob, row)) and row[0] < max(row) for row in values):
        return n  # vLLM, which puts the token itself first, counts a token that it does not list
    return None


def _block(sizes: Sequence[int], total: int) -> int:
    """The number of choices per prompt with which the sizes of the prompts add up to the total; 0 if no number fits."""
    for n in range(1, len(sizes) + 1):
        is_whole = len(sizes) % n == 0 and sum(sizes[::n]) == total
        if is_whole and all(size == sizes[i - i % n] for i, size in enumerate(sizes)):
            return n
    return 0


def copies(all_parts: Sequence[dict[str, Listed]], n_prompt: int | None) -> list[bool]:
    """Whether each choice repeats the prompt of a choice before it."""
    if len(all_parts) == 1:
        return [False]
    prompts = [parts.get("prompt") for parts in all_parts]
    keys = [
        tokens and (tokens.ids[tokens.span], tokens.texts[tokens.span], tokens.logprobs[tokens.span])
        for tokens in prompts
    ]
    are_same = [i > 0 and keys[i] is not None and keys[i] == keys[i - 1] for i in range(len(keys))]
    n = _block([len(tokens) if tokens else 0 for tokens in prompts], n_prompt) if n_prompt is not None else 0
    if n and all(are_same[i] for i in range(len(keys)) if i % n):
        return [i % n > 0 for i in range(len(keys))]
    return are_same
