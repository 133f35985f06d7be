"""The checklist that every loss passes, in the same order for each."""

import inspect

import keras
import numpy as np
import pytest
from common import CLASSES
from common import mlp
from common import to_numpy
from common import value_and_gradient
from common import vectors
from reference import losses as reference

from keras_distill import DIST
from keras_distill import BinaryKD
from keras_distill import ClassicKD
from keras_distill import DecoupledKD
from keras_distill import DistillationLoss
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import ValueMatching

TEACHER = np.array([[2.0, 0.0], [0.0, 0.0]], "float32")
STUDENT = np.array([[0.0, 0.0], [0.0, 4.0]], "float32")
Y_TRUE = {
    "labels": np.array([[1.0, 0.0], [1.0, 0.0]], "float32"),
    "teacher": TEACHER,
}
LOSSES = [
    ClassicKD(alpha=0.4, temperature=3.0),
    ClassicKD(0.4, 3.0, standardize_logits=True, name="standardized_kd"),
    FunctionMatching(2.5),
    FunctionMatching(2.5, standardize_logits=True, name="standardized"),
    FunctionMatching(2.5, divergence="reverse", name="reverse"),
    FunctionMatching(
        2.5, divergence="jensen_shannon", beta=0.3, name="jensen_shannon"
    ),
    DIST(0.5, 2.0, label_weight=0.7, temperature=3.0),
    DecoupledKD(0.5, 2.0, label_weight=0.7, temperature=3.0),
    BinaryKD(0.4, 3.0),
    ValueMatching("huber", 0.4),
    ValueMatching("cosine", 0.4, name="cosine_matching"),
]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda o: o.name)
each_softmax_loss = pytest.mark.parametrize(
    "loss",
    [loss for loss in LOSSES if loss.predicts == "classes"],
    ids=lambda o: o.name,
)


def test_function_matching_by_hand():
    # p = (0.8808, 0.1192) against q = (0.5, 0.5); p = (0.5, 0.5) against
    # q = (0.01799, 0.98201).
    first = 0.880797 * np.log(0.880797 / 0.5) + 0.119203 * np.log(
        0.119203 / 0.5
    )
    second = 0.5 * np.log(0.5 / 0.017986) + 0.5 * np.log(0.5 / 0.982014)
    actual = FunctionMatching(reduction="none")(TEACHER, STUDENT)
    np.testing.assert_allclose(to_numpy(actual), [first, second], rtol=1e-4)


def test_classic_kd_by_hand():
    # At T=2 the first teacher is (0.7311, 0.2689), the student (0.5, 0.5).
    soft = 4 * np.log(2)
    hard = np.log(2)
    actual = ClassicKD(0.3, 2.0, reduction="none")(Y_TRUE, STUDENT)
    np.testing.assert_allclose(
        to_numpy(actual)[0], 0.3 * soft + 0.7 * hard, rtol=1e-5
    )


def test_standardized_logits_by_hand():
    # z-scores: sqrt(3/2) (-1, 0, 1) against sqrt(1/2) (-1, -1, 2), at T = 2.
    teacher = np.array([[10.0, 20.0, 30.0]], "float32")
    student = np.array([[0.0, 0.0, 3.0]], "float32")
    p = np.exp(np.sqrt(1.5) * np.array([-0.5, 0.0, 0.5]))
    q = np.exp(np.sqrt(0.5) * np.array([-0.5, -0.5, 1.0]))
    p, q = p / p.sum(), q / q.sum()
    expected = 4 * np.sum(p * np.log(p / q))
    actual = FunctionMatching(2.0, standardize_logits=True)(teacher, student)
    np.testing.assert_allclose(float(actual), expected, rtol=1e-5)
    # Labels are compared with the raw logits: q = (1, 1, e^3) / (2 + e^3).
    soft = 4 * -np.sum(p * np.log(q))
    hard = np.log(2 + np.exp(3))
    loss = ClassicKD(0.3, 2.0, standardize_logits=True)
    actual = loss({"labels": np.array([0]), "teacher": teacher}, student)
    np.testing.assert_allclose(
        float(actual), 0.3 * soft + 0.7 * hard, rtol=1e-5
    )


PROBABILITIES = {
    "labels": np.array([0, 1]),
    "teacher": np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]], "float32"),
}
PREDICTED = np.array([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4]], "float32")


