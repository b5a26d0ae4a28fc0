"""Is the model any good: predictions, scores, paired statistics, the decision."""

from __future__ import annotations

from rescoldo.evaluation.compare import Parts, compare, compare_run
from rescoldo.evaluation.comparison import build_comparison
from rescoldo.evaluation.document import write_document
from rescoldo.evaluation.evaluation import evaluate, evaluate_model
from rescoldo.models.predictor import Prediction, Predictor

__all__ = [
    "Parts",
    "Prediction",
    "Predictor",
    "build_comparison",
    "compare",
    "compare_run",
    "evaluate",
    "evaluate_model",
    "write_document",
]
