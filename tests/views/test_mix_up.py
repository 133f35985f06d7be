import keras
import numpy as np
import pytest
from common import images
from common import to_numpy

from keras_distill import MixUp


def weights(alpha, count=20000):
    layer = MixUp(alpha, seed=4)
    drawn = layer.get_random_transformation(np.zeros((count, 1)))
    return to_numpy(drawn["weight"])


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 3.0, 20.0])
def test_weights_follow_a_symmetric_beta_distribution(alpha):
    values = weights(alpha)
    assert np.all((values >= 0) & (values <= 1))
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)).
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(values.mean() - 0.5) < 0.01
    assert abs(values.var() - variance) < 0.03 * variance + 2e-4
    fourth = np.mean((values - 0.5) ** 4)
    expected = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert abs(fourth - expected) < 0.05 * expected


def test_partners_are_a_permutation():
    drawn = MixUp(seed=1).get_random_transformation(np.zeros((50, 1)))
    partners = to_numpy(drawn["partner"])
    assert sorted(partners) == list(range(50))
    assert list(partners) != list(range(50))


def test_images_and_labels_get_the_same_weights():
    x, _ = images(6, 4)
    labels = np.eye(6, dtype="float32")
    mixed = MixUp(seed=2)({"images": x, "labels": labels}, training=True)
    np.testing.assert_allclose(
        to_numpy(mixed["images"]),
        np.einsum("ij,jhwc->ihwc", to_numpy(mixed["labels"]), x),
        rtol=1e-4,
        atol=1e-3,
    )
    np.testing.assert_allclose(to_numpy(mixed["labels"]).sum(-1), 1, rtol=1e-5)


def test_the_callers_data_is_not_modified():
    x, _ = images(6, 4)
    data = {"images": x.copy(), "labels": np.eye(6)}
    MixUp(seed=2)(data, training=True)
    np.testing.assert_array_equal(data["images"], x)
    np.testing.assert_array_equal(data["labels"], np.eye(6))


def test_draws_differ_between_batches_and_repeat_with_the_seed():
    x, _ = images(6, 4)
    layer = MixUp(seed=9)
    first, second = (to_numpy(layer(x, training=True)) for _ in range(2))
    assert not np.array_equal(first, second)
    again = to_numpy(MixUp(seed=9)(x, training=True))
    np.testing.assert_array_equal(again, first)


def test_integer_images():
    x, _ = images(6, 4, dtype="uint8")
    mixed = MixUp(seed=0)(x, training=True)
    expected = MixUp(seed=0)(x.astype("float32"), training=True)
    np.testing.assert_array_equal(to_numpy(mixed), to_numpy(expected))


def test_without_training_data_is_unchanged():
    x, y = images(6, 4)
    out = MixUp()({"images": x, "labels": y}, training=False)
    np.testing.assert_array_equal(to_numpy(out["images"]), x)
    np.testing.assert_array_equal(to_numpy(out["labels"]), y)


def test_class_indices_are_refused():
    x, y = images(6, 4)
    with pytest.raises(ValueError, match=r"cannot blend class indices.*int32"):
        MixUp()({"images": x, "labels": y}, training=True)


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), None])
def test_alpha_out_of_range(alpha):
    with pytest.raises(
        ValueError, match="`alpha` must be a finite number above"
    ):
        MixUp(alpha)


def test_config_round_trip():
    layer = MixUp(0.3, seed=5, name="mix", dtype="mixed_bfloat16")
    twin = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert twin.get_config() == layer.get_config()
