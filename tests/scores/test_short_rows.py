"""Short rows are reduced side by side, in blocks, and have every bit that each has in a call of its own.

A single row is reduced by other code, so these tests compare both ways; tests/c/blocks.h does so for functions in C.
"""

import copy
import itertools
import math
import warnings

import numpy as np
import pytest
from arrays import (
    FLOATS,
    LAYOUTS,
    assert_same_bits,
    class_first_in_memory,
    misaligned,
    sum_of,
    swapped,
    token_columns,
)

from tokenloss import (
    class_log_probs,
    compare,
    cross_entropy,
    cross_entropy_and_grad,
    evaluate,
    kl_divergence,
    log_softmax,
    logsumexp,
    sequence_losses,
    softmax,
    token_scores,
)
from tokenloss._core import _core

LENGTHS = [*range(1, 140), *range(140, 521, 3)]  # rows of more than 512 classes are not short
SOME_LENGTHS = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 79, 81, 127, 128, 129, 200, 256, 257, 320, 321]
SOME_LENGTHS += [384, 385, 400, 448, 449, 500, 511, 512, 513]
ENDS = [1, 2, 3, 8, 15, 17, 33, 64, 65, 81, 128, 129, 200, 257, 385, 449, 512, 513]
LONGER_LENGTHS = [100, 129, 511, 512, 513, 1000, 2049, 4095, 4096, 4097, 5000]
FEW_LENGTHS = [1, 2, 3, 10, 16, 63, 65, 130, 257, 512]
BATCHES = [(16,), (5,), (17,), (2, 3, 7), (9,), (1,), (31,), (1, 4, 4), (3,), (20,), (3, 5, 1), (2,), (67,)]

each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


# what is computed: lists of results, each of which has a number or the classes for each position


def logsumexps(logits, targets, where, axis, **options):
    return [logsumexp(logits, axis=axis, **options)]


def probabilities(logits, targets, where, axis, **options):
    return [softmax(logits, axis=axis, **options), log_softmax(logits, axis=axis, **options)]


def losses(logits, targets, where, axis, **options):
    return [cross_entropy(logits, targets, where=where, axis=axis, reduction="none", **options)]


def gradients(logits, targets, where, axis, **options):
    return cross_entropy_and_grad(logits, targets, where=where, axis=axis, reduction="none", **options)


def scores(logits, targets, where, axis, top_k=1, **options):
    """Each column of the token scores."""
    top_k = min(top_k, logits.shape[axis])
    found = token_scores(logits, targets, where=where, axis=axis, top_k=top_k, **options)
    return list(np.moveaxis(token_columns(found), -1, 0))


