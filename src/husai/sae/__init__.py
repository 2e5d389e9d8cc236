"""Sparse autoencoders: architectures, the bank that trains many at once, weights on disk."""
