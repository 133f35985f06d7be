"""Targets: all that belongs to the samples and places of one batch.

Labels, weights and the teacher's outputs travel together from the step to
losses, hints and metrics. Here alone they are matched with the outputs of the
student, and here labels and weights follow the view.
"""

import typing

from keras import tree

from keras_distill._graphs import _outputs
from keras_distill._keras_internals import get_keras_mask
from keras_distill.losses import _weighting


class View(typing.NamedTuple):
    """What was drawn for a batch, for everything that has to follow it.

    Args:
        augment: the `ConsistentAugment` that drew, or `None`.
        drawn: its transformations.
        images: the images as they were before, of which shapes are read.
    """

    augment: typing.Any = None
    drawn: typing.Any = None
    images: typing.Any = None

    @property
    def mixes_labels(self):
        """Whether images are mixed, so that no class is right for them."""
        return self.augment is not None and self.augment.mixes_labels

    def follow(self, values, num_classes=None):
        """Return labels or weights as they belong to the view.

        Args:
            values: a tensor `(batch, ...)`, or `None`.
            num_classes: how many classes there are if `values` are class
                indices, which are mixed as one-hot vectors.
        """
        if values is None or self.augment is None:
            return values
        return self.augment.follow(values, self.drawn, self.images, num_classes)


class Targets(typing.NamedTuple):
    """The targets of one batch, as the Distiller's steps hand them to Keras.

    Args:
        labels: labels in the structure of the student's outputs, as the data
            gave them, or `None`.
        weights: weights, in that structure or one for all, or `None`.
        teacher: list of the outputs of each teacher for the view, or `None`
            while Keras only builds.
        features: list of the teacher's inner outputs, one per hint.
        view: what labels and weights have to follow, or `None` if they do.
        moment: the `Moment` of the step, for schedules.
    """

    labels: typing.Any
    weights: typing.Any = None
    teacher: typing.Any = None
    features: list = ()
    view: typing.Any = None
    moment: typing.Any = None

    def followed_labels(self):
        """Return the labels that metrics may score, `None` if there are none.

        No class is right for a mixed image, so no metric scores its labels.
        """
        if self.view is None or self.labels is None:
            return self.labels
        if self.view.mixes_labels:
            return None
        return tree.map_structure(self.view.follow, self.labels)

    def with_followed_weights(self):
        """Return these targets with weights as they belong to the view."""
        if self.view is None or self.weights is None:
            return self
        return self._replace(
            weights=tree.map_structure(self.view.follow, self.weights)
        )


class OutputTargets:
    """What the loss and the metrics of one output of the student compare with.

    Args:
        targets: the `Targets` of the batch, their weights followed.
        path: where the output lies in the student's outputs.
        index: its place among them.
        names: names of the student's outputs, or `None`.
        output: the student's output.
    """

    def __init__(self, targets, path, index, names, output):
        self.targets, self.path, self.output = targets, path, output
        self.raw_labels = _outputs.select(targets.labels, path, index, names)
        self.weights = _outputs.select(targets.weights, path, index, names)

    def labels(self, num_classes=None):
        """Return the labels, as they belong to the view, or `None`."""
        view = self.targets.view
        if view is None:
            return self.raw_labels
        return view.follow(self.raw_labels, num_classes)

    @property
    def labels_of_others(self):
        """The names of the outputs that labels were given for, if named."""
        labels = self.targets.labels
        return sorted(map(str, labels)) if isinstance(labels, dict) else None

    @property
    def mixes_labels(self):
        """Whether the view mixes images and their labels."""
        return self.targets.view is not None and self.targets.view.mixes_labels

    @property
    def moves_pixels(self):
        """Whether the view moves pixels to other places."""
        view = self.targets.view
        return view is not None and view.augment.moves_pixels

    def teacher(self, average):
        """Return the teacher's output; that of several as `average` does."""
        outputs = self.teachers()
        return outputs[0] if len(outputs) == 1 else average(outputs)

    def teachers(self):
        """Return the output of each teacher."""
        return [
            _outputs.teacher_at(each, self.path)
            for each in self.targets.teacher
        ]

    @property
    def place_weights(self):
        """The weights times the mask of each place, or `None`."""
        mask = get_keras_mask(self.output)
        shape = tuple(self.output.shape)
        places = shape[:-1] if len(shape) > 1 else shape
        return _weighting.per_place(self.weights, mask, places)
