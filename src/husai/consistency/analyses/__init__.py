"""What is beside the scores: ground truth, geometry, symmetries, curves."""
