"""Which part of an augmented batch each of the two models gets."""

from keras_distill._typing import Tensors


def view_of_each(view: Tensors, inputs: Tensors) -> tuple[Tensors, Tensors]:
    """Return `(student's view, teacher's view)` of an augmented batch.

    Args:
        view: the result of the augmentation of `inputs`. If it is a dict with
            the keys `"student"` and `"teacher"`, it has one view per model.
        inputs: the batch before the augmentation. If it already has these two
            keys, they are the names of inputs, and both models get all of them.
    """
    if _has_both_keys(view) and not _has_both_keys(inputs):
        return view["student"], view["teacher"]
    return view, view


def _has_both_keys(batch):
    return isinstance(batch, dict) and set(batch) == {"student", "teacher"}
