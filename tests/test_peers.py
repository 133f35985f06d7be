"""What goes wrong in other distillers, row by row, and the test that guards it.

Each row was seen by running the distiller that is built into Keras 3.15.
"""

import pathlib

import keras
import numpy as np
import pytest
from common import cnn
from common import images
from common import mlp
from common import to_numpy
from common import vectors

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching

pytestmark = pytest.mark.any_backend

GUARDS = {
    "the default loss takes KL of raw logits, and the student ends at chance": (
        "test_invariants.py::test_the_default_loss_teaches"
    ),
    "KL through clipping gives a confidently wrong student no gradient": (
        "losses/test_identities.py::"
        "test_a_confidently_wrong_student_gets_the_full_gradient"
    ),
    "gradients at logit scale 20 are 98 % off": (
        "losses/test_against_float64.py::test_function_matching_gradient"
    ),
    "teacher logits are taken as probabilities": (
        "test_peers.py::test_teacher_logits_are_normalised"
    ),
    "models that end in softmax are softened twice": (
        "test_bad_input.py::test_probabilities_where_logits_are_expected"
    ),
    "the student runs twice per step": (
        "test_invariants.py::test_one_forward_of_the_student_per_step"
    ),
    "BatchNorm statistics move twice": (
        "test_peers.py::test_batch_normalisation_moves_once_per_step"
    ),
    "evaluate changes BatchNorm statistics": (
        "test_invariants.py::test_evaluate_changes_no_variable_and_repeats_itself"
    ),
    "sample and class weights are ignored": (
        "test_data_and_steps.py::"
        "test_sample_weight_and_class_weight_weigh_every_part"
    ),
    "the student's regularisers are ignored": (
        "test_models_and_outputs.py::"
        "test_regularisers_and_batch_normalisation_count"
    ),
    "models of different input size are refused": (
        "test_models_and_outputs.py::test_resolution_of_its_own"
    ),
    "a float32 teacher and a bfloat16 student are refused": (
        "test_data_and_steps.py::test_mixed_precision"
    ),
    "fit without labels fails": (
        "test_data_and_steps.py::test_unlabelled_data_of_every_form"
    ),
    "dict outputs and metrics fail": (
        "test_models_and_outputs.py::test_several_heads_with_their_own_losses"
    ),
    "features of different width are refused": (
        "test_hints.py::test_widths_and_resolutions_may_differ"
    ),
    "a layer inside a nested backbone can't be named": (
        "test_hints.py::test_any_layer_of_any_model"
    ),
    "feature distillation runs the student twice": (
        "test_hints.py::test_one_forward_of_each_model_per_step"
    ),
    "a list of teachers is refused": (
        "test_models_and_outputs.py::test_ensembles_average_probabilities"
    ),
    "a callable is refused": (
        "test_models_and_outputs.py::test_callable_teacher"
    ),
    "the caller's teacher is left frozen": (
        "test_invariants.py::test_teacher_never_changes_and_student_does"
    ),
    "a student that shares layers is frozen silently": (
        "test_bad_input.py::test_shared_layers"
    ),
    "files are of the teacher's size": (
        "test_saving.py::test_files_are_of_the_students_size"
    ),
    "load_model fails": (
        "test_saving.py::"
        "test_a_loaded_distiller_goes_on_training_like_the_saved_one"
    ),
    "BackupAndRestore needs a manual build": (
        "test_saving.py::test_backup_needs_no_manual_build"
    ),
    "loss weights of the wrong length pass": (
        "test_bad_input.py::test_loss_weights_of_the_wrong_length"
    ),
    "a single loss weight is ignored": (
        "test_peers.py::test_a_single_loss_weight_counts"
    ),
    "a changed temperature is ignored until the next compile": (
        "losses/test_losses.py::test_arguments_are_fixed"
    ),
    "the loss is logged twice with different values": (
        "test_peers.py::test_one_loss_is_logged"
    ),
    "two replicas double the gradient": (
        "test_devices.py::test_all_devices_give_the_update_of_one"
    ),
    "random layers give the models different images": (
        "test_invariants.py::test_teacher_and_student_receive_the_same_view"
    ),
    "the preprocessor of a KerasHub classifier is skipped": (
        "test_keras_hub.py::test_predictions_agree_with_the_students"
    ),
    "a list or dict of losses fails inside fit": (
        "test_models_and_outputs.py::test_several_heads_with_their_own_losses"
    ),
}


@pytest.mark.parametrize("row", GUARDS)
def test_every_row_has_its_guard(row):
    file, name = GUARDS[row].split("::")
    text = (pathlib.Path(__file__).parent / file).read_text()
    assert f"\ndef {name}(" in text


def test_teacher_logits_are_normalised():
    """The sum of targets is 1 whatever the logits are: no loss of -221."""
    generator = np.random.default_rng(0)
    teacher, student = 50 * generator.normal(size=(2, 64, 10)).astype("float32")
    y_true = {"labels": np.arange(64) % 10, "teacher": teacher}
    for loss in (ClassicKD(), ClassicKD(1.0), FunctionMatching()):
        assert np.all(to_numpy(loss(y_true, student)) >= 0)


def test_batch_normalisation_moves_once_per_step():
    x, y = images(16)
    student = cnn(2)
    before = np.array(to_numpy(student.layers[1].moving_mean.value))
    features = to_numpy(student.layers[0](x)).mean((0, 1, 2))
    distiller = Distiller(student=student, teacher=cnn(4))
    distiller.compile("sgd", ClassicKD())
    distiller.fit(x, y, batch_size=16, verbose=0)
    expected = 0.99 * before + 0.01 * features
    np.testing.assert_allclose(
        to_numpy(student.layers[1].moving_mean.value), expected, rtol=1e-3
    )


def test_a_single_loss_weight_counts():
    x, _ = vectors()
    distiller = Distiller(student=mlp(), teacher=mlp(16))
    losses = []
    for weights in (None, [7.0]):
        distiller.compile(keras.optimizers.SGD(0.0), loss_weights=weights)
        losses.append(distiller.fit(x, verbose=0).history["loss"][0])
    np.testing.assert_allclose(losses[1], 7 * losses[0], rtol=1e-5)


def test_one_loss_is_logged():
    x, y = vectors()
    distiller = Distiller(student=mlp(), teacher=mlp(16))
    distiller.compile("sgd", ClassicKD(), metrics=["accuracy"])
    history = distiller.fit(x, y, verbose=0).history
    assert set(history) == {"loss", "soft_loss", "label_loss", "accuracy"}
    distiller.compile("sgd", FunctionMatching())
    assert set(distiller.fit(x, verbose=0).history) == {"loss", "soft_loss"}
