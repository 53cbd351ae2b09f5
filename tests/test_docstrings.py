"""Public docstrings: the paragraph about a parameter is the same in all functions that have it."""

from collections import defaultdict

import pytest
from numpydoc.docscrape import ClassDoc, FunctionDoc
from test_docs import MEMBERS, PUBLIC, name_of

# by function, what its docstring says instead of "logits" and "`logits`"
SCORES = {
    "_scores.losses.cross_entropy_loss": ("probabilities", "`y_pred`"),
    "_scores.losses.nll_loss": ("log-probabilities", "`log_probs`"),
    "_scores.linear.linear_cross_entropy": ("hidden states", "`hidden`"),
    "_scores.linear.linear_token_scores": ("hidden states", "`hidden`"),
    "_scores.linear.linear_kl_divergence": ("hidden states", "`hidden`"),
    "_comparison.linear_compare.linear_compare": ("hidden states", "`hidden`"),
}
# by parameter, groups of functions that share a paragraph of their own, since the meaning differs from that elsewhere
VARIANTS = {
    "tokenizer": [{"_evaluation.evaluate.evaluate"}],
    "a": [{"_evaluation.compare_texts.compare_texts"}],
    "b": [{"_evaluation.compare_texts.compare_texts"}],
    "text": [{"_evaluation.compare_texts.compare_texts"}],
    "top": [{"_evaluation.compare_texts.compare_texts"}],
    "**gates": [{"_comparison.comparisons.Comparisons.check"}],
    "array": [
        {"_evaluation.evaluate.evaluate"},
        {"_evaluation.compare_files.compare_files"},
        {"_evaluation.compare_texts.compare_texts"},
    ],
    "axis": [{"_scores.softmax.logsumexp"}, {"_scores.softmax.softmax", "_scores.softmax.log_softmax"}],
    "base_hidden": [{"_evaluation.compare_files.compare_files"}],
    "base_lm_head": [{"_evaluation.compare_files.compare_files"}],
    "base_kind": [{"_evaluation.compare_files.compare_files"}],
    "classes": [{"_comparison.comparison.compare"}],
    "comparisons": [{"_output.divergence_plot.draw_candidates"}],
    "confidence": [{"_comparison.paired.PairedLosses.check"}],
    "base_logits": [{"_comparison.drafts.draft_acceptance"}],
    "cost_ratio": [{"_evaluation.compare_files.compare_files"}],
    "cu_seqlens": [
        {"_comparison.comparison.compare", "_comparison.linear_compare.linear_compare"},
        {"_comparison.drafts.draft_acceptance"},
    ],
    "definitions": [{"_comparison.comparison.compare"}],
    "divergences": [
        {"_comparison.linear_compare.linear_compare"},
        {"_scores.divergence.kl_divergence"},
        {"_scores.linear.linear_kl_divergence"},
    ],
    "hidden": [
        {"_evaluation.evaluate.evaluate"},
        {"_evaluation.compare_files.compare_files"},
        {"_comparison.linear_compare.linear_compare", "_scores.linear.linear_kl_divergence"},
    ],
    "ignore_index": [
        {
            "ComparisonMeter",
            "_comparison.comparison.compare",
            "_comparison.linear_compare.linear_compare",
            "_scores.linear.linear_token_scores",
            "_scores.token_scores.token_scores",
        },
        {
            "_evaluation.evaluate.evaluate",
            "_evaluation.compare_files.compare_files",
            "_evaluation.compare_texts.compare_texts",
        },
    ],
    "kind": [
        {"_evaluation.evaluate.evaluate"},
        {"_scores.token_scores.token_scores"},
        {"_evaluation.compare_files.compare_files"},
        {"_evaluation.compare_texts.compare_texts"},
        {
            "_comparison.comparison_meter.ComparisonMeter.update",
            "_comparison.comparison.compare",
            "_comparison.drafts.draft_acceptance",
            "_scores.divergence.kl_divergence",
        },
    ],
    "lm_head": [
        {"_evaluation.evaluate.evaluate"},
        {"_evaluation.compare_files.compare_files"},
        {"_comparison.linear_compare.linear_compare", "_scores.linear.linear_kl_divergence"},
        {"_scores.linear.linear_cross_entropy", "_scores.linear.linear_token_scores"},
    ],
    "lm_head_bias": [{"_comparison.linear_compare.linear_compare", "_scores.linear.linear_kl_divergence"}],
    "logit_scale": [
        {"_evaluation.evaluate.evaluate", "formats.hidden_states.open_hidden_states"},
        {"_evaluation.compare_files.compare_files"},
        {"_comparison.linear_compare.linear_compare", "_scores.linear.linear_kl_divergence"},
    ],
    "logits": [
        {
            "_comparison.comparison_meter.ComparisonMeter.update",
            "_comparison.comparison.compare",
            "_scores.divergence.kl_divergence",
            "_scores.token_scores.token_scores",
        },
        {"_evaluation.cluster.cross_entropy", "_evaluation.cluster.score"},
        {"_statistics.sequences.next_token"},
        {"_comparison.drafts.draft_acceptance"},
        {"formats.llama_cpp.write"},
    ],
    "n_bytes": [{"_evaluation.evaluate.evaluate"}, {"_statistics.meter.LossMeter.update"}],
    "n_words": [{"_evaluation.evaluate.evaluate"}, {"_statistics.meter.LossMeter.update"}],
    "nll": [{"_statistics.meter.LossMeter.update"}, {"_statistics.sequences.sequence_losses"}],
    "noise": [{"_evaluation.compare_files.compare_files"}],
    "other": [{"_comparison.comparison_meter.ComparisonMeter.merge"}],
    "out": [{"_scores.losses.cross_entropy_and_grad"}, {"_scores.softmax.logsumexp"}],
    "path": [
        {f"sinks.{of}Table" for of in ("Token", "Sequence", "ComparedToken", "ComparedSequence", "Document", "Span")},
        {"formats.readers.open_scores"},
        {"formats.hidden_states.open_hidden_states"},
        {"formats.responses.reader.open_responses"},
        {"_output.drawing.check"},
        {"sinks.Sink"},
    ],
    "reduction": [{"_scores.divergence.kl_divergence", "_scores.linear.linear_kl_divergence"}],
    "sample_weight": [{"_statistics.meter.LossMeter.update"}, {"_statistics.sequences.sequence_losses"}],
    "scheduler": [{"_evaluation.cluster.map_shards"}, {"_evaluation.compare_files.compare_files"}],
    "scores": [{"_output.loss_page.write_page"}, {"_output.divergence_page.write_comparison_page"}],
    "epsilon": [{"_comparison.mismatch.mismatch"}],
    "segment_ids": [
        {"_evaluation.compare_texts.compare_texts"},
        {"_evaluation.evaluate.evaluate"},
        {
            "_comparison.comparison_meter.ComparisonMeter.update",
            "_comparison.comparison.compare",
            "_comparison.mismatch.mismatch",
            "_comparison.linear_compare.linear_compare",
        },
        {"_comparison.drafts.draft_acceptance"},
        {"_evaluation.compare_files.compare_files"},
        {"_output.divergence_plot.draw_divergences"},
        {"_output.loss_plot.draw_losses"},
    ],
    "shift": [{"_evaluation.compare_files.compare_files", "_evaluation.compare_texts.compare_texts"}],
    "sinks": [{"_evaluation.compare_files.compare_files"}, {"_evaluation.compare_texts.compare_texts"}],
    "sizes": [{"_output.divergence_plot.draw_candidates"}],
    "part": [{"_evaluation.compare_files.compare_files"}],
    "skip_failed": [{"_evaluation.compare_files.compare_files"}, {"_evaluation.evaluate.evaluate"}],
    "softcap": [
        {"_evaluation.evaluate.evaluate", "formats.hidden_states.open_hidden_states"},
        {"_evaluation.compare_files.compare_files"},
        {"_comparison.linear_compare.linear_compare", "_scores.linear.linear_kl_divergence"},
    ],
    "targets_array": [
        {"_evaluation.evaluate.evaluate"},
        {"_evaluation.compare_files.compare_files"},
        {"_evaluation.compare_texts.compare_texts"},
    ],
    "progress": [{"_evaluation.evaluate.evaluate"}],
    "state": [{"_evaluation.compare_files.compare_files"}],
    "stride": [{"_statistics.windows.windows"}],
    "targets": [
        {"_evaluation.compare_texts.compare_texts"},
        {"_comparison.comparison_meter.ComparisonMeter.update"},
        {"_comparison.comparison.compare"},
        {"_comparison.linear_compare.linear_compare"},
        {"_scores.linear.linear_cross_entropy"},
        {"_scores.linear.linear_token_scores"},
        {"_scores.token_scores.token_scores"},
        {"_output.loss_page.write_page"},
        {"_output.divergence_page.write_comparison_page"},
        {"_evaluation.evaluate.evaluate"},
        {"_evaluation.compare_files.compare_files"},
    ],
    "temperature": [{"_evaluation.compare_files.compare_files"}],
    "tokens": [{"formats.llama_cpp.write"}, {"_output.divergence_page.write_comparison_page"}],
    "top_k": [{"_evaluation.sink.Sink.open"}, {"sinks.TokenTable"}],
    "vocabulary": [{"_output.divergence_page.write_comparison_page"}],
    "where": [
        {"_statistics.meter.LossMeter.update", "_statistics.sequences.sequence_losses"},
        {"_comparison.mismatch.mismatch"},
        {"_output.divergence_plot.draw_divergences"},
        {"_output.loss_plot.draw_losses"},
    ],
    "workers": [{"_scores.losses.cross_entropy"}, {"_evaluation.cluster.cross_entropy", "_evaluation.cluster.score"}],
}


def paragraphs():
    """By parameter, the functions that have each paragraph about it."""
    found = defaultdict(lambda: defaultdict(set))
    for thing in [*PUBLIC, *MEMBERS]:
        if isinstance(thing, property):
            continue
        function = name_of(thing).removeprefix("tokenloss.")
        if function == "_evaluation.closeness.assert_close":  # which takes arrays, tensors or files
            continue
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
