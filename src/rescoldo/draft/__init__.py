"""Candidate examples written by a model, for people to accept, edit or reject."""
