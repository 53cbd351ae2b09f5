"""Public docstrings: the paragraph about a parameter is the same in all functions that have it."""

from collections import defaultdict

import pytest
from numpydoc.docscrape import ClassDoc, FunctionDoc
from test_docs import MEMBERS, PUBLIC, name_of

# by function, what its docstring says instead of "logits" and "`logits`"
SCORES = {
    "losses.cross_entropy_loss": ("probabilities", "`y_pred`"),
    "losses.nll_loss": ("log-probabilities", "`log_probs`"),
    "linear.linear_cross_entropy": ("hidden states", "`hidden`"),
    "linear.linear_token_scores": ("hidden states", "`hidden`"),
    "linear.linear_kl_divergence": ("hidden states", "`hidden`"),
    "linear.linear_compare": ("hidden states", "`hidden`"),
}
# by parameter, groups of functions that share a paragraph of their own, since the meaning differs from that elsewhere
VARIANTS = {
    "array": [{"evaluation.evaluate"}, {"file_comparison.compare_files"}],
    "axis": [{"_softmax.logsumexp"}, {"_softmax.softmax", "_softmax.log_softmax"}],
    "base": [{"samples.compare_samples"}, {"file_comparison.compare_files"}],
    "base_hidden": [{"file_comparison.compare_files"}],
    "base_kind": [{"file_comparison.compare_files"}],
    "classes": [{"comparison.compare"}],
    "comparisons": [{"plots.draw_candidates"}],
    "cu_seqlens": [{"comparison.compare", "linear.linear_compare"}],
    "definitions": [{"comparison.compare"}],
    "hidden": [
        {"evaluation.evaluate"},
        {"file_comparison.compare_files"},
        {"linear.linear_compare", "linear.linear_kl_divergence"},
    ],
    "ignore_index": [
        {
            "comparison.ComparisonMeter",
            "comparison.compare",
            "linear.linear_compare",
            "linear.linear_token_scores",
            "scores.token_scores",
        },
        {"evaluation.evaluate", "file_comparison.compare_files"},
        {"responses.compare_responses"},
    ],
    "kind": [
        {"evaluation.evaluate"},
        {"scores.token_scores"},
        {"file_comparison.compare_files"},
        {"comparison.ComparisonMeter.update", "comparison.compare", "divergence.kl_divergence"},
    ],
    "lm_head": [{"evaluation.evaluate"}, {"file_comparison.compare_files"}],
    "logit_scale": [
        {"evaluation.evaluate", "formats.open_hidden_states"},
        {"file_comparison.compare_files"},
        {"linear.linear_compare", "linear.linear_kl_divergence"},
    ],
    "logits": [
        {"comparison.ComparisonMeter.update", "comparison.compare", "divergence.kl_divergence", "scores.token_scores"},
        {"dask.cross_entropy", "dask.score"},
        {"sequences.next_token"},
        {"formats.llama_cpp.write"},
    ],
    "n_bytes": [{"evaluation.evaluate"}, {"meter.LossMeter.update"}],
    "n_words": [{"evaluation.evaluate"}, {"meter.LossMeter.update"}],
    "nll": [{"meter.LossMeter.update"}, {"sequences.sequence_losses"}],
    "other": [{"samples.compare_samples"}, {"responses.compare_responses"}],
    "out": [{"losses.cross_entropy_and_grad"}, {"_softmax.logsumexp"}],
    "path": [
        {"formats.open_scores"},
        {"formats.open_hidden_states"},
        {"formats.responses.open_responses"},
        {"plots.check"},
        {"_outputs._base.Sink"},
    ],
    "reduction": [{"divergence.kl_divergence", "linear.linear_kl_divergence"}],
    "sample_weight": [{"meter.LossMeter.update"}, {"sequences.sequence_losses"}],
    "scheduler": [{"dask.map_shards"}, {"file_comparison.compare_files"}],
    "scores": [{"page.write_page"}, {"page.write_comparison_page"}],
    "segment_ids": [
        {"evaluation.evaluate"},
        {"comparison.ComparisonMeter.update", "comparison.compare", "linear.linear_compare"},
        {"responses.compare_responses"},
        {"file_comparison.compare_files"},
        {"plots.draw_divergences"},
        {"plots.draw_losses"},
    ],
    "shift": [{"responses.compare_responses"}, {"file_comparison.compare_files"}],
    "sinks": [{"file_comparison.compare_files"}],
    "sizes": [{"plots.draw_candidates"}],
    "skip_failed": [{"responses.compare_responses"}, {"evaluation.evaluate"}],
    "softcap": [
        {"evaluation.evaluate", "formats.open_hidden_states"},
        {"file_comparison.compare_files"},
        {"linear.linear_compare", "linear.linear_kl_divergence"},
    ],
    "state": [{"file_comparison.compare_files"}],
    "targets": [
        {"comparison.ComparisonMeter.update", "comparison.compare", "scores.token_scores"},
        {"linear.linear_cross_entropy"},
        {"linear.linear_compare", "linear.linear_token_scores"},
        {"page.write_page"},
        {"page.write_comparison_page"},
        {"evaluation.evaluate"},
        {"responses.compare_responses"},
        {"file_comparison.compare_files"},
    ],
    "tokens": [{"formats.llama_cpp.write"}, {"page.write_comparison_page"}],
    "top_k": [{"_outputs._base.Sink.open"}],
    "vocabulary": [{"page.write_comparison_page"}],
    "weight": [{"linear.linear_compare", "linear.linear_kl_divergence"}],
    "where": [
        {"meter.LossMeter.update", "sequences.sequence_losses"},
        {"plots.draw_divergences"},
        {"plots.draw_losses"},
    ],
    "workers": [{"losses.cross_entropy"}, {"dask.cross_entropy", "dask.score"}],
}


def paragraphs():
    """By parameter, the functions that have each paragraph about it."""
    found = defaultdict(lambda: defaultdict(set))
    for thing in [*PUBLIC, *MEMBERS]:
        if isinstance(thing, property):
            continue
        function = name_of(thing).removeprefix("tokenloss.")
        document = ClassDoc(thing) if isinstance(thing, type) else FunctionDoc(thing)
        noun, name = SCORES.get(function, ("logits", "`logits`"))
        for entry in document["Parameters"]:
            text = " ".join(entry.desc).replace(name, "`logits`").replace(f"their {noun} ", "their logits ")
            for parameter in entry.name.split(", "):
                found[parameter][text.replace(f"the {noun} of", "the logits of")].add(function)
    return found


PARAGRAPHS = paragraphs()


def test_variants_are_of_parameters():
    assert VARIANTS.keys() <= PARAGRAPHS.keys()


@pytest.mark.parametrize("parameter", PARAGRAPHS)
def test_paragraph_about_a_parameter_is_the_same_everywhere(parameter):
    functions = set().union(*PARAGRAPHS[parameter].values())
    variants = VARIANTS.get(parameter, [])
    groups = [*variants, functions.difference(*variants)]
    assert sorted(map(sorted, PARAGRAPHS[parameter].values())) == sorted(sorted(group) for group in groups if group)
