"""What is kept of an output with many classes."""

import numpy as np
import pytest
from common import to_numpy
from keras import ops

from keras_distill.recording._top_k import most_probable

CLASSES = 300


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("top_k", [1, 7, CLASSES])
def test_against_float64(from_logits, scale, top_k):
    logits = scale * np.random.default_rng(0).normal(size=(4, 3, CLASSES))
    exact = np.exp(logits - logits.max(-1, keepdims=True))
    exact /= exact.sum(-1, keepdims=True)
    outputs = (logits if from_logits else exact).astype("float32")
    found = to_numpy(
        most_probable(ops.convert_to_tensor(outputs), top_k, from_logits)
    )
    ordered = -np.sort(-exact, axis=-1)
    for expected in (
        ordered[..., :top_k],
        np.take_along_axis(exact, found["classes"], -1),
    ):
        np.testing.assert_allclose(
            np.exp(found["log_probs"]), expected, rtol=1e-4, atol=1e-37
        )
    rest = ordered[..., top_k:].sum(-1)
    others = max(CLASSES - top_k, 1)
    np.testing.assert_allclose(
        np.exp(found["log_rest"].astype("float64")) * others,
        rest,
        rtol=1e-3,
        # Of the least probable class that is kept, float32 has seven digits.
        atol=1e-6 * ordered[..., top_k - 1].max() + 1e-28,
    )


def test_classes_of_one_probability_are_counted_once():
    found = to_numpy(most_probable(ops.zeros((2, 10)), 3, True))
    np.testing.assert_allclose(np.exp(found["log_probs"]), 0.1, rtol=1e-6)
    np.testing.assert_allclose(np.exp(found["log_rest"]), 0.1, rtol=1e-6)
