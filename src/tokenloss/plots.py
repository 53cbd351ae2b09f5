"""Plots of losses and of comparisons, by matplotlib."""

from tokenloss._output.calibration_plot import draw_calibration
from tokenloss._output.divergence_plot import draw_candidates, draw_divergences
from tokenloss._output.drawing import check, save
from tokenloss._output.loss_plot import draw_losses

__all__ = ["check", "draw_calibration", "draw_candidates", "draw_divergences", "draw_losses", "save"]
