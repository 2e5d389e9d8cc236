"""HUSAI: measure which features of sparse autoencoders are found again with another seed."""

__version__ = "0.1.0"
