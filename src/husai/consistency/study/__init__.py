"""The comparison of a study: records of its SAEs, scored pairs and groups, and its tables."""
