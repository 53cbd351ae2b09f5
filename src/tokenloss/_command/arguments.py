"""The arguments of each command, in groups, and its help; values have the names of the functions' parameters."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tokenloss._command import commands
from tokenloss._command.parser import Completion, Names, Parser, filled, fraction, integer, limit_at_fraction, number
from tokenloss._core._core import KINDS
from tokenloss._core.version import __version__
from tokenloss._evaluation.options import WORDS
from tokenloss._output import COMPARE_OUTPUTS, SCORE_OUTPUTS
from tokenloss._output.reports import REPORTS
from tokenloss._output.terminal import FORMATS
from tokenloss.formats.lm_head import HEAD_FILES
from tokenloss.formats.readers import FILES
from tokenloss.formats.responses import PARTS_OF_RESPONSE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tokenloss._evaluation.sink import Sink

    _Group = argparse._ArgumentGroup

_LISTED: dict[str, Any] = {"action": "append", "default": []}  # an option that may be given several times
_COMMANDS = """
 score    loss, perplexity and accuracy of the predictions in files
            tokenloss score logits.npz
 compare  KL divergence, perplexity and top-1 agreement of models with a base model
            tokenloss compare base.npz Q8=q8.npz Q4=q4.npz
 sketch   a small file of a model's predictions, as the base of comparisons
            tokenloss sketch base.npz base.sketch
 info     the version, the instruction set in use and the number of threads
            tokenloss info
"""
_SCORE = f"""
Score the predictions in files: loss, perplexity and accuracy, with their errors.

A FILE is {FILES}. It contains scores (..., V), in an array named logits, log_probs or probs, and targets, in an array
named targets or labels: class ids (...) or distributions (..., V). With --shift, input_ids take the place of targets.
Both may also be in separate .npy files. A FILE may also contain tokens (the text), attention_mask, and segment_ids or
cu_seqlens (the sequences); each row of (N, T, V) is a sequence. With --lm-head, it contains hidden states (..., D),
named hidden_states or hidden. Or a FILE contains a server's responses as .json or .jsonl, possibly a saved stream, from
vLLM, SGLang, llama.cpp or any server with OpenAI's layout. Files may be larger than memory: they are read in parts.

Several FILEs are shards of one text. With names, as in A=a.npz B=b.npz, they are different models' scores for one text,
with one row each in the table. All options apply to all of them. `tokenloss compare` gives their differences, with
paired errors.
"""
_SCORE_EXAMPLES = """
 a file of logits and targets:
   tokenloss score logits.npz
 logits and the model's input ids, where row j predicts id j+1:
   tokenloss score logits.npy ids.npy --shift
 the same with bits per byte, from the bytes of each token:
   tokenloss score logits.npy ids.npy --shift --tokenizer model/
 shards of one text; a second call resumes where the first was interrupted:
   tokenloss score 'part-*.npz' --text text.txt --state state.jsonl
 final hidden states, and the model's own head:
   tokenloss score hidden.npy ids.npy --shift --lm-head model/
 a server's responses, with a table of their tokens and a page:
   tokenloss score responses.jsonl --per-token tokens.csv --html page.html
 two models side by side, as a table for an issue:
   tokenloss score A=a.npz B=b.npz --format markdown
 for a script that continues only if the perplexity is clearly below 12 (exit status 0):
   tokenloss score logits.npz --max-perplexity 12
"""
_COMPARE = """
Compare models, such as quantized ones, with a base model: KL divergence, perplexities, changes in probability.

BASE and each OTHER contain scores of the same rows, in any file that `score` reads; responses to the same requests (one
of the two may contain scores instead); or samples logged by lm-evaluation-harness (.jsonl) or Inspect (.eval, .json),
also as folders with several tasks. They may also contain log-probabilities of the same tokens, in BASE from a trainer
and in OTHER from the engine that sampled them: an array, or lists in lines of JSON, named `logprobs` or with a name
that a framework uses. With --logprobs, any array is read as log-probabilities. Files are recognized by their content.

Any file of scores may contain the targets, which must be the same in all of them; without targets, only divergences are
compared. BASE is read only once. Tables show the name of each OTHER, as in Q8=q8.npz, or its file.

