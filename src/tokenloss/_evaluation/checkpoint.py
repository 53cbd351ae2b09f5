"""The checkpoint of an evaluation: a file of the results so far, from which a later run resumes.

It has a line of JSON for the options, and one for the result of each shard or block, which is appended at once.
Its hash precedes each line, so that a line that was damaged or edited is refused, and what is read is what was
written. A run that is killed while it appends leaves a line without an end, which the next run cuts off.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import os
import reprlib
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from tokenloss._core.errors import raise_error, refuse
from tokenloss._core.files import files_of, replacing, write_errors
from tokenloss._core.version import __version__
from tokenloss._statistics.meter import LossMeter, meter_from_json, meter_to_json
from tokenloss.formats.responses import Failed
from tokenloss.formats.rounding import Rounding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import BinaryIO, NoReturn, Self


_FORMAT = 17  # number of the format; a file of another one is refused
_ROUNDING = 0.25  # fraction of the standard deviation of a row's scores by which they may differ between runs
_PIECES = 32  # number of pieces of a file that are hashed, to distinguish it from others
_MIN_PIECES = 4  # of each file of a directory, however many it holds
_PIECE_BYTES = 1 << 12
_RECORDS: dict[str, Any] = {"Rounding": Rounding, "Failed": Failed}  # the types of records that a result may hold
ClassT = TypeVar("ClassT", bound=type)


def record(cls: ClassT) -> ClassT:
    """The class, registered so that states may contain its objects."""
    _RECORDS[cls.__name__] = cls
    return cls


ResultT = TypeVar("ResultT")


class Unit(Protocol):
    """The part of a source that is processed at once, saved as one line of a state, or sent to a worker."""

    @property
    def n_bytes(self) -> int:
        """Bytes to read, for the progress."""

    def n_read(self, result: Any) -> int:
        """Number of bytes read for this result."""

    def fingerprint(self, file_fingerprint: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        """Everything that the result depends on, except options."""

    def absolute(self) -> Self:
        """The unit with absolute paths, for a process in another directory."""


class Checkpoint(Generic[ResultT]):
    """The results of shards, by the number of the shard, and the file that holds them, if there is one.

    Without units, they are of blocks, which are not known before they are made. `key` has the options that a result
    depends on; `top` is the number of the tokens with the highest losses that each lists, which may be more than asked.
    """

    def __init__(self, path: str | None, key: Mapping[str, Any], units: Sequence[Unit] | None = None) -> None:
        self._path = path
        self._command = key["command"]
        self._options = {"version": __version__, "state_format": _FORMAT, **key}
        self.results: dict[int, ResultT] = {}
        self.top: int = key.get("top", 0)
        if path is None:
            return
        file_fingerprint = functools.cache(_file_fingerprint)  # shards may share their targets and their head
        self._of_blocks = units is None
        self._shards = [unit.fingerprint(file_fingerprint) for unit in units or ()]
        with write_errors(path):
            if not Path(path).exists():
                with replacing(path) as file:
                    file.write(_line({"options": self._options}))
            elif not Path(path).is_file():  # a device may never end
                self._refuse("is not a file", "be one, or not exist yet")
            with Path(path).open("r+b") as file:
                self._size = self._read(file)

    def add(self, number: int, result: ResultT, arrays: dict[str, Any] | None = None) -> None:
        """Add the result of a shard, or of the next block, whose arrays are given, also to the file."""
        if self._path is None:
            self.results[number] = result
            return
        if arrays is not None:
            self._shards.append(_block_fingerprint(number, arrays))
        with write_errors(self._path), Path(self._path).open("r+b") as file:
            if file.seek(0, os.SEEK_END) != self._size:
                self._refuse("was changed during the run", "be written by one run at a time")
            self._size += file.write(_line({"shard": self._shards[number], "result": encoded(result)}))
        if arrays is None:
            self.results[number] = result

    def last_block(self) -> int:
        """The number of the last block that has rows, or 0."""
        return max((number for number in self.results if math.prod(self._shards[number]["shape"][:-1])), default=0)

    def check_again(self, number: int, arrays: dict[str, Any]) -> None:
        """Refuse a block made again if it differs from the block of the stored result."""
        stored, made = self._shards[number], _block_fingerprint(number, arrays)
        others = [name for name in made if name != "logits" and made[name] != stored[name]]
        others += [] if _are_near(stored["logits"], made["logits"]) else ["logits"]
        if others:
            got = f"contains the result of block {number}, which differs in {others[0]}"
            self._refuse(got, f"be another file, or source({number}) must begin with that block")

    def _read(self, file: BinaryIO) -> int:
        """Read results, which must be of these shards and options; return the size without an unfinished line."""
        first = file.readline()
        options = self._entry(first, 1)["options"]
        for name, value in self._options.items():
            if name == "top" and isinstance(options.get(name), int) and options[name] >= value:
                self.top = options[name]
            elif options.get(name) != value:
                got = f"was written with {name} {reprlib.repr(options.get(name))}"
                self._refuse(got, f"be another file, with {value!r}")
        size, numbers = len(first), {shard["path"]: number for number, shard in enumerate(self._shards)}
        for n_lines, line in enumerate(file, 2):
            if not line.endswith(b"\n"):
                file.truncate(size)
                break
            size += len(line)
            entry = self._entry(line, n_lines)
            if self._of_blocks:
                numbers[f"block {len(self.results)}"] = len(self._shards)
                self._shards.append(entry["shard"])
            path = entry["shard"]["path"]
            number = numbers.get(path)
            if number is None:
                self._refuse(f"contains the result of {path}", "be another file, since this run does not score it")
            if entry["shard"] != self._shards[number]:
                what = "that file, its targets or its head" if self._command == "score" else "the candidates or a file"
                self._refuse(f"contains the result of {path}", f"be another file, since {what} changed")
            if number in self.results:
                self._refuse(f"contains two results of {path}", "be as it was written")
            self.results[number] = decoded(entry["result"])
        return size

    def _entry(self, line: bytes, number: int) -> dict[str, Any]:
        """Parse a line, after its hash was compared."""
        digest, _, text = line.partition(b" ")
        if digest != _hash_of(text) and number == 1:
            self._refuse(f"is not a state of tokenloss {self._command}, or is damaged", "be one, or not exist yet")
        if digest != _hash_of(text):
            lines = "this line and those after it" if self._of_blocks else "this line"
            fits = f"be as it was written; without {lines}, what is missing is computed again"
            raise_error("record", path=self._path, line=number, got="is damaged", fits=fits)
        entry: dict[str, Any] = json.loads(text)
        return entry

    def _refuse(self, got: str, fits: str) -> NoReturn:
        """Raise an error about the file."""
        refuse(self._path, got, fits)


def _line(entry: dict[str, Any]) -> bytes:
    """A line of the file: a hash, a space, and JSON."""
    text = f"{json.dumps(entry)}\n".encode()
    return _hash_of(text) + b" " + text


def _hash_of(text: bytes) -> bytes:
    """Hash of the JSON of a line."""
    return hashlib.blake2b(text, digest_size=16).hexdigest().encode()


def encoded(value: Any) -> Any:
    """Convert a result to values for JSON: a record, array, meter or dict becomes {its type: its content}."""
    if isinstance(value, LossMeter):
        return {"meter": meter_to_json(value)}
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return {"objects": value.tolist()}
        return {"array": [value.dtype.str, base64.b64encode(zlib.compress(value.tobytes(), 1)).decode()]}
    name = type(value).__name__
    if name in _RECORDS or name == "dict":
        fields = value if name == "dict" else value._asdict() if hasattr(value, "_asdict") else vars(value)
        return {name: {field: encoded(content) for field, content in fields.items()}}
    return list(map(encoded, value)) if isinstance(value, list | tuple) else value


def decoded(value: Any) -> Any:
    """Convert back what `encoded` made; only plain tuples have become lists."""
    if isinstance(value, list):
        return list(map(decoded, value))
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    if name == "meter":
        return meter_from_json(content)
    if name == "objects":
        return np.array(content, np.object_)
    if name == "array":
        dtype, data = content
        return np.frombuffer(zlib.decompress(base64.b64decode(data)), dtype)
    fields = {field: decoded(item) for field, item in content.items()}
    return fields if name == "dict" else _RECORDS[name](**fields)


def _block_fingerprint(number: int, arrays: dict[str, Any]) -> dict[str, Any]:
    """Name of a block, shape and sample of its logits, and hashes of its other arrays with their shape and dtype."""
    hashes = {
        "path": f"block {number}", "shape": list(arrays.pop("logits").shape),
        "logits": arrays.pop("sample").tolist(),
    }  # fmt: skip
    for name, array in arrays.items():
        digest = hashlib.blake2b(digest_size=16)
        if array is not None:
            digest.update(repr((array.shape, array.dtype.str)).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        hashes[name] = digest.hexdigest()
    return hashes


def _are_near(stored: list[float], made: list[float]) -> bool:
    """Whether two samples of scores are from the same row, apart from rounding, which may differ between runs."""
    if len(stored) != len(made):
        return False
    before, after = np.array([stored, made])[:, np.isfinite(stored) & np.isfinite(made)]
    return not before.size or bool((abs(after - before) <= _ROUNDING * np.std(before) + 1e-9).all())


def _file_fingerprint(path: str) -> dict[str, Any]:
    """Path of a file or a directory, and a hash that distinguishes it from others.

    The hash is of the name, the size, the time of the last change and some pieces of each file: those at its start,
    with its header, and at its end, with the checksums of an archive, and others at equal distances. It does not notice
    a change between these pieces if the file got its old time back afterwards. A copy with the same time counts as the
    same file.
    """
    digest = hashlib.blake2b(digest_size=16)
    files = sorted(files_of(path), key=str)
    for file in files:
        status, name = file.stat(), str(file).removeprefix(str(Path(path)))
        digest.update(repr((name, status.st_size, status.st_mtime_ns)).encode())
        for piece in _pieces(file, status.st_size, max(_PIECES // len(files), _MIN_PIECES)):
            digest.update(piece)
    return {"path": str(Path(path).absolute()), "hash": digest.hexdigest()}


def _pieces(path: Path, size: int, count: int) -> Iterator[bytes]:
    """Pieces of a file at equal distances, or the whole file if it is small."""
    with path.open("rb", buffering=0) as file:
        if size <= count * _PIECE_BYTES:
            yield file.read(size)
            return
        for i in range(count):
            file.seek((size - _PIECE_BYTES) * i // (count - 1))
            yield file.read(_PIECE_BYTES)
