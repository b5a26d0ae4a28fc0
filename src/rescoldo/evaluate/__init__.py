"""Is the model any good: predictions, scores, paired statistics, the decision."""

from __future__ import annotations

from rescoldo.evaluate.before_after import compare_run
from rescoldo.evaluate.comparison import build_comparison
from rescoldo.evaluate.evaluation import evaluate, evaluate_model, write_document
from rescoldo.evaluate.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor", "build_comparison", "compare_run", "evaluate", "evaluate_model", "write_document"]
