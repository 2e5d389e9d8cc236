"""Which features come back: matching, scores, nulls and statistics."""
