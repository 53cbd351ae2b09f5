"""The interface of sinks: what takes the tokens, or the result, of an evaluation or a comparison."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from tokenloss._core.errors import contextmanager, named, raise_error, worded
from tokenloss._core.files import WriteError, check_outputs
from tokenloss._evaluation.token_bytes import text_of
from tokenloss._scores.token_scores import TokenScores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from tokenloss._core.types import Array
    from tokenloss.formats.tokenizers import Tokenizer


class TokenBlock(NamedTuple):
    """The next tokens of an evaluation, in the order of the text, as `Sink.add` gets them.

    Attributes
    ----------
    scores : TokenScores
        Their scores, in arrays of one dimension; `kept` is False of those that are ignored. What a server did not
        return is not known: an entropy is nan then, a rank or a class -1.
    target : array of integers
        Their targets, or the most likely classes of targets that are distributions; -1 of what is not known.
    text : array of str or None
        Their text, if the file holds it, or if there is a tokenizer: then with escapes for bytes that are no whole
        character, and None of special tokens.
    file : int
        The number of their file, from 0; 0 of blocks in memory.
    row : array of int64 or None
        Their rows in that file, or in all blocks, from 0; None of responses.
    sequence : array of int64
        The numbers of their sequences, -1 of those without one.
    position : array of int64
        Their positions in their sequences, from 0, -1 of those without one. Where targets are shifted, these are the
        positions of the rows, and a target is the token at the next position.
    is_greedy_known, is_prompt : arrays of bool, or None
        Of responses of servers: whether it is known if they are the most likely class, and whether they are of the
        prompt.
    top_tokens : array of str or None, of shape (n, k), or None
        Of responses of servers: the text of the most likely classes, None where there is none.
    n_bytes : array of int64 or None
        Their bytes in the text, if there is a tokenizer; -1 of those that are not scored.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import evaluate, sinks
    >>> class Printed(sinks.Sink):
    ...     needs_tokens = True
    ...
    ...     def add(self, block):
    ...         print(block.row, block.sequence, block.position, block.scores.nll.round(2))
    >>> _ = evaluate([(np.zeros((2, 3, 4)), np.ones((2, 3), int))], sinks=[Printed()])
    [0 1 2 3 4 5] [0 0 0 1 1 1] [0 1 2 0 1 2] [1.39 1.39 1.39 1.39 1.39 1.39]
    """

    scores: TokenScores
    target: Array
    text: Array | None
    file: int
    row: Array | None
    sequence: Array
    position: Array
    is_greedy_known: Array | None = None
    is_prompt: Array | None = None
    top_tokens: Array | None = None
    n_bytes: Array | None = None


TokenBlock.__module__ = "tokenloss.sinks"


class ComparedBlock(NamedTuple):
    """The next tokens of a candidate, in the order of the text, as `Sink.add` gets them from a comparison.

    Attributes
    ----------
    name : str
        The name of the candidate.
    columns : dict of 1-D arrays
        `nll`, `base_nll`, `kl`, `delta_p`, `is_same_top`, `kept` and `base_top_p`, as `Comparison` has them; the first
        two and `delta_p` only with targets; and further divergences that were asked for, with `tv` also `acceptance`,
        as `DraftAcceptance` has it. Of responses of servers, those of `ResponseComparison`; of log-probabilities of
        tokens alone, those of `Mismatch`.
    target, text, file, row, sequence, position
        As of `TokenBlock`; the number of the file is that of the shard. Ids are -1 without targets.
    base_scores, scores : TokenScores or None
        Of the base and of the candidate, where an output's `top_k` is more than 0.
    base_top_tokens, top_tokens : arrays of str or None, of shape (n, k), or None
        Of responses of servers: the text of the most likely classes of both, None where there is none.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from tokenloss import compare_files, sinks
    >>> class Printed(sinks.Sink):
    ...     needs_tokens = True
    ...
    ...     def add(self, block):
    ...         print(block.name, block.row, block.columns["kl"].round(4))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     base, q4 = (pathlib.Path(directory, name) for name in ("base.npz", "q4.npy"))
    ...     np.savez(base, logits=4 * np.eye(4), targets=np.arange(4))
    ...     np.save(q4, 2 * np.eye(4))
    ...     _ = compare_files(base, {"q4": q4}, sinks=[Printed()])
    q4 [0 1 2 3] [0.1831 0.1831 0.1831 0.1831]
    """

    name: str
    columns: dict[str, Array]
    target: Array
    text: Array | None
    file: int
    row: Array | None
    sequence: Array
    position: Array
    base_scores: TokenScores | None
    scores: TokenScores | None
    base_top_tokens: Array | None = None
    top_tokens: Array | None = None


ComparedBlock.__module__ = "tokenloss.sinks"


class Sink:
    """What takes the tokens or the result of `evaluate`: the base class of files to write, and of sinks of your own.

    A sink is opened before the first block of tokens, given each block if it needs tokens, and finished with the
    result; it need not define all three.

    Parameters
    ----------
    path : path-like, optional
        File to write, which is refused before any work if it would replace an input or what another sink writes.

    Attributes
    ----------
    needs_tokens : bool
        Whether `add` is called with each block of tokens; with `state` or `scheduler`, such a sink is refused.
    top_k : int
        Number of the most likely classes of each token that are wanted: `top_ids` and `top_logprobs` of the scores.
        They may have more, for another sink, or fewer, if there are not as many classes.

    See Also
    --------
    tokenloss.evaluate : Takes sinks.

    Examples
    --------
    >>> import numpy as np
    >>> from tokenloss import evaluate, sinks
    >>> class Surprises(sinks.Sink):
    ...     needs_tokens = True
    ...
    ...     def __init__(self, nats):
    ...         self.nats, self.rows = nats, []
    ...
    ...     def add(self, block):
    ...         self.rows += block.row[block.scores.nll > self.nats].tolist()
    >>> surprises = Surprises(2.0)
    >>> _ = evaluate([(np.log([[0.9, 0.1], [0.1, 0.9]]), [0, 0])], sinks=[surprises])
    >>> surprises.rows
    [1]
    """

    __module__ = "tokenloss.sinks"

    option: str = ""  # of the command line
    options: ClassVar[tuple[str, ...]] = ()  # further ones that it takes
    help: ClassVar[str] = ""
    needs_tokens: bool = False
    top_k: int = 0
    path: Any = None  # None: it writes no file; also if a subclass does not call `__init__`
    _of_responses: bool = False  # this and the next five are set before it is opened
    _of_logprobs: bool = False
    _has_text: bool = False  # whether some files hold the text of their tokens
    _tokenizer: Tokenizer | None = None  # which has the bytes of the tokens, and their text
    _names: Sequence[str] = ()  # of candidates
    _divergences: Sequence[str] = ()  # those that comparisons have beside KL
    _needs_targets: bool = True  # where it has likeliest classes of a comparison, with which losses come
    _takes_logprobs: ClassVar[bool] = True  # whether it accepts a comparison of token log-probabilities
    _function: ClassVar[str] = ""  # the function that takes it, if not any
    _is_of_drafts: bool = False  # whether a table has the acceptance alone, as `compare --draft` writes it
    _made_by: str = "tokenloss.evaluate"  # the function, or the line of the command, that made it

    def __init__(self, path: Any = None) -> None:
        self.path = path

    @property
    def _name(self) -> str:
        """Its name in error messages."""
        return worded(type(self).__name__, self.option)

    def open(self, batch: tuple[int, ...] | None, rows: int | None, top_k: int) -> AbstractContextManager[object]:
        """Prepare for tokens.

        Parameters
        ----------
        batch : tuple of int or None
            The shape of the first file's tokens; None of blocks in memory, and of responses.
        rows : int or None
            Number of all tokens, those that are ignored among them; None if not known.
        top_k : int
            Number of the most likely classes that each token comes with.

        Returns
        -------
        context manager
            It is left when all sinks are finished, with the error if there is one.
        """
        return contextlib.nullcontext()

    def add(self, block: Any) -> None:
        """Take the next tokens.

        Parameters
        ----------
        block : TokenBlock or ComparedBlock
            What `evaluate` gives, or `compare_files`: the tokens, whose arrays must not be changed.
        """

    def finish(self, summary: dict[str, Any], result: Any) -> None:
        """Take the result, after all tokens.

        Parameters
        ----------
        summary : dict
            The figures: `Evaluation.figures`, or those of a comparison, as `Comparisons.to_dict` has them.
        result : Evaluation or Comparisons
            All results.
        """


def checked_sinks(value: Any, function: str, state: bool, scheduler: str | None) -> list[Sink]:
    """Sinks of a function as a list. Those that need tokens are refused with a state or a scheduler, without tokens."""
    sinks = list(value) if hasattr(value, "__iter__") else [value]
    for sink in sinks:
        if not isinstance(sink, Sink) or value is sink:
            raise_error("type", name="sinks", got=type(sink).__name__, fits="a sequence of tokenloss.sinks.Sink")
        if sink._function not in ("", function):
            raise_error("not for", name=sink._name, fits=f"is a sink of {sink._function}, not of {function}")
        if sum(sink is one for one in sinks) > 1:
            raise_error("not for", name=sink._name, fits="is given twice in sinks")
    for option, given, verb in ("state", state, "keeps"), ("scheduler", scheduler, "returns"):
        for sink in sinks:
            if given and sink.needs_tokens:
                got = f"{named(option)} {verb} sums alone"
                raise_error("needs tokens", name=sink._name, got=got, option=named(option))
    return sinks


def check_files(sinks: Sequence[Sink], state: str | None, inputs: dict[object, str]) -> None:
    """Refuse to write a file that is read, that another sink writes, or that stdout is; inputs are by `identity`."""
    taken = dict(inputs)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # stdout without a file number
        printed = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(printed.st_mode):
            taken[printed.st_dev, printed.st_ino] = "stdout"
    written = [(sink._name, sink.path) for sink in sinks if sink.path is not None]
    check_outputs(written + [(named("state"), state)] * (state is not None), taken)


@contextmanager
def write_errors_of(sink: Sink) -> Iterator[None]:
    """Turn errors about the file that a sink writes into `WriteError`, which names the sink and the file."""
    try:
        yield
    except OSError as error:
        if sink.path is None or isinstance(error, WriteError):
            raise
        reason = error.strerror or error
        raise WriteError(f"{sink._name} {os.fspath(sink.path)}: cannot be written: {reason}") from error


def open_sinks(
    stack: contextlib.ExitStack, sinks: Sequence[Sink], batch: tuple[int, ...] | None, rows: int | None, top_k: int,
    of_responses: bool = False, has_text: bool = False, names: Sequence[str] = (), divergences: Sequence[str] = (),
    of_logprobs: bool = False, tokenizer: Tokenizer | None = None,
) -> None:  # fmt: skip
    """Open sinks; the stack closes them. `names` are those of candidates, and `divergences` those beside KL."""
    for sink in sinks:
        sink._of_responses, sink._has_text, sink._names = of_responses, has_text or tokenizer is not None, names
        sink._of_logprobs, sink._divergences, sink._tokenizer = of_logprobs, divergences, tokenizer
        with write_errors_of(sink):
            manager = sink.open(batch, rows, top_k)
            manager.__enter__()
        stack.push(functools.partial(_leave, sink, manager))


def _leave(sink: Sink, manager: AbstractContextManager[object], *error: Any) -> bool | None:
    """Close a sink."""
    with write_errors_of(sink):
        return manager.__exit__(*error)


def token_function(
    sinks: Sequence[Sink], file: int, tokenizer: Tokenizer | None = None
) -> Callable[[Any], None] | None:
    """Make a function that gives blocks of a file's tokens to the sinks that need them; None if none does."""
    sinks = [sink for sink in sinks if sink.needs_tokens]

    def add(block: Any) -> None:
        block = block._replace(file=file, sequence=np.maximum(block.sequence, -1))
        if tokenizer is not None:
            block = block._replace(text=text_of(block.target, tokenizer, getattr(block, "n_bytes", None)))
        for sink in sinks:
            with write_errors_of(sink):
                sink.add(block)

    return add if sinks else None


def finish_sinks(sinks: Sequence[Sink], figures: dict[str, Any], result: Any) -> None:
    """Give the result to all sinks."""
    for sink in sinks:
        with write_errors_of(sink):
            sink.finish(figures, result)
