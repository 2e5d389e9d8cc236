"""Engines that train a bank of SAEs: sparse (CPU), cuda (GPU), and dense (torch, the reference)."""
