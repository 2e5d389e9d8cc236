"""Activations: extraction by hook name, statistics, and the row store."""
