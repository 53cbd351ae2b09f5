"""Logs of Inspect (inspect_ai): a zip archive that holds JSON for each sample (.eval), or one JSON object (.json)."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import re
import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloss._core.errors import contextmanager, raise_error, refuse
from tokenloss.formats.base import check_expansion, library_errors, open_regular
from tokenloss.formats.records import INTEGER, TEXT, Place, ValueType, check, parsed_json, read_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_VERSION = 2  # of logs since August 2024
_ZSTANDARD = 93  # the method of zip archives
# names end in the id of the task's run; those of results of lm-evaluation-harness do not
NAME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d[+-]\d\d-\d\d)_(.+)_[0-9A-Za-z]{22}\.(?:eval|json)")
# what Inspect's value_to_float makes of text, where it is no number
_VALUES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_OF_HARNESS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")  # log-likelihoods there, not here
_ANYTHING = ValueType("", lambda value: True)
_SCHEMA: dict[str, Any] = {
    "epoch": INTEGER, "messages": [{}], "metadata": {...: _ANYTHING}, "scores": {...: {"value": _ANYTHING}},
}  # fmt: skip
_HEADER: dict[str, Any] = {"version": INTEGER, "status": TEXT, "eval": {"config": {"epochs_reducer": [TEXT]}}}


def is_archive(path: str) -> bool:
    """Whether a file is an archive of Inspect, by its name."""
    return path.lower().endswith(".eval")


def is_log(record: dict[str, Any]) -> bool:
    """Whether a JSON object is a log of Inspect."""
    return "eval" in record and "plan" in record


def header_of(path: str) -> dict[str, Any]:
    """The header of a log, perhaps with its samples."""
    if not is_archive(path):
        return _checked(next(iter(read_records(path))).value, Place(path, 0))
    with _archive(path) as archive:
        names = archive.namelist()
        name = next((name for name in ("header.json", "_journal/start.json") if name in names), None)
        if name is None:
            refuse(path, "has no header.json", "have it, as logs of Inspect do")
        return _checked(*_member(archive, path, name))


def notes_of(path: str) -> list[str]:
    """Notes about a log for readers of a comparison."""
    header = header_of(path)
    config = header["eval"].get("config") or {}
    reducers = [name for name in config.get("epochs_reducer") or () if name != "mean"]
    status, notes = header.get("status", "started"), list[str]()
    if status != "success":
        notes.append(f"{path} is of a run with the status {status!r}, so samples may be missing")
    if reducers and config.get("epochs") != 1:
        notes.append(f"{path} reduces epochs by {', '.join(map(str, reducers))}; here each epoch counts alike")
    return notes


def model_of(path: str) -> str:
    """The name of a log's model."""
    return str(header_of(path)["eval"].get("model"))


