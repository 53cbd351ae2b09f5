"""tokenloss.dask: the bits of one machine for any chunks, also when workers are killed, and errors before any work."""

import inspect
import itertools
import logging
import multiprocessing
import os
import re
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
from arrays import BFLOAT16, FLOATS, assert_same_bits, distributions
from arrays import OPTIONS as OPTIONS_OF_LOSSES
from commands import assert_refused
from distributed import Client, LocalCluster

import tokenloss
from tokenloss import LossMeter
from tokenloss.dask import cross_entropy, map_shards, score
from tokenloss.formats import open_scores

SHAPES = [((40, 30), -1), ((30, 40), 0), ((7, 30, 9), 1), ((5, 4, 3, 30), -1), ((30,), 0), ((0, 30), 1), ((40, 1), 1)]
CHUNKS = [1000, 7, 2]
OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 1e-3, "logit_scale": 0.7},
    {"softcap": 5.0, "ignore_index": None},
    {"ignore_index": 3, "workers": 2},
    OPTIONS_OF_LOSSES["everything"],
]


@pytest.fixture(autouse=True)
def _small_blocks():
    """Dask moves classes together in blocks of a few rows, so that there are several."""
    with dask.config.set({"array.chunk-size": "2 kB"}):
        yield


def problem(rng, shape, axis, dtype=np.float32):
    """Logits, class ids of which some are ignored, and a mask."""
    batch = tuple(np.delete(shape, axis))
    targets = np.where(rng.random(batch) < 0.2, -100, rng.integers(0, shape[axis], batch))
    return (4 * rng.standard_normal(shape)).astype(dtype), targets, rng.random(batch) < 0.8


def meter_of(logits, targets, where=True, ignore_index=-100, **options):
    """Meter on one machine: of sequences, if the batch has several axes."""
    nll = tokenloss.cross_entropy(logits, targets, where=where, ignore_index=ignore_index, reduction="none", **options)
    kept = where if targets.ndim == logits.ndim or ignore_index is None else where & (targets != ignore_index)
    meter = LossMeter()
    if nll.ndim > 1:
        meter.update(tokenloss.sequence_losses(nll, where=kept))
    else:
        meter.update(nll, kept)
    return meter


# -- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_score_equals_the_meter_of_one_machine(shape, axis, chunks, rng):
    logits, targets, where = problem(rng, shape, axis)
    expected = meter_of(logits, targets, where, axis=axis)
    lazy = da.from_array(logits, chunks=chunks)
    assert score(lazy, targets, where=where, axis=axis) == expected
    lazy_targets, lazy_where = da.from_array(targets, chunks=3), da.from_array(where, chunks=5)
    assert score(lazy, lazy_targets, where=lazy_where, axis=axis) == expected
    assert expected.count == np.sum(where & (targets != -100))


def test_score_takes_rows_of_a_batch_as_sequences(rng):
    """It took their tokens as independent, however alike those of a sequence were."""
    logits = rng.standard_normal((6, 8, 5)) * rng.random((6, 1, 1)) * 9
    targets, weights = rng.integers(0, 5, (6, 8)), rng.integers(0, 3, (6, 8)) / 2
    lazy = da.from_array(logits, chunks=(4, 3, 2))
    expected = tokenloss.evaluate([(logits, targets)]).meter
    assert score(lazy, targets) == expected
    assert expected.is_clustered
    expected = LossMeter()
    losses = tokenloss.cross_entropy(logits, targets, reduction="none")
    expected.update(tokenloss.sequence_losses(losses, sample_weight=weights))
    for some in (weights, da.from_array(weights, chunks=3)):
        assert score(lazy, targets, sample_weight=some) == expected


@pytest.mark.parametrize("dtype", [*FLOATS, np.dtype(">f4")], ids=str)
def test_score_takes_every_dtype(dtype, rng):
    logits, targets, _ = problem(rng, (20, 50), 1, dtype)
    assert score(da.from_array(logits, chunks=(6, 11)), targets) == meter_of(logits, targets)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "uint64", ">i4"])
