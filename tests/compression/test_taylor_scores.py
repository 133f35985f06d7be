"""`taylor_scores` against gradients by hand."""

import keras
import numpy as np
import pytest
from common import cnn
from common import images
from common import mlp
from common import to_numpy
from common import vectors
from common import weights_of
from keras import layers

from keras_distill.compression import prune_channels
from keras_distill.compression import taylor_scores

pytestmark = pytest.mark.any_backend

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def test_scores_are_the_squares_of_weight_times_gradient():
    """Of a linear model, whose gradient is known, over two batches."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(6, 3)).astype("float32")
    y = generator.normal(size=(6, 2)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, use_bias=False, name="hidden"),
            layers.Dense(2, use_bias=False, name="last"),
        ]
    )
    first, last = (np.float64(w) for w in model.get_weights())
    expected = np.zeros(4)
    for part in (slice(0, 4), slice(4, 6)):
        error = x[part] @ first @ last - y[part]
        gradient = x[part].T @ (2 * error / error.size) @ last.T
        expected += ((first * gradient) ** 2).sum(axis=0)
    before = weights_of(model)
    scores = taylor_scores(model, x, y, loss="mse", batch_size=4)
    np.testing.assert_allclose(scores["hidden"], expected, rtol=1e-4)
    for one, two in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_the_loss_does_not_need_goes_first():
    """Units with the largest weights, which nobody reads."""
    model, (x, y) = mlp(8), vectors()
    kernel, bias, last, last_bias = model.get_weights()
    kernel[:, ::2] *= 100
    last[::2] = 0
    model.set_weights([kernel, bias, last, last_bias])
    scores = taylor_scores(model, x, y, loss=LOGITS)
    small = prune_channels(model, 0.5, importance=scores)
    np.testing.assert_allclose(
        to_numpy(small(x)), to_numpy(model(x)), rtol=0, atol=1e-4
    )


def test_nested_frozen_and_normalized_layers():
    inner = cnn(4)
    inner.trainable = False
    inputs = keras.Input(inner.input_shape[1:])
    model = keras.Model(inputs, layers.Dense(5, name="head")(inner(inputs)))
    x, y = images()
    before = weights_of(model)
    scores = taylor_scores(model, x, y, loss=LOGITS)
    convolution = inner.layers[0].name
    assert scores[f"{inner.name}/{convolution}"].shape == (4,)
    assert all((values > 0).any() for values in scores.values())
    for one, two in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, two)
    small = prune_channels(model, 0.5, importance=scores)
    assert small.count_params() < model.count_params()


def test_heads_and_recurrent_units():
    """Of a head whose output nobody reads, and of a unit, too."""
    inputs = keras.Input((5, 4))
    x = layers.MultiHeadAttention(3, 2, name="heads")(inputs, inputs)
    lstm = layers.Bidirectional(layers.LSTM(4, name="lstm"), name="both")
    model = keras.Model(inputs, layers.Dense(3)(lstm(x)))
    output = model.get_layer("heads").output_dense.kernel
    kernel = to_numpy(output).copy()
    kernel[1] = 0
    output.assign(kernel)
    last = model.layers[-1].kernel
    kernel = to_numpy(last).copy()
    kernel[[2, 6]] = 0
    last.assign(kernel)
    for layer in (lstm.forward_layer, lstm.backward_layer):
        recurrent = layer.cell.recurrent_kernel
        kernel = to_numpy(recurrent).copy()
        kernel[2] = 0
        recurrent.assign(kernel)
    x = np.random.default_rng(0).normal(size=(16, 5, 4)).astype("float32")
    scores = taylor_scores(model, x, np.arange(16) % 3, loss=LOGITS)
    assert (scores["heads"] == 0).tolist() == [False, True, False]
    unread = [False, False, True, False]
    for direction in ("forward", "backward"):
        assert (scores[f"both/{direction}_lstm"] == 0).tolist() == unread
    exact = {"heads": 0.34, "both/forward_lstm": 0.25}
    small = prune_channels(model, exact, importance=scores)
    np.testing.assert_allclose(
        to_numpy(small(x)), to_numpy(model(x)), rtol=0, atol=1e-6
    )


def test_a_loss_that_is_not_finite_is_refused():
    x, y = vectors()
    x[0] = np.nan
    with pytest.raises(ValueError, match="gives no scores"):
        taylor_scores(mlp(), x, y, loss=LOGITS)
