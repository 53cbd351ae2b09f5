"""Files of scores: what was written is read, in blocks of any size."""

import importlib
import math
import pkgutil
import sys

import numpy as np
import pytest
import zarr
from arrays import BFLOAT16, assert_same_bits
from files import (
    SAVERS,
    WITHOUT_TARGETS,
    read_rows,
    refusal,
    save_compressed_npz,
    save_llama_cpp,
    save_npy,
    save_npy_in_fortran_order,
    save_npz,
    save_npz_in_fortran_order,
    save_safetensors,
    save_zarr,
    save_zarr_2,
    save_zarr_3,
)
from places import ROOT

import tokenloss
from tokenloss import formats
from tokenloss.formats import mapped, open_hidden_states, open_scores, readers


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(4, 6), scale=4).astype(np.float32)


def test_each_format_is_in_the_table_and_wherever_formats_are_listed(logits, tmp_path):
    modules = [f"tokenloss.formats.{module.name}" for module in pkgutil.iter_modules(formats.__path__)]
    readers_of_formats = [importlib.import_module(name) for name in modules if name != readers.__name__]
    assert {one.FORMAT for one in readers_of_formats if hasattr(one, "FORMAT")} == {*readers.FORMATS}
    saved = [save(tmp_path / save.__name__, logits, np.zeros(4, int)) for save in (*SAVERS, save_llama_cpp)]
    assert {readers.format_of(str(path)) for path in saved} == {*readers.FORMATS}
    pages = [*(ROOT / ".github" / "docs" / "reference").glob("files.md")]  # which an sdist has not
    for text in (open_scores.__doc__, *(page.read_text("utf-8") for page in pages)):
        for one in readers.FORMATS:
            assert all(word in text for word in {*one.words.split()} - {"a", "file", "store", "logits", "of"})


@pytest.mark.parametrize("shape", [(7,), (5, 8), (3, 4, 5), (2, 2, 3, 4), (0, 4), (3, 0), (2, 0, 4)])
@pytest.mark.parametrize("save", SAVERS)
def test_formats_of_any_shape(save, shape, tmp_path):
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=shape).astype(np.float32), rng.integers(5, size=shape[:-1])
    scores = open_scores(save(tmp_path / "scores", logits, targets))
    assert (scores.kind, scores.shape, scores.dtype, scores.file.tokens) == ("logits", shape, "float32", None)
    assert (scores.file.rows, scores.file.row_bytes) == (math.prod(shape[:-1]), 4 * shape[-1])
    if save in WITHOUT_TARGETS:
        assert scores.targets is None
    else:
        np.testing.assert_array_equal(scores.targets, targets)
    for most_rows in (1, 3, 4, 1000):
        for _ in range(2):  # each pass starts from the beginning
            assert_same_bits(read_rows(scores, most_rows), logits.reshape(math.prod(shape[:-1]), shape[-1]))


@pytest.mark.parametrize("save", [save_npy_in_fortran_order, save_npz_in_fortran_order])
def test_formats_in_fortran_order_of_more_columns_than_are_mapped_at_a_time(save, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "_MAPPED_BYTES", 1)
    monkeypatch.setattr(mapped, "_MIN_COLUMNS", 4)
    for shape in ((5, 11), (2, 3, 8)):
        logits = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
        scores = open_scores(save(tmp_path / f"{len(shape)}", logits, np.zeros(shape[:-1], int)))
        assert_same_bits(read_rows(scores, 4), logits.reshape(-1, shape[-1]))


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float64, ">f2", ">f4", ">f8", BFLOAT16.newbyteorder(">")])
@pytest.mark.parametrize("save", SAVERS)
def test_formats_of_any_dtype(save, dtype, logits, tmp_path):
    dtype = np.dtype(dtype)
    if "zarr" in save.__name__ and dtype.name == "bfloat16":
        pytest.skip("Zarr has no bfloat16")
    if save is save_safetensors and not dtype.isnative:
        pytest.skip("its library writes the bytes of other orders as they are")
    scores = open_scores(save(tmp_path / "scores", logits.astype(dtype), np.zeros(4, np.uint8)))
    assert (scores.dtype, scores.file.dtype.name) == (dtype.name, dtype.name)
    assert_same_bits(read_rows(scores, 3).astype(np.float64), logits.astype(dtype).astype(np.float64))
    losses = [tokenloss.cross_entropy(block, [0] * len(block), reduction="none") for block in scores.blocks(3)]
    assert_same_bits(np.concatenate(losses), tokenloss.cross_entropy(logits.astype(dtype), [0] * 4, reduction="none"))


