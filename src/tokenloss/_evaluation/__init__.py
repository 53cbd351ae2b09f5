"""Files and blocks of scores or responses: planned, scored or compared shard by shard, resumable."""
