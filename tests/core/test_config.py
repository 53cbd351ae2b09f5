"""show_config, TOKENLOSS_DISABLE_CPU_FEATURES, the cost of the import, and the public names."""

import importlib.util
import pickle
import re

import numpy as np
import pytest
from arrays import fails
from places import ROOT

import tokenloss
from tokenloss import show_config
from tokenloss._core import _core
from tokenloss._core.config import FEATURES, FEATURES_VARIABLE, choose_backend

TELL_BF16 = "import tokenloss; print(tokenloss.show_config(mode='dicts')['bfloat16_matmul'])"
TELL = "import tokenloss; print(tokenloss.show_config(mode='dicts')['instruction_set'])"


def test_show_config_returns_dicts():
    config = show_config(mode="dicts")
    assert list(config) == ["version", "instruction_set", "available", "workers", "bfloat16_matmul"]
    assert config["version"] == tokenloss.__version__
    assert config["instruction_set"] == _core.backend_in_use()
    assert config["available"] == _core.backends()
    assert config["available"][-1] == "portable"
    assert type(config["workers"]) is int
    assert config["workers"] >= 1
    assert config["bfloat16_matmul"] == _core.bf16_matmul_in_use()


@pytest.mark.parametrize("arguments", [(), ("stdout",)])
def test_show_config_prints(arguments, capsys):
    assert show_config(*arguments) is None
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    config = show_config(mode="dicts")
    assert printed == {
        "version": config["version"],
        "instruction_set": config["instruction_set"],
        "available": ", ".join(config["available"]),
        "workers": str(config["workers"]),
        "bfloat16_matmul": config["bfloat16_matmul"],
    }


@pytest.mark.parametrize("mode", ["dict", "", None, 0])
def test_show_config_refuses_other_modes(mode):
    with pytest.raises(ValueError, match=f"mode is {re.escape(repr(mode))}.*'stdout' or 'dicts'"):
        show_config(mode)


@pytest.fixture
def chosen(monkeypatch, use_backend):
    """The configuration that is chosen where the variable has a value, as on the first use in a process."""

    def chosen(variable):
        monkeypatch.setenv(FEATURES_VARIABLE, variable)
        choose_backend()
        return show_config(mode="dicts")

    return chosen


def test_best_instruction_set_is_used_unless_disabled(run_python, chosen):
    available = _core.backends()
    assert run_python(TELL).strip() == available[0]
    disabled = []
    for name in available[:-1]:
        disabled.append(name.upper())
        expected = available[len(disabled)]
        for variable in {" ".join(disabled), ",".join(disabled), ", ".join(disabled).lower()}:
            assert chosen(variable)["instruction_set"] == expected


def test_any_known_feature_may_be_disabled_on_any_machine(run_python, chosen):
    assert run_python(TELL, TOKENLOSS_DISABLE_CPU_FEATURES=" ".join(FEATURES)).strip() == "portable"
    assert chosen("")["instruction_set"] == _core.backends()[0]
    assert chosen(" , ")["instruction_set"] == _core.backends()[0]


@pytest.mark.parametrize("variable", ["AMX_BF16 AVX512_BF16", "AVX512", "avx2 avx512_bf16,amx_bf16"])
def test_bfloat16_matmul_is_disabled_by_its_name_and_that_of_its_instruction_set(variable, chosen):
    assert chosen(variable)["bfloat16_matmul"] == "blas"


@pytest.mark.parametrize("name", _core.BF16_MATMULS[:-1])
def test_bfloat16_matmul_that_is_disabled_is_not_used(name, chosen):
    assert chosen(name)["bfloat16_matmul"] in {*_core.BF16_MATMULS} - {name}


def test_bfloat16_matmul_of_a_new_process_is_that_of_this_one(run_python):
    assert run_python(TELL_BF16).strip() == show_config(mode="dicts")["bfloat16_matmul"]


UNKNOWN = "TOKENLOSS_DISABLE_CPU_FEATURES is {!r}; it must be some of AVX512, AVX2, NEON, AMX_BF16, AVX512_BF16"


@pytest.mark.parametrize(("use", "variable"), [("logsumexp([0.0])", "SSE9"), ("LossMeter().update([0.5])", "portable")])
def test_unknown_feature_is_a_clear_error(use, variable, run_python):
    message = run_python(f"import tokenloss; tokenloss.{use}", TOKENLOSS_DISABLE_CPU_FEATURES=variable, fails=True)
    assert f"ValueError: {UNKNOWN.format(variable)}" in message


