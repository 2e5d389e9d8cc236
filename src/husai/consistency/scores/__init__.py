"""Scores of two SAEs, or of an SAE against the truth, and their registry."""
