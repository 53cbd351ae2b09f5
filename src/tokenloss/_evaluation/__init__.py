"""Evaluation of files: the plan of shards, the run over each, the checkpoint between runs, the summary of all."""
