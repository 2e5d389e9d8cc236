"""One-to-one matching of the rows of two matrices, exact at any size; knows nothing of SAEs."""
