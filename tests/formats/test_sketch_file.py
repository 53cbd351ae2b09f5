"""Sketches: written as a plain NumPy program writes them, whatever the sharding, and refused where they are damaged."""

import functools
import hashlib
import itertools
import json

import numpy as np
import pytest
from arrays import BFLOAT16

from tokenloss import evaluate
from tokenloss.formats import open_scores, open_sketch, write_sketch

TOP, TAIL = 32, 48


def logits_like(n, classes, dtype, how="normal"):
    """Rows whose tails differ in kind: of any mass, masked, tiny, tied, none, far from 0."""
    rng = np.random.default_rng(classes)
    x = rng.normal(0, 3, (n, classes))
    if how == "masked":
        x[:, 1:][:, rng.random(classes - 1) < 0.4] = -np.inf
    elif how == "masked by row":
        x[:, 1:][rng.random((n, classes - 1)) < 0.4] = -np.inf
    elif how == "tiny tail":
        x[:, :TOP] += 600
    elif how == "ties":
        x = np.round(x)
    elif how == "far":
        x = x + 1e5
    return x.astype(dtype)


def uniforms_like(seed, sequence, position, count):
    blocks = -(-count // 4)
    key, counter = [seed, 0], [position * blocks, sequence % 2**64, 0, 0]
    bits = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    words = bits.random_raw(4 * blocks)
    return (words[:count] >> np.uint64(11)) * 2.0**-53


def record_like(row, target, u, top=TOP, tail=TAIL):
    """What a row of a sketch has, by sorting and searching in float64."""
    x = row.astype(np.float64)
    order = np.lexsort((np.arange(len(x)), -x))
    ids = order[:top]
    normalizer = x.max() + np.log(np.exp(x - x.max()).sum())
    p = np.exp(x - normalizer)
    entropy = -sum(p[p > 0] * (x - normalizer)[p > 0])
    rest = x.copy()
    rest[ids] = -np.inf
    support, drawn, log_tail = int(np.isfinite(rest).sum()), np.full(tail, -1), -np.inf
    if support:
        shares = np.exp(rest - rest.max())
        log_tail = rest.max() + np.log(shares.sum()) - normalizer
        sizes = np.cumsum(np.where(np.isfinite(rest), shares + 0.1 * shares.sum() / support, 0))
        drawn = np.searchsorted(sizes, (np.arange(tail) + u) / tail * sizes[-1], "right")
    ids = np.concatenate([ids, np.full(top - len(ids), -1), drawn])
    return {
        "ids": ids, "logits": np.where(ids < 0, -np.inf, x[ids]), "log_normalizers": normalizer, "log_tails": log_tail,
        "supports": support, "entropies": entropy, "target_logprobs": x[target] - normalizer, "targets": target,
        "target_ranks": 1 + np.sum(x >= x[target]) - 1,
    }  # fmt: skip


def rows_of(path):
    return np.concatenate([*open_sketch(path).blocks(3)])


@pytest.mark.parametrize("how", ["normal", "masked", "masked by row", "tiny tail", "ties", "far"])
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64], ids=str)
@pytest.mark.parametrize("classes", [3, 32, 33, 600, 5000])
def test_a_sketch_has_what_sorting_and_searching_give(classes, dtype, how, tmp_path):
    if how == "far" and np.dtype(dtype).itemsize == 2:
        pytest.skip("float16 ends before")
    x, targets = logits_like(6, classes, dtype, how), np.arange(6).reshape(2, 3) % classes
    write_sketch(tmp_path / "a.sketch", [(x.reshape(2, 3, classes), targets)], seed=9)
    n_other = n_draws = 0
    for i, row in enumerate(rows_of(tmp_path / "a.sketch")):
        wanted = record_like(x[i], targets.flat[i], uniforms_like(9, i // 3, i % 3, TAIL))
        np.testing.assert_array_equal(row["ids"][:TOP], wanted["ids"][:TOP])
        n_other += (row["ids"][TOP:] != wanted["ids"][TOP:]).sum()
        n_draws += TAIL
        for name in ("supports", "targets", "target_ranks", "log_normalizers", "log_tails", "entropies"):
            np.testing.assert_allclose(row[name], wanted[name], 1e-6, 3e-7 * (1e5 if how == "far" else 1), err_msg=name)
        known = row["ids"] >= 0
        np.testing.assert_array_equal(row["logits"][known], x[i][row["ids"][known]].astype(row["logits"].dtype))
        assert (row["logits"][~known] == -np.inf).all()
        assert row["sequences"] == i // 3
        np.testing.assert_allclose(row["target_logprobs"], wanted["target_logprobs"], 1e-6, 3e-7)
    assert n_other <= 0.02 * n_draws  # exponentials in float32 move a draw that is near the end of a class


def test_draws_are_the_same_on_every_backend(backend, tmp_path):
    for dtype in (np.float16, np.float32, np.float64):
        x = logits_like(4, 5000, dtype, "masked by row")
        write_sketch(tmp_path / f"{backend}.sketch", [(x, np.zeros(4, int))])
        ids = rows_of(tmp_path / f"{backend}.sketch")["ids"]
        assert ids[:, TOP:].sum(1).tolist() == DRAWN[np.dtype(dtype).name]


DRAWN: dict[str, list[int]] = {}


@pytest.fixture(scope="module", autouse=True)
def drawn(tmp_path_factory):
    path = tmp_path_factory.mktemp("drawn") / "a.sketch"
    for dtype in (np.float16, np.float32, np.float64):
        write_sketch(path, [(logits_like(4, 5000, dtype, "masked by row"), np.zeros(4, int))])
        DRAWN[np.dtype(dtype).name] = rows_of(path)["ids"][:, TOP:].sum(1).tolist()


LAYOUTS = {
    "class-major": np.asfortranarray,
    "strided": lambda x: np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3],
    "backwards": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "in other bytes": lambda x: x.byteswap().view(x.dtype.newbyteorder()),
}


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64], ids=str)
def test_no_layout_in_memory_changes_a_byte(how, dtype, tmp_path):
    if how == "in other bytes" and dtype == BFLOAT16:
        pytest.skip("bfloat16 has one byte order")
    x = logits_like(6, 1500, dtype, "masked")
    for name, rows in (("plain", x), ("other", LAYOUTS[how](x))):
        write_sketch(tmp_path / f"{name}.sketch", [(rows, np.arange(6))])
    assert (tmp_path / "plain.sketch").read_bytes() == (tmp_path / "other.sketch").read_bytes()


