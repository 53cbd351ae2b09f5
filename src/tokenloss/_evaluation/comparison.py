"""The comparison of files of scores: shards of candidates with those of their base, block by block."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenloss._evaluation import checks
from tokenloss._evaluation.compared_shard import ComparedShard, compare_shard, joined_columns
from tokenloss._evaluation.files import Inputs, named_paths, open_outputs, score_shards
from tokenloss._evaluation.pairing import paired
from tokenloss._evaluation.plan import check_order, open_all, open_shard, planned
from tokenloss._evaluation.run import ShiftSample
from tokenloss._evaluation.token_types import token_types
from tokenloss._files import check_outputs
from tokenloss._outputs._base import Candidate
from tokenloss._paired import rows_of
from tokenloss.comparison import comparison_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenloss._evaluation.files import Settings
    from tokenloss._evaluation.plan import Options, Shard
    from tokenloss._outputs._base import Output
    from tokenloss._types import Array
