"""Figures: one function a figure, data in, Figure out."""