def test_score_takes_class_ids_of_every_dtype(dtype, rng):
    logits, targets, where = problem(rng, (20, 50), 1)
    targets = targets.clip(0).astype(dtype)
    assert score(da.from_array(logits, chunks=6), targets, where=where) == meter_of(logits, targets, where)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["class ids", "distributions"])
def test_options_and_weight(soft, options, rng):
    logits, targets, where = problem(rng, (6, 9, 20), -1)
    targets = distributions(rng, logits.shape) if soft else targets.clip(0)
    options = {name: value for name, value in options.items() if not soft or name != "ignore_index"}
    lazy, lazy_targets = da.from_array(logits, chunks=4), da.from_array(targets, chunks=5)
    expected = meter_of(logits, targets, where, **options)
    assert score(lazy, lazy_targets, where=where, **options) == expected
    weight = rng.random(20)
    for reduction in ("none", "sum", "mean"):
        for weights in ({}, {"weight": weight}, {"weight": weight.astype(BFLOAT16)}):
            result = cross_entropy(lazy, lazy_targets, where=where, reduction=reduction, **weights, **options)
            one = tokenloss.cross_entropy(logits, targets, where=where, reduction=reduction, **weights, **options)
            assert (result.dtype, result.shape) == (np.float64, np.shape(one))
            assert_same_bits(result.compute(), one, reduction)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_reduction_none_equals_one_machine(shape, axis, chunks, rng):
    logits, targets, where = problem(rng, shape, axis)
    losses = cross_entropy(da.from_array(logits, chunks=chunks), targets, where=where, axis=axis, reduction="none")
    expected = tokenloss.cross_entropy(logits, targets, where=where, axis=axis, reduction="none")
    assert (losses.shape, losses.dtype) == (targets.shape, np.float64)
    assert_same_bits(losses.compute(), expected)


def test_reduction_mean_of_targets_that_are_rounded_below_0():
    """Such a target can have a loss below 0, which is no log-probability in place of a loss."""
    logits, targets = np.array([[0.0, -1000.0], [0.0, 0.0]]), np.array([[1.0005, -0.0005], [0.5, 0.5]])
    assert tokenloss.cross_entropy(logits, targets, reduction="none")[0] == pytest.approx(-0.5)
    for reduction in "mean", "sum":
        options = {"reduction": reduction}
        assert cross_entropy(da.from_array(logits, chunks=1), targets, **options).compute() == tokenloss.cross_entropy(
            logits, targets, **options
        )


@pytest.mark.parametrize("weight", [None, np.zeros(20), np.ones(20)], ids=["plain", "zeros", "ones"])
def test_where_of_no_position(weight, rng):
    logits, targets, _ = problem(rng, (8, 20), 1)
    lazy = da.from_array(logits, chunks=3)
    assert score(lazy, targets, where=False) == LossMeter()
    assert np.isnan(cross_entropy(lazy, targets, where=False, weight=weight).compute())
    assert cross_entropy(lazy, targets, where=False, weight=weight, reduction="sum").compute() == 0.0


def test_weight_of_zeros(rng):
    logits, targets, _ = problem(rng, (8, 20), 1)
    assert np.isnan(cross_entropy(da.from_array(logits, chunks=3), targets, weight=np.zeros(20)).compute())
    assert np.isnan(tokenloss.cross_entropy(logits, targets, weight=np.zeros(20)))


def test_infinite_losses(rng):
    logits, targets, _ = problem(rng, (8, 20), 1)
    targets = targets.clip(0)
    logits[5] = -np.inf
    logits[6, targets[6]] = -np.inf
    assert score(da.from_array(logits, chunks=3), targets) == meter_of(logits, targets)


# -- chunks ----------------------------------------------------------------------------------------------


