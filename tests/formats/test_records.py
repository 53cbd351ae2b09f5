"""Records of JSON files: lines of .jsonl, objects and lists of .json, plain and compressed, and what is refused."""

import gzip
import json
import math
import os
import re
import sys
import time

import clients
import pytest
from commands import at_most
from files import held_at_most
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenloss.formats import records
from tokenloss.formats.records import read_records

pytestmark = pytest.mark.thread_unsafe(reason="sets an alarm for the process, and measures its memory")
NAMES = ("a.json", "a.jsonl")
LARGE = (pytest.param("a.json", marks=pytest.mark.slow), "a.jsonl")  # names of files that take a second each


@pytest.fixture(autouse=True)
def _alarm():
    """Fail instead of waiting forever."""
    with at_most(60):
        yield


def save(directory, data, name):
    path = directory / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def read(path):
    """Lines and values of the records of a file."""
    return [tuple(record) for record in read_records(str(path))]


def assert_refused(path, message):
    with pytest.raises(ValueError) as raised:
        read(path)
    assert str(raised.value) == f"{path}: {message}"


# -- what is read -----------------------------------------------------------------------------------------------------

LINES = {
    "lines": '{"a": 1}\n{"a": 2}\n',
    "no end of the last line": '{"a": 1}\n{"a": 2}',
    "ends of lines as in Windows": '{"a": 1}\r\n{"a": 2}\r\n',
    "spaces": ' \t{"a": 1} \n\t{"a": 2} ',
}


@pytest.mark.parametrize("name", [*NAMES, "A.JSONL", "a", "a.jsonl.gz", "a.ndjson"])
@pytest.mark.parametrize("data", LINES.values(), ids=LINES)
def test_records_are_lines(data, name, tmp_path):
    assert read(save(tmp_path, data, name)) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize("name", NAMES)
def test_blank_lines_are_skipped_and_counted(name, tmp_path):
    assert read(save(tmp_path, '\n \t\r\n{"a": 1}\n\n\n{"a": 2}\n\n', name)) == [(3, {"a": 1}), (6, {"a": 2})]


@pytest.mark.parametrize("name", NAMES)
def test_a_line_may_hold_a_list_of_records(name, tmp_path):
    data = '[{"a": 1}, {"a": 2}]\n[]\n{"a": 3}\n[{"a": 4}]\n'
    assert read(save(tmp_path, data, name)) == [(1, {"a": 1}), (1, {"a": 2}), (3, {"a": 3}), (4, {"a": 4})]


OBJECTS = {
    '{"a":\n1}': [1],
    '{"a": 1}{"a": 2}\n\n{\n"a": 3}': [1, 1, 3],
    '[{"a": 1},{"a": 2}]': [1, 1],
    '\n[\n  {"a": 1}\n  ,\n  {\n    "a": 2\n  },\n\n{"a":\n3}]\n': [3, 5, 9],
    '[{"a": 1}]\n[\n]\n{"a": 2}': [1, 4],
    '{"a": "{\\"}\\\\"}\n{"}": "{"}': [1, 2],
}


@pytest.mark.parametrize("data", OBJECTS)
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 18])
def test_objects_and_lists_on_any_lines(data, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_CHUNK", chunk)
    values, left = [], data
    while left := left.strip(" \n,[]"):
        value, end = json.JSONDecoder().raw_decode(left)
        values.append(value)
        left = left[end:]
    assert read(save(tmp_path, data, "a.json")) == list(zip(OBJECTS[data], values, strict=True))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("is_ascii", [True, False])
def test_real_responses_are_what_json_reads(indent, is_ascii, tmp_path):
    texts = [text for name, text in clients.responses().items() if name.endswith(".json")]
    values = [json.loads(text) for text in texts]
    data = "\n".join(json.dumps(value, indent=indent, ensure_ascii=is_ascii) for value in values)
    records = [record for value in values for record in (value if isinstance(value, list) else [value])]
    assert [value for _, value in read(save(tmp_path, data, "a.json"))] == records
    data = json.dumps(records, indent=indent, ensure_ascii=is_ascii)
    assert [value for _, value in read(save(tmp_path, data, "a.json"))] == records
    assert [value for _, value in read(save(tmp_path, gzip.compress(data.encode()), "a.json"))] == records
    if indent is None:
        data = "\n".join(texts)
        assert [value for _, value in read(save(tmp_path, data, "a.jsonl"))] == records


TEXTS = st.text('"\\{}[]:, \n\tué😀', max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), min_size=1, max_size=4)


