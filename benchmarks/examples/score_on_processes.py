"""Score files on several processes or machines, and add up the results, to the bits of one process.

Each FILE is scored by a call of its own, on one thread. What comes back from it is a few kB, however large the file is.
The files hold logits and the ids that the model read, as store_logits.py writes them. In the place of the processes
that are started here, `ray.init` and Spark's master can name a cluster; all its machines must find the files there.
"""

import argparse
import multiprocessing
from glob import glob

from tokenloss import evaluate
from tokenloss.results import Evaluation


def score(path):
    return evaluate(path, shift=True, workers=1)


def by_spawn(paths, processes):
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return pool.map(score, paths, chunksize=1)


def by_joblib(paths, processes):
    from joblib import Parallel, delayed

    return Parallel(n_jobs=processes)(delayed(score)(path) for path in paths)


def by_ray(paths, processes):
    import ray

    ray.init(num_cpus=processes)
    remote = ray.remote(score)
    return ray.get([remote.remote(path) for path in paths])


def by_spark(paths, processes):
    from pyspark import SparkContext

    with SparkContext(f"local[{processes}]") as context:
        return context.parallelize(paths, len(paths)).map(score).collect()


WAYS = {"spawn": by_spawn, "joblib": by_joblib, "ray": by_ray, "spark": by_spark}

if __name__ == "__main__":  # processes that are spawned import this file, and must not start others
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", metavar="FILE", nargs="+", help="files, or patterns of their names")
    parser.add_argument("--by", choices=WAYS, default="spawn", help="what runs the processes (default: spawn)")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="number of processes (default: 2)")
    options = parser.parse_args()
    paths = [path for pattern in options.files for path in sorted(glob(pattern))]
    if not paths:
        parser.error(f"no file fits {options.files[0]}")
    results = WAYS[options.by](paths, options.processes)
    print(Evaluation.of_parts(results).summary())
