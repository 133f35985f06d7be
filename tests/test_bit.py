"""BiT ResNets compute what the published checkpoints were trained to."""

import pathlib

import keras
import numpy as np
import pytest
from common import same_weights
from common import to_numpy
from common import value_and_gradient
from common import weights_of
from keras import layers
from reference import bit as reference

pytestmark = pytest.mark.any_backend

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"
SMALL, CLASSES = (1, 2, 1, 1), 7
ROOT = "resnet/root_block/standardized_conv2d/kernel"


@pytest.fixture
def bit(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import bit

    monkeypatch.setitem(bit.VARIANTS, "small", (SMALL, 1))
    monkeypatch.setitem(bit.VARIANTS, "deeper", ((1, 3, 1, 1), 1))
    return bit


@pytest.fixture(scope="module")
def arrays():
    return reference.random_checkpoint(SMALL, 1, CLASSES)


@pytest.fixture(scope="module")
def path(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("bit") / "small.npz"
    np.savez(path, **arrays)
    return path


def loaded(bit, path, classes=CLASSES):
    model = bit.bit_resnet("small", classes)
    bit.load_checkpoint(model, path)
    return model


def answers(model, x):
    return to_numpy(model(x, training=False))


def error(model, arrays, x):
    """Return the largest difference, relative to the largest logit."""
    expected = reference.logits(arrays, x)
    return np.abs(answers(model, x) - expected).max() / np.abs(expected).max()


def test_logits(bit, arrays, path):
    """At an even and at an odd size, of one and the same model."""
    model = loaded(bit, path)
    for size in (32, 49):
        x = reference.faint_images(size)
        assert error(model, arrays, x) < 2e-5
    first, second = reference.logits(arrays, x)
    assert np.abs(first - second).max() > 0.1


def padded_otherwise(bit, monkeypatch, wrong):
    """Replace each padding by `wrong(padding, name)`, unless it is None."""
    right = layers.ZeroPadding2D
    monkeypatch.setattr(
        bit.layers,
        "ZeroPadding2D",
        lambda padding, name: wrong(padding, name) or right(padding, name=name),
    )


def as_same(bit, monkeypatch):
    """Pad as Keras's "same" does at even sizes: less in front than behind."""
    right = layers.ZeroPadding2D
    strided = "root_block-pad", *(f"block{b}-unit01-b-pad" for b in (2, 3, 4))

    def wrong(padding, name):
        if name in strided:
            return right(((padding - 1, padding),) * 2, name=name)

    padded_otherwise(bit, monkeypatch, wrong)


def without_zeros(bit, monkeypatch):
    """Pad the maximum with values that never win."""

    def wrong(padding, name):
        if name == "root_block-pool_pad":
            sides = ((0, 0), (1, 1), (1, 1), (0, 0))
            return lambda x: keras.ops.pad(x, sides, constant_values=-1e9)

    padded_otherwise(bit, monkeypatch, wrong)


MISTAKES = {
    "Keras's epsilon": lambda b, m: m.setattr(b, "GROUP_EPSILON", 1e-3),
    "timm's epsilon": lambda b, m: m.setattr(b, "KERNEL_EPSILON", 1e-8),
    "same": as_same,
    "maximum without zeros": without_zeros,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_notices(mistake, bit, arrays, path, monkeypatch):
    MISTAKES[mistake](bit, monkeypatch)
    model = loaded(bit, path)
    assert error(model, arrays, reference.faint_images(32)) > 1e-3


def test_parameters(bit, arrays, path):
    model = loaded(bit, path)
    assert model.count_params() == sum(a.size for a in arrays.values())
    # As published for ImageNet's 1,000 classes.
    assert bit.bit_resnet("R50x1", 1000).count_params() == 25_549_352


def test_a_head_of_other_classes_stays_as_it_is(bit, path):
    model = bit.bit_resnet("small", CLASSES + 1)
    assert bit.load_checkpoint(model, path) is False
    x = reference.faint_images(32)
    assert not answers(model, x).any()
    features = bit.bit_resnet("small")
    assert bit.load_checkpoint(features, path) is False
    assert features.output_shape == (None, 2048)
    model = bit.bit_resnet("small", CLASSES)
    assert bit.load_checkpoint(model, path) is True
    np.testing.assert_allclose(
        answers(keras.Model(model.input, model.layers[-2].output), x),
        answers(features, x),
        rtol=1e-5,
    )


def broken(kind, arrays, path):
    """Write a file that is wrong in some way."""
    content = path.read_bytes()
    target = path.with_name("broken.npz")
    if kind == "missing file":
        target.unlink(missing_ok=True)
    elif kind == "text":
        target.write_text("Not found")
    elif kind == "array":
        with target.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "truncated":
        target.write_bytes(content[: len(content) // 2])
    elif kind == "damaged":
        middle = len(content) // 2
        target.write_bytes(content[:middle] + bytes(8) + content[middle + 8 :])
    else:
        arrays = dict(arrays)
        if kind == "missing array":
            del arrays["resnet/block2/unit02/b/group_norm/beta"]
        elif kind == "wrong shape":
            arrays[ROOT] = np.zeros((7, 7, 3, 192), "float32")
        elif kind == "deeper":
            arrays = reference.random_checkpoint((1, 3, 1, 1), 1, CLASSES)
        np.savez(target, **arrays)
    return target


@pytest.mark.parametrize(
    "kind, message",
    {
        "missing file": "There is no file .*broken.npz",
        "text": "broken.npz is no .npz archive",
        "array": "broken.npz is no .npz archive",
        "truncated": "or only a part of one",
        "damaged": "broken.npz is damaged: Bad CRC-32",
        "missing array": r"lacks 1 of \d+ .*resnet/block2/unit02/b/group_norm",
        "wrong shape": rf"for bit_small: {ROOT} .* \(7, 7, 3, 64\)\. "
        r"Received: \(7, 7, 3, 192\)",
        "deeper": "9 arrays more, the first of them resnet/block2/unit03/a/",
    }.items(),
)
def test_wrong_files_change_nothing(kind, message, bit, arrays, path):
    model = bit.bit_resnet("small", CLASSES)
    before = weights_of(model)
    expected = FileNotFoundError if kind == "missing file" else ValueError
    with pytest.raises(expected, match=message):
        bit.load_checkpoint(model, broken(kind, arrays, path))
    assert same_weights(before, weights_of(model))


def test_a_file_of_a_shallower_network(bit, path):
    with pytest.raises(ValueError, match=r"bit_deeper: it lacks 9 of \d+"):
        bit.load_checkpoint(bit.bit_resnet("deeper"), path)


def test_an_unknown_name(bit):
    with pytest.raises(ValueError, match=r"R50x1, .*Received: R50x2"):
        bit.bit_resnet("R50x2")


@pytest.mark.parametrize("brightest", [1, 255])
def test_rescaling(brightest, bit):
    x = np.array([[0.0, 0.5, 1.0]], "float32") * brightest
    actual = to_numpy(bit.rescaling(brightest)(x))
    np.testing.assert_allclose(actual, [[-1, 0, 1]], atol=1e-6)


def test_standardized(bit):
    """Against float64, for kernels far from 0."""
    random = np.random.default_rng(0)
    kernel = random.normal(1.0, 1e-3, (3, 3, 16, 4)).astype("float32")
    exact = kernel.astype("float64")
    exact -= exact.mean((0, 1, 2))
    exact /= np.sqrt((exact**2).mean((0, 1, 2)) + 1e-10)
    actual = to_numpy(bit.standardized(keras.Variable(kernel)))
    np.testing.assert_allclose(actual, exact, atol=1e-3)


def test_the_gradient_of_standardized(bit):
    """Neither shift nor scale of a kernel matters, so neither has a slope."""
    random = np.random.default_rng(0)
    kernel = random.normal(0.2, 0.1, (3, 3, 16, 4)).astype("float32")
    weights = random.normal(size=kernel.shape).astype("float32")

    def weighted(kernel):
        product = keras.ops.multiply(bit.standardized(kernel), weights)
        return keras.ops.sum(product)

    value, gradient = value_and_gradient(weighted, kernel)
    axes = (0, 1, 2)
    size = np.abs(gradient).sum(axes)
    np.testing.assert_allclose(gradient.sum(axes) / size, 0, atol=1e-5)
    slope = (gradient * kernel).sum(axes)
    np.testing.assert_allclose(slope / size, 0, atol=1e-5)
    step = 1e-3 * gradient / size.max()
    risen, _ = value_and_gradient(weighted, kernel + step)
    np.testing.assert_allclose(risen - value, (gradient * step).sum(), rtol=0.1)


def test_mixed_precision(bit):
    """Kernels are standardised before they are rounded."""
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 8, 8, 16)).astype("float32")
    kernel = random.normal(1.0, 1e-3, (3, 3, 16, 4))
    outputs = {}
    for policy in ("float32", "mixed_bfloat16"):
        layer = bit.StandardizedConv2D(4, 3, dtype=policy)
        layer.build(x.shape)
        layer.set_weights([kernel, np.ones(4)])
        output = layer(x)
        assert keras.backend.standardize_dtype(output.dtype) == (
            layer.compute_dtype
        )
        outputs[policy] = to_numpy(keras.ops.cast(output, "float32"))
    scale = np.abs(outputs["float32"]).max()
    np.testing.assert_allclose(*outputs.values(), atol=0.02 * scale)


def test_mixed_precision_gives_float32_logits(bit, arrays, path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = loaded(bit, path)
    x = reference.faint_images(32)
    assert keras.backend.standardize_dtype(model(x).dtype) == "float32"
    assert error(model, arrays, x) < 0.1


@pytest.mark.every_backend
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.*:UserWarning")
def test_training_compiled(bit):
    """A compiled step is the step that runs op by op."""
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    y = np.ones((4, 6, 6, 2), "float32")
    kernels = []
    for jit_compile in (True, False):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((8, 8, 3)), bit.StandardizedConv2D(2, 3)]
        )
        before = weights_of(model)
        model.compile("sgd", "mse", jit_compile=jit_compile)
        model.fit(x, y, verbose=0)
        assert not same_weights(before, weights_of(model))
        kernels.append(weights_of(model))
    assert same_weights(*kernels, tolerance=1e-5)


def test_a_saved_model_loads(bit, path, tmp_path):
    model = loaded(bit, path)
    model.save(tmp_path / "bit.keras")
    again = keras.models.load_model(tmp_path / "bit.keras")
    x = reference.faint_images(32)
    np.testing.assert_array_equal(answers(again, x), answers(model, x))
    np.testing.assert_array_equal(weights_of(again)[0], weights_of(model)[0])