@settings(derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=RECORDS, indent=st.sampled_from([None, 0, 1]), is_ascii=st.booleans(), chunk=st.integers(1, 9))
@pytest.mark.slow
def test_any_records_in_chunks_of_any_size(values, indent, is_ascii, chunk, tmp_path):
    lines = [json.dumps(value, ensure_ascii=is_ascii, indent=indent) for value in values]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenloss.formats.records._CHUNK", chunk)
        expected = []
        for line in lines:
            expected.append((1 + sum(text.count("\n") + 1 for text in lines[: len(expected)]), json.loads(line)))
        assert read(save(tmp_path, "\n".join(lines), "a.json")) == expected
        assert read(save(tmp_path, ("[" + ",\n".join(lines) + "]"), "a.json")) == expected
        lines = [json.dumps(value, ensure_ascii=is_ascii) for value in values]
        assert read(save(tmp_path, "\n".join(lines), "a.jsonl")) == list(enumerate(values, 1))


def test_numbers_are_those_that_are_written(tmp_path):
    numbers = ["-1.0986122886681098", "5e-324", "-0.0", "-9999.0", "1" * 4300, "-Infinity", "Infinity", "1e999"]
    [(_, value)] = read(save(tmp_path, f'{{"a": [{", ".join(numbers)}, NaN]}}', "a.jsonl"))
    *result, last = value["a"]
    assert list(map(repr, result)) == [repr(int(x) if x.isdigit() else float(x)) for x in numbers]
    assert math.isnan(last)


@pytest.mark.parametrize("name", [*NAMES, "a.json.gz", "a.jsonl.gz"])
@pytest.mark.parametrize("parts", [1, 2])
def test_gzip_is_told_by_its_first_bytes(name, parts, tmp_path):
    lines = [b'{"a": 1}\n', b'{"a": 2}\n']
    data = gzip.compress(b"".join(lines)) if parts == 1 else b"".join(map(gzip.compress, lines))
    assert read(save(tmp_path, data, name)) == read(save(tmp_path, b"".join(lines), name)) == read(tmp_path / name)
    assert len(read(save(tmp_path, data, name))) == 2


# -- what is refused --------------------------------------------------------------------------------------------------

ANY_VALUE = "it must be an object or a list of objects"
WHOLE = "it must be whole JSON, on one line in .jsonl"
WRONG_JSON = {
    "": "has no records; it must contain JSON objects",
    " \n\n": "has no records; it must contain JSON objects",
    "[]": "has no records; it must contain JSON objects",
    "<html>": f"line 1: byte 1 is '<'; {ANY_VALUE}",
    "\n null": f"line 2: byte 2 is 'n'; {ANY_VALUE}",
    "{}\n, {}": f"line 2: byte 1 is ','; {ANY_VALUE}",
    "{}}": f"line 1: byte 3 is '}}'; {ANY_VALUE}",
    "{}\n]": f"line 2: byte 1 is ']'; {ANY_VALUE}",
    "{} é": f"line 1: byte 4 is '\\xc3'; {ANY_VALUE}",
    "[1]": "line 1: byte 2 is '1'; it must be an object or ]",
    "[[{}]]": "line 1: byte 2 is '['; it must be an object or ]",
    '["{"]': "line 1: byte 2 is '\"'; it must be an object or ]",
    "[,{}]": "line 1: byte 2 is ','; it must be an object or ]",
    "[{}\n\n {}]": "line 3: byte 2 is '{'; it must be a comma or ]",
    "[{},\n]": "line 2: byte 1 is ']'; it must be an object",
    "[{}": "line 1: the file ends within a list; it must be a comma or ]",
    "[{}\n,": "line 2: the file ends within a list; it must be an object",
    '\n{"a": 1': f"line 2: a record ends too early; {WHOLE}",
    '[{},\n{"a": "x': f"line 2: a record ends too early; {WHOLE}",
    '{"a":\n\n 1 2}': "line 3: byte 4: Expecting ',' delimiter; it must be JSON",
    '{"é": 1,\n"ü": é}': "line 2: byte 7: Expecting value; it must be JSON",
    '[{"é": 1}, {"a" 1}]': "line 1: byte 18: Expecting ':' delimiter; it must be JSON",
    '[{"a": 1, {"b": 2}]': "line 1: byte 11: Expecting property name enclosed in double quotes; it must be JSON",
    '{"a": "x\ny"}': "line 1: byte 9: Invalid control character at; it must be JSON",
    '{"a": [1}': "line 1: byte 9: Expecting ',' delimiter; it must be JSON",
}


