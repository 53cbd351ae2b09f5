"""token_scores and kl_divergence of many short rows, which are reduced side by side, have the bits of single rows."""

import numpy as np
import pytest
from arrays import FLOATS, LAYOUTS, assert_same_bits

from tokenloss import kl_divergence, token_scores
from tokenloss._scores.token_scores import COLUMNS

CLASSES = [1, 2, 3, 15, 16, 17, 33, 64, 65, 100, 129, 200, 257, 400, 511, 512, 513]
SCALINGS = [{}, {"logit_scale": 0.7}, {"softcap": 5.0}, {"logit_scale": 1e306}]
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def impossible_classes(rng, rows):
    rows[rng.random(rows.shape) < rng.choice([0.2, 0.9])] = -np.inf


def special_values(rng, rows):
    """Nan, infinities, and rows or logits that are far out."""
    for value in (np.nan, np.inf, -6e4, -3e38, 8e4):
        rows[rng.integers(len(rows)), rng.integers(rows.shape[1])] = value
    rows[rng.integers(len(rows))] = 1e30
    rows[rng.integers(len(rows))] = -np.inf


def near_certain(rng, rows):
    """Log-probabilities of rows with one likely class."""
    rows -= 8
    rows[np.arange(len(rows)), rng.integers(rows.shape[1], size=len(rows))] = -1e-3 * rng.random(len(rows))


def ties(rng, rows):
    rows[...] = rng.choice([-1.0, -0.0, 0.0, 1.0], rows.shape)


KINDS = [lambda rng, rows: None, impossible_classes, special_values, near_certain, ties]


@pytest.fixture
def rng():
    return np.random.default_rng(6)


def rows_of(rng, count, classes, dtype, kind):
    """Rows of logits of one of the `KINDS`."""
    rows = rng.choice([0.1, 3, 30]) * rng.standard_normal((count, classes))
    kind(rng, rows)
    with np.errstate(over="ignore"):
        return rows.astype(dtype)


def targets_of(rng, logits):
    """Class ids, of which some are the argmax and some are ignored."""
    targets = rng.integers(logits.shape[1], size=len(logits))
    targets = np.where(rng.random(len(logits)) < 0.4, np.argmax(np.nan_to_num(logits.astype(float)), 1), targets)
    targets[rng.random(len(logits)) < 0.1] = -100
    return targets


def assert_as_single_rows(logits, targets, actual_logits, **options):
    """Compare each column with that of calls with one row."""
    rows = range(len(logits))
    where = np.arange(len(logits)) % 7 != 3
    scores = token_scores(actual_logits, targets, where=where, **options)
    single = [token_scores(logits[i : i + 1], targets[i : i + 1], where=where[i : i + 1], **options) for i in rows]
    for name, column in COLUMNS.items():
        if column.is_top and not options.get("top_k"):
            continue
        expected = np.concatenate([getattr(one, name) for one in single])
        assert_same_bits(getattr(scores, name), expected, f"{name}, {logits.shape}, {options}")


@pytest.mark.parametrize("kind", KINDS)
@each_dtype
def test_token_scores_of_short_rows_are_those_of_single_rows(backend, rng, dtype, kind):
    for classes in CLASSES if backend != "portable" else CLASSES[::4]:
        logits = rows_of(rng, int(rng.integers(2, 70)), classes, dtype, kind)
        assert_as_single_rows(logits, targets_of(rng, logits), logits, **SCALINGS[rng.integers(len(SCALINGS))])


@each_layout
@each_dtype
def test_layouts_of_short_rows_give_the_token_scores_of_single_rows(rng, dtype, layout):
    for count, classes in ((70, 5), (19, 130)):
        for scaling in SCALINGS:
            logits = rows_of(rng, count, classes, dtype, impossible_classes)
            assert_as_single_rows(logits, targets_of(rng, logits), LAYOUTS[layout](logits), **scaling)


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_top_k_of_short_rows_is_that_of_single_rows(backend, rng, kind, scaling):
    for dtype in FLOATS:
        for top_k, classes in ((1, 1), (2, 2), (3, 20), (8, 8), (9, 30)):
            logits = rows_of(rng, 40, classes, dtype, kind)
            assert_as_single_rows(logits, targets_of(rng, logits), logits, top_k=top_k, **scaling)


def test_where_leaves_out_short_rows_whose_logits_are_nan(rng):
    logits = rows_of(rng, 70, 9, np.float32, KINDS[0])
    where = rng.random(70) < 0.5
    logits[~where] = np.nan
    for array in (logits, np.asfortranarray(logits)):
        scores = token_scores(array, np.zeros(70, int), where=where, top_k=2)
        assert (np.isfinite(scores.nll) == where).all()
        assert (scores.kept == where).all()
        assert (scores.argmax[~where] == -1).all()
        assert (scores.top_ids[~where] == -1).all()


def assert_kl_as_single_rows(base, logits, actual_base, actual_logits):
    rows = range(len(base))
    where = np.arange(len(base)) % 7 != 3
    divergences = kl_divergence(actual_base, actual_logits, where=where, reduction="none")
    single = [kl_divergence(base[i : i + 1], logits[i : i + 1], where=where[i : i + 1], reduction="none") for i in rows]
    assert_same_bits(divergences, np.concatenate(single), f"{base.shape}, {base.dtype}, {logits.dtype}")


def other_rows(rng, base, dtype, kind):
    """Rows like those of the base, which have the same impossible classes or others."""
    logits = rows_of(rng, *base.shape, dtype, kind)
    if rng.random() < 0.5:
        with np.errstate(over="ignore", invalid="ignore"):
            logits = (base.astype(float) + rng.choice([0, 1e-3, 1]) * logits.astype(float)).astype(dtype)
    return logits


@pytest.mark.parametrize("kind", KINDS)
@each_dtype
def test_kl_divergences_of_short_rows_are_those_of_single_rows(backend, rng, dtype, kind):
    for classes in CLASSES if backend != "portable" else CLASSES[::4]:
        base = rows_of(rng, int(rng.integers(2, 70)), classes, dtype, kind)
        logits = other_rows(rng, base, rng.choice([dtype, *FLOATS]), KINDS[rng.integers(len(KINDS))])
        assert_kl_as_single_rows(base, logits, base, logits)


@each_layout
@each_dtype
def test_layouts_of_short_rows_give_the_kl_divergences_of_single_rows(rng, dtype, layout):
    for count, classes in ((70, 5), (19, 130)):
        base = rows_of(rng, count, classes, dtype, impossible_classes)
        logits = other_rows(rng, base, dtype, KINDS[0])
        for other_layout in (layout, "c", "fortran"):
            assert_kl_as_single_rows(base, logits, LAYOUTS[layout](base), LAYOUTS[other_layout](logits))


def test_where_leaves_out_short_rows_of_nan_in_either_array(rng):
    base, logits = rows_of(rng, 70, 9, np.float32, KINDS[0]), rows_of(rng, 70, 9, np.float16, KINDS[0])
    where = rng.random(70) < 0.5
    base[~where], logits[~where] = np.nan, np.nan
    for array in (base, np.asfortranarray(base)):
        divergences = kl_divergence(array, logits, where=where, reduction="none")
        assert (divergences[where] > 0).all()
        assert (divergences[~where] == 0).all()