def divergences(logits, targets, where, axis, **options):
    """From the same logits in reverse order, in their layout, and from logits near them, in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        near = 1.01 * np.ascontiguousarray(logits, np.float64)
    options |= {"where": where, "axis": axis, "reduction": "none"}
    return [kl_divergence(base, logits, **options) for base in (np.flip(logits, axis), near)]


WEIGHTED = {"weight": True}  # made for the number of classes
SMOOTHED = {"label_smoothing": 0.1}
SMOOTHED_AND_WEIGHTED = SMOOTHED | WEIGHTED
PENALIZED = {"z_loss": 1e-2}
SCALED = {"logit_scale": 0.7}
OVERFLOWING = {"logit_scale": 1e307}
CAPPED = {"softcap": 5.0}
EVERYTHING = {"label_smoothing": 0.2, "z_loss": 1e-3, "logit_scale": 1.7, "softcap": 3.0, "weight": True}
FUNCTIONS = {
    "logsumexp": (logsumexps, "ids", {}),
    "softmax": (probabilities, "ids", {}),
    "losses": (losses, "ids", {}),
    "losses_weighted": (losses, "ids", WEIGHTED),
    "losses_smoothed": (losses, "ids", SMOOTHED),
    "losses_overflowing": (losses, "ids", OVERFLOWING),
    "losses_with_everything": (losses, "ids", EVERYTHING),
    "losses_of_distributions": (losses, "distributions", {}),
    "losses_of_distributions_weighted": (losses, "distributions", WEIGHTED),
    "losses_of_distributions_with_everything": (losses, "distributions", EVERYTHING),
    "gradients": (gradients, "ids", {}),
    "gradients_weighted": (gradients, "ids", WEIGHTED),
    "gradients_smoothed": (gradients, "ids", SMOOTHED),
    "gradients_smoothed_and_weighted": (gradients, "ids", SMOOTHED_AND_WEIGHTED),
    "gradients_penalized": (gradients, "ids", PENALIZED),
    "gradients_scaled": (gradients, "ids", SCALED),
    "gradients_overflowing": (gradients, "ids", OVERFLOWING),
    "gradients_capped": (gradients, "ids", CAPPED),
    "gradients_with_everything": (gradients, "ids", EVERYTHING),
    "gradients_of_distributions": (gradients, "distributions", {}),
    "gradients_of_distributions_penalized": (gradients, "distributions", SMOOTHED | PENALIZED),
    "scores": (scores, "ids", {}),
    "scores_scaled": (scores, "ids", SCALED),
    "scores_overflowing": (scores, "ids", OVERFLOWING | {"top_k": 3}),
    "scores_capped": (scores, "ids", CAPPED | {"top_k": 9}),
    "divergences": (divergences, "ids", {}),
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)


# rows that try what their neighbors could change


def plain(rng, shape):
    return 3 * rng.standard_normal(shape)


def log_probabilities(rng, shape):
    """Of near-certain classes, or of about equal ones: the logsumexp is near 0."""
    rows = rng.standard_normal(shape) * rng.choice([0.1, 10, 40], (*shape[:-1], 1))
    return rows - np.logaddexp.reduce(rows, -1, keepdims=True)


def masked_classes(rng, shape):
    return np.where(rng.random(shape) < 0.3, -np.inf, plain(rng, shape))


def ties(rng, shape):
    return np.round(rng.standard_normal(shape))


def wide(rng, shape):
    return rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 4, (*shape[:-1], 1))


def mixed(rng, shape):
    """Single rows that have to be reduced by themselves, and rows of special values."""
    rows = plain(rng, shape)
    classes = shape[-1]
    for row in rows.reshape(-1, classes):
        k = rng.integers(classes)
        match rng.integers(16):
            case 0:
                row[k] = np.nan
            case 1:
                row[k] = np.inf
            case 2:
                row[:] = -np.inf
            case 3:
                row[:] = rng.choice([-1e30, 1e30, 65536, -65537, 7e4])
            case 4:
                row += rng.choice([-1e5, 1e5, 65530])
            case 5:
                row[k] = rng.choice([1e6, -1e6, 1e38, -1e38])
            case 6:
                row[:] = rng.choice([0.0, -0.0, 1e-42, -5e-324], classes)
            case 7:
                row[k:] = -1e9
            case 8:
                row[:] = np.nan
    return rows


def certain(rng, shape):
    """Rows of a class that is likelier than all others by more than a power of two can hold, or by less."""
    rows = plain(rng, shape)
    above = rng.choice([15, 54, 57, 80, 110, 700], (*shape[:-1], 1))
    return rows + above * (np.arange(shape[-1]) == rng.integers(shape[-1], size=(*shape[:-1], 1)))


KINDS = [plain, mixed, log_probabilities, masked_classes, ties, wide, certain]


def padded(array):
    """Two other classes lie between rows."""
    return np.concatenate([array, array[..., :1], array[..., :1]], -1)[..., :-2]


def sliced(array):
    """Neighbors in memory are every other position."""
    return class_first_in_memory(np.repeat(array, 2, -2))[..., ::2, :]


def cut(array):
    """In class-major layout, some positions lie between the last and the first of two lines of positions."""
    return class_first_in_memory(np.concatenate([array, array[..., :1, :]], -2))[..., :-1, :]


LAYOUTS_OF_ROWS = LAYOUTS | {
    "padded": padded,
    "sliced": sliced,
    "cut": cut,
    "class_first_and_swapped": lambda array: swapped(class_first_in_memory(array)),
    "class_first_and_backwards": lambda array: class_first_in_memory(array[..., ::-1, :])[..., ::-1, :],
    "class_first_and_misaligned": lambda array: np.moveaxis(misaligned(np.moveaxis(array, -1, 0)), 0, -1),
}


CHANNELS = "channels"  # (N, C, H, W), or (C, N): the class axis is another one
CHOSEN_LAYOUTS = ["c", CHANNELS, *LAYOUTS_OF_ROWS, CHANNELS]


def axis_in(layout, array):
    return -1 if layout != CHANNELS else 1 if array.ndim > 2 else 0


def in_layout(layout, array):
    """A copy whose last axis is that of the layout."""
    if layout == CHANNELS:
        return np.moveaxis(array, -1, axis_in(layout, array)).copy()
    return LAYOUTS_OF_ROWS[layout](array.copy())


class Problem:
    """Rows of some kind with targets of each kind; a third of the problems has no masked position."""

    def __init__(self, rng, kind, batch, classes, dtype):
        with np.errstate(over="ignore"):
            self.logits = kind(rng, (*batch, classes)).astype(dtype)
        if dtype == np.float16:  # which would be infinite
            self.logits = np.where(rng.random(batch)[..., None] < 0.9, np.clip(self.logits, -6e4, 6e4), self.logits)
            self.logits = self.logits.astype(dtype)
        shares = rng.random((*batch, classes)) * (rng.random((*batch, classes)) < rng.choice([0.1, 0.5, 1]))
        likeliest = self.logits.astype(np.float64).argmax(-1)
        ids = np.where(rng.random(batch) < 0.3, likeliest, rng.integers(0, classes, batch))
        self.where = None
        if rng.random() < 0.67:
            self.where = rng.random(batch) < rng.choice([0.2, 0.8, 0.95])
            ids = np.where(rng.random(batch) < 0.1, -100, ids)
        self.targets = {"ids": ids, "distributions": shares.astype(rng.choice([np.float32, np.float64]))}
        self.weight = rng.random(classes) - 0.1

    def call(self, name, layout="c", **options):
        """The results of a function, as arrays of one row for each position."""
        function, kind, of_function = FUNCTIONS[name]
        logits, axis = in_layout(layout, self.logits), axis_in(layout, self.logits)
        targets = in_layout(layout, self.targets[kind]) if kind == "distributions" else self.targets[kind]
        options |= self.options(of_function)
        return by_rows(function(logits, targets, self.where, axis, **options), axis, logits)

    def call_for_each_row(self, name):
        function, kind, options = FUNCTIONS[name]
        classes = self.logits.shape[-1]
        rows = self.logits.reshape(-1, 1, classes)
        targets = self.targets[kind].reshape(len(rows), 1, *[classes] * (kind == "distributions"))
        where = np.ones(len(rows), bool) if self.where is None else self.where.ravel()
        each = [
            function(row, target, is_kept[None], -1, **self.options(options))
            for row, target, is_kept in zip(rows, targets, where, strict=True)
        ]
        return [np.concatenate(results).reshape(len(rows), -1) for results in zip(*each, strict=True)]

    def first(self, rows):
        """The problem of so many of its rows, which have one axis."""
        part = copy.copy(self)
        part.logits = self.logits[:rows]
        part.targets = {kind: targets[:rows] for kind, targets in self.targets.items()}
        part.where = None if self.where is None else self.where[:rows]
        return part

    def options(self, options):
        return options | {"weight": self.weight} if "weight" in options else options


def by_rows(results, axis, logits):
    """Results of each class, or of none, as arrays of one row for each position."""
    moved = [np.moveaxis(result, axis, -1) if result.ndim == logits.ndim else result[..., None] for result in results]
    return [array.reshape(-1, array.shape[-1]) for array in moved]


def assert_all_same_bits(results, expected, what):
    for actual, rows in zip(results, expected, strict=True):
        assert_same_bits(actual, rows, what)


# every number of classes


def test_choices_meet_in_all_ways():
    """Their numbers have no factor in common."""
    numbers = [len(choices) for choices in (CHOSEN_LAYOUTS, BATCHES, KINDS, FLOATS)]
    assert np.lcm.reduce(numbers) == np.prod(numbers)


@pytest.mark.parametrize("lengths", [ENDS, pytest.param(LENGTHS, marks=pytest.mark.slow)], ids=["some", "all"])
@each_function
def test_lengths_give_the_bits_of_rows_alone_on_every_backend(name, lengths, rng, use_backend):
    """Each length with the next layout, batch, kind of rows and dtype, and rows alone by the next backend."""
    choices = map(itertools.cycle, (CHOSEN_LAYOUTS, BATCHES, KINDS, FLOATS, _core.backends()))
    for classes, layout, batch, kind, dtype, alone in zip(lengths, *choices, strict=False):
        problem = Problem(rng, kind, batch, classes, dtype)
        use_backend(alone)
        expected = problem.call_for_each_row(name)
        for backend in _core.backends():
            use_backend(backend)
            what = f"{layout} {batch} of {classes} classes, {kind.__name__} {dtype}, {backend} beside {alone}"
            assert_all_same_bits(problem.call(name, layout), expected, what)


# one loss of a class id, whatever function computes it


def losses_of_functions(logits, ids, where, axis):
    """The losses of all rows from each function that computes them."""
    options = {"where": where, "axis": axis}
    one_hot = np.moveaxis(np.arange(logits.shape[axis]) == ids[..., None], -1, axis)
    for dtype in (np.uint8, np.int64, np.float32, np.float64):
        for name in ("losses", "gradients"):
            function, targets = FUNCTIONS[name][0], one_hot.astype(dtype)
            yield f"{name} of one-hot {targets.dtype}", function(logits, targets, **options)[0]
    yield "cross_entropy", losses(logits, ids, **options)[0]
    yield "cross_entropy_and_grad", gradients(logits, ids, **options)[0]
    yield "class_log_probs", 0 - class_log_probs(logits, ids[..., None], **options)[..., 0]
    for top_k in (0, min(3, logits.shape[axis])):
        yield f"token_scores, top_k={top_k}", token_scores(logits, ids, top_k=top_k, **options).nll
    yield "compare, base", compare(logits, np.flip(logits, axis), ids, **options).base_nll
    yield "compare", compare(np.flip(logits, axis), logits, ids, **options).nll
    each, scores = np.arange(ids.size).reshape(ids.shape), token_scores(logits, ids, **options)
    yield "sequence_losses", sequence_losses(scores, segment_ids=each).nll.reshape(ids.shape)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of losses that look odd
        found = evaluate([(np.moveaxis(logits, axis, -1), ids, None, each)])
    yield "evaluate", found.sequences["nll"].reshape(ids.shape)


def check_one_loss(lengths, rng, use_backend):
    """Each length with the next layout, batch, kind of rows and dtype, on every backend."""
    choices = map(itertools.cycle, (CHOSEN_LAYOUTS, BATCHES, KINDS, FLOATS))
    for classes, layout, batch, kind, dtype in zip(lengths, *choices, strict=False):
        problem = Problem(rng, kind, batch, classes, dtype)
        ids = np.maximum(problem.targets["ids"], 0)
        where = None if problem.where is None else problem.where & (problem.targets["ids"] >= 0)
        use_backend("portable")
        problem.where, problem.targets["ids"] = None, ids
        expected = problem.call_for_each_row("losses")[0].reshape(batch)
        kept = np.ones(batch, bool) if where is None else where
        for backend in _core.backends():
            use_backend(backend)
            logits = in_layout(layout, problem.logits)
            for name, found in losses_of_functions(logits, ids, where, axis_in(layout, logits)):
                what = f"{name}: {layout} {batch} of {classes} classes, {kind.__name__} {dtype}, {backend}"
                assert_same_bits(found[kept], expected[kept], what)


def test_every_function_gives_a_class_id_the_same_loss(rng, use_backend):
    check_one_loss([1, 2, 3, 5, 7, 17, 33, *range(62, 67), *LONGER_LENGTHS[::4]], rng, use_backend)


@pytest.mark.slow
def test_every_function_gives_a_class_id_the_same_loss_in_all_ways(rng, use_backend):
    check_one_loss(4 * [*range(1, 71), *LONGER_LENGTHS], rng, use_backend)


# numbers of rows


@each_dtype
@pytest.mark.parametrize("layout", ["c", CHANNELS, "swapped", "sliced"])
def test_every_number_of_rows_gives_the_bits_of_rows_alone(layout, dtype, rng):
    for (i, classes), name in itertools.product(
        enumerate(FEW_LENGTHS), ("logsumexp", "softmax", "losses", "gradients")
    ):
        problem = Problem(rng, KINDS[i % 2], (70,), classes, dtype)
        expected = problem.call_for_each_row(name)
        for rows in range(1 + i % 4, 71, 4):
            what = f"{layout} {rows} rows of {classes} classes"
            assert_all_same_bits(problem.first(rows).call(name, layout), [array[:rows] for array in expected], what)


@pytest.mark.parametrize("step", [6, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("classes", range(2, 66))
def test_losses_of_few_classes_have_the_bits_of_token_scores_at_every_end_of_a_block(classes, step, rng, use_backend):
    """Rows that are far out, ignored or left out may lie anywhere; sums are those of the losses, whoever adds them."""
    use_backend(_core.backends()[classes % len(_core.backends())])
    kind, dtype = KINDS[classes % len(KINDS)], FLOATS[classes % len(FLOATS)]
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # float16 has no such numbers
        logits = kind(rng, (601, classes)).astype(dtype)
    ids = rng.integers(classes, size=601)
    expected = token_scores(logits, ids).nll
    ids[rng.random(601) < 0.1] = -100
    numbers = (0, 1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 200, 255, 256, 257, 300, 511, 513, 601)
    for rows in numbers[classes // 3 % step :: step]:  # of each backend, which goes by classes % 3
        where = rng.random(rows) < 0.8 if rows % 2 else None
        kept = (ids[:rows] >= 0) & (True if where is None else where)
        for layout in (np.ascontiguousarray, class_first_in_memory, sliced):
            given = layout(logits[:rows]), ids[:rows]
            options = {"ignore_index": -100, "where": where}
            found = cross_entropy(*given, reduction="none", **options)
            assert_same_bits(found, np.where(kept, expected[:rows], 0), f"{rows} rows, {layout.__name__}")
            for workers in (1, 2):
                total = cross_entropy(*given, reduction="sum", workers=workers, **options)
                assert_same_bits(total, sum_of(found[kept]), f"sum of {rows} rows, {layout.__name__}")


def test_the_first_class_id_out_of_range_is_named_wherever_it_lies():
    near, far = np.zeros((2, 720, 3), np.float32)
    far[::7] = np.inf
    values = (3, 1 << 32, -(1 << 32), -(1 << 63)) * 2  # some of which are classes in 32 bits
    for row, value in zip((0, 1, 63, 64, 255, 256, 300, 699), values, strict=True):
        ids = np.zeros(720, int)
        ids[row], ids[row + 1 :] = value, -1
        for given in (near, far, class_first_in_memory(near), class_first_in_memory(far)):
            with pytest.raises(IndexError, match=rf"targets\[{row}\] = {value} is out of range"):
                cross_entropy(given, ids)


ROWS = np.arange(150)
KEPT = {
    "first": ROWS == 0,
    "last": ROWS == 149,
    "none": ROWS < 0,
    "every_16th": ROWS % 16 == 5,
    "all_but_one_in_16": ROWS % 16 != 15,
    "second_block": (ROWS >= 64) & (ROWS < 128),
}


@pytest.mark.parametrize("name", ["losses", "gradients", "gradients_smoothed", "gradients_of_distributions"])
@pytest.mark.parametrize("classes", FEW_LENGTHS)
def test_masked_rows_change_no_bit_of_short_rows(classes, name, rng):
    for kind in (plain, mixed):
        problem = Problem(rng, kind, ROWS.shape, classes, np.float32)
        problem.where = None
        rows = problem.call_for_each_row(name)
        for kept, problem.where in KEPT.items():
            expected = [np.where(problem.where[:, None], array, 0) for array in rows]
            for layout in ("c", CHANNELS):
                assert_all_same_bits(problem.call(name, layout), expected, f"{layout} {kept}, {kind.__name__}")


@pytest.mark.parametrize("rows", [77, 95, 127, 255, 700])
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("far", [-100, -1000])
@pytest.mark.parametrize("masks", [False, True])
def test_a_far_row_among_the_last_has_the_bits_of_a_row_alone(masks, far, classes, rows, rng):
    logits, targets = rng.standard_normal((rows, classes)), np.zeros(rows, np.int32)  # ids that are copied
    where = np.arange(rows) % 5 != 0 if masks else None
    logits = logits.astype(np.float64 if far == -1000 else np.float32)
    alone = [cross_entropy(one, 0) for one in logits]
    for row in {rows - 2 - rows % 16, rows - rows % 16, rows - rows % 16 // 2, rows - 1}:
        x = logits.copy()
        x[row, 0] = far
        expected = np.array(alone)
        expected[row] = cross_entropy(x[row], 0)
        if masks:
            expected[~where] = 0
        for scores, axis in (x, -1), (x.T.copy(), 0):
            losses = cross_entropy(scores, targets, axis=axis, where=where, reduction="none", workers=1)
            assert_same_bits(losses, expected)
            total = cross_entropy(scores, targets, axis=axis, where=where, reduction="sum", workers=1)
            assert total == math.fsum(expected)


@each_dtype
@pytest.mark.parametrize("classes", [65, 300])
def test_far_and_masked_rows_of_many_classes_have_the_bits_of_class_major_ones(classes, dtype, rng):
    logits, targets = 3 * rng.standard_normal((300, classes)), rng.integers(0, classes, 300)
    logits[5::70] *= 40
    logits[200:210, 7:], targets[200:210] = -np.inf, 2
    logits = logits.astype(dtype)
    options = {"weight": rng.random(classes), "sample_weight": rng.random(300), "where": rng.random(300) < 0.9}
    for z_loss, reduction in itertools.product([0, 1e-3], ["none", "mean"]):
        for used in (options, {"where": options["where"]}, {"weight": options["weight"]}, {}):
            results = [cross_entropy(rows, targets, axis=axis, z_loss=z_loss, reduction=reduction, **used)
                       for rows, axis in [(logits, 1), (np.ascontiguousarray(logits.T), 0)]]  # fmt: skip
            assert np.isfinite(results[0]).all()
            assert_same_bits(*results)


@each_function
def test_workers_change_no_bit_of_short_rows(name, rng):
    for classes in (3, 40, 300):
        problem = Problem(rng, mixed, (1003,), classes, np.float32)
        for layout in ("c", CHANNELS):
            expected = problem.call(name, layout, workers=1)
            for workers in (2, 3, 7):
                results = problem.call(name, layout, workers=workers)
                assert_all_same_bits(results, expected, f"{workers} workers, {layout}, {classes} classes")


# results over the logits, or in an array of another layout


def written(name, problem, given, to=None):
    """The results of logits in a layout that are written over them, or in another layout."""
    logits, axis = in_layout(given, problem.logits), axis_in(given, problem.logits)
    out = logits if to is None else in_layout(to, problem.logits)
    if name in ("softmax", "log_softmax"):
        results = [{"softmax": softmax, "log_softmax": log_softmax}[name](logits, axis=axis, out=out)]
    else:
        function, kind, options = FUNCTIONS[name]
        targets = in_layout(given, problem.targets[kind]) if kind == "distributions" else problem.targets[kind]
        results = function(logits, targets, problem.where, axis, out=out, **problem.options(options))
    assert results[-1] is out
    return by_rows(results, axis, logits)


WRITERS = ["softmax", "log_softmax", "gradients", "gradients_smoothed", "gradients_scaled", "gradients_capped"]
WRITERS += ["gradients_of_distributions", "gradients_smoothed_and_weighted"]


@each_dtype
@pytest.mark.parametrize("name", WRITERS)
def test_results_over_the_logits_have_the_bits_of_those_elsewhere(name, dtype, rng):
    layouts = ["c", CHANNELS, "fortran", "swapped", "class_first_and_swapped", "cut", "sliced", "strided", "backwards"]
    for classes, kind, batch in itertools.product(FEW_LENGTHS, [plain, mixed], [(70,), (2, 3, 7)]):
        problem = Problem(rng, kind, batch, classes, dtype)
        expected = written(name, problem, "c", "c")
        for layout in layouts:
            what = f"{layout} {batch} of {classes} classes, {kind.__name__}"
            assert_all_same_bits(written(name, problem, layout), expected, what)


@each_dtype
@pytest.mark.parametrize("name", WRITERS)
def test_results_in_another_layout_have_the_same_bits(name, dtype, rng):
    layouts = itertools.permutations(["c", "class_first_in_memory", "swapped", "strided", "sliced"], 2)
    for classes, (given, to) in zip(itertools.cycle(FEW_LENGTHS), layouts, strict=False):
        problem = Problem(rng, mixed if classes % 2 else plain, (37,), classes, dtype)
        expected = written(name, problem, "c", "c")
        assert_all_same_bits(written(name, problem, given, to), expected, f"{given} to {to}, {classes} classes")


# rows that share memory


@each_dtype
@pytest.mark.parametrize("name", ["logsumexp", "softmax", "losses", "losses_smoothed", "gradients"])
def test_rows_that_share_memory_have_the_bits_of_rows_alone(name, dtype, rng):
    function, kind, options = FUNCTIONS[name]
    for classes in FEW_LENGTHS:
        problem = Problem(rng, plain, (40,), classes, dtype)
        shared = {
            "windows": np.lib.stride_tricks.sliding_window_view(plain(rng, 39 + classes).astype(dtype), classes),
            "one row": np.broadcast_to(problem.logits[0], (40, classes)),
            "one class": np.broadcast_to(problem.logits[:, :1], (40, classes)),
            "one logit": np.broadcast_to(problem.logits[0, 0], (40, classes)),
        }
        for what, logits in shared.items():
            problem.logits = logits.copy()
            actual = by_rows(function(logits, problem.targets[kind], problem.where, -1, **options), -1, logits)
            assert_all_same_bits(actual, problem.call_for_each_row(name), f"{what}, {classes} classes")


# sums


@each_dtype
def test_sums_of_short_rows_are_those_of_their_losses(dtype, rng):
    for classes in SOME_LENGTHS:
        problem = Problem(rng, plain, (83,), classes, dtype)
        for layout in ("c", CHANNELS):
            logits, ids = in_layout(layout, problem.logits), problem.targets["ids"]
            options = {"where": problem.where, "axis": axis_in(layout, logits), "weight": problem.weight}
            values = cross_entropy(logits, ids, reduction="none", **options)
            total = cross_entropy(logits, ids, reduction="sum", **options)
            assert_same_bits(total, sum_of(values), f"{layout}, {classes} classes")
