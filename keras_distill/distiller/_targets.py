"""Targets: everything that belongs to the samples and places of one batch.

Labels, weights and teacher outputs travel together from the step to losses,
hints and metrics. Only here are they matched with the outputs of the student,
and only here do labels and weights follow the view.
"""

import typing

from keras import tree

from keras_distill._graphs import _outputs
from keras_distill._keras_internals import get_keras_mask
from keras_distill.losses import _weighting


class View(typing.NamedTuple):
    """What was drawn for a batch; labels and weights have to follow it.

    Args:
        augment: the `ConsistentAugment` that drew.
        drawn: the transformations that it drew.
        images: the images before augmentation. Only their shapes are read.
    """

    augment: typing.Any
    drawn: typing.Any
    images: typing.Any

    def follow(self, values, num_classes=None):
        """Return labels or weights as they belong to the view.

        Args:
            values: a tensor `(batch, ...)`, or `None`.
            num_classes: the number of classes if `values` are class indices,
                which are mixed as one-hot vectors.
        """
        if values is None:
            return None
        return self.augment.follow(values, self.drawn, self.images, num_classes)


class Targets(typing.NamedTuple):
    """The targets of one batch, as the Distiller's steps pass them to Keras.

    Args:
        labels: labels as the data gave them, in the structure of the student's
            outputs, or `None`.
        weights: sample weights in that structure, or one array for all
            outputs, or `None`.
        teacher: list with the outputs of each teacher for the view; `None`
            while Keras builds metrics on symbolic tensors.
        features: list of the teacher's features, one per hint.
        view: the `View` that labels and weights have to follow, or `None`.
        moment: the `Moment` of the step, for schedules.
        teacher_head: with `TokenChunks`, the function from the teacher's last
            hidden states to its outputs.
        training: bool. Whether the step computes gradients. It is known in
            the loss.
    """

    labels: typing.Any
    weights: typing.Any = None
    teacher: typing.Any = None
    features: typing.Sequence = ()
    view: typing.Any = None
    moment: typing.Any = None
    teacher_head: typing.Any = None
    training: typing.Any = None

    @property
    def is_symbolic(self):
        """Whether Keras only builds its state: there is no teacher output."""
        return self.teacher is None

    def followed_labels(self):
        """Return the labels for metrics, `None` if there are none.

        A mixed image has no single right class, so labels of mixed images are
        not scored.
        """
        if self.view is None or self.labels is None:
            return self.labels
        if self.view.augment.mixes_labels:
            return None
        return tree.map_structure(self.view.follow, self.labels)

    def with_followed_weights(self):
        """Return these targets with weights that belong to the view."""
        if self.view is None or self.weights is None:
            return self
        return self._replace(
            weights=tree.map_structure(self.view.follow, self.weights)
        )


class OutputTargets:
    """The targets of one output of the student.

    Args:
        targets: the `Targets` of the batch, with followed weights.
        path: the path of the output in the student's outputs.
        index: its position among them.
        names: names of the student's outputs, or `None`.
        output: the student's output.
    """

    def __init__(self, targets, path, index, names, output):
        self._targets, self.path, self.output = targets, path, output
        self.raw_labels = _outputs.select(targets.labels, path, index, names)
        self.weights = _outputs.select(targets.weights, path, index, names)

    def labels(self, num_classes=None):
        """Return the labels as they belong to the view, or `None`."""
        view = self._targets.view
        if view is None:
            return self.raw_labels
        return view.follow(self.raw_labels, num_classes)

    @property
    def labels_of_others(self):
        """The names of the outputs that have labels, if they are named."""
        labels = self._targets.labels
        return sorted(map(str, labels)) if isinstance(labels, dict) else None

    @property
    def mixes_labels(self):
        """Whether the view mixes images and their labels."""
        view = self._targets.view
        return view is not None and view.augment.mixes_labels

    @property
    def moves_pixels(self):
        """Whether the view moves pixels to other places."""
        view = self._targets.view
        return view is not None and view.augment.moves_pixels

    def teacher(self, average):
        """Return the teacher's output. `average` combines several teachers."""
        outputs = self.teachers()
        return outputs[0] if len(outputs) == 1 else average(outputs)

    def teachers(self):
        """Return the output of each teacher."""
        return [
            _outputs.teacher_at(each, self.path)
            for each in self._targets.teacher
        ]

    @property
    def place_weights(self):
        """Weights times mask for each place of the output, or `None`."""
        mask = get_keras_mask(self.output)
        shape = tuple(self.output.shape)
        places = shape[:-1] if len(shape) > 1 else shape
        return _weighting.per_place(self.weights, mask, places)
