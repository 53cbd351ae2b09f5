"""Damaged files of responses and samples raise ValueError, in one line that names them, or give numbers that can be."""

import codecs
import gzip
import json
import sys

import clients
import numpy as np
import pytest
from damage import ANYTHING, DAMAGES, bounded, changed, damaged, fuzzed, places
from hypothesis import given
from hypothesis import strategies as st
from places import DATA

from tokenloss import compare_samples
from tokenloss.formats.records import read_records
from tokenloss.formats.responses import PARTS_OF_RESPONSE, open_responses

pytestmark = [
    pytest.mark.thread_unsafe(reason="sets an alarm for the process, and measures its memory"),
    pytest.mark.filterwarnings("ignore:.*identical to base"),
]
NAMES = [name for name, text in clients.responses().items() if len(text) < 40_000]


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A directory for files that are written again and again."""
    return tmp_path_factory.mktemp("damaged")


def refusal(path, read):
    """The line that refuses a file, or None: it is read."""
    with bounded():
        try:
            read()
        except ValueError as error:
            message = str(error)
            assert str(path) in message
            assert "\n" not in message
            return message
    return None


# -- records ----------------------------------------------------------------------------------------------------------


def unique(pairs):
    """An object; ValueError where it has a key twice."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError
    return dict(pairs)


