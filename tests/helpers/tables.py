"""Files with tables, read in any of their formats."""

import csv

import numpy as np
import pytest

LISTS = {"text", "name", "task", "metric", "filter", "doc_id"}  # columns of text, and one that may be


def read_table(path):
    """Columns of a .npy, .csv or .parquet file by name: arrays of floats, in which what is empty or null is nan.

    Those of `LISTS` are lists; what is empty is None.
    """
    if path.suffix == ".npy":
        table = np.load(path)
        return {
            name: table[name].tolist() if name in LISTS else table[name].astype(float) for name in table.dtype.names
        }
    if path.suffix == ".parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        return {
            name: column if name in LISTS else np.array(column, float) for name, column in table.to_pydict().items()
        }
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    numbers = {"True": 1, "False": 0, "": np.nan}
    columns = zip(*rows, strict=True)
    return {
        name: [cell or None for cell in column]
        if name in LISTS
        else np.array([numbers.get(cell, cell) for cell in column], float)
        for name, column in zip(names, columns, strict=True)
    }