EACH_LINE = "it must have one per line; a file named .json may have several on a line"
WRONG_LINES = {
    "": "has no records; it must contain JSON objects",
    "\n \n": "has no records; it must contain JSON objects",
    "[]\n": "has no records; it must contain JSON objects",
    "<html>": "line 1: byte 1: Expecting value; it must be JSON",
    "\nnull\n": "line 2: is None; it must be a JSON object",
    '{}\n"{}"\n': "line 2: is '{}'; it must be a JSON object",
    "[[{}]]": "line 1: is [{}]; it must be a JSON object",
    "[{}, 1]": "line 1: is 1; it must be a JSON object",
    "{}\n{} {}": f"line 2: has two records; {EACH_LINE}",
    "{}\n{}[{}]": f"line 2: has two records; {EACH_LINE}",
    "{}\n{} x": "line 2: byte 4: Extra data; it must be JSON",
    '{"a": 1\n{}': f"line 1: a record ends too early; {WHOLE}",
    '{}\n{"a": "x': f"line 2: a record ends too early; {WHOLE}",
    '{\n"a": 1\n}': f"line 1: a record ends too early; {WHOLE}",
    '{}\n{"é": é}': "line 2: byte 8: Expecting value; it must be JSON",
}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [(name, *case) for name, wrong in zip(NAMES, (WRONG_JSON, WRONG_LINES), strict=True) for case in wrong.items()],
)
@pytest.mark.parametrize("chunk", [1, 1 << 18])
def test_records_that_are_malformed(name, data, message, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_CHUNK", chunk)
    assert_refused(save(tmp_path, data, name), message)


WRONG_RECORDS = {
    '{"a": 1, "b": 2, "a": 3}': "an object has the key 'a' twice; it must have it once",
    '{"a": [{"b": 1, "b": 1}]}': "an object has the key 'b' twice; it must have it once",
    '{"a": ' + "1" * 5000 + "}": "an integer has too many digits; it must have fewer",
    '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}": "is nested too deeply; it must have at most 100 levels",
    '{"a": ' * 100_000 + "1" + "}" * 100_000: "is nested too deeply; it must have at most 100 levels",
    '{"a\\"": ' + "[" * 100 + "]" * 100 + "}": "is nested too deeply; it must have at most 100 levels",
    '{"a": "\\ud800"}': "a contains half of a surrogate pair; it must be Unicode",
    '{"a": [1, {"b c": "\\ude00\\ud83d"}]}': "a[1].b c contains half of a surrogate pair; it must be Unicode",
    '{"\\uD83D": 1}': "\\ud83d contains half of a surrogate pair; it must be Unicode",
    '{"a": "\\\\ud83d\\ude00"}': "a contains half of a surrogate pair; it must be Unicode",
    '{"a": "\\ud83d\\\\\\ude00"}': "a contains half of a surrogate pair; it must be Unicode",
    '{"a": "\\ud83d\\ud83d\\ude00"}': "a contains half of a surrogate pair; it must be Unicode",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("data", WRONG_RECORDS)
def test_records_that_json_would_take(data, name, tmp_path):
    assert_refused(save(tmp_path, '{"b": 1}\n' + data, name), f"line 2: {WRONG_RECORDS[data]}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a": [[], ', "]}"), ('[[[1], 2, {"a": ', "}]]")])
def test_levels_that_are_too_many(name, start, end, tmp_path):
    levels = len([character for character in end if character in "]}"])
    for left in (99, 100):
        inner = "[" * (left % levels) + "]" * (left % levels)
        data = '{"a": ' + start * (left // levels) + (inner or "1") + end * (left // levels) + "}"
        path = save(tmp_path, data, name)
        if left == 99:
            assert read(path) == [(1, json.loads(data))]
        else:
            assert_refused(path, "line 1: is nested too deeply; it must have at most 100 levels")


@pytest.mark.parametrize("text", ["\\ud83d\\ude00", "\\uD83D\\uDE00\\ud55c", "\\\\ud83d", "\\\\\\\\ude00", "\\ud7ff"])
def test_escapes_that_are_whole(text, tmp_path):
    data = f'{{"{text}": "{text}{text}"}}'
    assert read(save(tmp_path, data, "a.jsonl")) == [(1, json.loads(data))]


@pytest.mark.parametrize("name", NAMES)
def test_bytes_that_are_not_utf_8(name, tmp_path):
    for wrong, shown in ((b"\xff", "0xff"), (b"\xed\xa0\x80", "0xed"), (b"\xc3", "0xc3")):
        path = save(tmp_path, b'{"a": 1}\n{"\xc3\xa9": "' + wrong + b'"}\n', name)
        assert_refused(path, f"line 2: byte 9: {shown} is not UTF-8; it must be UTF-8")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_byte_order_marks_of_other_encodings(name, encoding, compress, tmp_path):
    path = save(tmp_path, compress('{"a": 1}'.encode(encoding)), name)
    assert_refused(path, f"line 1: starts with a byte-order mark of {encoding.upper()}; it must be UTF-8")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_the_byte_order_mark_of_utf_8_is_left_out(name, compress, tmp_path):
    assert read(save(tmp_path, compress('{"a": 1}'.encode("utf-8-sig")), name)) == [(1, {"a": 1})]
    assert_refused(
        save(tmp_path, compress('{"a": ?}'.encode("utf-8-sig")), name),
        "line 1: byte 10: Expecting value; it must be JSON",
    )


@pytest.mark.parametrize("name", NAMES)
def test_gzip_that_is_cut_short_is_never_taken_for_whole(name, tmp_path):
    data = gzip.compress("".join(f'{{"a": {i * i}}}\n' for i in range(50)).encode())
    for length in range(2, len(data)):
        with pytest.raises(ValueError, match=r"^[^\n]*: line \d+: cannot be read: Compressed file ended"):
            read(save(tmp_path, data[:length], name))


@pytest.mark.parametrize("name", NAMES)
def test_gzip_with_a_wrong_checksum_or_more_behind_it(name, tmp_path):
    data = gzip.compress(b'{"a": 1}\n')
    for wrong, reason in ((data[:-8] + bytes(8), "CRC check failed"), (data + b"{}", "Not a gzipped file")):
        path = save(tmp_path, wrong, name)
        with pytest.raises(ValueError, match=re.escape(f"{path}: line 2: cannot be read: {reason}")):
            read(path)


@pytest.mark.parametrize("kind", ["is missing", "is a directory"])
def test_path_that_is_no_file(kind, tmp_path):
    path = tmp_path / "a.jsonl"
    if kind == "is a directory":
        path.mkdir()
    with pytest.raises((OSError, ValueError)) as raised:
        read(path)
    assert str(path) in str(raised.value).replace(r"\\", "\\")  # OSError doubles the backslashes of Windows


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_path_of_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="is not a regular file"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", NAMES)
def test_file_that_changes_while_it_is_read(name, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_CHUNK", 16)
    path = save(tmp_path, '{"a": 1}\n' * 9, name)
    lines = read_records(str(path))
    next(lines)
    with path.open("ab") as file:
        file.write(b'{"a": 2}\n')
    with pytest.raises(ValueError, match=re.escape(f"{path}: changed while it was read; it must stay as it is")):
        list(lines)


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["lines", "list", "one after the other"])
@pytest.mark.slow
def test_one_record_at_a_time_is_in_memory(layout, tmp_path):
    record = json.dumps({"a": "x" * 1000})
    between = "\n" if layout == "lines" else "," if layout == "list" else ""
    data = between.join([record] * 5_000)
    path = save(tmp_path, f"[{data}]" if layout == "list" else data, "a.jsonl" if layout == "lines" else "a.json")
    assert path.stat().st_size > 5_000_000
    with held_at_most(4_000_000):
        assert sum(1 for _ in read_records(str(path))) == 5_000


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.slow
def test_a_line_of_60_megabytes(name, tmp_path):
    path = save(tmp_path, b'{"a": "' + b"x" * 60_000_000 + b'"}\n{}', name)
    lengths = [(line, len(value.get("a", ""))) for line, value in read_records(str(path))]
    assert lengths == [(1, 60_000_000), (2, 0)]


SMALLER = "it must contain smaller ones: request fewer prompts, or fewer alternatives per token, at once"


@pytest.mark.parametrize("name", LARGE)
def test_a_line_of_more_than_64_megabytes(name, tmp_path):
    path = save(tmp_path, b'{}\n{"a": "' + b"x" * 70_000_000 + b'"}', name)
    with held_at_most(100 << 20):
        assert_refused(path, f"line 2: contains a record of more than {64 << 20} bytes; {SMALLER}")


@pytest.mark.parametrize("name", LARGE)
def test_lists_that_expand_in_memory(name, tmp_path):
    """15 kB, of which JSON would make 0.4 GB."""
    data = b'{"choices": [{"text": "a"}], "x": [' + b"[]," * 5_000_000 + b"0]}"
    path = save(tmp_path, gzip.compress(data), f"{name}.gz")
    assert path.stat().st_size < 17_000
    of = f"{100 * path.stat().st_size} bytes, 100 times the size of the file"
    with held_at_most(50 << 20):
        assert_refused(path, f"line 1: contains a record of more than {of}; {SMALLER}")


HOSTILE = {
    "lists": b"[],", "lists of one": b"[0],", "objects": b"{},", "objects of one": b'{"a":0},', "numbers": b"0.1,",
    "integers": b"12345,", "texts": b'"ab",', "wide texts": '"\N{CJK UNIFIED IDEOGRAPH-4E2D}",'.encode(),
    "objects in lists": b'[{"a":[0]}],',
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_memory_of_values_is_bounded(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_MEMORY_LIMIT", 4 << 20)
    unit, n, n_read = HOSTILE[kind], 1 << 15, 0
    is_refused = False
    while not is_refused:
        path = save(tmp_path, b'{"a": [' + unit * (n // len(unit)) + b"0]}", "a.jsonl")
        with held_at_most(4 << 20):
            try:
                n_read += len(read(path))
            except ValueError as error:
                is_refused = bool(re.search(rf"needs \d+ MB of memory, more than 4; {SMALLER}$", str(error)))
        n += n // 2
    assert n_read


def test_wide_characters_count_for_each_byte_of_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_MEMORY_LIMIT", 32 << 20)
    for last, is_read in (("x", True), ("\N{GRINNING FACE}", False)):
        path = save(tmp_path, f'{{"a": "{"x" * (5 << 20)}{last}"}}', "a.jsonl")
        with held_at_most(32 << 20):
            if is_read:
                assert len(read(path)) == 1
            else:
                assert_refused(path, f"line 1: contains a record that needs 45 MB of memory, more than 32; {SMALLER}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("blank", [b"\n", b" ", b"\r\n"])
def test_blank_text_costs_nothing(name, blank, tmp_path):
    data = blank * (5_000_000 // len(blank))
    path = save(tmp_path, data + b'{"a": 1}\n' + data + b'\n{"a": 2', name)
    with held_at_most(4 << 20):
        start = time.process_time()
        line = 1 + 2 * data.count(b"\n") + 2
        assert_refused(path, f"line {line}: a record ends too early; {WHOLE}")
    assert time.process_time() - start < 1


@pytest.mark.parametrize("name", NAMES)
def test_compressed_record_that_never_ends(name, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_MOST", 3 << 20)
    path = save(tmp_path, gzip.compress(b'{}\n{"a": "' + b"x" * (40 << 20) + b'"}'), name)
    assert path.stat().st_size < 50_000
    assert_refused(path, f"line 2: contains a record of more than 3145728 bytes; {SMALLER}")
    with held_at_most(12 << 20), pytest.raises(ValueError):
        read(path)


LATE = b'{"a": 1},' * (1 << 20)
EARLY_MISTAKES = {
    b'[{"a": 1, ': "byte 11: Expecting property name enclosed in double quotes",
    b'[{"a": "x}, {"b": [': "byte 15: Expecting ',' delimiter",
    b'[{"a": [1}, {"b": [': "byte 10: Expecting ',' delimiter",
    b'[{"a": "\xff", "b": [': "byte 9: 0xff is not UTF-8",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("start", EARLY_MISTAKES)
def test_mistake_at_the_start_of_a_large_file_is_found_before_its_end(name, start, tmp_path, monkeypatch):
    path = save(tmp_path, start + LATE, name)
    read_bytes = 0

    def counted(path):
        nonlocal read_bytes
        for chunk in chunks(path):
            read_bytes += len(chunk)
            yield chunk

    chunks = records._chunks
    monkeypatch.setattr(records, "_chunks", counted)
    with pytest.raises(ValueError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: line 1: {EARLY_MISTAKES[start]}; it must be ")
    assert read_bytes < 2 << 20 < path.stat().st_size


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_record_that_goes_on_is_not_refused_for_where_it_was_cut(name, tmp_path, monkeypatch):
    inner = {"é😀": ["😀\n", -1.25e-170, True, None, -math.inf, {"a": {}, '"\\': 10**30}]}
    whole = "".join(json.dumps(inner, ensure_ascii=is_ascii) for is_ascii in (True, False)).replace("}{", ', "b": {')
    data = (whole + "}").encode()
    path = save(tmp_path, data, name)
    monkeypatch.setattr(records, "_CHUNK", 1)
    for cut in range(1, len(data) + 1, 3):
        monkeypatch.setattr(records, "_LONG", cut)
        assert read(path) == [(1, json.loads(data))]
