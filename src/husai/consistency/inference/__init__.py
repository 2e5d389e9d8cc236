"""Statistics of scores: nulls, intervals over seeds, tests, and alignments of many seeds."""