RECORDED = {  # hashes of files, the same on every machine
    "float16": "9f16d2a4b3c320cc",
    "bfloat16": "11378c27ec975c3d",
    "float32": "4b7deba60134abc2",
    "float64": "bbd6c885eac63192",
}


@pytest.mark.parametrize("name", RECORDED)
def test_files_have_the_bytes_that_were_recorded(name, backend, tmp_path):
    rng = np.random.default_rng(5)
    x = (rng.integers(-2000, 2000, (5, 3000)) / 128).astype(BFLOAT16 if name == "bfloat16" else name)
    x[:, 100:200], x[0, 50:], x[1] = -np.inf, -np.inf, 1.5
    x[2, :32] += 400  # far above the others
    path = tmp_path / f"{backend}.sketch"
    write_sketch(path, [(x, np.arange(5), None, [0, 0, 1, 1, -1])], seed=2**63)
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == RECORDED[name]


def splits(x, targets, where, numbers):
    """Ways to write the same rows: blocks, appended files, threads."""

    def parts(*cuts):
        edges = [0, *cuts, len(x)]
        return [tuple(None if one is None else one[a:b] for one in (x, targets, where, numbers))
                for a, b in itertools.pairwise(edges)]  # fmt: skip

    yield lambda path: write_sketch(path, parts(), workers=1)
    yield lambda path: write_sketch(path, parts(1, 4, 11))
    yield lambda path: write_sketch(path, parts(7), workers=2)

    def appended(path):
        for i, part in enumerate(parts(5, 9)):
            write_sketch(path, [part], append=i > 0)

    yield appended


@pytest.mark.parametrize("with_numbers", [False, True, None])
@pytest.mark.parametrize("with_targets", [False, True])
def test_any_sharding_gives_the_same_bytes(with_targets, with_numbers, tmp_path):
    x = logits_like(12, 700, np.float32, "masked")
    targets = np.arange(12) if with_targets else None
    numbers = np.array([0, 0, 0, 1, 1, 0, 0, 2, 2, 2, -1, 1]) if with_numbers else None
    where = np.arange(12) % 5 != 3
    if with_numbers is None:  # texts
        x, targets, where = (None if one is None else one.reshape(12, 1, *one.shape[1:]) for one in (x, targets, where))
    result = set()
    for write in splits(x, targets, where, numbers):
        write(tmp_path / "a.sketch")
        result.add((tmp_path / "a.sketch").read_bytes())
    assert len(result) == 1
    rows = rows_of(tmp_path / "a.sketch")
    left = ~where.reshape(-1)
    assert (rows["supports"] < 0).tolist() == left.tolist()
    assert (rows["ids"][left] == -1).all()
    if with_targets:
        assert rows["targets"].tolist() == np.where(left, -100, np.arange(12)).tolist()


