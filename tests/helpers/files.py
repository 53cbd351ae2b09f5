"""Files of scores for tests: saved in every format, read again, damaged by hand, and measured."""

import contextlib
import io
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import zarr
from commands import run

from tokenloss.formats import llama_cpp, open_scores

LOGITS = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
TARGETS = np.arange(8) % 6


def save_npy(path, logits=LOGITS, targets=TARGETS):
    np.save(path := path.with_suffix(".npy"), logits)
    return path


def save_npy_in_fortran_order(path, logits=LOGITS, targets=TARGETS):
    return save_npy(path, np.asfortranarray(logits), targets)


def save_npz(path, logits=LOGITS, targets=TARGETS, **others):
    np.savez(path := path.with_suffix(".npz"), targets=targets, logits=logits, **others)
    return path


def save_npz_in_fortran_order(path, logits=LOGITS, targets=TARGETS, **others):
    others = {name: np.asfortranarray(array) for name, array in others.items()}
    return save_npz(path, np.asfortranarray(logits), np.asfortranarray(targets), **others)


def save_compressed_npz(path, logits=LOGITS, targets=TARGETS, **others):
    np.savez_compressed(path := path.with_suffix(".npz"), targets=np.asfortranarray(targets), logits=logits, **others)
    return path


def save_safetensors(path, logits=LOGITS, targets=TARGETS, **others):
    arrays = {"targets": targets, "logits": logits, "hidden": np.ones((2, 3), np.float16), **others}
    safetensors.numpy.save_file(arrays, path := path.with_suffix(".safetensors"), metadata={"model": "none"})
    return path


def fill_group(store, zarr_format, logits, targets, **others):
    group = zarr.open_group(store, mode="w", zarr_format=zarr_format)
    for name, array in {"logits": logits, "targets": targets, **others}.items():
        chunks = tuple(max(1, length // 2) for length in array.shape)
        group.create_array(name, data=array, chunks=chunks)


def save_zarr_2(path, logits=LOGITS, targets=TARGETS, **others):
    fill_group(path := path.with_suffix(".zarr"), 2, logits, targets, **others)
    return path


def save_zarr_3(path, logits=LOGITS, targets=TARGETS, **others):
    fill_group(path := path.with_suffix(".zarr"), 3, logits, targets, **others)
    return path


def save_zarr_zip(path, logits=LOGITS, targets=TARGETS, **others):
    with zarr.storage.ZipStore(path := path.with_suffix(".zip"), mode="w") as store:
        fill_group(store, 2, logits, targets, **others)
    return path


def save_zarr_array(path, logits=LOGITS, targets=TARGETS):
    chunks = tuple(max(1, length // 3) for length in logits.shape)
    shards = tuple(2 * length for length in chunks)
    zarr.create_array(path := path.with_suffix(".zarr"), data=logits, chunks=chunks, shards=shards)
    return path


def save_llama_cpp(path, logits=LOGITS, targets=TARGETS):
    llama_cpp.write(path := path.with_suffix(".kld"), np.arange(3 * len(logits)) % 6, [logits], 6)
    return path


SAVERS = [
    save_npy, save_npy_in_fortran_order, save_npz, save_npz_in_fortran_order, save_compressed_npz, save_safetensors,
    save_zarr_2, save_zarr_3, save_zarr_zip, save_zarr_array,
]  # fmt: skip


WITHOUT_TARGETS = {save_npy, save_npy_in_fortran_order, save_zarr_array}
WITH_TARGETS = [save for save in SAVERS if save not in WITHOUT_TARGETS]  # and more arrays
MAPPED = [save_npy, save_npy_in_fortran_order, save_npz, save_safetensors, save_llama_cpp]
IN_ONE_FILE = [*MAPPED, save_compressed_npz, save_zarr_zip]


def save_zarr(path, zarr_format=3, **arrays):
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for name, array in arrays.items():
        group.create_array(name, data=array, chunks=tuple(max(1, n // 2) for n in array.shape), compressors=None)
    return path


def read_rows(scores, most_rows):
    """All rows of a file, read in blocks."""
    blocks, dtype = list(scores.blocks(most_rows)), scores.file.dtype
    assert scores.dtype == dtype.name
    assert all(1 <= len(block) <= most_rows and block.dtype == dtype for block in blocks)
    return np.concatenate(blocks) if blocks else np.empty((0, scores.shape[-1]), dtype)


def refusal(path, error=ValueError, **options):
    """The one line that refuses a file, which names it."""
    with pytest.raises(error) as raised:
        read_rows(open_scores(path, **options), 3)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def logits_of_all_kinds(n, n_vocab):
    logits = np.random.default_rng(7).normal(size=(n, n_vocab), scale=8).astype(np.float32)
    logits[0] = 3  # a single step, of length 0
    logits[1, ::2] = -np.inf
    logits[2] = np.float32(1e30)
    logits[3, 5] = 60  # far above the rest, which is raised
    logits[4] = np.linspace(0, 1e-41, n_vocab)  # steps too small to have an inverse
    return logits


@contextlib.contextmanager
def held_at_most(n_bytes):
    """Fail where more than this is allocated."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < n_bytes
    finally:
        tracemalloc.stop()


def assert_file_refused(path, *words, targets=None):
    """Check that the package and the command refuse a file in one line that names it and holds these words."""
    if targets is None:
        with pytest.raises(ValueError) as raised:
            list(open_scores(path).blocks(3))
        said = [str(raised.value), run("score", path)[1]]
    else:
        said = [run("score", path, "--targets", targets)[1]]
    for line in said:
        assert "\n" not in line.removesuffix("\n")
        for word in (str(path if targets is None else targets), *words):
            assert word in line


def in_memory(save):
    """The bytes that `save` writes to a file."""
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def zipped(files, compression=zipfile.ZIP_STORED):
    """An archive of these files."""

    def save(file):
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, data in files.items():
                archive.writestr(name, data)

    return in_memory(save)


def npy(header, n_bytes=96, version=1):
    """A .npy file with this header, which may be a dictionary or text; that of 4 x 6 floats has 224 bytes."""
    text = (header if isinstance(header, str) else repr(header)).ljust(117).encode("latin-1", "replace") + b"\n"
    length = len(text).to_bytes(2 * version, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + bytes(n_bytes)
