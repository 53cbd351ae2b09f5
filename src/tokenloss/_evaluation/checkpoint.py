"""The checkpoint of an evaluation: a file of the results so far, from which a later run resumes."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from tokenloss import __version__
from tokenloss._errors import raise_error
from tokenloss._evaluation.plan import OF_FILES
from tokenloss._files import files_of, replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn, Self

    from tokenloss._evaluation.plan import Options, Shard

_FORMAT = 4  # of the file; another one is refused


class _Result(Protocol):
    """The result of a shard."""

    @property
    def n_tokens(self) -> int: ...
    def to_json(self) -> dict[str, Any]: ...
    @classmethod
    def from_json(cls, result: Any) -> Self: ...
    def is_consistent(self, shard: Shard, options: Options) -> bool: ...


Result = TypeVar("Result", bound=_Result)


class Checkpoint(Generic[Result]):
    """Results of shards by number; their file, if one is wanted, is written anew after each shard."""

    def __init__(self, path: str | None, options: Options, shards: Sequence[Shard], kind: type[Result]) -> None:
        self._path, self._kind = path, kind
        self._of_shards, self._of_options = shards, options
        self._command = "compare" if options.others else "score"
        self._options = {"command": self._command, "version": __version__, "format": _FORMAT, **_named(options)}
        self._shards = [_fingerprint(shard) for shard in shards] if path else []
        self.results: dict[int, Result] = {}
        self._entries: dict[int, str] = {}  # of the file, a line each
        if path and Path(path).exists():
            if not Path(path).is_file():  # a device may never end
                self._refuse("is no file", "be one, or not exist yet")
            self._read(path)
        self._write()

    def add(self, number: int, result: Result) -> None:
        """Store the result of a shard."""
        self._keep(number, result)
        self._write()

    def _keep(self, number: int, result: Result) -> None:
        """Keep the result of a shard, and its entry of the file."""
        self.results[number] = result
        if self._path:
            self._entries[number] = json.dumps({"shard": self._shards[number], "found": result.to_json()})

    def _write(self) -> None:
        """Write the file."""
        if not self._path:
            return
        done = ",\n".join(entry for _, entry in sorted(self._entries.items()))
        with replacing(self._path) as file:
            file.write(f'{{"options": {json.dumps(self._options)},\n"done": [\n{done}\n]}}\n'.encode())

    def _read(self, path: str) -> None:
        """Read the results, if they are of these shards and these options."""
        try:
            state = json.loads(Path(path).read_bytes())
            options, done = {**state["options"], "version": state["options"]["version"]}, state["done"]
            changed = {
                name: reprlib.repr(options.get(name))
                for name, value in self._options.items()
                if options.get(name) != value
            }
            # the results of other options, or of another format, are not looked at
            done = [] if changed else [(entry["shard"], self._kind.from_json(entry["found"])) for entry in done]
            numbers = {shard["path"]: number for number, shard in enumerate(self._shards)}
            entries = [(str(shard["path"]), shard, numbers.get(shard["path"]), result) for shard, result in done]
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
            self._refuse(f"is no state of tokenloss {self._command}", "be one, or not exist yet")
        for name, value in changed.items():
            self._refuse(f"was written with {name} {value}", f"be another file, with {self._options[name]!r}")
        for path, shard, number, result in entries:
            if number is None:
                self._refuse(f"holds the result of {path}", "be another file, since that one is not to be scored")
            if shard != self._shards[number]:
                what = "the candidates or a file" if self._of_options.others else "that one, its targets or its head"
                self._refuse(f"holds the result of {path}", f"be another file, since {what} changed")
            if number in self.results or not result.is_consistent(self._of_shards[number], self._of_options):
                self._refuse(f"holds an impossible result of {path}", "be as it was written")
            self._keep(number, result)

    def _refuse(self, got: str, fits: str) -> NoReturn:
        """Refuse the file."""
        raise_error("content", path=self._path, got=got, fits=fits)


def _named(options: Options) -> dict[str, Any]:
    """Options by name; of each candidate, those that are of its files."""
    named = options._asdict()
    for number, other in enumerate(named.pop("others")):
        named |= {f"candidate {number}: {name}": getattr(other, name) for name in OF_FILES}
    return named


def _fingerprint(shard: Shard) -> dict[str, Any]:
    """Path, size and time of a shard and its targets, and the token after it: a result belongs to these."""
    targets = shard.targets and {**_file_fingerprint(shard.targets), "start": shard.start}
    segments = shard.segments and {**_file_fingerprint(shard.segments), "start": shard.segments_start}
    split = None if shard.split is None else list(shard.split)
    following = [shard.next_id, shard.next_text]
    sequences = {"segments": segments, "split": split}
    if shard.lm_head is not None:
        sequences["lm_head"] = {**_file_fingerprint(shard.lm_head), **(shard.head or {})}
    others = [
        [*(_file_fingerprint(path) for path in (other.path, other.lm_head) if path is not None), other.head]
        for other in shard.others
    ]
    return {**_file_fingerprint(shard.path), "targets": targets, **sequences, "next": following, "others": others}


def _file_fingerprint(path: str) -> dict[str, Any]:
    """Path, size and time of the last change of a file or a directory."""
    stats = [file.stat() for file in files_of(path)]
    return {
        "path": str(Path(path).absolute()),
        "size": sum(stat.st_size for stat in stats),
        "mtime_ns": max(stat.st_mtime_ns for stat in stats),
    }