def test_dist_by_hand():
    # Over the classes, minus their mean 1/3: 0.096667 / sqrt(0.126667 *
    # 0.086667) and -0.003333 / sqrt(0.046667 * 0.006667). Over two samples a
    # correlation is 1 or -1: both models go down, up against down, both up.
    inter = np.array([1 - 0.922606, 1 + 0.188982])
    intra = (0 + 2 + 0) / 3
    label = -np.log([0.5, 0.3])
    loss = DIST(0.5, 2.0, label_weight=0.7, from_logits=False, reduction="none")
    np.testing.assert_allclose(
        to_numpy(loss(PROBABILITIES, PREDICTED)),
        0.5 * inter + 2.0 * intra + 0.7 * label,
        rtol=1e-5,
    )


def test_decoupled_kd_by_hand():
    # Of the second sample: the target has 0.5 against 0.3, and the others
    # are (0.4, 0.6) against (3/7, 4/7).
    target = 0.5 * np.log(0.5 / 0.3) + 0.5 * np.log(0.5 / 0.7)
    others = 0.4 * np.log(0.4 * 7 / 3) + 0.6 * np.log(0.6 * 7 / 4)
    label = -np.log(0.3)
    loss = DecoupledKD(
        0.5,
        2.0,
        label_weight=0.7,
        temperature=1.0,
        from_logits=False,
        reduction="none",
    )
    np.testing.assert_allclose(
        to_numpy(loss(PROBABILITIES, PREDICTED))[1],
        0.5 * target + 2.0 * others + 0.7 * label,
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "at",
    [
        lambda t: ClassicKD(1.0, t),
        lambda t: FunctionMatching(t),
        lambda t: DIST(0.5, 2.0, label_weight=0.0, temperature=t),
        lambda t: DecoupledKD(0.5, 2.0, label_weight=0.0, temperature=t),
    ],
)
def test_temperature_divides_the_logits(at):
    twice = {**Y_TRUE, "teacher": 2.5 * TEACHER}
    np.testing.assert_allclose(
        float(at(2.5)(twice, 2.5 * STUDENT)),
        2.5**2 * float(at(1.0)(Y_TRUE, STUDENT)),
        rtol=1e-5,
    )


@each_loss
def test_dict_and_tensor_targets(loss):
    value = float(loss(Y_TRUE, STUDENT))
    assert np.isfinite(value)
    if isinstance(loss, FunctionMatching):
        assert float(loss(TEACHER, STUDENT)) == value


@each_loss
def test_reductions_agree(loss):
    config = loss.get_config()
    rows = type(loss)(**{**config, "reduction": "none"})(Y_TRUE, STUDENT)
    total = type(loss)(**{**config, "reduction": "sum"})(Y_TRUE, STUDENT)
    rows = to_numpy(rows)
    assert rows.shape == (2,)
    np.testing.assert_allclose(float(total), rows.sum(), rtol=1e-6)
    np.testing.assert_allclose(
        float(loss(Y_TRUE, STUDENT)), rows.mean(), rtol=1e-6
    )


@each_loss
def test_sample_weight_applies_to_every_part(loss):
    if isinstance(loss, DIST):  # It correlates over the batch; see below.
        loss = DIST(**{**loss.get_config(), "intra_weight": 0.0})
    alone = float(loss({k: v[:1] for k, v in Y_TRUE.items()}, STUDENT[:1]))
    weighted = float(loss(Y_TRUE, STUDENT, sample_weight=np.array([1.0, 0.0])))
    np.testing.assert_allclose(weighted, alone / 2, rtol=1e-6)


def batch_of(rows, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(2, rows, 3)).astype("float32")


@pytest.mark.parametrize("shape", [(7,), (7, 1)])
def test_samples_count_by_weight_in_the_batch_of_dist(shape):
    loss = DIST(inter_weight=0.0, label_weight=0.0, reduction="none")
    teacher, student = batch_of(7)
    weights = np.array([1.0, 0.5, 0.0, 2.0, 0.25, 0.0, 1.0], "float32")
    columns = [
        np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        for z in (np.float64(teacher), np.float64(student))
    ]
    expected = np.mean(
        [
            1
            - reference.weighted_correlation(
                weights, columns[0][:, k], columns[1][:, k]
            )
            for k in range(3)
        ]
    )
    # Padding may contain any values.
    teacher[2], student[5] = 1e30, np.nan
    for y_true in (teacher, {"teacher": teacher}):
        values = loss(y_true, student, sample_weight=weights.reshape(shape))
        counted = to_numpy(values).reshape(-1)[weights > 0]
        np.testing.assert_allclose(
            counted, expected * weights[weights > 0], rtol=1e-5
        )