def test_chunks_of_losses_are_those_of_logits(rng):
    logits, targets, _ = problem(rng, (4, 20, 30), -1)
    losses = cross_entropy(da.from_array(logits, chunks=((3, 1), (5, 15), 30)), targets, reduction="none")
    assert losses.chunks == ((3, 1), (5, 15))


def test_chunks_of_classes_are_merged_in_blocks_of_bounded_size(rng):
    logits = da.from_array(rng.standard_normal((64, 64)), chunks=(64, 8))
    losses = cross_entropy(logits, np.zeros(64, int), reduction="none")
    assert max(losses.chunks[0]) * 64 * 8 <= 2000


def test_reduction_is_a_tree():
    total = cross_entropy(da.zeros((1100, 5), chunks=(1, 5)), np.zeros(1100, int), reduction="sum")
    dependencies = total.__dask_graph__().get_all_dependencies()
    assert len(dependencies) > 1100  # more than 32 * 32
    assert max(map(len, dependencies.values())) <= 32


def untouchable(block):
    raise AssertionError(block)


def test_every_option_of_cross_entropy_is_there_and_tested():
    expected, lazy, meter = (
        inspect.signature(function).parameters for function in (tokenloss.cross_entropy, cross_entropy, score)
    )
    defaults = {name: each.default for name, each in expected.items()} | {"workers": 1}
    assert {name: each.default for name, each in lazy.items()} == defaults
    assert {name: each.default for name, each in meter.items()} == {
        name: default for name, default in defaults.items() if name not in ("weight", "reduction")
    }
    elsewhere = {"logits", "targets", "axis", "weight", "where", "sample_weight", "reduction"}
    assert {name for options in OPTIONS for name in options} | elsewhere == expected.keys()


def test_cross_entropy_is_lazy():
    logits = da.zeros((6, 5), chunks=2).map_blocks(untouchable, dtype=np.float32, meta=np.empty((0, 0), np.float32))
    for reduction in ("none", "sum", "mean"):
        losses = cross_entropy(logits, np.zeros(6, int), reduction=reduction)
        with pytest.raises(AssertionError):
            losses.compute()


# -- errors -----------------------------------------------------------------------------------------------------------

LOGITS = np.zeros((6, 5), np.float32)
TARGETS = np.zeros(6, int)


@pytest.mark.parametrize(
    ("logits", "targets", "options"),
    [
        (LOGITS.astype(int), TARGETS, {}),
        (LOGITS.astype(complex), TARGETS, {}),
        (LOGITS[0, 0], TARGETS, {}),
        (LOGITS, TARGETS[:5], {}),
        (LOGITS, TARGETS.astype(float), {}),
        (LOGITS, LOGITS[:, :4], {}),
        (LOGITS, LOGITS.astype(complex), {}),
        (LOGITS, TARGETS, {"axis": 2}),
        (LOGITS, TARGETS, {"axis": "1"}),
        (LOGITS, TARGETS, {"ignore_index": 0.5}),
        (LOGITS, TARGETS, {"where": TARGETS}),
        (LOGITS, TARGETS, {"where": TARGETS[:4] == 0}),
        (LOGITS, TARGETS, {"label_smoothing": 2}),
        (LOGITS, TARGETS, {"z_loss": -1.0}),
        (LOGITS, TARGETS, {"logit_scale": 0}),
        (LOGITS, TARGETS, {"softcap": np.inf}),
        (np.ma.masked_array(LOGITS), TARGETS, {}),
        (LOGITS, np.ma.masked_array(TARGETS), {}),
    ],
)
def test_wrong_arguments_raise_at_the_call_as_on_one_machine(logits, targets, options):
    with pytest.raises((TypeError, ValueError)) as one:
        tokenloss.cross_entropy(logits, targets, **options)
    lazy = [da.from_array(array, chunks=2, asarray=False) for array in (logits, targets)]
    lazy_options = options
    if "where" in options:
        lazy_options = {"where": da.from_array(options["where"], chunks=2)}
    for arguments, kept in ((lazy, options), ((lazy[0], targets), options), (lazy, lazy_options)):
        for function in (score, cross_entropy):
            with pytest.raises(one.type, match=f"^{re.escape(str(one.value))}$"):
                function(*arguments, **kept)


