"""Candidate examples that a model has written, for people to accept, change or reject."""
