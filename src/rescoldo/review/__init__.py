"""Blind comparison of two answers by people, and review of drafts: on a local page or in the terminal."""