With --text, --tokenizer-a and --tokenizer-b, BASE and OTHER are two models with different tokenizers, each with its own
token ids for the same text, and they are compared by bits per byte. In this case, --targets and --segment-ids, if used,
must each be given twice, first for BASE.
"""
_COMPARE_EXAMPLES = """
 two quantized models and their base:
   tokenloss compare base.npz Q8=q8.npz Q4=q4.npz
 one model, with its size and a plot:
   tokenloss compare base.npz Q4=q4.npz --size Q4=4.9G --plot kl.png
 the responses of two servers, for a lower bound on the divergence:
   tokenloss compare server-a.jsonl server-b.jsonl
 for a script that continues only if both limits are clearly met (exit status 0):
   tokenloss compare base.npz Q4=q4.npz --max-kl 0.01 --min-same-top 0.97
 a trainer's log-probabilities of the tokens that an engine sampled, with a diagnosis:
   tokenloss compare trainer.npy rollout.jsonl --logprobs
 two models with different tokenizers, on the same text:
   tokenloss compare a.npz b.npz --text text.txt --tokenizer-a A/ --tokenizer-b B/
 how many drafted tokens the large model accepts, and the speedup:
   tokenloss compare large.npz small=small.npz --draft --cost-ratio 0.05
 samples from lm-evaluation-harness: what changed, and whether the models are equal:
   tokenloss compare samples-a.jsonl samples-b.jsonl --margin 0.01
"""
_SKETCH = """
Write a sketch of the predictions in files: for each token, the most likely classes, and classes drawn from the others.
It takes 532 bytes per token. `tokenloss compare` accepts it as BASE in place of a model's full logits: perplexities
and top tokens are then exact, and divergences are unbiased estimates with errors.

Each FILE contains scores or hidden states, as for `score`, with targets or, with --shift, input ids. Several FILEs are
shards of one text.
"""
_SKETCH_EXAMPLES = """
 from a file of logits and targets:
   tokenloss sketch base.npz base.sketch
 add further shards, one after the other, as they are computed:
   tokenloss sketch part-1.npz base.sketch --append
 from logits and the model's input ids, with fewer bytes and larger errors:
   tokenloss sketch logits.npy ids.npy base.sketch --shift --top 16 --tail 16
 from final hidden states, and the model's own head:
   tokenloss sketch hidden.npy ids.npy base.sketch --shift --lm-head model/
