"""Thirty-two threads that call everything at once, beside forks and Ctrl-C: see stress.py."""

import pytest


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_every_call_of_a_crowd_has_the_bits_of_one_alone(seconds, run_python):
    run_python(f"import stress; stress.run({seconds})", timeout=60 + 4 * seconds)
