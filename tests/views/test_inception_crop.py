import keras
import numpy as np
import pytest
from common import images
from common import to_numpy
from PIL import Image

from keras_distill import InceptionCrop
from keras_distill.views._images import resample

FULL = [0.0, 0.0, 1.0, 1.0]


def render(image, box, size):
    """Resample one box of one image; takes and returns NumPy arrays."""
    image, box = (keras.ops.convert_to_tensor(v) for v in (image, [box]))
    return to_numpy(resample(image, box, size, "channels_last"))


def draw(count=4000, size=(40, 60), **kwargs):
    """Return many boxes `(top, left, height, width)` in pixels."""
    layer = InceptionCrop(8, 8, seed=3, **kwargs)
    blank = np.zeros((count, *size, 1), "float32")
    boxes = to_numpy(layer.get_random_transformation(blank))["boxes"]
    return boxes * np.array([size[0], size[1], size[0], size[1]])


def test_boxes_lie_inside_and_keep_their_ranges():
    boxes = draw(area_range=(0.05, 1.0), aspect_ratio_range=(3 / 4, 4 / 3))
    top, left, height, width = boxes.T
    assert top.min() >= 0 and left.min() >= 0
    assert (top + height).max() <= 40 + 1e-3
    assert (left + width).max() <= 60 + 1e-3
    area = height * width / (40 * 60)
    assert 0.05 - 1e-4 <= area.min() < 0.06
    # A box of an allowed ratio covers at most 40 * 53.3 of 40 * 60 pixels.
    assert 0.85 < area.max() <= 0.89
    ratio = width / height
    assert ratio.min() >= 3 / 4 - 1e-4 and ratio.max() <= 4 / 3 + 1e-4


def test_aspect_ratio_is_log_uniform():
    _, _, height, width = draw(area_range=(0.05, 0.1)).T
    logs = np.log(width / height) / np.log(4 / 3)
    assert abs(logs.mean()) < 0.05
    assert abs(np.mean(np.abs(logs) < 0.5) - 0.5) < 0.05


def test_area_is_uniform_where_every_box_fits():
    _, _, height, width = draw(area_range=(0.1, 0.5), size=(50, 50)).T
    area = height * width / 2500
    assert abs(area.mean() - 0.3) < 0.01
    assert abs(np.mean(area < 0.2) - 0.25) < 0.03


def test_boxes_differ_within_a_batch_and_between_batches():
    layer = InceptionCrop(8, 8, seed=1)
    blank = np.zeros((4, 16, 16, 1))
    first = to_numpy(layer.get_random_transformation(blank))["boxes"]
    second = to_numpy(layer.get_random_transformation(blank))["boxes"]
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 8
    again = InceptionCrop(8, 8, seed=1).get_random_transformation(blank)
    np.testing.assert_array_equal(to_numpy(again)["boxes"], first)


def test_impossible_boxes_fall_back_to_the_largest_central_one():
    top, left, height, width = draw(8, area_range=(1.0, 1.0)).T
    np.testing.assert_allclose(height, 40, rtol=1e-5)
    np.testing.assert_allclose(width, 40 * 4 / 3, rtol=1e-5)
    np.testing.assert_allclose(left, (60 - 40 * 4 / 3) / 2, rtol=1e-4)
    np.testing.assert_allclose(top, 0, atol=1e-4)


@pytest.mark.parametrize("size", [(12, 20), (5, 7), (64, 48), (20, 32)])
def test_resampling_equals_pillow(size):
    """Pillow's bilinear resize uses antialiasing."""
    x, _ = images(1, 20, 1)
    x = np.concatenate([x, x[:, :, :12]], axis=2)  # 20 x 32
    actual = render(x, FULL, size)[0, :, :, 0]
    picture = Image.fromarray(x[0, :, :, 0])
    expected = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_allclose(actual, np.asarray(expected), atol=2e-3)


def test_an_aligned_box_of_the_same_size_is_a_slice():
    x, _ = images(1, 16, 3)
    actual = render(x, [4 / 16, 2 / 16, 8 / 16, 8 / 16], (8, 8))
    np.testing.assert_allclose(actual, x[:, 4:12, 2:10], atol=1e-3)


