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


def wrap(distiller, name, variables, teacher, logs):
    """Feed a compiled step the teacher's variables, and watch its values.

    Args:
        distiller: the Distiller, whose step Keras just made.
        name: `"train_function"` or `"test_function"`.
        variables: the variables that the step reads beside the student's.
        teacher: the `LiveTeacher`.
        logs: the `Logs`.
    """
    function = _backend.feed(
        distiller, getattr(distiller, name), variables, teacher
    )

    def watched(*arguments):
        logs.raise_pending()
        if not logs.steps_taken:
            _processes.start(distiller, teacher.weights)
        result = function(*arguments)
        logs.after_step(_backend.logs_of(result))
        return result

    setattr(distiller, name, watched)
