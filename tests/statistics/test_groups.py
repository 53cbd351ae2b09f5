"""Groups of elements by label: means, errors clustered by sequence, and sums that add up over blocks."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tokenloss._statistics.groups import Groups
from tokenloss._statistics.ratio import ExactRatio


def stderr_by_hand(values, sequences):
    """The clustered standard error of the mean, in fractions; elements of negative numbers are on their own."""
    parts = {}
    for i, (value, sequence) in enumerate(zip(values.tolist(), sequences.tolist(), strict=True)):
        parts.setdefault(sequence if sequence >= 0 else -1 - i, []).append(Fraction(value))
    if len(parts) == 1:  # elements of a single sequence count as independent
        parts = {i: [Fraction(value)] for i, value in enumerate(values.tolist())}
    count, n = len(parts), len(values)
    if count < 2:
        return math.nan
    mean = sum(map(Fraction, values.tolist())) / n
    squares = sum((sum(part) - mean * len(part)) ** 2 for part in parts.values())
    return math.sqrt(Fraction(count, count - 1) * squares) / n


@pytest.fixture
def elements(rng):
    """Labels, sequences and values of 300 elements, in no order."""
    return rng.integers(7, size=300), rng.integers(-2, 12, size=300), rng.normal(size=300)


def test_counts_means_and_errors_by_hand(elements):
    labels, sequences, values = elements
    groups = Groups(labels, sequences)
    assert groups.labels.tolist() == [*range(7)]
    for label, count, mean, stderr in zip(
        groups.labels, groups.count, groups.means(values), groups.stderrs(values), strict=True
    ):
        own = labels == label
        assert count == own.sum()
        assert mean == pytest.approx(float(sum(map(Fraction, values[own].tolist())) / int(count)), rel=1e-15)
        assert stderr == pytest.approx(stderr_by_hand(values[own], sequences[own]), rel=1e-13)


@pytest.mark.parametrize("order", ["reversed", "random"])
def test_order_changes_no_bit(elements, rng, order):
    labels, sequences, values = elements
    index = np.arange(300)[::-1] if order == "reversed" else rng.permutation(300)
    one, other = Groups(labels, sequences), Groups(labels[index], sequences[index])
    assert one.means(values).tolist() == other.means(values[index]).tolist()
    assert one.stderrs(values).tolist() == other.stderrs(values[index]).tolist()


def test_ratios_of_blocks_of_whole_sequences_add_up(elements):
    labels, sequences, values = elements
    n_bytes = np.abs(values * 8).round() + 1

    def ratios(mask):
        groups = Groups(labels[mask], sequences[mask])
        return dict(
            zip(
                groups.labels.tolist(),
                groups.ratios(groups.sums(values[mask]), groups.sums(n_bytes[mask])),
                strict=True,
            )
        )

    whole, first, second = ratios(sequences > -3), ratios(sequences < 5), ratios(sequences >= 5)
    assert {label: first.get(label, ExactRatio()) + second.get(label, ExactRatio()) for label in whole} == whole


def test_labels_may_be_text_and_single_elements_have_no_error():
    groups = Groups(np.array(["b", "a", "b", "c", "c"]), np.array([0, 0, 1, 2, 2]))
    values = np.array([1.0, 5.0, 3.0, 2.0, 6.0])
    assert groups.labels.tolist() == ["a", "b", "c"]
    assert groups.means(values).tolist() == [5.0, 2.0, 4.0]
    assert math.isnan(groups.stderrs(values)[0])
    assert groups.stderrs(values)[1:].tolist() == [1.0, 2.0]  # c has elements of one sequence, assumed independent


def test_without_sequences_elements_are_independent(rng):
    values = rng.normal(size=50)
    groups = Groups(np.arange(50) % 2)
    expected = [values[i::2].std(ddof=1) / 5 for i in (0, 1)]
    assert groups.stderrs(values) == pytest.approx(expected, rel=1e-13)


def test_no_elements_make_no_groups():
    groups = Groups(np.empty(0, np.int64), np.empty(0, np.int64))
    assert groups.labels.size == groups.count.size == groups.means(np.empty(0)).size == 0
    assert groups.stderrs(np.empty(0)).tolist() == []
