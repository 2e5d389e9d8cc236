"""Tracking of runs and SAEs in MLflow; no other room imports MLflow."""
