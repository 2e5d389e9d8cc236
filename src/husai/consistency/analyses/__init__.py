"""Analyses besides the scores: ground truth, labels, geometry, symmetries, curves, the gate."""
