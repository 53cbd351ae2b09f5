"""Malformed files raise ValueError: never another exception, code execution, unbounded memory or a hang.

Every run tests the same bounded number of files; `fuzz/run.sh` tests others for as long as you like.
"""

import json
import struct
import warnings
import zipfile

import numpy as np
import pytest
from commands import run
from damage import ANYTHING, DAMAGES, LENGTHS, bounded, damaged, fuzzed, lies
from files import SAVERS, assert_file_refused, in_memory, npy, save_llama_cpp, zipped
from hypothesis import given
from hypothesis import strategies as st

from tokenloss import compare_files
from tokenloss.formats import open_scores, open_sketch, write_sketch

pytestmark = pytest.mark.thread_unsafe(reason="sets an alarm for the process, and measures its memory")
LOGITS = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
TARGETS = np.arange(4) % 6

# -- damage --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Files that are read, by suffix: their bytes, or those of each file of a store.

    Stores hold no text: numcodecs takes 8 bytes for each string that a chunk of them claims to hold, up to 16 GB,
    before it looks whether they are there.
    """
    folder, result = tmp_path_factory.mktemp("seeds"), {}
    for save in (*SAVERS, save_llama_cpp):
        text = {"tokens": np.array(["a", "b", "c", "d"])} if "npz" in save.__name__ else {}
        path = save(folder / save.__name__, LOGITS, TARGETS, **text)
        result.setdefault(path.suffix[1:], []).append(path.read_bytes() if path.is_file() else files_in(path))
    result["zip"].append(zipped(result["zarr"][1], zipfile.ZIP_DEFLATED))
    write_sketch(folder / "a.sketch", [(LOGITS, TARGETS)], top=2, tail=3)
    write_sketch(folder / "b.sketch", [(LOGITS[:, None].astype(np.float16), None)], top=8)
    result["sketch"] = [(folder / f"{name}.sketch").read_bytes() for name in "ab"]
    return result


def files_in(folder):
    """The bytes of each file of a store, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- checks ---------------------------------------------------------------------------------------------------


