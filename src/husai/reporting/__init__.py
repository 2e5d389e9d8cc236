"""The pages that a study writes."""