"""
_GROUPS = (
    "input", "targets and sequences", "hidden states", "drafts", "responses", "log-probabilities", "samples", "gates",
    "output", "running",
)  # fmt: skip
_LM_HEAD = (
    "the files contain hidden states after the final norm, and this is their projection onto the vocabulary: "
    f"{HEAD_FILES}; config.json next to it sets how logits are scaled and capped, and whether the embedding is the head"
)
_CALIBRATION = (
    "show how well probabilities match outcomes: calibration errors, Brier score, reliability, and the best "
    "temperature, for which files are read another 3 to 6 times"
)
_MAX_ECE = "with --calibration, fail if the expected calibration error exceeds X"
_BY = (
    "add a table of groups of tokens: by `position` in the sequence or window, in bins that double, or with "
    "`position:512` in bins of 512; by `file`; or by a field: an array in files of scores or a value in lines of JSON, "
    "such as domain or metadata.topic; --format csv then has a row for each group"
)


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(
        prog="tokenloss",
        usage="tokenloss COMMAND [options] ...",
        description="Score the predictions of language models, and compare models.",
        epilog="`tokenloss COMMAND --help` shows the options of a command, and more examples.\n\n"
        "Tables and a progress bar are drawn by rich, if it is installed: pip install 'tokenloss[cli]'",
    )
    parser.add_argument_group("commands", _COMMANDS)
    options = parser.add_argument_group("options")
    options.add_argument("-h", "--help", action="help", help="show this help")
    options.add_argument("--version", action="version", version=f"tokenloss {__version__}", help="show the version")
    words = "print the script that completes commands and options in bash, zsh or tcsh"
    shells = ("bash", "zsh", "tcsh")
    _add(options, "--completion SHELL", words, action=Completion, choices=shells, default=argparse.SUPPRESS)
    subcommands = parser.add_subparsers(prog=parser.prog, metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    parser.files = subcommands
    usage = (
        "tokenloss score [options] FILE ...\n"
        "       tokenloss score [options] LOGITS.npy TARGETS.npy\n"
        "       tokenloss score [options] NAME=FILE NAME=FILE ..."
    )
    _add_score(subcommands.add_parser("score", usage=usage, description=_SCORE, help="score files"))
    usage = "tokenloss compare [options] BASE [NAME=]OTHER ..."
    _add_compare(subcommands.add_parser("compare", usage=usage, description=_COMPARE, help="compare models"))
    usage = "tokenloss sketch [options] FILE ... OUT.sketch"
    _add_sketch(subcommands.add_parser("sketch", usage=usage, description=_SKETCH, help="write a sketch"))
    words = "Show the version, the instruction set in use and the number of threads."
    info = subcommands.add_parser("info", usage="tokenloss info [options]", description=words, help="show the setup")
    for command in subcommands.choices.values():
        command.commands = subcommands.choices
    info.set_defaults(call=commands.info)
    of = _groups(info)
    _add_format(of["output"], ())
    _add_help(info, of["running"], " what is in use on this machine:\n   tokenloss info")
    return parser


def _groups(command: Parser) -> dict[str, _Group]:
    """The groups of options; groups that stay empty are not shown."""
    return {name: command.add_argument_group(name) for name in _GROUPS}


def _add_help(command: Parser, running: _Group, examples: str) -> None:
    """Add --help, and the examples, which come last."""
    running.add_argument("-h", "--help", action="help", help="show this help")
    command.add_argument_group("examples", examples)


def _add_score(score: Parser) -> None:
    """Describe the arguments of `tokenloss score`; values have the names that `evaluate` gives them."""
    score.set_defaults(call=commands.score)
    of = _groups(score)
    words = (
        "a file of scores, a directory of files, or a pattern in quotes, such as 'part-*.npz', optionally after NAME=; "
        "the files of a directory or pattern are read in the order of their numbers"
    )
    score.files = of["input"].add_argument("source", metavar="FILE", nargs="+", type=filled, help=words)
    _add_input(of["input"])
    _add(of["input"], "--text FILE", "the text, for bits per byte and perplexity per word")
    words = "how to count the words of --text: separated by white space (default), or as lm-evaluation-harness does"
    of["input"].add_argument("--words", choices=tuple(WORDS), default="whitespace", help=words)
    words = "length of the text in bytes, for bits per byte, instead of --text"
    _add(of["input"], "--n-bytes N", words, integer(1), default=0)
    words = "number of words in the text, for perplexity per word, instead of --text"
    _add(of["input"], "--n-words N", words, integer(1), default=0)
    _add_targets(of["targets and sequences"])
    _add(of["hidden states"], "--lm-head FILE[:NAME]", _LM_HEAD)
    _add_hidden_states(of["hidden states"])
    _add_responses(of["responses"])
    _add_logprobs(of["log-probabilities"])
    _add(of["gates"], "--max-perplexity X", "fail if the perplexity exceeds X", number)
    _add(of["gates"], "--max-loss X", "fail if the mean loss exceeds X nats", number)
    words = "fail if the model ranks less than a fraction X of the tokens first"
    _add(of["gates"], "--min-greedy-accuracy X", words, number)
    _add(of["gates"], "--max-ece X", _MAX_ECE, number)
    _add_confidence(of["gates"])
    _add(of["output"], "--by WHAT", _BY)
    of["output"].add_argument("--calibration", action="store_true", help=_CALIBRATION)
    words = "list the K tokens and K sequences with the highest losses (default: 5)"
    _add(of["output"], "--top K", words, integer(0), default=5)
    words = "also write the K most likely classes of each token to the --per-token file (default: 0)"
    _add(of["output"], "--top-k K", words, integer(0), default=0)
    _add_format(of["output"])
    _add_outputs(of["output"], SCORE_OUTPUTS)
    _add_running(of["running"])
    _add_help(score, of["running"], _SCORE_EXAMPLES)


def _add_compare(compare: Parser) -> None:
    """Describe the arguments of `tokenloss compare`; values have the names that `compare_files` gives them."""
    compare.set_defaults(call=commands.compare)
    of = _groups(compare)
    words = "scores of the base model: a file, a directory of shards, or a pattern of their names in quotes"
    words += "; for responses, a file"
    of["input"].add_argument("base", type=filled, metavar="BASE", help=words)
    words = "scores of a model for the same rows: a file, a directory or a pattern, like BASE; NAME=FILE names it"
    compare.files = of["input"].add_argument("others", metavar="OTHER", nargs="+", type=filled, help=words)
    _add_input(of["input"])
    words = "what the scores of BASE are, if the name of their array does not say so (default: logits)"
    of["input"].add_argument("--base-kind", choices=KINDS, help=words)
    _add(of["input"], "--base-array NAME", "name of the array of scores of BASE")
    words = (
        "if vocabularies differ, compare only the first N classes; with `all`, compare all, and a class that a model "
        "lacks has probability 0"
    )
    _add(of["input"], "--classes N", words, integer(1, or_else="all"))
    _add_formulas(of["input"])
    words = "the text, for two models with different tokenizers: their losses are mapped to its bytes"
    _add(of["input"], "--text FILE", words)
    for letter, model in ("a", "BASE"), ("b", "OTHER"):
        words = f"for --text, the tokenizer of {model}: its file, or the folder of the model"
        _add(of["input"], f"--tokenizer-{letter} DIR", words)
    words = "size of an OTHER's model: a file, a directory, or a number of bytes such as 4.9G"
    _add(of["input"], "--size NAME=SIZE", words, dest="sizes", **_LISTED)
    _add_targets(of["targets and sequences"])
    words = (
        "the head of the OTHERs, which contain hidden states, in a file as for `score --lm-head`. It is also the head "
        "of BASE, unless --base-lm-head, --base-kind or --base-array is given. For OTHERs with different heads, repeat "
        "the option, once for each OTHER in order"
    )
    _add(of["hidden states"], "--lm-head FILE[:NAME]", words, **_LISTED)
    words = "the head of BASE, which contains hidden states; without --lm-head, OTHERs contain scores"
    _add(of["hidden states"], "--base-lm-head FILE[:NAME]", words)
    words = "name of BASE's array of hidden states, if it differs from the name in the OTHERs"
    _add(of["hidden states"], "--base-hidden NAME", words)
    _add_hidden_states(of["hidden states"])
    _add_drafts(of["drafts"])
    _add_responses(of["responses"])
    _add_logprobs(of["log-probabilities"])
    words = "for lm-evaluation-harness: test whether both models are equal within M, such as 0.01"
    _add(of["samples"], "--margin M", words, fraction)
    words = "the field of a document by which errors are clustered (default: each document is its own cluster)"
    _add(of["samples"], "--cluster FIELD", words)
    words = "in a folder, read only the runs whose file names contain a date that begins with DATE; may be repeated"
    _add(of["samples"], "--run DATE", words, **_LISTED)
    _add_compare_gates(of["gates"])
    _add(of["output"], "--by WHAT", _BY)
    of["output"].add_argument("--calibration", action="store_true", help=f"for each model, {_CALIBRATION}")
    _add_format(of["output"])
    words = "also print how many texts or questions it takes to detect a difference of D from BASE, such as 0.02"
    _add(of["output"], "--detect D", words, fraction)
    _add_outputs(of["output"], COMPARE_OUTPUTS)
    _add_running(of["running"])
    _add_help(compare, of["running"], _COMPARE_EXAMPLES)


def _add_sketch(sketch: Parser) -> None:
    """Describe the arguments of `tokenloss sketch`; values have the names that `write_sketch` gives them."""
    sketch.set_defaults(call=commands.sketch)
    of = _groups(sketch)
    words = "a file of scores, a directory of files, or a pattern in quotes; then the file to write, OUT.sketch"
    sketch.files = of["input"].add_argument("source", metavar="FILE", nargs="+", type=filled, help=words)
    _add_input(of["input"])
    _add_targets(of["targets and sequences"])
    _add(of["hidden states"], "--lm-head FILE[:NAME]", _LM_HEAD)
    _add_hidden_states(of["hidden states"])
    _add(of["output"], "--top K", "number of most likely classes to keep (default: 32)", integer(1), default=32)
    words = "number of classes drawn from the others (default: 48); with 0, divergences are only lower bounds"
    _add(of["output"], "--tail S", words, integer(0), default=48)
    _add(of["output"], "--seed N", "seed of the draws (default: 0)", integer(0), default=0)
    words = "append to the rows in OUT; the result is the same, byte for byte, as if written at once"
    of["output"].add_argument("--append", action="store_true", help=words)
    _add_format(of["output"])
    words = "number of threads (default: one per CPU, as with -1)"
    _add(of["running"], "--workers N", words, integer(1, or_else=-1))
    _add_help(sketch, of["running"], _SKETCH_EXAMPLES)


def _add_compare_gates(group: _Group) -> None:
    """Add the gates of two models, and the noise with which they are compared."""
    _add(group, "--max-kl X", "fail if the mean KL divergence exceeds X nats", number)
    words = "fail if the F-quantile of the divergence exceeds X, such as 0.99=0.3; may be repeated"
    _add(group, "--max-kl-quantile F=X", words, limit_at_fraction, **_LISTED)
    words = "fail if both models rank the same class first for less than a fraction X of the tokens"
    _add(group, "--min-same-top X", words, number)
    _add(group, "--max-perplexity-ratio X", "fail if the perplexity exceeds X times that of BASE", number)
    words = "fail if more than N tokens change their most likely class, not counting ties; for example, 0"
    _add(group, "--max-decisive-flips N", words, integer(0))
    words = "fail if the log-probability of any token changes by more than X nats"
    _add(group, "--max-abs-logprob X", words, number)
    _add(group, "--max-ece X", _MAX_ECE, number)
    words = "for a trainer and a sampler: fail if the k3 estimate of the KL divergence exceeds X nats"
    _add(group, "--max-k3 X", words, number)
    words = "for a trainer and a sampler: fail if the effective sample size is below a fraction X of the tokens"
    _add(group, "--min-ess X", words, number)
    _add_confidence(group)
    words = (
        "a second run of BASE, with another batch size or engine: metrics are also shown as multiples of this run's, "
        "and gates that this run itself does not pass are pointed out"
    )
    _add(group, "--noise TWIN", words)


def _add_drafts(group: _Group) -> None:
    """Add the options of drafts."""
    words = (
        "the OTHERs are draft models for speculative decoding with BASE as their target: print the acceptance, and the "
        "tokens per call of the target for 1 to 8 drafted tokens, instead of divergences"
    )
    group.add_argument("--draft", action="store_true", help=words)
    words = "temperature of all models, with or without --draft; 0 is greedy decoding (default: 1)"
    _add(group, "--temperature T", words, number)
    words = "the time of a draft step divided by the time of a target call, such as 0.05, for the speedup"
    _add(group, "--cost-ratio C", words, number)


# -- options of both `score` and `compare` -----------------------------------------------------------------------------


def _add_input(group: _Group) -> None:
    """Add the options that describe the content of files."""
    words = "what the scores are, if the name of their array does not say so (default: logits)"
    group.add_argument("--kind", choices=KINDS, help=words)
    _add(group, "--array NAME", "name of the array of scores, if it is not logits, log_probs or probs")


def _add_formulas(group: _Group) -> None:
    """Add the options that select what is computed for two models."""
    words = (
        "formulas of the metrics: llama.cpp does not normalize the log-probabilities of BASE, and sums the divergence "
        "only where they are above -16 (default: exact)"
    )
    group.add_argument("--definitions", choices=("exact", "llama.cpp"), default="exact", help=words)
    words = (
        "divergences in addition to kl, separated by commas (js,tv) or in repeated options: reverse_kl, js "
        "(Jensen-Shannon), tv (total variation) or hellinger (default: kl)"
    )
    _add(group, "--divergences NAMES", words, action=Names, default=("kl",))


def _add_targets(group: _Group) -> None:
    """Add the options of targets and sequences."""
    words = "a .npy file of targets for each file of scores, in order, or one for all; or a pattern in quotes"
    _add(group, "--targets FILE", words, **_LISTED)
    words = "name of the array of targets, if it is neither targets nor labels; `compare` reads it from BASE"
    _add(group, "--targets-array NAME", words)
    words = "for each file of scores, a .npy file with each token's sequence number, or one such file for all"
    _add(group, "--segment-ids FILE", words, **_LISTED)
    words = (
        "the targets are the input ids of a causal model: row j predicts id j+1, and the last row of a FILE that is "
        "one sequence (N, V) predicts the first id of the next FILE; --no-shift: the targets are already aligned"
    )
    group.add_argument("--shift", action=argparse.BooleanOptionalAction, help=words)
    words = "target value that marks tokens to ignore, such as padding (default: -100)"
    _add(group, "--ignore-index N", words, integer(-(2**63), 2**64 - 1), default=-100)
    words = (
        "the FILEs contain scores of one text, longer than a model's context, in windows of N tokens, along with the "
        "ids of each window or of the whole text; each token is scored in the first window that contains it"
    )
    _add(group, "--window N", words, integer(2))
    words = "number of tokens from the start of one window to the start of the next, for --window"
    _add(group, "--stride N", words, integer(1))
    words = (
        "the file of the tokenizer, or the folder of its model: `score` then reports bits per byte for the scored "
        "tokens (with --text, the ids must spell this text, byte by byte), and pages and tables show the text of tokens"
    )
    _add(group, "--tokenizer DIR", words)


def _add_hidden_states(group: _Group) -> None:
    """Add the options of hidden states."""
    _add(group, "--hidden NAME", "name of the array of hidden states")
    words = (
        "multiplier for the logits computed from hidden states; if it is given, all files must contain hidden states "
        "(default: from the model's config.json, or 1)"
    )
    _add(group, "--logit-scale X", words, number)
    words = (
        "soft cap for the logits computed from hidden states, or 0 for none; if it is given, all files must contain "
        "hidden states (default: from the model's config.json, or none)"
    )
    _add(group, "--softcap X", words, number)


def _add_responses(group: _Group) -> None:
    """Add the options of responses."""
    words = (
        "the part of responses to read (default: the prompt if it has log-probabilities, otherwise the generated text)"
    )
    group.add_argument("--part", choices=PARTS_OF_RESPONSE, help=words)
    words = "leave out the failed requests of a batch of responses"
    group.add_argument("--skip-failed", action="store_true", help=words)


def _add_logprobs(group: _Group) -> None:
    """Add the options for log-probabilities of tokens."""
    words = "arrays contain one log-probability per token, with shape (tokens,) or (N, T), not scores of all classes"
    group.add_argument("--logprobs", action="store_true", help=words)
    _add(group, "--mask NAME", "name of the array or list that is 1 for tokens that count and 0 for others")


def _add_confidence(group: _Group) -> None:
    """Add the option of all gates, with the meaning of their verdicts."""
    words = (
        "confidence level of the intervals (default: 0.95); a gate holds if the whole interval is within the limit "
        "(exit status 0), fails if the whole interval is beyond it (3), and is otherwise inconclusive (4)"
    )
    _add(group, "--confidence C", words, fraction)


def _add_running(group: _Group) -> None:
    """Add the options that say how and where the work is done."""
    _add(group, "--state FILE", "checkpoint: save the result of each file here, and resume from it")
    _add(group, "--scheduler ADDRESS", "work on the Dask cluster at this address, such as tcp://127.0.0.1:8786")
    words = "number of threads (default: one per CPU, as with -1)"
    _add(group, "--workers N", words, integer(1, or_else=-1))


def _add_format(group: _Group, reports: Sequence[str] = REPORTS) -> None:
    """Add the option for how the result is printed, and the short one that scripts use."""
    words = "print tables as text (default) or Markdown, one row of metrics per model as csv, or everything as json"
    if reports:
        words += (
            "; github: tables, and an error or warning for each gate that does not hold; junit: gates as test cases "
        )
        words += "in XML; card: the main metrics for a model card, with a model-index in YAML"
    group.add_argument("--format", choices=(*FORMATS, *reports), default="text", help=words)
    group.add_argument("--json", dest="format", action="store_const", const="json", help="short for --format json")


def _add_outputs(group: _Group, outputs: Iterable[type[Sink]]) -> None:
    """Add the options of outputs."""
    for output in outputs:
        _add(group, f"{output.option} OUT", output.help)


def _add(group: _Group, names: str, words: str, kind: Callable[[str], Any] = filled, **options: Any) -> None:
    """Add an option; `names` are its own name and the name of its value, and `kind` converts the value from text."""
    option, value = names.split()
    group.add_argument(option, metavar=value, help=words, type=kind, **options)
