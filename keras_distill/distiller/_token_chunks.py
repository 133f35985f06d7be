"""TokenChunks: the terms of the objective, from hidden states of tokens.

Logits of a language model take `batch * time * vocabulary` values, several
times over: those of both models, their softmax, and their gradients. Here both
models run up to their last hidden states. Their heads, and the losses, are
applied to a few tokens at a time. The gradients of these tokens are computed at
once, so nothing of the size of the vocabulary is kept but the gradient of the
head itself.

Keras asks for the gradient of the loss. So the loss gets a summand that is zero
and has the gradients `g` of the hidden states and weights `h`:

    loss = value + sum(g * (h - stop_gradient(h)))

Left out: computing the logits a second time in the backward pass, as
`jax.checkpoint` does. It takes half of the time of the head once more.
"""

import math

import keras
from keras import ops
from keras import tree

from keras_distill import _arguments
from keras_distill import _gradients
from keras_distill._graphs._head import split_head
from keras_distill._keras_internals import get_keras_mask
from keras_distill.losses import _shapes
from keras_distill.losses import _weighting
from keras_distill.losses._most_probable import MostProbable
from keras_distill.teachers._live_teacher import AbsentTeacher


def token_chunks(student, size):
    """Return the `TokenChunks` of a Distiller; without a size, `None`."""
    return None if size is None else TokenChunks(student, size)