def test_another_seed_sequence_or_position_gives_other_draws(tmp_path):
    x = np.tile(logits_like(1, 3000, np.float32), (4, 1))
    write_sketch(tmp_path / "a.sketch", [(x, np.zeros(4, int), None, [0, 0, 1, 1])])
    write_sketch(tmp_path / "b.sketch", [(x, np.zeros(4, int), None, [0, 0, 1, 1])], seed=1)
    drawn = np.concatenate([rows_of(tmp_path / name)["ids"][:, TOP:] for name in ("a.sketch", "b.sketch")])
    assert len(np.unique(drawn, axis=0)) == 8


def test_a_sketch_takes_few_bytes_and_other_programs_read_it(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    x = logits_like(100, 2000, np.float16)
    write_sketch(tmp_path / "a.sketch", [(x, np.zeros(100, int))])
    assert (tmp_path / "a.sketch").stat().st_size < 100 * 540
    arrays = safetensors.load_file(tmp_path / "a.sketch")
    rows = rows_of(tmp_path / "a.sketch")
    assert {*arrays} == {*rows.dtype.names, "masked"}
    for name in rows.dtype.names:
        np.testing.assert_array_equal(arrays[name], rows[name])


def test_log_probs_and_probs_are_read_as_such(tmp_path):
    x = logits_like(5, 300, np.float64)
    log_probs = x - np.logaddexp.reduce(x, 1, keepdims=True)
    result = {}
    for kind, rows in (("logits", x), ("log_probs", log_probs), ("probs", np.exp(log_probs))):
        write_sketch(tmp_path / f"{kind}.sketch", [(rows, np.arange(5))], kind=kind)
        result[kind] = rows_of(tmp_path / f"{kind}.sketch")
    for name in ("ids", "target_logprobs", "log_tails", "entropies"):
        for kind in ("log_probs", "probs"):
            np.testing.assert_allclose(result[kind][name], result["logits"][name], 1e-12, 1e-12)
    with pytest.raises(ValueError, match="adds up to"):
        write_sketch(tmp_path / "a.sketch", [(np.full((1, 40), 0.1), [0])], kind="probs")


WRONG = {
    "name": ({"path": "a.npz"}, "a name that ends in .sketch"),
    "top": ({"top": 0}, "top is 0"),
    "tail": ({"tail": -1}, "tail is -1"),
    "seed": ({"seed": -1}, "seed is -1"),
    "kind": ({"kind": "bits"}, "kind is 'bits'"),
    "no blocks": ({"source": []}, "source is empty"),
    "no tuple": ({"source": [np.zeros((2, 3))]}, "block 0: a block is 'ndarray'"),
    "targets": ({"source": [(np.zeros((2, 40)), [0, 40])]}, r"block 0: targets\[1\] = 40 is out of range"),
    "shape": ({"source": [(np.zeros((2, 40)), [0])]}, "targets has shape"),
    "a scalar": ({"source": [(np.zeros(40), 0)]}, "logits has shape"),
    "classes": ({"source": [(np.zeros((1, 40)), [0]), (np.zeros((1, 41)), [0])]}, "block 1: a block is '41 classes"),
    "overflow": ({"source": [(np.full((1, 40), 1e5, BFLOAT16), [0])]}, "a logit is 99840"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named_and_nothing_is_written(name, tmp_path):
    given, message = WRONG[name]
    options = {"path": "a.sketch", "source": [(np.zeros((2, 40)), [0, 1])], **given}
    path = tmp_path / options.pop("path")
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        write_sketch(path, options.pop("source"), **options)
    assert not [*tmp_path.iterdir()]


def test_a_sketch_goes_on_with_its_own_options_only(tmp_path):
    path, block = tmp_path / "a.sketch", (np.zeros((2, 40), np.float32), [0, 1])
    write_sketch(path, [block])
    before = path.read_bytes()
    for options, message in (({"tail": 3}, "has tail 48"), ({"top": 3}, "has top 32"), ({"seed": 3}, "has seed 0")):
        with pytest.raises(ValueError, match=message):
            write_sketch(path, [block], append=True, **options)
    with pytest.raises(ValueError, match="40 classes of float32 logits"):
        write_sketch(path, [(np.zeros((2, 41), np.float32), [0, 1])], append=True)
    assert path.read_bytes() == before


# -- damaged and foreign files -----------------------------------------------------------------------------------------


@functools.cache
def whole():
    """The bytes of a sketch, its header and the start of its arrays."""
    import pathlib
    import tempfile

    path = pathlib.Path(tempfile.mkdtemp()) / "a.sketch"
    write_sketch(path, [(logits_like(4, 600, np.float32).reshape(2, 2, 600), np.zeros((2, 2), int))])
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return data, json.loads(data[8 : 8 + length]), 8 + length


def with_header(change):
    data, header, start = whole()
    header = json.loads(json.dumps(header))
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[start:]


def with_array(name, change):
    data, header, start = whole()
    begin, end = header[name]["data_offsets"]
    dtype = {"I32": "<i4", "I64": "<i8", "F32": "<f4", "F64": "<f8"}[header[name]["dtype"]]
    array = np.frombuffer(data[start + begin : start + end], dtype).reshape(header[name]["shape"]).copy()
    change(array)
    return data[: start + begin] + array.tobytes() + data[start + end :]


def swap(array, i, j):
    array[1, [i, j]] = array[1, [j, i]]


def metadata(**values):
    return lambda header: header["__metadata__"].update(values)


DAMAGES = {
    "no metadata": (lambda: with_header(lambda header: header.pop("__metadata__")), "has no kind"),
    "of another kind": (lambda: with_header(metadata(kind="adapter")), "has adapter kind"),
    "of a later version": (lambda: with_header(metadata(version="2")), "has version '2'"),
    "no number": (lambda: with_header(metadata(top="x")), "has top 'x'"),
    "fewer classes listed": (lambda: with_header(metadata(top="31")), "contains ids of int32"),
    "a bad share": (lambda: with_header(metadata(epsilon="nan")), "has epsilon 'nan'"),
    "an array less": (lambda: with_header(lambda h: h.update(tails=h.pop("log_tails"))), "has no log_tails"),
    "an id below": (lambda: with_array("ids", lambda a: a.__setitem__((1, 2), -7)), "row 1 contains class ids"),
    "an id above": (lambda: with_array("ids", lambda a: a.__setitem__((1, 2), 600)), "row 1 contains class ids"),
    "a target below": (lambda: with_array("targets", lambda a: a.__setitem__(2, -1)), "targets that are no classes"),
    "a target above": (lambda: with_array("targets", lambda a: a.__setitem__(2, 600)), "targets that are no classes"),
    "an id twice": (lambda: with_array("ids", lambda a: a.__setitem__((1, 2), a[1, 3])), "one class twice"),
    "another order": (lambda: with_array("logits", lambda a: swap(a, 0, 5)), "logits in another order"),
    "another order of draws": (lambda: with_array("ids", lambda a: swap(a, 32, 79)), "draws in another order"),
    "a draw too likely": (lambda: with_array("logits", lambda a: a.__setitem__((1, 40), 99)), "draws above"),
    "another normalizer": (lambda: with_array("log_normalizers", lambda a: a.__iadd__(0.1)), "do not add up to 1"),
    "another tail": (lambda: with_array("log_tails", lambda a: a.__iadd__(1)), "do not add up to 1"),
    "no tail": (lambda: with_array("supports", lambda a: a.__imul__(0)), "draws where there is no tail"),
    "a large tail": (lambda: with_array("supports", lambda a: a.__iadd__(1000)), "another number of classes"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_no_writer_makes_is_refused(name, tmp_path):
    make, message = DAMAGES[name]
    path = tmp_path / "a.sketch"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=message) as raised:
        rows_of(path)
    assert str(path) in str(raised.value)


def test_a_truncated_file_is_refused(tmp_path):
    path, data = tmp_path / "a.sketch", whole()[0]
    for end in {0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1}:
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"a\.sketch"):
            open_sketch(path)
    path.write_bytes(data + b"x")
    with pytest.raises(ValueError, match="continues for 1 bytes"):
        open_sketch(path)


def test_sketches_are_not_taken_for_scores(tmp_path):
    (tmp_path / "a.sketch").write_bytes(whole()[0])
    (tmp_path / "a.safetensors").write_bytes(whole()[0])
    with pytest.raises(ValueError, match="have a name that ends in"):
        open_scores(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="does not have the name of a sketch"):
        open_sketch(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is a sketch"):
        evaluate(tmp_path / "a.sketch")
