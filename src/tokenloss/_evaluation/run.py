"""The frame of every evaluation: units become results here, on a cluster, or from a saved state."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tokenloss._core import config
from tokenloss._core.arguments import as_path
from tokenloss._core.errors import OPTIONS, contextmanager, naming_options
from tokenloss._core.threads import check_workers
from tokenloss._evaluation.checkpoint import Checkpoint, Unit
from tokenloss._evaluation.options import by_identity
from tokenloss._evaluation.progress import Progress
from tokenloss._evaluation.shards import Handles
from tokenloss._evaluation.sink import Sinks, check_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Self

    from tokenloss._evaluation.sink import Block, Schema, Sink
    from tokenloss.formats.sources import Source


class Settings(NamedTuple):
    """Options of every function that do not change results."""

    sinks: Sequence[Sink] = ()
    state: str | None = None
    scheduler: str | None = None
    progress: bool = False
    workers: int | None = None

    @classmethod
    def checked(cls, sinks: Sequence[Sink], state: Any, scheduler: str | None, progress: bool, workers: Any) -> Self:
        """The settings with checked values; `sinks` are already checked."""
        state = None if state is None else as_path("state", state)
        return cls(sinks, state, scheduler, progress, check_workers(workers))


class Work(NamedTuple):
    """The tools that process a unit; each process makes its own."""

    handles: Handles
    workers: int
    top: int = 0  # tokens with the highest losses to list
    top_k: int = 0  # most likely classes of each token
    emit: Callable[[Block], None] | None = None  # gets each block of tokens, if sinks take them
    advance: Callable[[int], None] = lambda n_bytes: None


UnitT = TypeVar("UnitT", bound=Unit)
ResultT = TypeVar("ResultT")


class Run:
    """A run over sources, with their open files; it opens sinks at the first unit, and closes them at its end."""

    def __init__(self, settings: Settings, key: Mapping[str, Any], stack: contextlib.ExitStack) -> None:
        self.handles = Handles()
        self.sinks = Sinks(settings.sinks, stack)
        self.seconds, self.n_read = 0.0, 0  # that `map` took, and the bytes that it read
        self._settings, self._key = settings, key

    def map(
        self,
        function: Callable[[UnitT, Work], ResultT],
        units: Sequence[UnitT] | Callable[[int, Sequence[ResultT]], Iterator[UnitT]],
        schema: Schema | Callable[[UnitT], Schema],
        are_candidates: bool = False,
    ) -> list[ResultT]:
        """Return the result of `function`, which is pure and pickled by name, for each unit.

        For blocks, `units` is a function that makes them from the number of the first one and the growing list of
        results. `schema` describes the rows, or is a function of the first unit. With `are_candidates`, units are the
        candidates of a base, not the files of one model. Tokens exist only inside `function`: a cluster or a state
        returns none.
        """
        settings = self._settings
        checkpoint: Checkpoint[Any] = Checkpoint(settings.state, self._key, None if callable(units) else units)
        if callable(units):
            return self._map_blocks(function, units, schema, checkpoint)
        assert not callable(schema)
        self.sinks.open(schema)
        start = time.perf_counter()
        left = [number for number in range(len(units)) if number not in checkpoint.results]
        total = sum(units[number].n_bytes for number in left)
        with Progress(total if settings.progress else None) as progress:
            chosen = [units[number] for number in left]
            if settings.scheduler:
                results = _on_cluster(function, chosen, settings.workers or 1, checkpoint.top, settings.scheduler)
            else:
                work = Work(self.handles, self.workers, checkpoint.top, schema.top_k, advance=progress.advance)
                files = [0 if are_candidates else number for number in left]
                results = (
                    (i, function(unit, work._replace(emit=self.sinks.emitter(file))))
                    for i, (unit, file) in enumerate(zip(chosen, files, strict=True))
                )
            for i, result in results:
                checkpoint.add(left[i], result)
                if settings.scheduler:
                    progress.advance(units[left[i]].n_bytes)
                self.n_read += units[left[i]].n_read(result)
        self.seconds = time.perf_counter() - start
        return [checkpoint.results[number] for number in range(len(units))]

    def again(self, function: Callable[[Any, Work], ResultT], units: Sequence[Any], label: str) -> list[ResultT]:
        """The result of a function for each unit in a further pass, which does not reach sinks or states."""
        settings, results = self._settings, dict[int, ResultT]()
        with Progress(sum(unit.n_bytes for unit in units) if settings.progress else None, label) as progress:
            work = Work(self.handles, self.workers, advance=progress.advance)
            every: Iterable[tuple[int, ResultT]] = ((i, function(unit, work)) for i, unit in enumerate(units))
            if settings.scheduler:
                every = _on_cluster(function, units, settings.workers or 1, 0, settings.scheduler)
            for i, result in every:
                results[i] = result
                progress.advance(units[i].n_bytes if settings.scheduler else 0)
        return [results[i] for i in range(len(units))]

    def _map_blocks(
        self,
        function: Callable[..., Any],
        units: Callable[..., Iterator[Any]],
        schema: Any,
        checkpoint: Checkpoint[Any],
    ) -> list[Any]:
        """The results of blocks; the last block in the state is requested again, for comparison."""
        results = [checkpoint.results[number] for number in range(len(checkpoint.results))]
        start = time.perf_counter()
        work, first = Work(self.handles, self.workers, checkpoint.top), checkpoint.last_block()
        with Progress(0 if self._settings.progress else None) as progress:
            for number, unit in enumerate(units(first, results), first):
                if number == first:
                    described = schema(unit)
                    self.sinks.open(described)
                    work = work._replace(top_k=described.top_k, emit=self.sinks.emitter())
                if number < len(checkpoint.results):
                    checkpoint.check_again(number, unit.arrays())
                else:
                    results.append(function(unit, work))
                    self.n_read += unit.n_bytes
                    if self._settings.state is not None and not unit.is_rest:
                        checkpoint.add(number, results[-1], unit.arrays())
                progress.advance(unit.n_bytes, unit.key)
        self.seconds = time.perf_counter() - start
        return results

    @property
    def workers(self) -> int:
        """Number of threads here."""
        return self._settings.workers or config.default_workers()


@contextmanager
def opened(
    sources: Iterable[Source], settings: Settings, key: Mapping[str, Any], others: Mapping[object, str] | None = None
) -> Iterator[Run]:
    """Yield a run over sources, and close everything at its end; outputs must not be inputs.

    A state belongs to `key`, the options that change results. `others` are further input files, by `identity`.
    """
    read = by_identity(file for source in sources for file in source.files)
    check_files(settings.sinks, settings.state, {**(others or {}), **read})
    with contextlib.ExitStack() as stack:
        yield Run(settings, key, stack)


def _on_cluster(
    function: Callable[..., ResultT], units: Sequence[Any], workers: int, top: int, scheduler: str
) -> Iterator[tuple[int, ResultT]]:
    """The numbers and results of units on a cluster, as they arrive."""
    from tokenloss._evaluation.cluster import map_shards  # needs Dask

    function = functools.partial(_in_worker, OPTIONS.get(), function, workers, top)
    try:
        yield from map_shards(function, [unit.absolute() for unit in units], scheduler)
    except Exception as error:  # a worker may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{scheduler}: {reason}") from error


def _in_worker(
    names: Mapping[str, str] | None, function: Callable[..., ResultT], workers: int, top: int, unit: Any
) -> ResultT:
    """The result of a unit in a process of a cluster, with the option names that messages use here."""
    with naming_options(names):
        return function(unit, Work(Handles(is_single=True), workers, top))
