"""A better prompt instead of other weights: DSPy's optimizers over any model."""
