"""Analyses beside the scores: ground truth, labels, geometry, symmetries, curves, the gate."""