class TokenChunks:
    """Applies the heads of two models, and the losses, to chunks of tokens.

    A plain object: Keras does not track the parts of the models.

    Args:
        student: the student.
        size: int, the number of tokens of a chunk.

    Raises:
        ValueError: if the student does not end in a head.
    """

    def __init__(self, student, size):
        self.size = _arguments.positive_int("tokens_per_chunk", size)
        self._body, self._head = _split("student", student)
        self._live_head = None
        self._recorded_head = None

    def split_teacher(self, live_teacher, recording):
        """Let a teacher run up to its last hidden states only.

        Args:
            live_teacher: the `LiveTeacher`.
            recording: the `RecordedTeacher`, or `None`.

        Raises:
            ValueError: if the teacher is not one model that ends in a head.
        """
        self._recorded_head = recording and recording.head
        if isinstance(live_teacher.given, AbsentTeacher):
            return
        if live_teacher.runners != live_teacher.members:
            raise ValueError(
                "`teacher_dtype` cannot be combined with `tokens_per_chunk`. "
                "Create or load the teacher in that dtype instead. Received: "
                f"tokens_per_chunk={self.size}"
            )
        model = live_teacher.members[0]
        if len(live_teacher.members) > 1:
            model = live_teacher.members
        body, self._live_head = _split("teacher", model)
        live_teacher.runners = [body]

    def hidden_states(self, inputs, training):
        """Return the student's last hidden states, with the mask of outputs."""
        hidden = self._body(inputs, training=training)
        if get_keras_mask(hidden) is not None and not self._head.keeps_masks:
            hidden = ops.copy(hidden)  # without the mask
        return hidden

    def teacher_head(self, is_recorded):
        """Return the teacher's head, with the values that it has now.

        Args:
            is_recorded: bool. Whether the batch is a replayed one.
        """
        head = self._recorded_head if is_recorded else self._live_head
        if head is None:
            return None
        values = [ops.stop_gradient(v.value) for v in head.variables]
        return lambda hidden: head(hidden, values)

    @property
    def num_classes(self):
        """The size of the vocabulary."""
        return self._head.output.shape[-1]

    def check(self, terms):
        """Raise if a term cannot be computed for each token alone.

        Args:
            terms: list of `OutputTerm`.
        """
        for term in terms:
            loss = term.loss
            if term.compares_with_teacher and not loss.is_per_place:
                raise ValueError(
                    "`tokens_per_chunk` requires losses that compare each "
                    "token alone, such as `FunctionMatching` and `ClassicKD`. "
                    f"Received: {type(loss).__name__}. If its value at a "
                    "token depends on that token only, set its attribute "
                    "`is_per_place = True`."
                )
            label_loss = getattr(loss, "label_loss", loss)
            if getattr(label_loss, "ignore_class", None) is not None:
                raise ValueError(
                    "`tokens_per_chunk` does not support `ignore_class`. "
                    f"Received: {label_loss!r}. Give these tokens a "
                    "`sample_weight` of 0."
                )

    def check_metrics(self, metrics, weighted_metrics):
        """Raise if there are metrics, which read the logits of all tokens."""
        if metrics or weighted_metrics:
            raise ValueError(
                "Metrics read the logits of all tokens, which do not exist "
                "with `tokens_per_chunk`. Received: "
                f"metrics={metrics}, weighted_metrics={weighted_metrics}. "
                "Leave them out: the parts of the loss are logged, such as "
                "the cross-entropy with the labels. Compute others with "
                "`distiller.student` on a few samples."
            )

    def values(self, terms, targets, moment, teacher_head, training):
        """Return the values of terms, and a zero that has their gradient.

        Args:
            terms: list of `OutputTerm`.
            targets: the `OutputTargets`; outputs are hidden states.
            moment: the `Moment` of the step.
            teacher_head: what `teacher_head` returned in this step.
            training: bool. Whether the gradient is required.

        Returns:
            `(list of {part: values (batch, places...)}, zero)`.
        """
        hidden = targets.output
        places = tuple(ops.shape(hidden))[:-1]
        count = math.prod(places)
        others = _of_each_token(terms, targets, hidden, count)
        recorded = None
        if isinstance(others.get("teacher"), MostProbable):
            recorded = others["teacher"]
            others["teacher"] = recorded.fields
        tokens, others = tree.map_structure(
            lambda tensor: self._in_chunks(tensor, len(places), count),
            (ops.stop_gradient(hidden), others),
        )
        trained = [v for v in self._head.variables if v.trainable]
        values, of_tokens, of_weights = _gradients.in_chunks(
            self._function(terms, moment, trained, teacher_head, recorded),
            tokens,
            [ops.stop_gradient(variable.value) for variable in trained],
            others,
            training,
        )
        names = [list(term.parts(moment)) for term in terms]
        num_parts = sum(map(len, names))
        values = ops.reshape(values, (-1, num_parts, self.size))
        rows = iter(range(num_parts))
        named = [
            {
                name: _joined(values[:, next(rows)], places, count)
                for name in names_of_term
            }
            for names_of_term in names
        ]
        if not training:
            return named, 0.0
        # Of a head that is shared with the body, each part has its gradient.
        zero = _zero(hidden, _joined(of_tokens, places, count))
        for variable, gradient in zip(trained, of_weights):
            zero = zero + _zero(variable.value, gradient)
        return named, zero / ops.cast(count, "float32")

    def _in_chunks(self, tensor, rank, count):
        """Return `(places..., rest...)` as `(chunks, tokens, rest...)`.

        What is missing in the last chunk is filled with zeros.

        Args:
            tensor: the tensor.
            rank: the number of places axes, with the batch.
            count: the number of places.
        """
        rest = tuple(tensor.shape)[rank:]
        tokens = ops.reshape(tensor, (-1, *rest))
        padding = [(0, -count % self.size)] + [(0, 0)] * len(rest)
        return ops.reshape(ops.pad(tokens, padding), (-1, self.size, *rest))

    def _function(self, terms, moment, trained, teacher_head, recorded):
        """Return the function of a chunk, see `_gradients.in_chunks`."""
        trained = {id(variable): i for i, variable in enumerate(trained)}

        def function(tokens, weights, others):
            output = self._head(
                tokens[None],
                [
                    weights[trained[id(v)]]
                    if id(v) in trained
                    else ops.stop_gradient(v.value)
                    for v in self._head.variables
                ],
            )
            teacher = others.get("teacher")
            if recorded is not None:
                teacher = recorded.with_fields(_as_batch(teacher))
            elif teacher is not None:
                teacher = teacher_head(teacher[None])
            total, values = 0.0, []
            for term, target, factors in zip(
                terms, others["targets"], others["factors"]
            ):
                target = _as_batch(target)
                if term.compares_with_teacher and teacher is not None:
                    target["teacher"] = teacher
                for weight, value in term.values(target, output, moment):
                    total = total + weight * ops.sum(factors * value[0])
                    values.append(value[0])
            return total, ops.stack(values)

        return function