@pytest.mark.parametrize("save", [save_npz, save_compressed_npz, save_safetensors, save_zarr_2, save_zarr_3])
def test_targets_that_are_distributions(save, logits, tmp_path):
    shares = np.abs(logits) / np.abs(logits).sum(-1, keepdims=True)
    assert_same_bits(open_scores(save(tmp_path / "scores", logits, shares)).targets, shares)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_tokens_of_npz(save, logits, tmp_path):
    tokens = np.array(["a", "Ġb", "<script>", ""])
    save(tmp_path / "scores.npz", log_probs=logits, tokens=tokens)
    scores = open_scores(tmp_path / "scores.npz")
    assert (scores.kind, scores.targets) == ("log_probs", None)
    np.testing.assert_array_equal(scores.file.tokens, tokens)


def test_tokens_of_zarr(logits, tmp_path):
    group = zarr.open_group(tmp_path / "scores.zarr", mode="w")
    group.create_array("probs", data=logits)
    group.create_array("tokens", shape=(4,), dtype=str)[:] = np.array(["a", "Ġb", "<script>", ""])
    scores = open_scores(tmp_path / "scores.zarr")
    assert (scores.kind, scores.file.tokens.tolist()) == ("probs", ["a", "Ġb", "<script>", ""])


@pytest.mark.slow
def test_tokens_of_zarr_in_a_large_chunk(tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", logits=np.zeros((1 << 19, 1), np.float16))
    tokens = zarr.open_group(path).create_array(
        "tokens", shape=(1 << 19,), chunks=(1 << 19,), dtype=str, compressors=None
    )
    tokens[:] = np.full(1 << 19, "x" * 40)
    assert (path / "tokens/c/0").stat().st_size > 16 << 20
    assert open_scores(path).file.tokens[-1] == "x" * 40


def test_zarr_group_within_a_group_with_unwritten_chunks(logits, tmp_path):
    group = zarr.open_group(tmp_path / "scores.zarr", mode="w")
    array = group.create_array("model/logits", shape=(4, 6), chunks=(2, 6), dtype=np.float32, fill_value=7)
    array[:2] = logits[:2]
    scores = open_scores(tmp_path / "scores.zarr" / "model")
    assert_same_bits(read_rows(scores, 3), np.concatenate([logits[:2], np.full((2, 6), 7, np.float32)]))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("kind", ["logits", "log_probs", "probs", "hidden_states"])
@pytest.mark.parametrize("chunks", [(2, 6), (2, 3)])
def test_zarr_chunks_of_scores_that_are_missing_are_nan(chunks, kind, zarr_format, tmp_path):
    """A run that breaks off leaves them out; but so does Zarr itself where some classes have the probability 0."""
    rows = np.random.default_rng(1).random((8, 6)) + 0.1
    rows[4:6, 3:] = 0  # no chunk, or a part of one
    expected = rows.copy()
    group = zarr.open_group(path := tmp_path / "scores.zarr", mode="w", zarr_format=zarr_format)
    array = group.create_array(kind, shape=(8, 6), chunks=chunks, dtype=np.float64)
    array[:6] = rows[:6]
    expected[6:] = 0 if kind == "probs" and chunks == (2, 3) else np.nan
    if kind != "probs" and chunks == (2, 3):
        expected[4:6, 3:] = np.nan
    np.save(head := tmp_path / "head.npy", np.eye(5, 6))
    scores = open_scores(path) if kind != "hidden_states" else open_hidden_states(path, head)
    np.testing.assert_array_equal(read_rows(scores, 3), expected)


def test_zarr_chunks_that_are_missing_within_shards_and_archives(logits, tmp_path):
    options = {"shape": (8, 6), "chunks": (2, 6), "dtype": np.float32}
    with zarr.storage.ZipStore(tmp_path / "scores.zip", mode="w") as store:
        zarr.create_array(store, **options)[:2] = logits[:2]
    zarr.create_array(tmp_path / "scores.zarr", shards=(4, 6), **options)[:2] = logits[:2]
    for name in "scores.zip", "scores.zarr":
        result = read_rows(open_scores(tmp_path / name), 3)
        np.testing.assert_array_equal(result, np.concatenate([logits[:2], np.full((6, 6), np.nan)]))


def test_half_written_zarr_store_has_no_loss(tmp_path):
    group = zarr.open_group(path := tmp_path / "scores.zarr", mode="w")
    group.create_array("logits", shape=(20, 6), chunks=(4, 6), dtype=np.float32)[:8] = 1.0
    group.create_array("targets", data=np.arange(20) % 6)
    with pytest.warns(UserWarning, match="12 of 20 tokens have a loss of nan"):
        assert math.isnan(tokenloss.evaluate(path).meter.loss)
    with pytest.warns(UserWarning, match="10 of 17 tokens have a loss of nan"):
        assert tokenloss.evaluate(open_scores(path, ignore_index=5)).meter.count == 17
    group["targets"][8:] = -100  # padding, whose logits may well be 0
    assert tokenloss.evaluate(path).meter.loss == tokenloss.cross_entropy(np.ones((8, 6), np.float32), np.arange(8) % 6)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_zarr_arrays_that_grew_after_their_metadata_were_consolidated(zarr_format, logits, tmp_path):
    path = save_zarr(tmp_path / "scores.zarr", zarr_format, logits=logits, targets=np.zeros(len(logits), int))
    zarr.consolidate_metadata(path)
    group = zarr.open_group(path, use_consolidated=False)
    for name, rows in ("logits", 2 * logits), ("targets", np.ones(len(logits), int)):
        group[name].append(rows)
    scores = open_scores(path)
    assert_same_bits(read_rows(scores, 3), np.concatenate([logits, 2 * logits]))
    assert scores.targets.tolist() == [0] * len(logits) + [1] * len(logits)


def test_array_and_kind(logits, tmp_path):
    np.savez(tmp_path / "two.npz", logits=logits, probs=np.abs(logits), other=-logits)
    for options, kind, expected in [
        ({"kind": "probs"}, "probs", np.abs(logits)),
        ({"array": "logits"}, "logits", logits),
        ({"array": "probs"}, "probs", np.abs(logits)),
        ({"array": "other"}, "logits", -logits),
        ({"array": "other", "kind": "log_probs"}, "log_probs", -logits),
    ]:
        scores = open_scores(tmp_path / "two.npz", **options)
        assert scores.kind == kind
        assert_same_bits(read_rows(scores, 9), expected)
    np.save(tmp_path / "one.npy", logits)
    assert open_scores(str(tmp_path / "one.npy"), kind="log_probs").kind == "log_probs"


def test_format_is_told_by_content_before_name(logits, tmp_path):
    np.savez(tmp_path / "scores.npz", logits=logits)
    (tmp_path / "scores.npz").rename(tmp_path / "scores.npy")
    assert_same_bits(read_rows(open_scores(tmp_path / "scores.npy"), 9), logits)


def test_uncompressed_files_are_mapped(logits, tmp_path):
    for save in (save_npy, save_npz, save_safetensors):
        block = next(open_scores(save(tmp_path / "scores", logits, np.zeros(4, int))).blocks(2))
        assert isinstance(block, np.memmap)
        assert not block.flags.writeable


def test_kind_and_most_rows_that_do_not_fit(logits, tmp_path):
    path = save_llama_cpp(tmp_path / "base.kld", logits, None)
    assert open_scores(path, kind="log_probs").kind == "log_probs"
    assert "contains log_probs of llama.cpp; it must contain probs" in refusal(path, kind="probs")
    with pytest.raises(ValueError, match="kind is 'odds'; it must be 'logits', 'log_probs', 'probs'"):
        open_scores(path, kind="odds")
    with pytest.raises(ValueError, match="most_rows is 0; it must be a positive integer"):
        open_scores(path).blocks(0)


@pytest.mark.parametrize(("package", "save"), [("zarr", save_zarr_3), ("ml_dtypes", save_npy)])
def test_formats_without_their_packages(package, save, logits, tmp_path, monkeypatch):
    path = save(
        tmp_path / "scores", logits.astype(BFLOAT16 if package == "ml_dtypes" else np.float32), np.zeros(4, int)
    )
    monkeypatch.setitem(sys.modules, package, None)
    assert f"needs the package {package}: pip install {package}" in refusal(path, ImportError)
