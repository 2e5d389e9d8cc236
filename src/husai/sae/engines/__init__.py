"""Engines that train a bank of SAEs: dense and sparse."""
