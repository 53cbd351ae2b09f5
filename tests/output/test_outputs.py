"""The tables of outputs: what adding one or a figure needs, and a failure where a place is forgotten."""

import dataclasses
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
from candidates import Many

from tokenloss import LossMeter, _output, evaluate, sinks
from tokenloss._command import arguments, commands
from tokenloss.results import Estimate

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
TABLES = {name: outputs for name, outputs in vars(_output).items() if name.endswith("_OUTPUTS")}
INTERFACE = {"Block", "Column", "Schema", "Sink"}


def test_each_sink_of_a_file_is_in_a_table():
    modules = [
        importlib.import_module(f"{_output.__name__}.{one.name}") for one in pkgutil.iter_modules(_output.__path__)
    ]
    public = (value for module in modules for name, value in vars(module).items() if not name.startswith("_"))
    result = {value for value in public if isinstance(value, type) and issubclass(value, sinks.Sink)}
    bases = {base for value in result for base in value.__mro__[1:]}
    assert result - bases == {output for outputs in TABLES.values() for output in outputs}


def test_sinks_are_all_outputs():
    outputs = [output for outputs in TABLES.values() for output in outputs]
    assert set(sinks.__all__) == {output.__name__ for output in outputs} | INTERFACE
    assert all(output.option and output.help for output in outputs)


class LossLines(sinks.Sink):
    """An output as somebody would add it: a class, and its place in a table."""

    option = "--loss-lines"
    help = "write a line for each token"
    rows = "tokens"

    def write(self, block):
        with Path(self.path).open("a") as file:
            file.writelines(f"{nll:.4f}\n" for nll in block.columns["nll"])


def test_an_output_is_on_the_command_line_when_it_is_in_a_table(command, npz, tmp_path, monkeypatch):
    for module in arguments, commands:
        monkeypatch.setattr(module, "SCORE_OUTPUTS", (LossLines, *_output.SCORE_OUTPUTS))
    path = npz(logits=np.zeros((3, 2)), targets=[0, 1, 0])
    assert command("score", path, "--loss-lines", tmp_path / "lines")[0] == 0
    assert (tmp_path / "lines").read_text() == "0.6931\n" * 3


def other(value):
    """A value of the same type that is printed in another way."""
    if isinstance(value, dict):
        return {key: other(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(other(item) for item in value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, Estimate):
        return Estimate(2 * value + 7, (value.stderr, value.interval, value.unit))
    return value + "x" if isinstance(value, str) else 5 if value is None else 2 * value + 7


def with_other(meter, name, value):
    """The meter with another value of a statistic, or of one of its errors, by its name in files."""
    field, error = re.fullmatch(r"(\w*?)_?(stderr|interval)?", name).groups()
    field = field or "loss"
    if not isinstance(getattr(LossMeter, field, None), property):
        return meter
    statistic = getattr(meter, field)
    if error:
        errors = {"stderr": statistic.stderr, "interval": statistic.interval, "unit": statistic.unit} | {error: value}
        value = Estimate(statistic, (*errors.values(),))
    elif isinstance(statistic, Estimate):
        value = Estimate(value, (statistic.stderr, statistic.interval, statistic.unit))
    changed = meter + LossMeter()
    changed.__class__ = type("OtherMeter", (LossMeter,), {"__slots__": (), field: property(lambda self: value)})
    return changed


def test_a_figure_of_score_is_printed_unless_it_is_listed_here(tmp_path):
    Many(tmp_path)
    (tmp_path / "text").write_text("some words")
    evaluation = evaluate(tmp_path / "base/part-*.npz", text=tmp_path / "text")
    figures = evaluation.figures | {"seconds": 2.0, "n_nan": 1, "n_infinite": 1}

    def printed(name=None):
        if name is None:
            return dataclasses.replace(evaluation, figures=figures).summary()
        meter = with_other(evaluation.meter, name, other(figures[name]))
        return dataclasses.replace(evaluation, meter=meter, figures=figures | {name: other(figures[name])}).summary()

    assert {name for name in figures if printed(name) == printed()} == {
        "bits_per_byte_interval", "total",  # the error is printed, and the mean
        "n_bytes", "n_words", "n_bytes_read", "n_without_sequence",  # rows depend on whether they are 0
        "sequences",  # those of the highest losses are printed
    }  # fmt: skip


def test_a_figure_of_a_comparison_is_printed_unless_it_is_listed_here(tmp_path):
    comparison = Many(tmp_path).comparison("q4", divergences=("reverse_kl", "js", "tv", "hellinger"))
    comparison = dataclasses.replace(comparison, n_nan=1, n_infinite=2, left_out=0.5, base_left_out=0.25)

    def printed(**changed):
        return dataclasses.replace(comparison, **changed).summary()

    figures = {name: figure for name, figure in vars(comparison).items() if not isinstance(figure, np.ndarray)}
    del figures["token_divergences"]  # arrays, too
    del figures["sketch"]  # of a base of another kind: test_sketches has what is printed of it
    del figures["calibration"], figures["base_calibration"]  # on request: see test_calibration_option
    missing = {name for name, figure in figures.items() if printed(**{name: other(figure)}) == printed()}
    assert missing == {"_about"}  # which is empty here
    for name, one in figures.items():
        if isinstance(one, Estimate):
            wider = Estimate(one, (2 * one.stderr + 7, one.interval, one.unit))
            assert printed(**{name: wider}) != printed(), name
