"""Losses and metrics of Dask arrays, and work on files on a cluster."""

from tokenloss._evaluation.cluster import cross_entropy, map_shards, score

__all__ = ["cross_entropy", "map_shards", "score"]
