"""Figures: one function per figure, data in, Figure out."""