def records_of(data, is_lines):
    """What a file holds, in the plainest way; ValueError where it must be refused."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    data = data.removeprefix(codecs.BOM_UTF8)
    decoder, result = json.JSONDecoder(object_pairs_hook=unique), []
    for line in data.split(b"\n") if is_lines else [data]:
        left = line.decode().strip(" \t\r\n")
        while left:
            value, end = decoder.raw_decode(left)
            result += value if isinstance(value, list) else [value]
            left = left[end:].strip(" \t\r\n")
            if is_lines and left:
                raise ValueError
    json.dumps(result, ensure_ascii=False).encode()
    if not result or not all(isinstance(value, dict) for value in result):
        raise ValueError
    return result


def assert_read_as_they_are(path, data):
    """Compare the reader with the plainest one: both read the same or both refuse."""
    path.write_bytes(data)
    try:
        expected = records_of(data, path.suffix == ".jsonl")
    except Exception:  # whatever a library raises about damaged data
        expected = None
    result = []
    refused = refusal(path, lambda: result.extend(value for _, value in read_records(str(path))))
    assert (refused is None) == (expected is not None)
    if expected is not None:
        assert repr(result) == repr(expected)  # nan is not equal to itself


LAYOUTS = {
    "a.json": lambda texts: "\n".join(texts).encode(),
    "list.json": lambda texts: b"[" + ",\n".join(texts).encode() + b"]",
    "indented.json": lambda texts: json.dumps([json.loads(text) for text in texts], indent=2).encode(),
    "a.jsonl": lambda texts: "\n".join(texts).encode(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@fuzzed
@given(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=2), damages=DAMAGES, is_gzip=st.booleans())
def test_records_with_damaged_bytes(layout, names, damages, is_gzip, where):
    texts = [clients.responses()[name] for name in names if name.endswith(".json")] or ["{}"]
    data = LAYOUTS[layout](texts)
    assert_read_as_they_are(where / layout, damaged(gzip.compress(data) if is_gzip else data, damages))


SYMBOLS = [*'{}[],:"\\\n ', "{}", '"a":', "1", "NaN", "\\ud83d", "\\ude00", "é", "\ufeff"]


@pytest.mark.parametrize("layout", ["a.json", "a.jsonl"])
@fuzzed
@given(symbols=st.lists(st.sampled_from(SYMBOLS), max_size=12))
def test_records_of_random_symbols(layout, symbols, where):
    assert_read_as_they_are(where / layout, "".join(symbols).encode())


# -- responses --------------------------------------------------------------------------------------------------------


def check(response):
    """Check what must be true of the numbers of any response."""
    n = len(response.logprobs)
    for name in ("tokens", "n_bytes", "ids", "is_sentinel", "is_prompt", "rank", "is_greedy", "is_greedy_known"):
        assert getattr(response, name).shape == (n,)
    assert response.top_ids.shape == response.top_tokens.shape == response.top_logprobs.shape
    assert len(response.top_ids) == n
    assert not (response.logprobs > 1e-4).any()
    assert np.isnan(response.logprobs[response.is_sentinel]).all()
    assert response.ids.min(initial=0) >= -1
    assert response.n_bytes.min(initial=0) >= -1
    assert response.rank.min(initial=1) >= -1
    assert 0 not in response.rank
    assert response.is_greedy_known[response.is_greedy].all()
    tops = np.nan_to_num(response.top_logprobs, nan=-np.inf)
    assert (tops[:, 1:] <= tops[:, :-1]).all()
    assert not (tops > 1e-4).any()


def examine(path):
    """Read a file of responses in every way."""
    for part in (None, *PARTS_OF_RESPONSE):
        for skip_failed in (False, True):

            def read(part=part, skip_failed=skip_failed):
                for response in open_responses(path, part=part, skip_failed=skip_failed):
                    check(response)

            refusal(path, read)


@pytest.mark.parametrize("name", [name for name in clients.responses() if name not in NAMES])
def test_large_responses_that_are_whole(name, where):
    path = clients.save(where / "whole.json", name)
    examine(path)


@pytest.mark.parametrize("layout", LAYOUTS)
@fuzzed
@given(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=2), damages=DAMAGES)
def test_responses_with_damaged_bytes(layout, names, damages, where):
    texts = [clients.responses()[name] for name in names if name.endswith(".json")] or ["{}"]
    path = where / layout
    path.write_bytes(damaged(LAYOUTS[layout](texts), damages))
    examine(path)


REALS = st.sampled_from([-9999.0, float("nan"), float("inf"), -float("inf"), 0.5, -1e308, -0.0, -2.5])
INTEGERS = st.sampled_from([10**400, -(10**400), 2**63, 2**64, -1, 0, 2556])
TEXTS = st.sampled_from(
    ["", "\ufffd", "é", "token_id:7", "token_id:x", "7", "-7", "x" * 5000, "\n", "\x00", "AAAA", "%s{}", "-1.5"]
)
PIECES = st.sampled_from([[], {}, [None], [[]], [{}], {"logprob": -1.0}, [-1.0, 7, "a"], [None, 0, None], {"7": None}])
NEW = ANYTHING | REALS | INTEGERS | TEXTS | PIECES


CHANGES = {
    "shorter": lambda entries: entries[:-1],
    "without the first": lambda entries: entries[1:],
    "longer": lambda entries: [*entries, *entries[-1:]],
    "reversed": lambda entries: entries[::-1],
}


@st.composite
def lies(draw):
    """Responses of a file, one with other values, or with other entries of a list or an object, at one or two paths."""
    text = clients.responses()[draw(st.sampled_from([name for name in NAMES if not name.endswith(".txt")]))]
    values = [json.loads(line) for line in text.strip("\n").split("\n")]
    which = draw(st.integers(0, len(values) - 1))
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(places(values[which]))[1:] or [()]))
        new, old, change = draw(NEW), values[which], CHANGES.get(draw(st.sampled_from(["new", "new", *CHANGES])))
        for key in path:
            old = old[key]
        if change and isinstance(old, list):
            new = change(old)
        elif change and isinstance(old, dict):
            new = dict(change(list(old.items())))
        values[which] = changed(values[which], path, new)
    return values


@fuzzed
@given(values=lies())
def test_responses_with_random_values(values, where):
    examine(clients.save_lines(where / "lies.jsonl", *values))


@pytest.mark.parametrize("levels", [50, 900])
@pytest.mark.parametrize("name", sorted({name.split("_")[0] for name in NAMES}))
def test_responses_nested_deeply_at_any_key(levels, name, where):
    name = next(whole for whole in NAMES if whole.startswith(name))
    value = json.loads(clients.responses()[name].split("\n")[0])
    for path in list(places(value))[1::25]:
        text = json.dumps(changed(value, path, "DEEP")).replace('"DEEP"', "[" * levels + "]" * levels)
        examine(clients.save_lines(where / "deep.jsonl", text))


# -- samples of lm-evaluation-harness ----------------------------------------------------------------------------------

NUMBERS = st.sampled_from(
    ["nan", "-inf", "inf", "1", "True", "9" * 400, "[0.5 0.5]", ["-1", "True"], 1e308, -1e308, -0.5]
)


def assert_samples_compare_or_are_refused(where, base, other):
    """Compare two files; what is read gives figures that JSON can hold."""
    paths = where / "base.jsonl", where / "other.jsonl"
    for path, data in zip(paths, (base, other), strict=True):
        path.write_bytes(data)
    result = []
    if refusal(where, lambda: result.extend(compare_samples(*paths, cluster="id").values())) is None:
        json.dumps(result[0].to_dict())
        for metric in result[0].metrics:
            assert metric.mcnemar_p is None or 0 <= metric.mcnemar_p <= 1
            assert not metric.base.stderr < 0


@pytest.mark.parametrize("task", ["mc", "mc_mutual_info", "lastword", "rolling"])
@fuzzed
@given(data=st.data())
@pytest.mark.slow
def test_samples_with_other_values(task, data, where):
    texts = [clients.samples()[f"{run}/{task}.jsonl"].splitlines()[:3] for run in ("base", "noise")]
    files = [list(map(json.loads, lines)) for lines in texts]
    path = data.draw(st.sampled_from(list(places(files[0]))[4:]))
    new = data.draw(ANYTHING | NUMBERS)
    for i in data.draw(st.sampled_from([[0], [1], [0, 1]])):
        files[i] = changed(files[i], path, new)
    assert_samples_compare_or_are_refused(where, *("\n".join(map(json.dumps, lines)).encode() for lines in files))


@pytest.mark.parametrize("task", ["mc", "rolling"])
@fuzzed
@given(damages=DAMAGES)
def test_samples_with_damaged_bytes(task, damages, where):
    base, other = (clients.samples()[f"{run}/{task}.jsonl"].encode() for run in ("base", "noise"))
    assert_samples_compare_or_are_refused(where, base, damaged(other, damages))


@fuzzed
@given(damages=DAMAGES)
@pytest.mark.slow
def test_logs_of_inspect_with_damaged_bytes(damages, where):
    pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    path, base = where / "x.eval", DATA / "inspect" / "base.eval"
    path.write_bytes(damaged(base.read_bytes(), damages))
    result = []
    if refusal(path, lambda: result.extend(compare_samples(base, path, cluster="topic").values())) is None:
        json.dumps(result[0].to_dict())


@fuzzed
@given(data=st.data())
def test_logs_of_inspect_with_other_values(data, where):
    sample = {
        "id": 1, "epoch": 1, "input": [{"role": "user", "content": "q"}], "target": ["C"], "metadata": {"id": {"x": 1}},
        "scores": {"a": {"value": "C"}, "b": {"value": {"x": 0.5}}}, "messages": [{"role": "user", "content": "q"}],
    }  # fmt: skip
    log = {"version": 2, "status": "success", "eval": {"config": {"epochs": 2}}, "plan": {}, "samples": [sample]}
    path = data.draw(st.sampled_from(list(places(log))[1:]))
    for name, value in ("base.json", log), ("other.json", changed(log, path, data.draw(ANYTHING | NUMBERS))):
        (where / name).write_text(json.dumps(value))
    result = []
    read = lambda: result.extend(compare_samples(where / "base.json", where / "other.json", cluster="id").values())  # noqa: E731
    if refusal(where, read) is None:
        json.dumps(result[0].to_dict())