def read_log(path: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The samples of a log, ordered by id and epoch in archives, as those of lm-evaluation-harness.

    The "metrics" of samples that ended in an error, were invalidated, or that a scorer did not score, are empty.
    """
    for place, sample in _samples(path):
        for name in ("id", "input"):
            if name not in sample:
                place.refuse(f"is not a sample of Inspect: it has no {name}", "have it")
        check(sample, _SCHEMA, "", place)
        metadata, scores = sample.get("metadata") or {}, sample.get("scores") or {}
        values = dict(pair for name, one in scores.items() for pair in _values(name, one.get("value")))
        is_scored = bool(values) and sample.get("error") is None and sample.get("invalidation") is None
        is_scored &= all(value is not None and value == value for value in values.values())  # not nan
        asked = {"input": _content(sample["input"]), "choices": sample.get("choices")}
        prompt = [_content([one]) for one in _before_answer(sample.get("messages") or [])]
        yield (
            place,
            values
            | {
                "doc_id": sample["id"],
                "doc": metadata | {"metadata": metadata, "id": sample["id"], **asked},
                "doc_hash": _hash(asked),
                "prompt_hash": _hash(prompt),
                "target": sample.get("target"),
                "filtered_resps": [],
                "metrics": [*values] if is_scored else [],
            },
        )


def _values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The numbers of a scorer by name: its value, or the values in a list or an object, as Inspect reads them."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in items:
            yield f"{name}.{key}", _number(one)
    else:
        yield f"{name} score" if name in _OF_HARNESS else name, _number(value)


def _number(value: Any) -> Any:
    """The number that Inspect assigns to a text with a meaning, such as "C"; any other value unchanged."""
    return _VALUES.get(value, _VALUES.get(value.lower(), value)) if isinstance(value, str) else value


def _before_answer(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The messages before the model's first answer."""
    for message in messages:
        if message.get("role") == "assistant":
            return
        yield message


def _content(value: Any) -> Any:
    """A text, or the roles and contents of messages, whose ids differ between runs."""
    if not isinstance(value, list):
        return value
    return [[one.get("role"), one.get("content")] if isinstance(one, dict) else one for one in value]


def _hash(value: Any) -> str:
    """A hash of a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _checked(header: dict[str, Any], place: Place) -> dict[str, Any]:
    """The header, refused if its version is unknown."""
    check(header, _HEADER, "", place)
    if header.get("version") != _VERSION or "eval" not in header:
        fits = f"have version {_VERSION} of Inspect's logs: run `inspect log convert`"
        place.refuse(f"has version {header.get('version')}", fits)
    return header


# -- JSON and archives -------------------------------------------------------------------------------------------------


def _samples(path: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The samples of a log as stored, and the place of each."""
    if not is_archive(path):
        for _, value in read_records(path):
            _checked(value, Place(path, 0))
            for i, sample in enumerate(check(value, {"samples": [{}]}, "", Place(path, 0)).get("samples") or ()):
                yield Place(f"{path}: samples[{i}]", 0), sample
        return
    header_of(path)
    with _archive(path) as archive:
        names = {name for name in archive.namelist() if name.startswith("samples/") and name.endswith(".json")}
        for name in sorted(names, key=_by_epoch):
            sample, place = _member(archive, path, name)
            yield place, sample


def _by_epoch(name: str) -> tuple[str, int, str]:
    """Sort key of a member: the id and the epoch at the end of its name."""
    head, _, epoch = name.removesuffix(".json").rpartition("_epoch_")
    return head, int(epoch) if epoch.isdecimal() else 0, name


@contextmanager
def _archive(path: str) -> Iterator[zipfile.ZipFile]:
    """The open archive."""
    with open_regular(path) as file:
        with library_errors(path):
            archive = zipfile.ZipFile(file)
        with archive:
            yield archive


def _member(archive: zipfile.ZipFile, path: str, name: str) -> tuple[dict[str, Any], Place]:
    """The JSON object in a file of an archive, and its place; if several files have one name, the last counts."""
    info, place = archive.getinfo(name), Place(f"{path}: {name}", 0)
    check_expansion(place.path, info.file_size, Path(path).stat().st_size)
    unpacked = _unpacker(place, info.compress_type)
    raw: Any = copy.copy(info)  # as it is stored: zipfile unpacks without a limit, before Python 3.14 not zstandard
    raw.compress_type, raw.file_size, raw.CRC = zipfile.ZIP_STORED, info.compress_size, None
    with library_errors(place.path):
        with archive.open(raw) as stream:
            data = unpacked(stream.read(), info.file_size + 1)
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise ValueError("its bytes do not match its checksum")
        value = parsed_json(data)
    if not isinstance(value, dict):
        place.refuse("is not a JSON object", "be one")
    return value, place


def _unpacker(place: Place, method: int) -> Callable[[bytes, int], bytes]:
    """A function that unpacks bytes, up to a number, by a method of zip archives."""
    if method == zipfile.ZIP_STORED:
        return lambda data, size: data[:size]
    if method == zipfile.ZIP_DEFLATED:
        return lambda data, size: zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size)
    if method != _ZSTANDARD:
        place.refuse(f"is compressed by method {method}", "be stored, deflated or compressed by zstandard")
    try:
        zstd: Any = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    except ImportError:
        raise_error("missing", name=place.path, got="backports.zstd")
    return lambda data, size: bytes(zstd.ZstdDecompressor().decompress(data, size))