def test_padding_is_left_out_of_the_batch_of_dist():
    teacher, student = batch_of(12)
    mask = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], "bool")
    loss = DIST(0.5, 2.0, label_weight=0.0)
    rows = mask.reshape(-1)
    expected = float(loss(teacher[rows], student[rows]))
    teacher[~rows] = 50.0
    y_true = {"teacher": teacher.reshape(4, 3, 3), "sample_weight": mask * 1.0}
    _, gradient = value_and_gradient(
        lambda s: keras.ops.sum(loss.parts()["intra_loss"][1](y_true, s)),
        student.reshape(4, 3, 3),
    )
    assert not np.any(gradient[~mask])
    value = sum(
        weight * np.mean(to_numpy(part(y_true, student.reshape(4, 3, 3)))[mask])
        for weight, part in loss.parts().values()
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_batch_of_padding_alone_has_no_intra_loss():
    teacher, student = batch_of(4)
    y_true = {"teacher": teacher, "sample_weight": np.zeros(4, "float32")}
    loss = DIST(0.0, 1.0, label_weight=0.0)
    value, gradient = value_and_gradient(lambda s: loss(y_true, s), student)
    assert value == 0 and not np.any(gradient)


@each_loss
def test_half_precision_outputs_are_computed_in_float32(loss):
    half = keras.ops.cast(STUDENT * 1000, "float16")
    value = loss({**Y_TRUE, "teacher": TEACHER * 1000}, half)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert np.isfinite(float(value))


@each_loss
def test_dense_predictions(loss):
    """Segmentation: one distribution per place."""
    generator = np.random.default_rng(0)
    y_true = {
        "labels": np.eye(3)[generator.integers(0, 3, size=(2, 4, 4))],
        "teacher": generator.normal(size=(2, 4, 4, 3)).astype("float32"),
    }
    student = generator.normal(size=(2, 4, 4, 3)).astype("float32")
    rows = type(loss)(**{**loss.get_config(), "reduction": "none"})
    assert rows(y_true, student).shape == (2, 4, 4)


def test_the_batch_of_dist_is_all_leading_dimensions():
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(size=(2, 2, 4, 3)).astype("float32")
    loss = DIST(label_weight=0.0)
    np.testing.assert_allclose(
        float(loss(teacher, student)),
        float(loss(teacher.reshape(8, 3), student.reshape(8, 3))),
        rtol=1e-6,
    )


@each_loss
def test_config_round_trip_keeps_everything(loss):
    config = {**loss.get_config(), "dtype": "float64"}
    assert set(config) == set(inspect.signature(type(loss)).parameters)
    twin = type(loss).from_config(config)
    assert twin.get_config() == config
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert restored.get_config() == loss.get_config()
    assert float(restored(Y_TRUE, STUDENT)) == float(loss(Y_TRUE, STUDENT))


@pytest.mark.parametrize("kind", [ClassicKD, DIST, DecoupledKD])
def test_label_loss_round_trip(kind):
    loss = kind(
        label_loss=keras.losses.CategoricalCrossentropy(from_logits=True)
    )
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    y_true = {**Y_TRUE, "labels": np.eye(2)}
    assert float(restored(y_true, STUDENT)) == float(loss(y_true, STUDENT))


@pytest.mark.parametrize("labels", [[0, 1], [[0], [1]], [[1, 0], [0, 1]]])
@pytest.mark.parametrize("kind", [ClassicKD, DIST, DecoupledKD])
def test_labels_in_every_shape_mean_the_same(kind, labels):
    loss = kind()
    expected = loss({**Y_TRUE, "labels": np.array([0, 1])}, STUDENT)
    actual = loss({**Y_TRUE, "labels": np.array(labels)}, STUDENT)
    np.testing.assert_allclose(float(actual), float(expected), rtol=1e-6)


NO_TARGET = {
    "one-hot": np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0]], "float32"),
    "index": np.array([1, -1, 0]),
    "void": np.array([[1], [255], [0]]),
    "float": np.array([1.0, 3.0, 0.0]),
}


