"""Bad input gets a clear error at the earliest moment, and loses nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from common import CLASSES
from common import cnn
from common import images
from common import mlp
from common import same_weights
from common import vectors
from common import weights_of
from keras import layers

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop

pytestmark = pytest.mark.any_backend


def test_unnamed_roles():
    with pytest.raises(TypeError, match="takes 1 positional argument but 3"):
        Distiller(mlp(16), mlp())


@pytest.mark.parametrize("missing", ["student", "teacher"])
def test_a_missing_role(missing):
    roles = {"student": mlp(), "teacher": mlp(16), missing: None}
    with pytest.raises(
        TypeError, match=f"`{missing}` must be a.*Received: None"
    ):
        Distiller(**roles)


def test_identical_roles():
    model = mlp()
    with pytest.raises(ValueError, match=r"must be two models. Received"):
        Distiller(student=model, teacher=model)


def test_swapped_roles():
    with pytest.warns(UserWarning, match="Check that they are not swapped"):
        Distiller(student=mlp(64), teacher=mlp(4))


def test_a_student_that_is_no_model():
    with pytest.raises(TypeError, match=r"`student` must be a keras.Model"):
        Distiller(student=layers.Dense(3), teacher=mlp())


@pytest.mark.parametrize("teacher", [3, "teacher.keras", [mlp, 3]])
def test_a_teacher_that_is_not_callable(teacher):
    with pytest.raises(
        TypeError, match=r"a callable `inputs -> outputs`.*Recei"
    ):
        Distiller(student=mlp(), teacher=teacher)


def test_no_teachers():
    with pytest.raises(ValueError, match="`teacher` is an empty list"):
        Distiller(student=mlp(), teacher=[])


def test_a_teacher_without_weights():
    teacher = keras.Sequential([layers.Dense(CLASSES)], name="blank")
    with pytest.raises(ValueError, match="'blank' is not built"):
        Distiller(student=mlp(), teacher=teacher)


def test_shared_layers():
    teacher = mlp(16)
    inputs = keras.Input((6,))
    student = keras.Model(
        inputs, layers.Dense(CLASSES)(teacher.layers[0](inputs))
    )
    with pytest.raises(ValueError, match=r"2 shared weights, such as .*kernel"):
        Distiller(student=student, teacher=teacher)
    with pytest.raises(ValueError, match="must not share weights with the"):
        Distiller(student=student, teacher=[mlp(8), teacher])


def test_different_class_counts():
    distiller = Distiller(student=mlp(classes=3), teacher=mlp(16, classes=10))
    message = r"teacher predicts 10 classes and the student 3\..*with 10 units"
    with pytest.raises(ValueError, match=message):
        distiller.compile("adam", FunctionMatching())


def test_different_class_counts_of_models_without_a_graph():
    x, _ = vectors()
    distiller = Distiller(student=mlp(), teacher=lambda inputs: inputs)
    distiller.compile("adam")
    with pytest.raises(
        ValueError, match="predicts 6 classes and the student 5"
    ):
        distiller.fit(x, verbose=0)


def test_different_structures():
    inputs = keras.Input((6,))
    two = keras.Model(
        inputs, [layers.Dense(8)(inputs), layers.Dense(8)(inputs)]
    )
    distiller = Distiller(student=mlp(), teacher=two)
    with pytest.raises(ValueError, match="must have the same structure"):
        distiller.compile("adam")


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_where_logits_are_expected(role, activation):
    models = {"student": mlp(), "teacher": mlp(16)}
    units = 4 if role == "student" else 16
    models[role] = mlp(units, activation=activation)
    name = models[role].layers[-1].name
    distiller = Distiller(**models)
    message = rf"the {role} .* layer '{name}' with activation='{activation}'"
    with pytest.raises(ValueError, match=message):
        distiller.compile("adam", FunctionMatching())


def test_logits_where_probabilities_are_expected():
    distiller = Distiller(
        student=mlp(activation="softmax"), teacher=mlp(16, name="big")
    )
    message = r"from_logits=False\) expects probabilities.*'big' ends in"
    with pytest.raises(ValueError, match=message):
        distiller.compile("adam", ClassicKD(from_logits=False))


@pytest.mark.parametrize(
    "ending",
    [
        [layers.Dense(CLASSES), layers.Softmax()],
        [layers.Dense(CLASSES), layers.Activation("softmax")],
        [layers.Dense(CLASSES, "softmax"), layers.Reshape((CLASSES,))],
        [layers.Dense(CLASSES, "softmax"), layers.Activation("linear")],
    ],
)
def test_endings_are_found_behind_other_layers_and_inside_models(ending):
    inner = keras.Sequential([keras.Input((6,)), *ending])
    inputs = keras.Input((6,))
    teacher = keras.Model(inputs, inner(layers.Dense(6)(inputs)))
    distiller = Distiller(student=mlp(2), teacher=teacher)
    with pytest.raises(ValueError, match="activation='softmax'"):
        distiller.compile("adam")


def test_trainable_preprocessing():
    with pytest.raises(
        ValueError, match="`student_preprocessing` must have no"
    ):
        Distiller(student=mlp(), teacher=mlp(16), student_preprocessing=mlp(4))


def test_preprocessing_that_is_not_callable():
    with pytest.raises(
        TypeError, match="`teacher_preprocessing` must be a layer"
    ):
        Distiller(student=mlp(), teacher=mlp(16), teacher_preprocessing=255)


EMPTY = {
    "numpy": lambda: np.zeros((0, 6), "float32"),
    "tf.data": lambda: (
        tf.data.Dataset.from_tensor_slices(vectors()[0]).batch(8).take(0)
    ),
    "filtered": lambda: (
        tf.data.Dataset.from_tensor_slices(vectors()[0])
        .filter(lambda x: x[0] > 100)
        .batch(8)
    ),
}


@pytest.mark.filterwarnings("ignore:.*ran out of data:UserWarning")
@pytest.mark.parametrize("kind", EMPTY)
def test_empty_data(kind):
    distiller = Distiller(student=mlp(), teacher=mlp(16))
    distiller.compile("adam")
    with pytest.raises(ValueError, match="The data has no batches"):
        distiller.fit(EMPTY[kind](), shuffle=False, verbose=0)


def test_missing_labels():
    x, _ = vectors()
    distiller = Distiller(student=mlp(), teacher=mlp(16))
    distiller.compile("adam", ClassicKD(alpha=0.75))
    with pytest.raises(
        ValueError, match=r"alpha=0.75\) compares with labels, and the"
    ):
        distiller.fit(x, verbose=0)
    with pytest.warns(UserWarning, match="but no loss compares with it"):
        distiller.compile("adam", keras.losses.MeanSquaredError())
    with pytest.raises(ValueError, match="compares with labels, and the data"):
        distiller.fit(x, verbose=0)


def test_labels_of_the_wrong_shape():
    x, _ = vectors()
    distiller = Distiller(student=mlp(), teacher=mlp(16))
    distiller.compile("adam", ClassicKD())
    labels = np.zeros((32, 3), "float32")
    with pytest.raises(ValueError, match=r"labels of shape \(.*3\), out"):
        distiller.fit(x, labels, verbose=0)


def tame(x):
    return keras.ops.where(keras.ops.isfinite(x), x, keras.ops.zeros_like(x))


def linear():
    """A teacher that passes NaN on; a ReLU may swallow it."""
    return keras.Sequential([keras.Input((6,)), layers.Dense(CLASSES)])


@pytest.mark.every_backend
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("jit_compile", [False, "auto"])
def test_a_teacher_that_returns_nan(bad, jit_compile):
    x, _ = vectors(32)
    x[20] = bad
    student = mlp(2)
    distiller = Distiller(
        student=student, teacher=linear(), student_preprocessing=tame
    )
    distiller.compile("sgd", jit_compile=jit_compile)
    message = "NaN or infinity for 1 rows of batch 2 of this epoch"
    with pytest.raises(ValueError, match=message):
        distiller.fit(x, batch_size=8, shuffle=False, verbose=0)
    assert all(np.all(np.isfinite(w)) for w in weights_of(student))
    with pytest.raises(ValueError, match=message):
        distiller.evaluate(x, batch_size=8, verbose=0)


def test_the_check_of_the_teacher_can_be_switched_off():
    x, _ = vectors(32)
    x[20] = np.nan
    distiller = Distiller(
        student=mlp(2), teacher=linear(), student_preprocessing=tame
    )
    distiller.compile("sgd", check_values=False)
    history = distiller.fit(x, batch_size=8, shuffle=False, verbose=0).history
    assert np.isnan(history["loss"][-1])


def test_non_images():
    x, _ = vectors()
    augment = ConsistentAugment([InceptionCrop(4, 4)])
    distiller = Distiller(student=mlp(), teacher=mlp(16), augment=augment)
    distiller.compile("adam")
    with pytest.raises(
        ValueError, match="augments batches of images, of rank 4"
    ):
        distiller.fit(x, verbose=0)


def test_an_augmentation_that_can_not_be_consistent():
    with pytest.raises(ValueError, match="cannot be consistent"):
        Distiller(
            student=cnn(), teacher=cnn(4), augment=layers.GaussianNoise(1.0)
        )


def test_a_layer_is_taken_as_augmentation():
    x, y = images()
    flip = layers.RandomFlip("horizontal")
    distiller = Distiller(student=cnn(), teacher=cnn(4), augment=flip)
    distiller.compile("adam", ClassicKD())
    distiller.fit(x, y, verbose=0)
    assert distiller.augment.layers == [flip]


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, 2.0, 3.0], {"x": 1.0}])
def test_loss_weights_of_the_wrong_length(weights):
    distiller = Distiller(student=mlp(), teacher=mlp(16))
    if weights == {"x": 1.0}:
        distiller.compile("adam", FunctionMatching(), loss_weights=weights)
        return  # one loss, one weight
    with pytest.raises(
        ValueError, match="`loss_weights` must have one weight per"
    ):
        distiller.compile("adam", FunctionMatching(), loss_weights=weights)


def test_losses_of_unknown_outputs():
    inputs = keras.Input((6,))

    def heads(units):
        hidden = layers.Dense(units)(inputs)
        return keras.Model(inputs, {"a": layers.Dense(3)(hidden), "b": hidden})

    distiller = Distiller(student=heads(4), teacher=heads(4))
    with pytest.raises(
        ValueError, match=r"does not have: \['c'\]. Its outputs are"
    ):
        distiller.compile("adam", {"a": FunctionMatching(), "c": "mse"})
    with pytest.raises(
        ValueError, match="`loss` has 3 entries and the student 2"
    ):
        distiller.compile("adam", [FunctionMatching()] * 3)


def test_an_ambiguous_loss():
    distiller = Distiller(student=mlp(), teacher=mlp(16))
    with pytest.raises(ValueError, match="does not say which cross-entropy"):
        distiller.compile("adam", "crossentropy")


def test_nothing_is_lost_by_a_failed_fit():
    """The student of before the error is there, on JAX too."""
    x, y = vectors()
    student = mlp()
    distiller = Distiller(student=student, teacher=mlp(16))
    distiller.compile("adam", ClassicKD())
    distiller.fit(x, y, verbose=0)
    before = weights_of(student)
    with pytest.raises(ValueError):
        distiller.fit(x, np.zeros((32, 3), "float32"), verbose=0)
    assert same_weights(weights_of(student), before)
    distiller.fit(x, y, verbose=0)


def test_fitting_before_compiling():
    with pytest.raises(ValueError, match=r"must call `compile\(\)`"):
        Distiller(student=mlp(), teacher=mlp(16)).fit(vectors()[0], verbose=0)
