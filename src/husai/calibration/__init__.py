"""The planted-truth study: how far scores and gate can be trusted, on data with known features."""