@pytest.mark.parametrize("labels", NO_TARGET)
def test_samples_without_a_target_class_are_left_out(labels):
    teacher, student = batch_of(3)
    labels, loss = NO_TARGET[labels], DecoupledKD(reduction="sum")
    value, gradient = value_and_gradient(
        lambda s: loss({"labels": labels, "teacher": teacher}, s), student
    )
    rows = [0, 2]
    expected, slopes = value_and_gradient(
        lambda s: loss({"labels": labels[rows], "teacher": teacher[rows]}, s),
        student[rows],
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[rows], slopes, rtol=1e-5, atol=1e-6)
    assert not np.any(gradient[1])


def test_the_largest_of_mixed_labels_is_the_target():
    loss = DecoupledKD(label_weight=0.0, from_logits=False)
    mixed = np.array([[0.7, 0.3, 0.0], [0.1, 0.5, 0.4]])
    np.testing.assert_allclose(
        float(loss({**PROBABILITIES, "labels": mixed}, PREDICTED)),
        float(loss(PROBABILITIES, PREDICTED)),
        rtol=1e-6,
    )


@each_loss
def test_fit_in_a_distiller(loss):
    """The logged parts add up, also with a smaller last batch."""
    x, y = vectors(40)
    y = keras.utils.to_categorical(y, CLASSES)
    distiller = Distiller(student=mlp(8), teacher=mlp(16))
    distiller.compile(keras.optimizers.Adam(0.02), loss)
    history = distiller.fit(
        x, y, batch_size=16, epochs=10, shuffle=False, verbose=0
    ).history
    assert history["loss"][-1] < 0.98 * history["loss"][0]
    total = sum(
        weight * np.array(history[name])
        for name, (weight, _) in loss.parts().items()
    )
    np.testing.assert_allclose(history["loss"], total, rtol=1e-5)


def test_fit_without_labels():
    x, _ = vectors()
    distiller = Distiller(student=mlp(8), teacher=mlp(16))
    distiller.compile("adam", DIST(label_weight=0.0))
    history = distiller.fit(x, verbose=0).history
    assert set(history) == {"loss", "inter_loss", "intra_loss"}


def test_fit_with_labels_that_only_define_the_target():
    x, y = vectors()
    distiller = Distiller(student=mlp(8), teacher=mlp(16))
    loss = DecoupledKD(label_weight=0.0)
    assert loss.uses_labels
    distiller.compile("adam", loss)
    history = distiller.fit(x, y, verbose=0).history
    assert set(history) == {"loss", "target_loss", "non_target_loss"}


def test_parts_of_no_weight_are_not_computed():
    assert set(DIST(0.0, 1.0, label_weight=0.0).parts()) == {"intra_loss"}
    assert set(DecoupledKD(1.0, 0.0, label_weight=0.0).parts()) == {
        "target_loss"
    }
    broken = {"labels": Y_TRUE["labels"], "teacher": np.full((2, 2), np.nan)}
    assert np.isfinite(float(DIST(0.0, 0.0)(broken, STUDENT)))
    assert np.isfinite(float(DecoupledKD(0.0, 0.0)(broken, STUDENT)))


def test_student_trains_on_stored_teacher_outputs():
    x, _ = vectors()
    teacher, student = mlp(16), mlp(8)
    student.compile(keras.optimizers.Adam(0.02), FunctionMatching())
    answers = teacher.predict(x, verbose=0)
    losses = student.fit(x, answers, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


@keras.saving.register_keras_serializable(package="test")
class LogitDistance(DistillationLoss):
    def call(self, y_true, y_pred):
        teacher, student = self.logits(y_true, y_pred)
        return keras.ops.mean(keras.ops.square(teacher - student), axis=-1)


def test_custom_loss():
    value = LogitDistance()({"teacher": TEACHER}, STUDENT)
    np.testing.assert_allclose(float(value), (2.0 + 8.0) / 2)


@pytest.mark.parametrize(
    "temperature", [0, -1, float("nan"), float("inf"), "4"]
)
@pytest.mark.parametrize(
    "loss", [ClassicKD, FunctionMatching, DIST, DecoupledKD, BinaryKD]
)
def test_temperature_out_of_range(loss, temperature):
    with pytest.raises(
        ValueError, match="`temperature` must be a finite number"
    ):
        loss(temperature=temperature)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), None, True])
