"""Plots of losses and of comparisons, by matplotlib."""

from tokenloss._output.plots import check, draw_candidates, draw_divergences, draw_losses, save

__all__ = ["check", "draw_candidates", "draw_divergences", "draw_losses", "save"]
