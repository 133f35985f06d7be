"""Hints: any layers, one forward of each model, projectors on the side."""

import keras
import numpy as np
import pytest
from common import Recorder
from common import cnn
from common import images
from common import mlp
from common import same_weights
from common import to_numpy
from common import vectors
from common import weights_of
from keras import layers

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import Hint
from keras_distill import InceptionCrop
from keras_distill import MixUp


def conv_net(width, size=8, strides=1, name=None, inner=None):
    inputs = keras.Input((size, size, 1))
    x = layers.Conv2D(
        width, 3, strides=strides, padding="same", name="features"
    )(inputs)
    if inner is not None:
        x = inner(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name=name)


def backbone(width):
    """A model nested twice, to be found by a path."""
    inputs = keras.Input((8, 8, 1))
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(width, 3, padding="same", name="conv"),
        ],
        name="stem",
    )
    body = keras.Model(inputs, layers.ReLU()(inner(inputs)), name="body")
    outer = keras.Input((8, 8, 1))
    x = layers.GlobalAveragePooling2D()(body(outer))
    return keras.Model(outer, layers.Dense(5)(x))


class Subclassed(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.conv = layers.Conv2D(width, 3, name="conv")
        self.pool = layers.GlobalAveragePooling2D()
        self.head = layers.Dense(5)

    def call(self, inputs, training=None):
        return self.head(self.pool(self.conv(inputs)))


def distiller_of(student, teacher, hints, learning_rate=0.01, **kwargs):
    distiller = Distiller(
        student=student, teacher=teacher, hints=hints, **kwargs
    )
    distiller.compile(
        keras.optimizers.SGD(learning_rate), loss=FunctionMatching()
    )
    return distiller


def feature(model, name, x):
    return to_numpy(
        keras.Model(model.input, model.get_layer(name).output)(x)
    ).astype("float64")


LOSSES = {
    "mse": ("mse", lambda t, s: ((t - s) ** 2).mean(axis=(1, 2, 3))),
    "cosine": (
        "cosine_similarity",
        lambda t, s: (
            -(t * s).sum(-1)
            / np.linalg.norm(t, axis=-1)
            / np.linalg.norm(s, axis=-1)
        ).mean(axis=(1, 2)),
    ),
    "loss object": (
        keras.losses.MeanAbsoluteError(),
        lambda t, s: abs(t - s).mean(axis=(1, 2, 3)),
    ),
    "function": (
        lambda t, s: keras.ops.max(keras.ops.abs(t - s), axis=-1),
        lambda t, s: abs(t - s).max(-1).mean(axis=(1, 2)),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_hint_loss_is_the_formula(name, weighted):
    loss, formula = LOSSES[name]
    x, _ = images(6)
    x = x / 255
    teacher, student = conv_net(3), conv_net(3)
    weight = np.linspace(0, 2, 6).astype("float32") if weighted else None
    distiller = distiller_of(
        student, teacher, Hint("features", "features", loss=loss, weight=0.5)
    )
    logs = distiller.evaluate(
        x, sample_weight=weight, batch_size=6, verbose=0, return_dict=True
    )
    values = formula(
        feature(teacher, "features", x), feature(student, "features", x)
    )
    expected = 0.5 * np.mean(values * (1 if weight is None else weight))
    np.testing.assert_allclose(logs["hint_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(
        logs["loss"], logs["soft_loss"] + logs["hint_loss"], rtol=1e-5
    )


def test_widths_and_resolutions_may_differ():
    x, y = images(16)
    teacher, student = conv_net(8, strides=1), conv_net(3, strides=2)
    count = len(student.weights)
    distiller = distiller_of(
        student, teacher, [Hint("features", "features")], learning_rate=0.3
    )
    (projector,) = distiller.projectors
    assert projector.kernel.shape == (3, 8)
    before = weights_of(projector)
    history = distiller.fit(x / 255, y, epochs=8, verbose=0).history
    assert history["hint_loss"][-1] < 0.8 * history["hint_loss"][0]
    assert not same_weights(weights_of(projector), before, 1e-4)
    assert len(student.weights) == count
    assert len(distiller.trainable_weights) == (
        len(student.trainable_weights) + 2
    )


@pytest.mark.parametrize("larger", ["teacher", "student"])
def test_the_larger_map_is_averaged_down(larger):
    """A map that is constant in blocks is what the small one has."""
    small = np.random.default_rng(0).normal(size=(2, 4, 4, 3))
    large = small.repeat(4, axis=1).repeat(4, axis=2)
    pair = (large, small) if larger == "teacher" else (small, large)
    values = Hint("a", "b").values(
        *(keras.ops.convert_to_tensor(p, "float32") for p in pair)
    )
    assert values.shape == (2, 4, 4)
    # The triangle filter reaches half a block to each side.
    means = to_numpy(values).mean(axis=(1, 2))
    assert np.all(means < 0.25 * small.var())
    constant = keras.ops.ones((2, 4, 4, 3)), keras.ops.ones((2, 16, 16, 3))
    np.testing.assert_allclose(
        to_numpy(Hint("a", "b").values(*constant)), 0, atol=1e-10
    )


MODELS = {
    "nested": (lambda w: backbone(w), "body/stem/conv"),
    "sequential": (lambda w: cnn(w), "conv"),
    "subclassed": (lambda w: Subclassed(w), "conv"),
    "a nested model itself": (lambda w: backbone(w), "body"),
}


@pytest.mark.parametrize("name", MODELS)
def test_any_layer_of_any_model(name):
    make, path = MODELS[name]
    x, y = images(8)
    x = x / 255
    teacher, student = make(6), make(2)
    teacher(x)
    if name == "sequential":
        teacher_path, path = teacher.layers[0].name, student.layers[0].name
    else:
        teacher_path = path
    distiller = distiller_of(student, teacher, [Hint(teacher_path, path)])
    logs = distiller.fit(x, y, epochs=2, verbose=0).history
    assert np.all(np.isfinite(logs["hint_loss"]))
    assert len(distiller.projectors[0].trainable_weights) == 2
    np.testing.assert_allclose(
        distiller.predict(x, verbose=0),
        to_numpy(student(x)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_one_forward_of_each_model_per_step():
    """A hint of no weight leaves the run exactly as it is without hints."""
    x, y = images(16)
    runs = []
    for hints in ([], [Hint("norm", "norm", weight=0.0)] * 2):
        keras.utils.set_random_seed(0)
        calls = {"teacher": Recorder(lambda t: t), "student": None}
        calls["student"] = Recorder(lambda t: t)
        teacher = conv_net(3, inner=layers.Lambda(calls["teacher"]))
        student = conv_net(3, inner=layers.Lambda(calls["student"]))
        distiller = Distiller(student=student, teacher=teacher, hints=hints)
        distiller.compile("sgd", loss=ClassicKD(), run_eagerly=True)
        distiller.fit(x, y, batch_size=8, verbose=0)  # builds
        counted = {role: call.calls for role, call in calls.items()}
        distiller.fit(x, y, batch_size=8, verbose=0)
        runs.append(weights_of(student))
        # JAX traces shapes of a metric or so, once; a step runs once.
        for role, call in calls.items():
            assert call.calls - counted[role] == 2, role
    assert same_weights(*runs)


def test_several_hints_add_up():
    x, _ = images(8)
    teacher, student = conv_net(3), conv_net(3)
    parts = []
    hints = [Hint("features", "features"), Hint("pool", "pool", weight=2.0)]
    for chosen in ([hints[0]], [hints[1]], hints):
        distiller = distiller_of(student, teacher, chosen)
        logs = distiller.evaluate(x, verbose=0, return_dict=True)
        parts.append(logs["hint_loss"])
    np.testing.assert_allclose(parts[0] + parts[1], parts[2], rtol=1e-5)


def test_layers_are_left_as_they_were():
    x, y = images(8)
    teacher, student = conv_net(4), conv_net(2)
    distiller = distiller_of(student, teacher, [Hint("features", "features")])
    distiller.fit(x, y, verbose=0)
    for model in (teacher, student):
        assert "call" not in vars(model.get_layer("features"))


def test_views_and_precision():
    x, y = images(8, size=12)
    teacher = conv_net(4, size=16)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        student = conv_net(2, size=8)
    finally:
        keras.config.set_dtype_policy("float32")
    distiller = distiller_of(
        student,
        teacher,
        [Hint("features", "features")],
        augment=ConsistentAugment(
            [InceptionCrop(8, 8, teacher_size=16), MixUp()], seed=0
        ),
    )
    logs = distiller.fit(x, y, verbose=0).history
    assert np.isfinite(logs["hint_loss"][0])


def test_saved_distiller_goes_on_with_its_projector(tmp_path):
    x, y = images(8)
    x /= 255.0  # Otherwise the weights become NaN, and NaN equals NaN here.
    teacher, student = conv_net(4), conv_net(2)
    distiller = distiller_of(student, teacher, [Hint("features", "features")])
    distiller.fit(x, y, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    loaded.teacher = teacher
    assert same_weights(
        weights_of(loaded.projectors[0]), weights_of(distiller.projectors[0])
    )
    losses = [
        run.fit(x, y, epochs=2, shuffle=False, verbose=0).history["hint_loss"]
        for run in (distiller, loaded)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    alone = keras.models.load_model(tmp_path / "student.keras")
    assert alone.count_params() == student.count_params()


def test_hint_round_trips_its_config():
    for projector in ("auto", None, layers.Dense(4, name="mine")):
        hint = Hint("a/b", "c", loss="mae", weight=0.3, projector=projector)
        config = keras.saving.serialize_keras_object(hint)
        again = keras.saving.deserialize_keras_object(config)
        assert keras.saving.serialize_keras_object(again) == config


def test_a_projector_of_ones_own():
    x, y = images(8)
    own = keras.Sequential([layers.Dense(6, "relu"), layers.Dense(4)])
    distiller = distiller_of(
        conv_net(2),
        conv_net(4),
        [Hint("features", "features", projector=own)],
    )
    distiller.fit(x, y, verbose=0)
    assert distiller.projectors[0] is own
    with pytest.raises(ValueError, match="feature has 7 channels"):
        distiller_of(
            conv_net(2),
            conv_net(4),
            [Hint("features", "features", projector=layers.Dense(7))],
        )
    with pytest.raises(ValueError, match="same width"):
        distiller_of(
            conv_net(2),
            conv_net(4),
            [Hint("features", "features", projector=None)],
        )


def test_another_teacher_takes_effect():
    x, _ = images(8)
    student, first, second = conv_net(2), conv_net(4), conv_net(4)
    distiller = distiller_of(student, first, [Hint("features", "features")])
    before = distiller.evaluate(x, verbose=0, return_dict=True)["hint_loss"]
    distiller.teacher = second
    after = distiller.evaluate(x, verbose=0, return_dict=True)["hint_loss"]
    assert before != after
    with pytest.raises(ValueError, match="With projector"):
        distiller.teacher = conv_net(7)
    with pytest.raises(ValueError, match=r"does not have.*'features'"):
        distiller.teacher = backbone(4)


def test_a_layer_is_named_by_its_path_or_the_end_of_it():
    x, _ = images(8)
    student, teacher = backbone(2), backbone(2)
    losses = [
        distiller_of(student, teacher, [Hint(name, name)]).evaluate(
            x, verbose=0, return_dict=True
        )["hint_loss"]
        for name in ("body/stem/conv", "stem/conv", "conv")
    ]
    assert losses[0] > 0
    assert losses == [losses[0]] * 3


def shared_layer_net():
    inputs = keras.Input((6,))
    twice = layers.Dense(6, name="twice")
    return keras.Model(inputs, layers.Dense(5)(twice(twice(inputs))))


REFUSED = {
    "no such layer": (
        lambda: (backbone(2), backbone(2), Hint("cnov", "body/stem/conv")),
        r"`teacher_layer`.*'cnov'.*Did you mean \['body/stem/conv'\]",
    ),
    "no such student layer": (
        lambda: (conv_net(2), conv_net(2), Hint("norm", "nrom")),
        "`student_layer`.*'nrom'.*Did you mean.*'norm'",
    ),
    "another rank": (
        lambda: (conv_net(2), conv_net(2), Hint("features", "pool")),
        "same rank",
    ),
    "a layer that runs twice": (
        lambda: (
            shared_layer_net(),
            shared_layer_net(),
            Hint("twice", "twice"),
        ),
        "ran 2 times",
    ),
    "a function as teacher": (
        lambda: (conv_net(2), lambda x: x, Hint("norm", "norm")),
        "one teacher model",
    ),
    "several teachers": (
        lambda: (conv_net(2), [conv_net(2)] * 2, Hint("norm", "norm")),
        "one teacher model",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_hinted_is_refused(name):
    make, message = REFUSED[name]
    student, teacher, hint = make()
    with pytest.raises(ValueError, match=message):
        Distiller(student=student, teacher=teacher, hints=[hint])


def test_bad_hints_are_refused():
    with pytest.raises(ValueError, match="Received: weight=-1"):
        Hint("a", "b", weight=-1)
    with pytest.raises(ValueError, match="teacher_layer"):
        Hint(None, "b")
    with pytest.raises(ValueError, match="projector"):
        Hint("a", "b", projector="dense")
    with pytest.raises(TypeError, match="must be a list of"):
        Distiller(student=mlp(), teacher=mlp(), hints=["dense"])
    x, _ = vectors()
    student, teacher = mlp(), mlp()
    distiller = distiller_of(
        student,
        teacher,
        Hint(
            teacher.layers[0].name,
            student.layers[0].name,
            loss=lambda t, s: keras.ops.mean(t - s),
        ),
    )
    with pytest.raises(ValueError, match="value per sample"):
        distiller.fit(x, verbose=0)