@pytest.mark.parametrize("loss", [ClassicKD, BinaryKD, ValueMatching])
def test_alpha_out_of_range(loss, alpha):
    with pytest.raises(
        ValueError, match="`alpha` must be a number from 0 to 1"
    ):
        loss(alpha=alpha)


@pytest.mark.parametrize("beta", [0, 1, -0.1, 2.0, float("nan"), "0.5", None])
def test_beta_out_of_range(beta):
    with pytest.raises(ValueError, match="`beta` must be a number between 0"):
        FunctionMatching(divergence="jensen_shannon", beta=beta)


@pytest.mark.parametrize("divergence", ["kl", "Forward", None, 1])
def test_unknown_divergence(divergence):
    with pytest.raises(ValueError, match="must be 'forward', 'reverse' or"):
        FunctionMatching(divergence=divergence)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "1", None])
@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (DIST, "inter_weight"),
        (DIST, "intra_weight"),
        (DIST, "label_weight"),
        (DecoupledKD, "target_weight"),
        (DecoupledKD, "non_target_weight"),
        (DecoupledKD, "label_weight"),
    ],
)
def test_weight_out_of_range(loss, name, value):
    message = f"`{name}` must be a finite number of at least 0. Received"
    with pytest.raises(ValueError, match=message):
        loss(**{name: value})


@pytest.mark.parametrize("loss", [DIST, DecoupledKD])
def test_all_weights_zero(loss):
    message = rf"one weight of {loss.__name__} must be above 0.*label_weight=0"
    with pytest.raises(ValueError, match=message):
        loss(0, 0, label_weight=0)


@pytest.mark.parametrize(
    "loss", [ClassicKD(), DIST(), DecoupledKD(), DecoupledKD(label_weight=0)]
)
def test_labels_of_the_wrong_shape(loss):
    with pytest.raises(ValueError, match=r"Received: labels of shape \(2, 3\)"):
        loss({**Y_TRUE, "labels": np.zeros((2, 3))}, STUDENT)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            ClassicKD(alpha=0.9),
            r"ClassicKD\(alpha=0.9\) compares with labels.*use `alpha=1`",
        ),
        (
            DIST(label_weight=0.5),
            r"DIST\(label_weight=0.5\) compares with.*use `label_weight=0`",
        ),
        (
            DecoupledKD(label_weight=0),
            r"requires labels to know the target class.*use `FunctionMatching",
        ),
    ],
)
def test_missing_labels(loss, message):
    with pytest.raises(ValueError, match=message):
        loss({"teacher": TEACHER}, STUDENT)


@pytest.mark.parametrize("loss", [ClassicKD(1.0), DIST(label_weight=0)])
def test_no_weight_on_the_labels_requires_no_labels(loss):
    assert np.isfinite(float(loss({"teacher": TEACHER}, STUDENT)))


@each_softmax_loss
def test_different_class_counts(loss):
    message = r"teacher predicts 3 classes and the student 2.*2 units|3 units"
    y_true = {**Y_TRUE, "teacher": np.zeros((2, 3), "float32")}
    with pytest.raises(ValueError, match=message):
        loss(y_true, STUDENT)


@each_loss
def test_different_ranks(loss):
    y_true = {**Y_TRUE, "teacher": np.zeros((2, 3, 2), "float32")}
    with pytest.raises(ValueError, match="must have the same rank"):
        loss(y_true, STUDENT)


@each_softmax_loss
def test_a_single_class(loss):
    one = np.zeros((4, 1), "float32")
    with pytest.raises(ValueError, match="A softmax over a single class"):
        loss({"labels": np.zeros(4), "teacher": one}, one)


@pytest.mark.parametrize(
    ("loss", "names"),
    [
        (ClassicKD, "temperature alpha from_logits standardize_logits"),
        (FunctionMatching, "temperature standardize_logits divergence beta"),
        (BinaryKD, "alpha temperature from_logits label_loss"),
        (ValueMatching, "distance alpha label_loss"),
        (DIST, "inter_weight intra_weight label_weight label_loss"),
        (DecoupledKD, "target_weight non_target_weight label_weight"),
    ],
)
def test_arguments_are_fixed(loss, names):
    for name in names.split():
        message = f"`{name}` of a {loss.__name__} cannot change"
        with pytest.raises(AttributeError, match=message):
            setattr(loss(), name, 0.5)
