"""The checkpoint of an evaluation: a file of the results so far, from which a later run resumes."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloss import __version__
from tokenloss._errors import raise_error
from tokenloss._evaluation.run import ShardResult
from tokenloss._files import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from tokenloss._evaluation.plan import Options, Shard

_FORMAT = 4  # of the file; another one is refused


class Checkpoint:
    """Results of shards by number; their file, if one is wanted, is written anew after each shard."""

    def __init__(self, path: str | None, options: Options, shards: Sequence[Shard]) -> None:
        self._path = path
        self._options = {"version": __version__, "format": _FORMAT, **options._asdict()}
        self._shards = [_fingerprint(shard) for shard in shards] if path else []
        # of responses, the number is not known before
        self._scored_rows = [None if shard.size is not None else shard.scored_rows for shard in shards]
        self.results: dict[int, ShardResult] = {}
        self._entries: dict[int, str] = {}  # of the file, a line each
        if path and Path(path).exists():
            if not Path(path).is_file():  # a device may never end
                self._refuse("is no file", "be one, or not exist yet")
            self._read(path)
        self._write()

    def add(self, number: int, result: ShardResult) -> None:
        """Store the result of a shard."""
        self._keep(number, result)
        self._write()

    def _keep(self, number: int, result: ShardResult) -> None:
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
            done = [] if changed else [(entry["shard"], ShardResult.from_json(entry["found"])) for entry in done]
            numbers = {shard["path"]: number for number, shard in enumerate(self._shards)}
            entries = [(str(shard["path"]), shard, numbers.get(shard["path"]), result) for shard, result in done]
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
            self._refuse("is no state of tokenloss score", "be one, or not exist yet")
        for name, value in changed.items():
            self._refuse(f"was written with {name} {value}", f"be another file, with {self._options[name]!r}")
        for path, shard, number, result in entries:
            if number is None:
                self._refuse(f"holds the result of {path}", "be another file, since that one is not to be scored")
            if shard != self._shards[number]:
                self._refuse(
                    f"holds the result of {path}", "be another file, since that one, its targets or its head changed"
                )
            if number in self.results or not result.is_consistent(self._scored_rows[number], self._options["top"]):
                self._refuse(f"holds an impossible result of {path}", "be as it was written")
            self._keep(number, result)

    def _refuse(self, got: str, fits: str) -> NoReturn:
        """Refuse the file."""
        raise_error("content", path=self._path, got=got, fits=fits)


def _fingerprint(shard: Shard) -> dict[str, Any]:
    """Path, size and time of a shard and its targets, and the token after it: a result belongs to these."""
    targets = shard.targets and {**_file_fingerprint(shard.targets), "start": shard.start}
    segments = shard.segments and {**_file_fingerprint(shard.segments), "start": shard.segments_start}
    split = None if shard.split is None else list(shard.split)
    following = [shard.next_id, shard.next_text]
    sequences = {"segments": segments, "split": split}
    if shard.lm_head is not None:
        sequences["lm_head"] = _file_fingerprint(shard.lm_head)
    return {**_file_fingerprint(shard.path), "targets": targets, **sequences, "next": following}


def _file_fingerprint(path: str) -> dict[str, Any]:
    """Path, size and time of the last change of a file or a directory."""
    files = [file for file in Path(path).rglob("*") if file.is_file()] if Path(path).is_dir() else [Path(path)]
    stats = [file.stat() for file in files]
    return {
        "path": str(Path(path).absolute()),
        "size": sum(stat.st_size for stat in stats),
        "mtime_ns": max(stat.st_mtime_ns for stat in stats),
    }