@pytest.mark.parametrize(
    "options",
    [{"weight": np.ones(4)}, {"weight": np.ones(5, complex)}, {"reduction": "average"}, {"workers": 0}],
    ids=str,
)
def test_wrong_weight_reduction_or_workers_raise_at_the_call(options):
    big = np.zeros((300, 2000), np.float32)  # `workers` is checked where there is work to share
    big_options = options if "workers" in options else {}
    with pytest.raises((TypeError, ValueError)) as one:
        tokenloss.cross_entropy(*((big, np.zeros(300, int)) if big_options else (LOGITS, TARGETS)), **options)
    with pytest.raises(one.type, match=f"^{re.escape(str(one.value))}$"):
        cross_entropy(da.from_array(LOGITS, chunks=2), TARGETS, **options)


def test_logits_of_numpy():
    with pytest.raises(TypeError, match="logits is 'ndarray'; it must be a Dask array"):
        score(LOGITS, TARGETS)


def test_chunks_of_unknown_shape():
    lazy = da.from_array(LOGITS, chunks=2)
    unknown = lazy[da.from_array(TARGETS == 0, chunks=2)]
    with pytest.raises(ValueError, match=r"logits has shape \(nan, 5\); it must be known; its compute_chunk_sizes"):
        score(unknown, TARGETS)
    with pytest.raises(ValueError, match=r"targets has shape \(nan,\)"):
        score(lazy, unknown[:, 0])


@pytest.mark.parametrize(("shape", "axis", "bad"), [((40, 30), 1, (33,)), ((7, 30, 9), 1, (5, 8)), ((30,), 0, ())])
@pytest.mark.parametrize("value", [30, -1])
def test_target_out_of_range_is_named_by_its_index(shape, axis, bad, value, rng):
    logits, targets, _ = problem(rng, shape, axis)
    targets[bad] = value
    with pytest.raises(IndexError) as one:
        tokenloss.cross_entropy(logits, targets, axis=axis)
    lazy = da.from_array(logits, chunks=4)
    with pytest.raises(IndexError, match=f"^{re.escape(str(one.value))}$"):
        score(lazy, targets, axis=axis)
    where = np.ones(targets.shape, bool)
    where[bad] = False
    assert score(lazy, targets, axis=axis, where=where) == meter_of(logits, targets, where, axis=axis)


def test_targets_of_integers_that_are_not_one_hot():
    targets = np.eye(3, dtype=int)[np.zeros(10, int)]
    targets[7, 1] = 1
    words = "in the block at [4]: targets[3] contains integers that are not one-hot: [1, 1, 0]"
    for compute in (score, lambda *arrays: cross_entropy(*arrays).compute()):
        with pytest.raises(ValueError, match=re.escape(words)):
            compute(da.zeros((10, 3), chunks=(4, 3)), targets)


def test_reduction_mean_where_the_sum_overflows():
    logits, targets = np.array([[1.7e308, 0.0]] * 6), np.ones(6, int)
    lazy, mean = da.from_array(logits, chunks=(4, 2)), tokenloss.cross_entropy(logits, targets)
    assert mean == pytest.approx(1.7e308)
    assert cross_entropy(lazy, targets).compute() == mean
    assert score(lazy, targets).loss == pytest.approx(mean, rel=2**-52)


def test_package_does_not_import_dask(run_python):
    run_python("import sys, tokenloss; assert 'dask' not in sys.modules")


@pytest.mark.slow
def test_dask_that_is_not_installed(run_python):
    message = run_python("import sys; sys.modules['dask'] = None; import tokenloss.dask", fails=True)
    hint = "needs the package dask[distributed]: pip install dask[distributed]"
    assert message.splitlines()[-1] == f"ImportError: tokenloss.dask {hint}"
    program = (
        "import sys; sys.modules['distributed'] = None; import tokenloss.dask as d; next(d.map_shards(len, [], ''))"
    )
    assert run_python(program, fails=True).splitlines()[-1] == f"ImportError: a scheduler {hint}"


