"""Prompt optimization as an alternative to fine-tuning: DSPy's optimizers over any model."""
