"""Probabilities of labels: scaling and calibration error against scipy and by hand; scores by the engine's own loss."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.special import softmax as theirs

from rescoldo.evaluation.choices import calibration_error, fit_temperature, negative_log_likelihood, softmax


@pytest.mark.parametrize("sharp", [0.3, 1.0, 4.0])
def test_the_temperature_is_that_of_the_least_loss(sharp: float) -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(400, 4))
    right = np.asarray([rng.choice(4, p=theirs(row)) for row in scores])
    scores = scores * sharp

    def loss(log_t: float) -> float:
        return float(-log_softmax(scores / np.exp(log_t), axis=1)[np.arange(400), right].mean())

    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    found = fit_temperature(scores, right)
    assert found == pytest.approx(float(np.exp(best.x)), rel=1e-3)
    assert found == pytest.approx(sharp, rel=0.25)
    assert negative_log_likelihood(softmax(scores / found), right) == pytest.approx(best.fun, abs=1e-6)
    assert np.allclose(softmax(scores), theirs(scores, axis=1))


def test_calibration_error_by_hand() -> None:
    p = np.asarray([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.35, 0.65]])
    right = np.asarray([0, 1, 1, 1])
    # two decisions at 0.9, one right: gap 0.4; two around 0.625, both right: gap 0.375
    assert calibration_error(p, right) == pytest.approx((2 * 0.4 + 2 * 0.375) / 4)


def test_nothing_to_fit_on() -> None:
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)) == 1.0
