"""One line and exit status 2 for bad arguments and files; signals, closed pipes and full disks."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import LOGITS, TARGETS, assert_refused, process, raising, read_state
from places import SAMPLE

from tokenloss import compare_files, evaluate
from tokenloss._command import commands
from tokenloss._command.arguments import make_parser
from tokenloss._evaluation import plan
from tokenloss._evaluation import rows as shard_rows
from tokenloss.formats import npz as npz_format
from tokenloss.formats import open_scores

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
NO_FILE = "is not a file" if Path("/dev/zero").exists() else "cannot be written"  # on Windows


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sing"], ["'sing'", "score, compare, sketch or info"]),
        (["scores", SAMPLE], ["did you mean score?"]),
        ([SAMPLE], [f"did you mean tokenloss score {SAMPLE}?"]),
        (["help"], ["did you mean tokenloss --help?"]),
        (["x" * 5000], ["score, compare, sketch or info"]),
        (["--score", "info"], ["there is no option --score"]),
        (["--tune", "score", SAMPLE], ["there is no option --tune; tokenloss --help lists all"]),
        (["score", "--top", "1"], ["FILE"]),
        (["score", SAMPLE, "--tune"], ["there is no option --tune; tokenloss score --help lists all"]),
        (["score", SAMPLE, "--pertoken", "x.csv"], ["there is no option --pertoken; did you mean --per-token?"]),
        (
            ["compare", SAMPLE, SAMPLE, "--n-bytes", "1"],
            ["there is no option --n-bytes; it is an option of tokenloss score"],
        ),
        (["score", SAMPLE, "--tokenizer-a", "T"], ["no option --tokenizer-a; it is an option of tokenloss compare"]),
        (["score", SAMPLE, "-top=3"], ["there is no option -top=3; did you mean --top?"]),
        (["score", SAMPLE, "--seg", "x"], ["--seg; did you mean --segment-ids?"]),  # not taken as an abbreviation
        (["score", SAMPLE, "--probs"], ["--probs; did you mean --kind probs?"]),
        (["score", SAMPLE, "--part", "prompts"], ["'prompts'; did you mean prompt?"]),
        (["score", SAMPLE, "--top", "-1"], ["--top", "'-1'", ">= 0"]),
        (["score", SAMPLE, "--top", "x"], ["--top", "'x'"]),
        (["score", SAMPLE, "--workers", "0"], ["--workers", "'0'", ">= 1"]),
        (["score", SAMPLE, "--workers", "1.5"], ["--workers", "'1.5'"]),
        (["score", SAMPLE, "--ignore-index", "none"], ["--ignore-index", "'none'"]),
        (["score", SAMPLE, "--kind", "odds"], ["--kind", "'odds'", "log_probs"]),
        (["score", SAMPLE, "--kind", "probs"], [f"{SAMPLE}: contains logits, targets, tokens; it must contain probs"]),
        (
            ["score", SAMPLE, "--array", "other"],
            [f"{SAMPLE}: contains logits, targets, tokens; it must contain 'other'"],
        ),
        (["score", SAMPLE, "targets.npy"], ["targets.npy: cannot be read: No such file"]),
        (["score", SAMPLE, "--targets", "none.npy"], ["none.npy: cannot be read: No such file"]),
        (["score", SAMPLE, SAMPLE], [f"{SAMPLE}: is given twice"]),
        (["score", SAMPLE, "--text", SAMPLE], [f"{SAMPLE}: is given twice"]),
        (["score", "none*.npz"], ["none*.npz: matches no file"]),
        (["score", SAMPLE, "--n-bytes", "0"], ["--n-bytes", "'0'", ">= 1"]),
        (["score", SAMPLE, "--n-bytes", 2**63], ["--n-bytes", "'9223372036854775808'", "<= 9223372036854775807"]),
        (["score", SAMPLE, "--n-bytes", "1" + "0" * 400], ["--n-bytes", "<= 9223372036854775807"]),
        (["score", SAMPLE, "--n-bytes", "9" * 5000], ["--n-bytes", "<= 9223372036854775807"]),
        (["score", SAMPLE, "--ignore-index", "9" * 5000], ["--ignore-index", "<= 18446744073709551615"]),
        (["score", SAMPLE, "--workers", "-2"], ["--workers", "'-2'", "or -1"]),
        (["score", SAMPLE, "--n-bytes", "9", "--text", "x"], ["--text and --n-bytes"]),
        (["score", SAMPLE, "--n-words", "9", "--text", "x"], ["--text and --n-words"]),
        (["score", SAMPLE, "--part", "all"], ["--part is for responses; ", " has scores"]),
        (["score", SAMPLE, "--words", "lm-eval"], ["--words is given; it must be left out without --text"]),
        (["score", SAMPLE, "--softcap", "1"], ["--softcap is for hidden states; ", " has scores"]),
        (["score", SAMPLE, "--text", "none.txt"], ["none.txt: cannot be read: No such file"]),
        (["score", SAMPLE, "--per-token", "x.txt"], ["--per-token: ", "'x.txt'", ".npy, .csv, .parquet"]),
        (["score", SAMPLE, "--top-k", "2"], ["--top-k is for --per-token"]),
        (["score", SAMPLE, "--plot", "x.txt"], ["--plot: ", "'x.txt'", ".png"]),
        (["compare", SAMPLE, SAMPLE, "--plot", "x.txt"], ["--plot: ", "'x.txt'", ".png"]),
        (["score", SAMPLE, "--state", "/dev/zero"], [f"/dev/zero: {NO_FILE}"]),
        (["score", SAMPLE, "--state", "x", "--html", "y"], ["--state", "--html"]),
        (["score", SAMPLE, "--scheduler", "tcp://x:1", "--per-token", "y.npy"], ["--scheduler", "--per-token"]),
        (["compare", SAMPLE], ["OTHER"]),
        (["compare", SAMPLE, SAMPLE, "--definitions", "mine"], ["--definitions", "'mine'"]),
        (["compare", SAMPLE, SAMPLE, "--max-kl", "-1"], ["--max-kl is -1.0; it must be a finite number"]),
        (["score", SAMPLE, "--min-greedy-accuracy", "2"], ["--min-greedy-accuracy is 2.0; it must be a number from 0"]),
        (["compare", "none.kld", SAMPLE], ["none.kld: cannot be read: No such file"]),
        (["score", "x" * 5000], ["cannot be read: "]),
        (["score", "none.npz"], ["none.npz: cannot be read: No such file"]),
        (["score", "two\nlines.npz"], [r"two\nlines.npz: cannot be read: "]),
        (["score", SAMPLE.parent.parent], [f"{SAMPLE.parent.parent}: is a directory without files of scores"]),
        (["score", __file__], [f"{__file__}: is not a file of scores; it must be a .npy file, "]),
        (["info", "--top", "1"], ["--top"]),
        (["info", "x"], ["x is given"]),
    ],
)
def test_arguments_that_are_wrong(argv, words, command):
    assert_refused(command(*argv), *words)


def test_scheduler_that_is_no_address(command):
    pytest.importorskip("distributed")
    assert_refused(command("score", SAMPLE, "--scheduler", "nowhere"), "nowhere")


OPTIONS = ["--targets", "--text", "--per-token", "--plot", "--html", "--state", "--scheduler", "--array"]


@pytest.mark.parametrize(
    ("argv", "name"),
    [(["score", ""], "FILE")]
    + [(["score", SAMPLE, option, ""], option) for option in OPTIONS]
    + [(["compare", "", SAMPLE], "BASE"), (["compare", SAMPLE, ""], "OTHER")]
    + [(["compare", SAMPLE, SAMPLE, option, ""], option) for option in ("--targets", "--plot", "--base-array")],
)
def test_arguments_that_are_empty(argv, name, command):
    assert_refused(command(*argv), f"argument {name}: is empty; it must be a name")


def test_workers_minus_one():
    parser = make_parser()
    assert parser.parse_args(["score", "x", "--workers", "-1"]).workers == -1
    assert parser.parse_args(["compare", "x", "y", "--workers=-1"]).workers == -1


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, ["contains nothing", "exactly one of logits, log_probs, probs"]),
        ({"logits": LOGITS}, ["has no targets; it must contain targets, or come with --targets"]),
        ({"targets": TARGETS, "scores": LOGITS}, ["contains targets, scores;"]),
        ({"targets": TARGETS, "logits": LOGITS, "probs": LOGITS}, ["exactly one"]),
        ({"targets": TARGETS[:3], "logits": LOGITS}, ["targets has shape (3,)", "(4,)", "fit logits"]),
        ({"targets": TARGETS + 0.0, "probs": LOGITS}, ["targets has dtype float64", "integer"]),
        ({"targets": TARGETS, "log_probs": TARGETS}, ["log_probs has dtype int64", "float16"]),
        ({"targets": TARGETS, "logits": np.float32(1)}, ["logits is a scalar"]),
        ({"targets": np.array([0, 1, 3, 7]), "probs": LOGITS}, ["targets[2] = 3", "[0, 3)"]),
        ({"targets": np.array([[0, -100], [-1, 0]]), "logits": LOGITS.reshape(2, 2, 3)}, ["targets[1, 0] = -1"]),
        ({"targets": TARGETS, "logits": LOGITS[:, :0]}, ["targets[0] = 0", "[0, 0)"]),
        ({"targets": np.array([None] * 4), "logits": LOGITS}, ["targets: cannot be read", "Python objects"]),
        ({"targets": TARGETS, "logits": LOGITS, "tokens": TARGETS}, ["tokens has dtype int64", "text"]),
        ({"targets": TARGETS, "logits": LOGITS, "tokens": np.array(["a"])}, ["tokens has shape (1,)", "(4,)"]),
    ],
)
def test_arrays_that_do_not_fit(arrays, words, command, npz):
    path = npz(**arrays)
    assert_refused(command("score", path), f"{path}: ", *words)


def test_targets_out_of_range_far_into_a_file(command, npy, monkeypatch):
    monkeypatch.setattr(plan, "_BLOCK_BYTES", 10)
    targets = np.zeros(1000, np.int16)
    targets[777] = 3
    paths = npy(np.zeros((1000, 3), np.float32), targets)
    assert_refused(command("score", *paths), ", ".join(map(str, paths)), "targets[777] = 3")


def test_npy_files_that_do_not_fit(command, npy, npz):
    scores, targets = npy(LOGITS, TARGETS)
    archive = npz(logits=LOGITS, targets=TARGETS)
    assert_refused(command("score", scores), f"{scores}: ", "targets")
    assert_refused(command("score", scores, scores.parent / "none.npy"), "none.npy: cannot be read: No such file")
    assert_refused(
        command("score", scores, archive), f"{scores}: has no targets; it must contain targets, or come with --t"
    )
    refused = command("score", scores, "--targets", archive)
    assert_refused(refused, f"{archive}: is not a .npy file; it must be one")
    assert_refused(command("score", targets, scores), "logits has dtype int64")
    np.save(targets, np.array([None] * 4))
    assert_refused(command("score", scores, targets), f"{targets}: cannot be read")


@pytest.mark.parametrize("kept", [0, 3, 8, 60, 130])
def test_npy_file_that_is_cut_short(kept, command, npy):
    scores, targets = npy(LOGITS, TARGETS)
    scores.write_bytes(scores.read_bytes()[:kept])
    assert_refused(command("score", scores, targets), f"{scores}: ")


@pytest.mark.parametrize("kept", [2, 100, 1000, 100_000, SAMPLE.stat().st_size - 1])
def test_npz_file_that_is_cut_short(kept, command, tmp_path):
    path = tmp_path / "sample.npz"
    path.write_bytes(SAMPLE.read_bytes()[:kept])
    assert_refused(command("score", path), f"{path}: cannot be read: ")


def test_npz_file_that_is_damaged(command, tmp_path):
    data = bytearray(SAMPLE.read_bytes())
    data[5000] ^= 255
    path = tmp_path / "sample.npz"
    path.write_bytes(data)
    assert_refused(command("score", path), f"{path}: logits: cannot be read: ")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of memory maps, /proc/self/maps")
@pytest.mark.parametrize(
    "argv",
    [
        ["score", "bad.npz"],
        ["score", "good.npz", "bad.npz"],
        ["score", "good.npz", "--targets", "targets.npy"],
        ["compare", "good.npz", "bad.npz"],
    ],
)
def test_files_that_were_refused_are_not_mapped(argv, command, npz, tmp_path, monkeypatch):
    npz("good.npz", logits=LOGITS, targets=TARGETS)
    npz("bad.npz", logits=LOGITS, targets=TARGETS + 3)
    np.save(tmp_path / "targets.npy", TARGETS + 3)
    monkeypatch.chdir(tmp_path)
    gc.collect()
    gc.disable()  # nothing else frees cycles of references
    try:
        refused = command(*argv)
        maps = Path("/proc/self/maps").read_text()
    finally:
        gc.enable()
    assert_refused(refused, argv[-1])
    assert str(tmp_path) not in maps


@pytest.mark.parametrize("argv", [("score", SAMPLE), ("info",)])
def test_num_workers_of_the_environment_that_is_no_number(argv, command, monkeypatch):
    monkeypatch.setenv("TOKENLOSS_NUM_WORKERS", "many")
    assert_refused(command(*argv), "TOKENLOSS_NUM_WORKERS", "'many'")


def test_out_of_memory(command, monkeypatch):
    monkeypatch.setattr(npz_format.np, "ndarray", raising(MemoryError()))
    words = f"out of memory: {SAMPLE} does not fit into memory; an uncompressed file need not"
    assert_refused(command("score", SAMPLE), words)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process at once instead of sending it a signal")
def test_signals_remove_half_written_files(name, tmp_path):
    number = getattr(signal, name)
    program = (
        "import sys, os, signal, time; from tokenloss._command import cli; from tokenloss._evaluation import rows\n"
        "def slow(*args, **options):\n"
        "    print('begun', flush=True); time.sleep(60)\n"
        "rows.RowReader._block = slow\n"
        f"signal.signal(signal.{name}, signal.SIG_DFL)\n"  # which nohup, or a shell in the background, may ignore
        "sys.exit(cli.main())"
    )
    argv = ["score", SAMPLE, "--per-token", tmp_path / "out.csv"]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, *map(str, argv)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "begun\n"
        assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
        process.send_signal(number)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (out, err) == ("", f"tokenloss: ended by {name}\n")
    assert process.returncode in (128 + number, -number)  # the second one may come when all is done
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process at once instead of sending it a signal")
def test_signals_leave_the_state_of_what_is_done(name, command, shards):
    program = (
        "import sys, time; from tokenloss._command import cli; from tokenloss._evaluation import evaluate\n"
        "score_shard = evaluate.score_shard\n"
        "def slow(shard, *args, **options):\n"
        "    if 'part-c' in shard.path: print('begun', flush=True); time.sleep(60)\n"
        "    return score_shard(shard, *args, **options)\n"
        "evaluate.score_shard = slow\n"
        "sys.exit(cli.main())"
    )
    argv = ["score", shards.path / "part-*.npz", "--state", shards.path / "state"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(getattr(signal, name))
        process.communicate(timeout=60)
    state = read_state(shards.path / "state")
    assert [Path(entry["shard"]["path"]).name for entry in state["done"]] == ["part-a.npz", "part-b.npz"]
    assert command(*argv)[0] == 0
    resumed = read_state(shards.path / "state")
    assert resumed["done"][:2] == state["done"]
    assert len(resumed["done"]) == 3


def test_signals_have_their_old_handlers_afterwards(command, monkeypatch):
    seen = []
    monkeypatch.setattr(commands, "info", lambda _: seen.append(signal.getsignal(signal.SIGTERM)) or 0)
    before = signal.getsignal(signal.SIGTERM)
    assert command("info", "--format", "json")[0] == 0
    assert callable(seen[0])
    assert signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as nohup does with SIGHUP
    try:
        assert command("info", "--format", "json")[0] == 0
        assert seen[1] == signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signals_that_come_at_once_end_the_command_once(command, monkeypatch):
    """As `timeout` sends them: the second one does not cut short what the first one made end."""
    ended = []

    def info(_):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            ended.append("info")

    monkeypatch.setattr(commands, "info", info)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert command("info") == (128 + signal.SIGTERM, "", "tokenloss: ended by SIGTERM\n")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == ["info"]


def test_ctrl_c(command, monkeypatch):
    monkeypatch.setattr(shard_rows, "scores_of_kind", raising(KeyboardInterrupt))
    assert command("score", SAMPLE) == (130, "", "tokenloss: interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="stderr is closed by a shell, sh, which Windows lacks")
def test_closed_stderr():
    command = ["sh", "-c", '"$0" -m tokenloss score none.npz 2>&-', sys.executable]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")


def test_error_of_a_process():
    done = process("score", "none.npz")
    assert_refused((done.returncode, done.stdout, done.stderr), "none.npz")


NO_RICH = "sys.modules['rich'] = None;"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows reports a closed pipe by another error")
@pytest.mark.parametrize(
    ("argv", "hide"), [(("score", SAMPLE), ""), (("score", SAMPLE), NO_RICH), (("info",), NO_RICH), (("--help",), "")]
)
def test_closed_stdout(argv, hide):
    reading, writing = os.pipe()
    os.close(reading)
    program = f"import sys; {hide} from tokenloss._command.cli import main; sys.exit(main())"
    with os.fdopen(writing, "wb") as closed:
        done = process(*argv, stdout=closed, program=("-c", program), PYTHONUNBUFFERED="")
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_full_disk():
    with Path("/dev/full").open("w") as full:
        done = process("score", SAMPLE, "--format", "json", stdout=full)
    assert (done.returncode, done.stderr) == (2, "tokenloss: error: cannot write: No space left on device\n")


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    """A folder of files that lack something, in which a test runs."""
    monkeypatch.chdir(tmp_path)
    x, ids = np.zeros((4, 5)), np.arange(4)
    np.savez("ids.npz", logits=x, input_ids=ids)
    np.savez("other.npz", logits=x + 1, input_ids=ids)
    np.savez("marked.npz", logits=x, targets=[1, 2, 3, 255])
    np.savez("wide.npz", logits=np.zeros((4, 7)), targets=ids)
    np.savez("hidden.npz", hidden_states=x, targets=ids)
    np.savez("probs.npz", logits=np.full((4, 5), 0.2), targets=ids)
    failed = {"custom_id": "a", "response": {"status_code": 400, "body": None}, "error": {"message": "too long"}}
    Path("failed.jsonl").write_text(json.dumps(failed), "utf-8")


# calls in Python, the commands that do the same, and what their messages end with
IDS_LACK = "or come with {} or {}; if these ids are the model's input, add {}"
SPELLINGS = [
    (
        lambda: evaluate("ids.npz"),
        "score ids.npz",
        IDS_LACK,
        ["targets=", "targets_array=", "shift=True"],
        ["--targets", "--targets-array", "--shift"],
    ),
    (
        lambda: compare_files("ids.npz", "other.npz"),
        "compare ids.npz other.npz",
        IDS_LACK + "; for divergences only, {}",
        ["targets=", "targets_array=", "shift=True", "shift=False"],
        ["--targets", "--targets-array", "--shift", "--no-shift"],
    ),
    (
        lambda: compare_files("marked.npz", "wide.npz"),
        "compare marked.npz wide.npz",
        "; {} compares the first 5 of both",
        ["classes=5"],
        ["--classes 5"],
    ),
    (
        lambda: evaluate("marked.npz"),
        "score marked.npz",
        "if 255 marks positions without a label, give {}",
        ["ignore_index=255"],
        ["--ignore-index 255"],
    ),
    (
        lambda: evaluate("probs.npz"),
        "score probs.npz",
        "come with {} and its array's name, or with {} if it has logits",
        ["kind='probs'", "kind='logits'"],
        ["--kind probs", "--kind logits"],
    ),
    (
        lambda: evaluate("failed.jsonl"),
        "score failed.jsonl",
        "or be left out ({})",
        ["skip_failed=True"],
        ["--skip-failed"],
    ),
    (
        lambda: open_scores("wide.npz", window=3),
        "score wide.npz --window 3",
        "{} is given; it must be left out without {}",
        ["window", "stride"],
        ["--window", "--stride"],
    ),
    (
        lambda: compare_files("wide.npz", "marked.npz", sizes={"marked.npz": "big"}),
        "compare wide.npz marked.npz --size marked.npz=big",
        "{} is 'big'; it must be a file, a directory, or a number of bytes such as 4.9G",
        ["sizes['marked.npz']"],
        ["--size marked.npz"],
    ),
    (
        lambda: evaluate("wide.npz", state="wide.npz"),
        "score wide.npz --state wide.npz",
        "{} wide.npz: would replace wide.npz; give another name",
        ["state"],
        ["--state"],
    ),
]


@pytest.mark.usefixtures("wrong")
@pytest.mark.parametrize(("call", "line", "words", "of_python", "of_command"), SPELLINGS, ids=[x[1] for x in SPELLINGS])
def test_messages_name_parameters_in_python_and_options_in_the_command(
    call, line, words, of_python, of_command, command
):
    with pytest.raises((IndexError, ValueError)) as raised:
        call()
    message = str(raised.value)
    assert message.endswith(words.format(*of_python))
    assert "--" not in message
    said = command(*line.split())[2].removesuffix("\n")
    assert said == f"tokenloss: error: {message.replace(words.format(*of_python), words.format(*of_command))}"
    with pytest.raises((IndexError, ValueError), match=f"^{re.escape(message)}$"):  # again after a command
        call()