def examine(path, *options, most_blocks=300):
    """Read a file by the package and by the command: either may refuse it, in one line that names it."""
    with bounded():
        message, rows = str(path), 0
        try:
            is_sketch = path.suffix == ".sketch"
            scores = open_sketch(path) if is_sketch else open_scores(path)
            for _, block in zip(range(most_blocks), scores.blocks(3), strict=False):
                assert is_sketch or block.shape[1:] == scores.shape[-1:]
            rows = scores.file.rows
            if is_sketch:
                with warnings.catch_warnings(action="ignore"):  # of the same bits, or infinite divergences
                    compare_files(scores, path.with_name("logits.npy"))
        except (ValueError, MemoryError) as error:
            message = str(error)
        assert str(path) in message
        assert "\n" not in message
        if rows <= 1000:  # many rows that were never written are valid, and take long
            run("score", path, *options)


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A directory for files that are written again and again, with targets."""
    path = tmp_path_factory.mktemp("damaged")
    np.save(path / "targets.npy", TARGETS)
    np.save(path / "logits.npy", LOGITS)
    np.savez(path / "whole.npz", logits=LOGITS, targets=TARGETS)
    return path


def write_store(path, files):
    """A directory with these files; what else was there stays empty."""
    for old in path.rglob("*"):
        if old.is_file():
            old.unlink()
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


# -- files of every format --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors", "kld", "zip", "sketch"])
@fuzzed
@given(which=st.integers(0, 5), damages=DAMAGES)
def test_files_with_damaged_bytes(suffix, which, damages, seeds, where):
    data = seeds[suffix][which % len(seeds[suffix])]
    path = where / f"scores.{suffix}"
    path.write_bytes(damaged(data, damages))
    examine(path, *(["--targets", where / "targets.npy"] if suffix == "npy" else []))


@fuzzed
@given(which=st.integers(0, 2), file=st.integers(0, 99), damages=DAMAGES)
@pytest.mark.slow
def test_zarr_directory_with_damaged_bytes(which, file, damages, seeds, where):
    files = dict(seeds["zarr"][which])
    name = sorted(files)[file % len(files)]
    files[name] = damaged(files[name], damages)
    write_store(where / "scores.zarr", files)
    examine(where / "scores.zarr")


DESCRIPTIONS = ["<f4", ">f2", "|V2", "|O", "<U3", "(2,3)<f4", "<M8[s]", [("a", "|O")], "V9999999999"]


@fuzzed
@given(
    header=st.fixed_dictionaries(
        {},
        optional={
            "descr": st.sampled_from(DESCRIPTIONS) | ANYTHING,
            "fortran_order": st.booleans() | ANYTHING,
            "shape": st.lists(LENGTHS, max_size=4).map(tuple) | ANYTHING,
        },
    ),
    part=st.sampled_from(["logits", "targets", "tokens"]),
    compression=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    n_bytes=st.sampled_from([0, 32, 96]),
)
def test_npy_and_npz_with_random_headers(header, part, compression, n_bytes, where):
    member = npy({"descr": "<f4", "fortran_order": False, "shape": (4, 6)} | header, n_bytes, version=2)
    files = {"logits.npy": in_memory(lambda file: np.save(file, LOGITS))}
    (where / "headers.npz").write_bytes(zipped(files | {f"{part}.npy": member}, compression))
    examine(where / "headers.npz", "--targets", where / "targets.npy")
    (where / "headers.npy").write_bytes(member)
    examine(where / "headers.npy", "--targets", where / "targets.npy")
    run("score", where / "whole.npz", "--targets", where / "headers.npy")


SAFETENSORS = {
    "logits": {"dtype": "F32", "shape": [4, 6], "data_offsets": [0, 96]},
    "targets": {"dtype": "I64", "shape": [4], "data_offsets": [96, 128]},
}


@fuzzed
@given(header=lies(SAFETENSORS), length=st.none() | LENGTHS)
def test_safetensors_with_random_headers(header, length, where):
    text = json.dumps(header).encode()
    length = len(text) if length is None else length % 2**64
    (where / "headers.safetensors").write_bytes(length.to_bytes(8, "little") + text + bytes(128))
    examine(where / "headers.safetensors")


@fuzzed
@given(data=st.data(), which=st.integers(0, 2), is_zip=st.booleans())
def test_zarr_with_random_metadata(data, which, is_zip, seeds, where):
    files = dict(seeds["zarr"][which])
    name = data.draw(st.sampled_from([name for name in sorted(files) if name.endswith((".zarray", "zarr.json"))]))
    files[name] = json.dumps(data.draw(lies(json.loads(files[name])))).encode()
    path = where / ("metadata.zip" if is_zip else "metadata.zarr")
    if is_zip:
        path.write_bytes(zipped(files))
    else:
        write_store(path, files)
    examine(path)


@pytest.fixture(scope="module")
def parts(where):
    """Arguments for two files of sequences, one of which goes on in the second file."""
    for name in "01":
        np.savez(where / f"part-{name}.npz", logits=LOGITS, targets=TARGETS)
    np.save(where / "ids.npy", [0, 0, 1, 2, 2, 2, -1, 3])
    return where / "part-0.npz", where / "part-1.npz", "--segment-ids", where / "ids.npy"


@pytest.fixture(scope="module")
def state(where, parts):
    """The state that --state saves for them."""
    assert run("score", *parts, "--state", where / "state")[0] == 0
    return (where / "state").read_bytes()


@fuzzed
@given(damage=DAMAGES)
def test_state_that_is_damaged(damage, state, parts, where):
    path, text = where / "damaged-state", damaged(state, damage)
    path.write_bytes(text)
    with bounded():
        status, _ = run("score", *parts, "--state", path)
    assert status == 0 or path.read_bytes() == text


@fuzzed
@given(text=st.binary(max_size=200))
def test_text_of_random_bytes(text, where):
    (where / "text").write_bytes(text)
    assert run("score", where / "whole.npz", "--text", where / "text")[0] == (0 if text else 2)


# -- damage that once did harm -----------------------------------------------------------------------------------------


def test_zip_entry_that_claims_gigabytes(seeds, where):
    data = bytearray(seeds["zip"][0])
    at = data.index(b"PK\x01\x02")
    while at >= 0:
        struct.pack_into("<II", data, at + 20, 1 << 30, 1 << 30)
        at = data.find(b"PK\x01\x02", at + 1)
    (where / "lying.zip").write_bytes(data)
    with bounded():
        assert_file_refused(where / "lying.zip", "is said to have 1073741824 bytes")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("logits", "shape", [4, 10**9]),
        ("logits", "chunks", [4, 10**8]),
        ("logits", "chunks", [0, 6]),
        ("targets", "shape", [10**9]),
    ],
)
def test_zarr_metadata_that_asks_for_gigabytes(part, key, value, seeds, where):
    files = dict(seeds["zarr"][0])
    files[f"{part}/.zarray"] = json.dumps(json.loads(files[f"{part}/.zarray"]) | {key: value}).encode()
    write_store(where / "large.zarr", files)
    with bounded():
        assert_file_refused(where / "large.zarr")


def test_npz_names_are_never_paths(where):
    """Names that are absolute or lead out of the archive, and links, are names like any other: nothing is extracted."""
    array = in_memory(lambda file: np.save(file, LOGITS))
    outside = where / "outside.npy"
    link = zipfile.ZipInfo("targets.npy")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(where / "names.npz", "w") as archive:
        for name in ("logits.npy", str(outside), "../outside.npy"):
            archive.writestr(name, array)
        archive.writestr(link, str(where / "targets.npy"))
    assert_file_refused(where / "names.npz", "targets: cannot be read")
    assert not outside.exists()
    assert not (where.parent / "outside.npy").exists()