@pytest.mark.parametrize(("variable", "unknown"), [("AVX512 nonsense", "nonsense"), ("AVX512;AVX2", "AVX512;AVX2")])
def test_unknown_feature_among_known_ones_is_a_clear_error(variable, unknown, chosen):
    with fails(ValueError, UNKNOWN.format(unknown)):
        chosen(variable)


def test_every_instruction_set_is_found_and_can_be_disabled():
    """Each file of `backends` has its place in the enumeration and in `tl_find_backend`, and a name to disable it."""
    kernels = ROOT / "src" / "tokenloss" / "_core" / "kernels"
    names = {path.stem for path in kernels.glob("backends/*.c")}
    enumeration = re.search(r"enum \{ (.*), TL_BACKENDS \}", (kernels / "backend.h").read_text())[1]
    assert enumeration.lower().replace("tl_", "").split(", ")[-1] == "portable"
    assert {*enumeration.split(", ")} == {f"TL_{name.upper()}" for name in names}
    assert {*re.findall(r"case TL_\w+: return .*&tl_(\w+)", (kernels / "backend.c").read_text())} == names
    assert {*FEATURES.values()} - {*_core.BF16_MATMULS} == names - {"portable"}


def test_unknown_backend_is_refused_and_changes_nothing():
    in_use = _core.backend_in_use()
    with pytest.raises(ValueError, match="nonsense"):
        _core.use_backend("nonsense")
    assert _core.backend_in_use() == in_use


def test_losses_are_the_same_with_everything_disabled(run_python):
    program = """
import numpy as np, tokenloss
logits = np.random.default_rng(0).standard_normal((20, 5000), np.float32)
print(tokenloss.cross_entropy(logits, np.arange(20)).hex(), tokenloss.logsumexp(logits).tobytes().hex())
"""
    logits = np.random.default_rng(0).standard_normal((20, 5000), np.float32)
    printed = run_python(program, TOKENLOSS_DISABLE_CPU_FEATURES=" ".join(FEATURES)).split()
    here = tokenloss.cross_entropy(logits, np.arange(20)).hex(), tokenloss.logsumexp(logits).tobytes().hex()
    assert tuple(printed) == here


LOADED = """
import sys, numpy
before = set(sys.modules)
{statement}
added = set(sys.modules) - before
print(*sorted(name for name in added if name.startswith("tokenloss")))
print(*sorted(name for name in added if not name.startswith("tokenloss")))
"""


@pytest.mark.parametrize(
    ("statement", "packages", "most"),
    [
        ("import tokenloss", {"_core"}, 3),
        ("from tokenloss import cross_entropy", {"_core", "_scores"}, 16),
        ("from tokenloss import LossMeter", {"_core", "_scores", "_statistics"}, 23),
    ],
)
def test_import_loads_what_is_used(statement, packages, most, run_python):
    ours, others = (line.split() for line in run_python(LOADED.format(statement=statement)).splitlines())
    assert {name.split(".")[1] for name in ours if "." in name} == packages
    assert len(ours) <= most, ours
    assert len(others) <= 12, others  # of the standard library; some releases of NumPy bring them, too


def test_star_and_modules_give_every_public_name_and_no_other(run_python):
    names = f"{', '.join(tokenloss.__all__)}, tokenloss.plots.save, tokenloss.formats.open_scores"
    program = f"import tokenloss; from tokenloss import *; print({names}); tokenloss.cross_entropies"
    assert "has no attribute 'cross_entropies'" in run_python(program, fails=True)


def test_public_names_are_those_that_are_promised():
    assert set(tokenloss.__all__) == {
        "ComparisonMeter",
        "KindWarning",
        "LossMeter",
        "NormWarning",
        "ShiftWarning",
        "calibration",
        "class_log_probs",
        "compare",
        "compare_files",
        "compare_samples",
        "compare_texts",
        "cross_entropy",
        "cross_entropy_and_grad",
        "cross_entropy_loss",
        "draft_acceptance",
        "evaluate",
        "kl_divergence",
        "linear_compare",
        "linear_cross_entropy",
        "linear_kl_divergence",
        "linear_token_scores",
        "log_softmax",
        "logsumexp",
        "mismatch",
        "next_token",
        "nll_loss",
        "sequence_losses",
        "show_config",
        "softmax",
        "token_bytes",
        "token_scores",
        "topk_divergence_bound",
        "windows",
    }
    for name in tokenloss.__all__:
        assert hasattr(tokenloss, name)
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", tokenloss.__version__)


@pytest.mark.parametrize("name", tokenloss.__all__)
def test_public_names_hide_no_module_and_pickle(name):
    assert importlib.util.find_spec(f"tokenloss.{name}") is None
    assert pickle.loads(pickle.dumps(getattr(tokenloss, name))) is getattr(tokenloss, name)  # noqa: S301 -- pickled here
