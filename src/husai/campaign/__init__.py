"""Campaigns of many SAEs: the plan, and what carries it out."""