def _of_each_token(terms, targets, hidden, count):
    """Return what a term reads beside the student's outputs.

    Returns:
        A dict of tensors `(batch, places..., ...)`: `"targets"`, a list with
        a dict for each term; `"factors"`, the weights of tokens for each term,
        times the number of tokens; and `"teacher"`, hidden states or a
        `MostProbable`.
    """
    shape = ops.shape(hidden)[:-1]
    found = [term.target(targets) for term in terms]
    others = {
        "targets": found,
        "factors": [
            ops.cast(count, "float32") * _factors(term, targets, hidden)
            for term in terms
        ],
    }
    for target in found:
        for name in {"teacher", "labels"} & target.keys():
            _check_places(name, target[name], hidden)
        if "teacher" in target:  # the same for all terms
            others["teacher"] = target.pop("teacher")
        if "sample_weight" in target:
            target["sample_weight"] = ops.broadcast_to(
                target["sample_weight"], shape
            )
    return others


def _as_batch(tensors):
    """Return the tensors of a chunk as those of a batch with one sample."""
    return {name: tensor[None] for name, tensor in tensors.items()}


def _check_places(name, tensor, hidden):
    rank = len(hidden.shape) - 1
    shape, expected = tuple(tensor.shape)[:rank], tuple(hidden.shape)[:-1]
    if not _shapes.same_sizes(shape, expected):
        raise ValueError(
            "Teacher, student and labels must have the same tokens. Received: "
            f"tokens of shape {expected} in the student and {shape} in the "
            f"{name}. Pad all sequences to one length, and give the padding a "
            "`sample_weight` of 0."
        )


def _factors(term, targets, hidden):
    """Return by how much each place counts in the reduced loss of a term.

    Every reduction is linear in the values, and proportional to the weights.
    """
    ones = ops.ones(ops.shape(hidden)[:-1], "float32")
    total = _weighting.weighted_value(
        lambda y_true, y_pred: ones, term.loss, {}, hidden, targets.weights
    )
    if len(total.shape):
        raise ValueError(
            "`tokens_per_chunk` requires a loss with a reduction to a single "
            f"number. Received: reduction={term.loss.reduction!r} of "
            f"{term.loss!r}. Use 'sum_over_batch_size', 'sum' or "
            "'mean_with_sample_weight'."
        )
    weights = targets.place_weights
    weights = ones if weights is None else weights * ones
    all_weights = ops.sum(weights)
    is_zero = ops.equal(all_weights, 0.0)
    share = weights / ops.where(is_zero, 1.0, all_weights)
    return ops.stop_gradient(total * share)


def _joined(chunks, places, count):
    """Return `(chunks, tokens, rest...)` as `(places..., rest...)`."""
    rest = tuple(chunks.shape)[2:]
    tokens = ops.reshape(chunks, (-1, *rest))[:count]
    return ops.reshape(tokens, (*places, *rest))


def _zero(tensor, gradient):
    """Return 0, with a gradient for the tensor."""
    tensor = ops.cast(tensor, "float32")
    return ops.sum(
        ops.stop_gradient(gradient) * (tensor - ops.stop_gradient(tensor))
    )


def _split(role, model):
    parts = split_head(model) if isinstance(model, keras.Model) else None
    if parts is None:
        raise ValueError(
            "`tokens_per_chunk` requires functional models with one output, "
            "which ends in a `keras.layers.Dense` or a "
            "`keras.layers.ReversibleEmbedding`, and activations after it at "
            "most, none of them with an activity regularizer. "
            f"Received: {role}={model!r}. Leave `tokens_per_chunk` out, "
            "or end the model in such a layer."
        )
    return parts