# -- a cluster of processes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two processes, which start from one that has imported Dask, and import no file of tests."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in methods else "spawn"
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": method}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
    ):  # fmt: skip
        yield cluster
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def client(cluster):
    """Client of the cluster: while it lives, Dask computes there."""
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=20)
        yield client


def die_once(path):
    """Kill the worker that this runs in, unless that has been done before."""
    try:
        Path(path).touch(exist_ok=False)
    except FileExistsError:
        return
    os._exit(1)


def dying_in_block(block, path, number, block_id):
    if block_id[0] == number:
        die_once(path)
    return block


def losses_of_shard(path):
    """Process id and meter of a file."""
    with np.load(path) as data:
        return os.getpid(), meter_of(data["logits"], data["targets"], workers=1)


def losses_of_shard_once_dying(path):
    if path.endswith("2.npz"):
        die_once(f"{path}.died")
    return losses_of_shard(path)


def refuse(path):
    if path.endswith("3.npz"):
        raise ValueError(f"{path}: is refused")
    return path


def worker_threads():
    return [thread.name for thread in threading.enumerate()]


@pytest.fixture
def shards(tmp_path, rng):
    paths = [str(tmp_path / f"{i}.npz") for i in range(6)]
    for path in paths:
        logits, targets, _ = problem(rng, (50, 100), 1)
        np.savez(path, logits=logits, targets=targets)
    return paths


@pytest.mark.usefixtures("client")
def test_cluster_gives_the_bits_of_one_machine(rng):
    logits, targets, where = problem(rng, (40, 90), 1)
    lazy = da.from_array(logits, chunks=(13, 40))
    assert score(lazy, targets, where=where) == meter_of(logits, targets, where)
    losses = cross_entropy(lazy, targets, where=where)
    assert_same_bits(losses.compute(), tokenloss.cross_entropy(logits, targets, where=where))


@pytest.mark.slow
def test_cluster_gives_the_same_bits_after_a_worker_was_killed(client, tmp_path, rng):
    logits, targets, _ = problem(rng, (300, 200), 1)
    path = tmp_path / "died"
    before = set(client.run(os.getpid).values())
    lazy = da.from_array(logits, chunks=(10, 200)).map_blocks(
        dying_in_block, path=str(path), number=20, dtype=logits.dtype, meta=logits[:0]
    )
    assert score(lazy, targets) == meter_of(logits, targets)
    assert path.exists()
    client.wait_for_workers(2, timeout=20)
    assert set(client.run(os.getpid).values()) != before


@pytest.mark.usefixtures("client")
def test_target_out_of_range_on_a_cluster(rng):
    logits, targets, _ = problem(rng, (30, 20), 1)
    targets[17] = 20
    with pytest.raises(IndexError, match=r"targets\[17\] = 20 is out of range \[0, 20\)"):
        score(da.from_array(logits, chunks=4), targets)


def test_workers_of_a_block_on_a_cluster(client):
    logits = da.zeros((600, 4096), chunks=(300, 4096))  # blocks large enough to be shared
    result = []
    for options in ({}, {"workers": 2}):
        score(logits, np.zeros(600, int), **options)
        names = itertools.chain(*client.run(worker_threads).values())
        result.append(any(name.startswith("tokenloss") for name in names))
    assert result == [False, True]


def test_map_shards(cluster, shards):
    result = dict(map_shards(losses_of_shard, shards, cluster.scheduler_address))
    assert {number: meter for number, (_, meter) in result.items()} == {
        number: losses_of_shard(path)[1] for number, path in enumerate(shards)
    }
    assert os.getpid() not in {process for process, _ in result.values()}