def test_constant_images_stay_constant():
    x = np.full((8, 17, 23, 3), 7.0, "float32")
    actual = InceptionCrop(9, 5, seed=0)(x, training=True)
    np.testing.assert_allclose(to_numpy(actual), 7.0, rtol=1e-5)


def test_data_formats_agree():
    x, _ = images(4, 16, 3)
    last = InceptionCrop(8, 6, seed=5)(x, training=True)
    first = InceptionCrop(8, 6, seed=5, data_format="channels_first")(
        x.transpose(0, 3, 1, 2), training=True
    )
    assert first.shape == (4, 3, 8, 6)
    np.testing.assert_allclose(
        to_numpy(first).transpose(0, 2, 3, 1), to_numpy(last), atol=1e-3
    )


def test_integers_and_floats_agree():
    x, _ = images(4, 16, 3, dtype="uint8")
    integer = InceptionCrop(8, 8, seed=5)(x, training=True)
    floating = InceptionCrop(8, 8, seed=5)(x.astype("float32"), training=True)
    np.testing.assert_array_equal(to_numpy(integer), to_numpy(floating))
    assert keras.backend.standardize_dtype(integer.dtype) == "float32"


def test_half_precision_rounds_only_the_result():
    x, _ = images(4, 16, 3)
    full = to_numpy(InceptionCrop(8, 8, seed=5)(x, training=True))
    half = InceptionCrop(8, 8, seed=5, dtype="mixed_bfloat16")(x, training=True)
    assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"
    rounded = to_numpy(keras.ops.cast(half, "float32"))
    np.testing.assert_allclose(rounded, full, rtol=2**-8)


def test_teacher_size_renders_the_same_box():
    x, _ = images(4, 32, 3)
    views = InceptionCrop(8, 8, teacher_size=(16, 16), seed=2)(x, training=True)
    assert views["student"].shape == (4, 8, 8, 3)
    assert views["teacher"].shape == (4, 16, 16, 3)
    alone = InceptionCrop(16, 16, seed=2)(x, training=True)
    np.testing.assert_array_equal(to_numpy(views["teacher"]), to_numpy(alone))


def test_without_training_images_are_unchanged():
    x, _ = images(2, 16, 3)
    np.testing.assert_array_equal(
        to_numpy(InceptionCrop(8, 8)(x, training=False)), x
    )


def test_output_shape():
    layer = InceptionCrop(8, 6, teacher_size=10)
    shapes = layer.compute_output_shape((None, 16, 16, 3))
    assert shapes == {"student": (None, 8, 6, 3), "teacher": (None, 10, 10, 3)}
    first = InceptionCrop(8, 6, data_format="channels_first")
    assert first.compute_output_shape((None, 3, 16, 16)) == (None, 3, 8, 6)


def test_config_round_trip():
    layer = InceptionCrop(8, 6, (0.1, 0.5), (0.5, 2.0), 12, "channels_first", 7)
    twin = InceptionCrop.from_config(layer.get_config())
    assert twin.get_config() == layer.get_config()
    assert twin.teacher_size == (12, 12)


@pytest.mark.parametrize("shape", [(8, 8, 3), (4, 10), (2, 4, 8, 8, 3)])
def test_wrong_rank(shape):
    with pytest.raises(ValueError, match="takes a batch of images of shape"):
        InceptionCrop(4, 4)(np.zeros(shape), training=True)


def test_the_other_data_format():
    with pytest.raises(ValueError, match="look like the other format"):
        InceptionCrop(4, 4)(np.zeros((2, 3, 32, 32)), training=True)


@pytest.mark.parametrize(
    "arguments",
    [
        {"height": 0, "width": 8},
        {"height": 8, "width": 2.5},
        {"height": 8, "width": 8, "area_range": (0, 1)},
        {"height": 8, "width": 8, "area_range": (0.5, 1.5)},
        {"height": 8, "width": 8, "area_range": 0.5},
        {"height": 8, "width": 8, "aspect_ratio_range": (2, 1)},
        {"height": 8, "width": 8, "teacher_size": (1, 2, 3)},
        {"height": 8, "width": 8, "data_format": "nhwc"},
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=r"must be .*Received"):
        InceptionCrop(**arguments)
