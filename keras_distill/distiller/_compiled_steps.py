"""The state that Keras builds on a first batch, and the steps that it compiles.

Keras builds models, metrics and optimizers on a batch of data. The Distiller
passes it the view, which may have another size.
"""

import keras
from keras import tree

from keras_distill import _backend
from keras_distill import _processes
from keras_distill._graphs import _features
from keras_distill.distiller._step_data import unpack
from keras_distill.distiller._targets import Targets
from keras_distill.distiller._targets import View
from keras_distill.views._view_of_each import view_of_each


def symbolic_batch(data_batch, augment, follows_labels):
    """Return `(student's view, teacher's view, Targets)` of symbolic tensors.

    Args:
        data_batch: a batch of the data.
        augment: the `ConsistentAugment`, or `None`.
        follows_labels: bool. Whether metrics compare with labels, which then
            have the shape that they have in the view.
    """
    x, labels, _, _ = unpack(data_batch)
    view, teacher_view = x, x
    if augment is not None:
        if labels is not None and follows_labels:
            labels = _labels_of_view(augment, x, labels)
        view, teacher_view = view_of_each(augment.view_spec(x), x)
    return view, teacher_view, Targets(labels)


def _labels_of_view(augment, images, labels):
    def follow(data):
        images, labels = data
        _, drawn = augment.draw(images)
        view = View(augment, drawn, images)
        return tree.map_structure(view.follow, labels)

    specs = _features.specs_of((images, labels))
    return tree.map_structure(
        lambda followed, label: keras.KerasTensor(followed.shape, label.dtype),
        _features.output_spec(follow, specs),
        specs[1],
    )


def variables_read(teacher, recording, objective, optimizer):
    """Return the variables that a step reads beside the student's.

    Args:
        teacher: the `LiveTeacher`.
        recording: the `RecordedTeacher`, or `None`.
        objective: the `Objective`.
        optimizer: the optimizer of a step that does not train; `None` for a
            training step, whose arguments have its state.
    """
    read = [*teacher.variables, *objective.variables]
    if recording is not None:
        read += recording.variables
    if objective.uses_step and optimizer is not None:
        read += [v for v in optimizer.variables if v.shape == ()]
    return read


def wrap(distiller, name, teacher, recording, logs, on_policy):
    """Feed a compiled step the teacher's variables, and watch its values.

    Args:
        distiller: the Distiller, whose step Keras just made.
        name: `"train_function"` or `"test_function"`.
        teacher: the `LiveTeacher`.
        recording: the `RecordedTeacher`, or `None`.
        logs: the `Logs`.
        on_policy: the `OnPolicy`, or `None`.
    """
    training = name == "train_function"
    if training:
        # TensorFlow traces a step twice if the first trace creates variables.
        build_optimizer(distiller)
    replaces = training and on_policy is not None
    if replaces:
        on_policy.check(distiller, logs.objective)
    optimizer = None if training else distiller.optimizer
    variables = variables_read(teacher, recording, logs.objective, optimizer)
    function = _backend.feed(
        distiller, getattr(distiller, name), variables, teacher
    )

    def watched(*arguments):
        logs.raise_pending()
        if not logs.steps_taken:
            _processes.start(distiller, teacher.weights)
        if replaces:
            arguments = _backend.replace_batch(
                distiller, arguments, on_policy.is_chosen, on_policy.generated
            )
        result = function(*arguments)
        logs.after_step(_backend.logs_of(result))
        return result

    setattr(distiller, name, watched)


def build_optimizer(distiller):
    """Build the optimizer of a compiled Distiller, if its models are built."""
    optimizer = distiller.optimizer
    if distiller.built and optimizer is not None and not optimizer.built:
        optimizer.build(distiller.trainable_variables)
