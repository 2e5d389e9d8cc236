"""One-to-one matching of feature rows, exact at any size; knows nothing of SAEs."""
