"""The divergences that comparisons have beside KL: means, errors, quantiles, groups, several blocks, files, noise."""

import json
import math
import shutil

import numpy as np
import pytest
from arrays import assert_same_bits, fails
from candidates import Many

from tokenloss import ComparisonMeter, compare, compare_files, kl_divergence, sinks
from tokenloss.page import write_comparison_page

FURTHER = ("reverse_kl", "js", "tv", "hellinger")


def models(rng, shape=(6, 20, 50)):
    base = 3 * rng.standard_normal(shape)
    targets = rng.integers(0, shape[-1], shape[:-1])
    targets[1, 3:] = -100
    return base, base + 0.5 * rng.standard_normal(shape), targets


def test_divergences_of_a_comparison_have_the_figures_that_kl_has(rng):
    base, logits, targets = models(rng)
    segment_ids = np.arange(6)[:, None]
    result = compare(base, logits, targets, segment_ids=segment_ids, divergences=FURTHER)
    plain = compare(base, logits, targets, segment_ids=segment_ids)
    kept, each = result.kept, kl_divergence(base, logits, divergences=FURTHER, reduction="none")
    for name in FURTHER:
        column = result.token_divergences[name]
        assert_same_bits(column, np.where(kept, getattr(each, name), np.nan))
        values, n = np.where(kept, column, 0).sum(-1), kept.sum(-1)
        mean = values.sum() / n.sum()
        stderr = math.sqrt(6 / 5 * ((values - mean * n) ** 2).sum()) / n.sum()
        assert result.divergences[name] == pytest.approx(mean, rel=1e-14)
        assert result.divergences[name].stderr == pytest.approx(stderr, rel=1e-12)
        quantiles = result.divergence_quantiles[name]
        assert quantiles.keys() == result.kl_quantiles.keys()
        np.testing.assert_allclose([*quantiles.values()], np.quantile(column[kept], [*quantiles]), rtol=1e-13)
        table = result.by(targets % 3)
        for group, mean in zip(table["group"], table[name], strict=True):
            assert mean == pytest.approx(column[kept & (targets % 3 == group)].mean(), rel=1e-12)
        assert result.sequences[name][0] == pytest.approx(column[0].mean(), rel=1e-12)
        with fails(KeyError, name, "asked for no others besides 'kl'"):
            plain.divergences[name]
        assert name in result.columns()
        assert name not in plain.columns()
    more = {key for name in FURTHER for key in (f"mean_{name}", f"mean_{name}_stderr", f"{name}_quantiles")}
    assert result.to_dict().keys() - plain.to_dict().keys() == more
    assert {key: value for key, value in result.to_dict().items() if key in ("mean_kl", "kl_quantiles")} == {
        key: plain.to_dict()[key] for key in ("mean_kl", "kl_quantiles")
    }
    assert result != plain


def test_divergences_of_a_meter_are_those_of_all_blocks_together(rng):
    base, logits, targets = models(rng)
    whole = compare(base.reshape(-1, 50), logits.reshape(-1, 50), targets.ravel(), divergences=("tv", "js"))
    meters = [ComparisonMeter(divergences=("js", "tv")) for _ in range(2)]
    for meter, part in zip(meters, (slice(0, 2), slice(2, 6)), strict=True):
        meter.update(base[part], {"q": logits[part], "same": base[part]}, targets[part])
    meters[0].merge(meters[1])
    actual = meters[0].results()
    for name in ("tv", "js"):
        assert_same_bits(actual["q"].token_divergences[name], whole.token_divergences[name])
        assert not actual["same"].token_divergences[name][actual["same"].kept].any()
    assert "mean_tv" in actual.to_dict()["candidates"][0]
    assert actual.difference("same", "q")["figure"].tolist() == ["kl", "loss", "same_top", "js", "tv"]
    assert actual.columns()["mean_tv"].tolist() == [0.0, whole.divergences["tv"]]
    with fails(ValueError, "divergences of other", "('js', 'tv')"):
        meters[0].merge(ComparisonMeter(divergences=("tv",)))
    assert meters[0] != ComparisonMeter(divergences=("tv",))
    assert ComparisonMeter(divergences="tv").result().token_divergences["tv"].size == 0


def test_divergences_of_files_are_those_of_arrays_also_from_a_state(tmp_path):
    many = Many(tmp_path)
    paths = tmp_path / "base", {name: tmp_path / name for name in many.logits}
    tables = [sinks.TokenTable(), sinks.SequenceTable()]
    twin = shutil.copytree(tmp_path / "q8", tmp_path / "twin")
    result = compare_files(*paths, divergences=("tv", "hellinger"), sinks=tables, noise=twin)
    state = tmp_path / "state.jsonl"
    for _ in range(2):
        again = compare_files(*paths, divergences=["hellinger", "kl", "tv"], noise=twin, state=state)
        assert again == result
    expected = many.comparison("q4", divergences=("tv", "hellinger"))
    assert_same_bits(result["q4"].token_divergences["tv"], expected.token_divergences["tv"])
    assert result["q4"].divergences["hellinger"].stderr == expected.divergences["hellinger"].stderr
    assert "divergences=['tv', 'hellinger']" in repr(result["q4"])
    with fails(KeyError, "'js'", "asked for 'tv', 'hellinger' besides"):
        result["q4"].divergences["js"]
    tokens = tables[0].columns()
    assert_same_bits(tokens["tv"][tokens["name"] == "q4"], expected.token_divergences["tv"])
    assert [*tokens][-2:] == ["tv", "hellinger"]
    sequences = tables[1].columns()
    np.testing.assert_allclose(sequences["tv"][sequences["name"] == "q4"], expected.sequences["tv"])
    multiples = next(row for row in result.to_dict()["candidates"] if row["name"] == "q4")["noise_multiples"]
    assert multiples["mean_tv"] == expected.divergences["tv"] / result["q8"].divergences["tv"]
    with fails(ValueError, str(state), "was written with divergences ['tv', 'hellinger']"):
        compare_files(*paths, noise=twin, state=state)


def test_divergences_are_on_the_page_of_a_comparison(tmp_path):
    many = Many(tmp_path)
    result = many.comparison("q4", divergences=("tv",))
    write_comparison_page(tmp_path / "page.html", {"q4": result}, many.targets)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "mean total variation" in text
    assert f"{result.divergences['tv']:.4g}" in text


def test_divergences_are_printed_by_the_command(tmp_path, command):
    many = Many(tmp_path)
    assert "total variation" not in command(*many.argv("q4"))[1]
    status, printed, _ = command(*many.argv("q4"), "--divergences", "tv,js", "--divergences=hellinger")
    assert status == 0
    expected = many.comparison("q4", divergences=("tv",))
    assert f"Mean    total variation  {expected.divergences['tv']:10.6f}" in printed
    assert "Median  Hellinger" in printed
    assert "reverse" not in printed
    printed = command(*many.argv(), "--divergences", "reverse_kl", "--json")[1]
    assert {"mean_reverse_kl", "reverse_kl_quantiles"} <= json.loads(printed)["candidates"][0].keys()
    assert "mean reverse KLD" in command(*many.argv(), "--divergences", "reverse_kl")[1]
    for arguments, words in (
        (("--divergences", "tv,total"), "--divergences is 'total'; it must be some of 'kl'"),
        (("--divergences", "tv", "--definitions", "llama.cpp"), "--divergences is 'tv'; it must be only 'kl'"),
    ):
        status, _, error = command(*many.argv(), *arguments)
        assert status == 2
        assert words in error