def test_map_shards_of_equal_names(cluster):
    assert sorted(map_shards(len, ["a", "bc", "a"], cluster.scheduler_address)) == [(0, 1), (1, 2), (2, 1)]


@pytest.mark.slow
def test_map_shards_after_a_worker_was_killed(cluster, shards):
    result = dict(map_shards(losses_of_shard_once_dying, shards, cluster.scheduler_address))
    assert Path(f"{shards[2]}.died").exists()
    total = sum((meter for _, meter in result.values()), LossMeter())
    assert total == sum((losses_of_shard(path)[1] for path in shards), LossMeter())


def test_map_shards_gives_results_as_they_come(cluster, tmp_path):
    shards = [str(tmp_path / "0"), str(tmp_path / "1")]
    results = map_shards(wait_for_the_other, shards, cluster.scheduler_address)
    assert next(results) == (0, "at once")
    (tmp_path / "go").touch()
    assert list(results) == [(1, "later")]


def wait_for_the_other(path):
    if path.endswith("0"):
        return "at once"
    stop = time.monotonic() + 20
    while not Path(path).with_name("go").exists() and time.monotonic() < stop:
        time.sleep(0.01)
    return "later" if time.monotonic() < stop else "never"


def test_map_shards_raises_the_error_of_a_shard(cluster, shards):
    with pytest.raises(ValueError, match=r"3\.npz: is refused"):
        list(map_shards(refuse, shards, cluster.scheduler_address))
    assert len(list(map_shards(refuse, shards[:2], cluster.scheduler_address))) == 2


@pytest.mark.parametrize("scheduler", ["", "nowhere", "tcp://127.0.0.1:1", None])
def test_scheduler_that_is_not_there(scheduler):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.5 s"}),
        pytest.raises((TypeError, ValueError), match="must be the address of a running Dask scheduler") as error,
    ):
        next(map_shards(len, ["a"], scheduler))
    assert f"scheduler is {scheduler!r}" in str(error.value)


@pytest.mark.usefixtures("client")
def test_errors_on_workers_name_options_as_the_caller_writes_them(cluster, command, tmp_path):
    np.savez(path := tmp_path / "probs.npz", logits=np.full((4, 5), 0.2), targets=np.arange(4))
    words = "come with {} and its array's name, or with {} if it has logits"
    refused = command("score", path, "--scheduler", cluster.scheduler_address)
    assert_refused(refused, words.format("--kind probs", "--kind logits"))
    with pytest.raises(ValueError, match=words.format("kind='probs'", "kind='logits'")):
        tokenloss.evaluate(path, scheduler=cluster.scheduler_address)


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("by", ["position", "position:5", "file", "domain"])
@pytest.mark.slow
def test_groups_on_a_cluster_have_the_bits_of_one_machine(by, cluster, tmp_path, rng):
    paths = {"base": [], "other": []}
    for i in range(4):
        logits, targets, _ = problem(rng, (30, 20), 1)
        ids = np.repeat([2 * i, 2 * i + 1, 2 * i + 2], 10)
        own = {"targets": targets, "segment_ids": ids, "domain": np.array(["code", "news"])[ids % 2]}
        for name, scores in ("base", logits), ("other", logits + 0.1 * rng.normal(size=logits.shape)):
            paths[name].append(tmp_path / f"{name}{i}.npz")
            np.savez(paths[name][-1], logits=scores, **(own if name == "base" else {}))
    base, other = (open_scores(files) for files in paths.values())
    here, there = (tokenloss.evaluate(base, by=by, scheduler=one) for one in (None, cluster.scheduler_address))
    assert there.figures["groups"] == here.figures["groups"]
    here, there = (
        tokenloss.compare_files(base, {"q": other}, by=by, scheduler=one)["q"]
        for one in (None, cluster.scheduler_address)
    )
    assert there.to_dict()["groups"] == here.to_dict()["groups"]
    assert sum(here.groups["count"]) == here.count
    assert 1 < here.groups["n_sequences"].max() <= here.n_sequences
