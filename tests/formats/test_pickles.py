"""Files that hold pickles: none is unpickled, and no module of the package could do so."""

import ast
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from commands import run
from files import LOGITS, TARGETS, in_memory, npy, zipped

import tokenloss
from tokenloss.formats import open_scores


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


def pickled_npy(payload):
    return npy({"descr": "|O", "fortran_order": False, "shape": (1, 1)}, 0) + pickle.dumps(payload)


def structured_npy(payload):
    header = {"descr": [("a", "|O")], "fortran_order": False, "shape": (1, 1)}
    return npy(header, 0) + pickle.dumps(payload)


def pickled_zarr(payload, filters, compressor, dtype):
    """A store one of whose arrays is pickled."""
    metadata = {
        "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": dtype, "order": "C", "fill_value": None,
        "filters": filters, "compressor": compressor,
    }  # fmt: skip
    logits = {**metadata, "shape": [1, 2], "chunks": [1, 2], "dtype": "<f4", "filters": None, "compressor": None}
    return {
        ".zgroup": b'{"zarr_format": 2}',
        "logits/.zarray": json.dumps(logits).encode(),
        "logits/0.0": bytes(8),
        "tokens/.zarray": json.dumps(metadata).encode(),
        "tokens/0": pickle.dumps(payload),
    }


PICKLE, TEXT = {"id": "pickle"}, {"id": "vlen-utf8"}
HOSTILE = {
    "raw.npy": pickle.dumps,
    "object.npy": pickled_npy,
    "structured.npy": structured_npy,
    "raw.npz": lambda payload: zipped({"logits.npy": pickle.dumps(payload)}),
    "object.npz": lambda payload: zipped({"logits.npy": pickled_npy(payload)}),
    "deflated.npz": lambda payload: zipped({"logits.npy": structured_npy(payload)}, zipfile.ZIP_DEFLATED),
    "text.npz": lambda payload: zipped(
        {"logits.npy": in_memory(lambda file: np.save(file, LOGITS)), "tokens.npy": pickled_npy(payload)}
    ),
    "raw.safetensors": pickle.dumps,
    "raw.kld": lambda payload: b"_logits_" + pickle.dumps(payload),
    "objects.zip": lambda payload: zipped(pickled_zarr(payload, [PICKLE], None, "|O")),
    "floats.zip": lambda payload: zipped(pickled_zarr(payload, [PICKLE], None, "<f4")),
    "compressor.zip": lambda payload: zipped(pickled_zarr(payload, [TEXT], PICKLE, "|O")),
    "filters.zip": lambda payload: zipped(pickled_zarr(payload, [TEXT, PICKLE], None, "|O")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_pickles_are_not_run(name, tmp_path, monkeypatch):
    monkeypatch.setattr("numcodecs.pickles.Pickle.decode", lambda self, data, out=None: pickle.loads(data))  # noqa: S301 - as older ones do
    np.savez(tmp_path / "whole.npz", logits=LOGITS, targets=TARGETS)
    ran = tmp_path / "ran"
    path = tmp_path / name
    path.write_bytes(HOSTILE[name](Payload(ran)))
    with pytest.raises(ValueError, match=name):
        list(open_scores(path).blocks(3))
    assert run("score", path)[0] == 2
    assert run("score", tmp_path / "whole.npz", "--targets", path)[0] == 2
    assert not ran.exists()
    pickle.loads(pickle.dumps(Payload(ran)))  # noqa: S301 - shows that it would
    ran.unlink()


def test_source_imports_neither_pickle_nor_network():
    """Except in tokenloss.dask, whose library connects to the scheduler that the user names."""
    modules = {"pickle", "marshal", "shelve", "urllib", "requests", "socket", "http", "ftplib", "subprocess", "fsspec"}
    for path in Path(tokenloss.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [name.name for name in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not modules & {name.split(".")[0] for name in names}, f"{path}:{node.lineno}"
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in ("eval", "exec", "compile", "__import__", "load"):
                    assert ast.unparse(node.func) not in (name, "np.load"), f"{path}:{node.lineno}"
                for keyword in node.keywords:
                    assert keyword.arg != "allow_pickle" or ast.unparse(keyword.value) == "False"
