"""map_vocabulary: a teacher that takes and returns the student's tokens."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._graphs import _outputs
from keras_distill._typing import Tensor

# The logit of a token that the teacher does not have. Its probability is 0 in
# float32, and losses stay finite.
_NEVER = -1e4


def map_vocabulary(teacher: keras.Model, student: keras.Model) -> keras.Model:
    """Return the teacher with the token ids of the student.

    For two text tasks of KerasHub whose tokenizers have different vocabularies,
    one of which contains the other. Texts are split by the student's tokenizer.
    Each token id is replaced by the id that the teacher has for the same token.
    Of a language model, the logits are put into the order of the student's
    vocabulary: tokens that only the teacher has are left out, so the other ones
    share their probability; tokens that only the student has get the
    probability 0. A classifier keeps its outputs.

    The teacher reads text in the student's tokens, which may be other ones than
    its own tokenizer would choose. Its outputs are then less accurate: measure
    it with `evaluate` on the student's tokens first.

    Args:
        teacher: a text task of KerasHub with a preprocessor. Its weights are
            shared, not copied.
        student: a text task of KerasHub with a preprocessor.

    Returns:
        A functional model with the teacher's inputs.

    Raises:
        TypeError: if one of the two has no tokenizer.
        ValueError: if no vocabulary contains the other, or if the student has
            more tokens and the teacher has no token for unknown ones.

    Example:

    ```python
    import keras_hub
    from keras_distill import Distiller, map_vocabulary

    def classifier(words):
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
            keras_hub.models.BertTokenizer(vocabulary=vocabulary),
            sequence_length=8,
        )
        backbone = keras_hub.models.BertBackbone(
            vocabulary_size=len(vocabulary), num_layers=1, num_heads=2,
            hidden_dim=8, intermediate_dim=16, max_sequence_length=8,
        )
        return keras_hub.models.BertTextClassifier(
            backbone, preprocessor=preprocessor, num_classes=2
        )

    teacher = classifier(["bad", "film", "good"])
    student = classifier(["film", "good"])
    distiller = Distiller(
        student=student, teacher=map_vocabulary(teacher, student)
    )
    ```
    """
    tokens = [_tokens("teacher", teacher), _tokens("student", student)]
    ids = {token: number for number, token in enumerate(tokens[0])}
    _check_contained(teacher, *tokens)
    unknown = _unknown(teacher.preprocessor.tokenizer)
    table = [ids.get(token, unknown) for token in tokens[1]]
    inputs = {
        name: keras.Input(spec.shape[1:], dtype=spec.dtype, name=name)
        for name, spec in _outputs.known_inputs(teacher).items()
    }
    token_ids = MapTokens(table)(inputs["token_ids"])
    outputs = teacher({**inputs, "token_ids": token_ids})
    if outputs.shape[-1] >= len(tokens[0]) and _is_language_model(teacher):
        known = [token in ids for token in tokens[1]]
        outputs = MapLogits(table, known)(outputs)
    return keras.Model(inputs, outputs, name=teacher.name)


def _tokens(role, model):
    tokenizer = getattr(getattr(model, "preprocessor", None), "tokenizer", None)
    if tokenizer is None:
        raise TypeError(
            f"The {role} must be a text task of KerasHub with a preprocessor, "
            f"which has the tokenizer. Received: {role}={model!r}"
        )
    return list(tokenizer.get_vocabulary())


def _check_contained(teacher, of_teacher, of_student):
    missing = len(set(of_student) - set(of_teacher))
    more = len(set(of_teacher) - set(of_student))
    received = (
        f"Received: {missing:,} of the student's {len(of_student):,} tokens "
        f"that the teacher does not have, and {more:,} of the teacher's "
        f"{len(of_teacher):,} that the student does not have."
    )
    if missing and more:
        raise ValueError(
            "One vocabulary must contain the other. "
            f"{received} Build the student with the teacher's tokenizer."
        )
    tokenizer = teacher.preprocessor.tokenizer
    if missing and _unknown(tokenizer) is None:
        raise ValueError(
            "The student has tokens that the teacher cannot read, because "
            f"{type(tokenizer).__name__} has no token for unknown ones. "
            f"{received} Build the student with the teacher's tokenizer."
        )


def _unknown(tokenizer):
    """Return the id of the token for unknown ones, `None` if there is none."""
    word_piece = getattr(tokenizer, "oov_token", None)
    if word_piece is not None:
        return tokenizer.token_to_id(word_piece)
    return getattr(tokenizer, "unk_token_id", None)


def _is_language_model(model):
    """Return whether the last axis of the outputs is the vocabulary."""
    return len(model.output_shape) == 3


@keras.saving.register_keras_serializable(package="keras_distill")
class MapTokens(keras.layers.Layer):
    """Replaces token ids by those of another vocabulary.

    Args:
        table: list of ints, the new id of each id.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, table: list[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = table
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        return ops.take(np.array(self.table, "int32"), inputs, axis=0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "table": self.table}


@keras.saving.register_keras_serializable(package="keras_distill")
class MapLogits(keras.layers.Layer):
    """Puts logits into the order of another vocabulary.

    Args:
        table: list of ints: which logit each token gets.
        known: list of bools. Other tokens get the probability 0.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    acts_on_last_axis = True

    def __init__(
        self, table: list[int], known: list[bool], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.table, self.known = table, known
        self.supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        logits = ops.take(inputs, np.array(self.table, "int32"), axis=-1)
        return ops.where(np.array(self.known), logits, _NEVER)

    def get_config(self) -> dict[str, Any]:
        config = {"table": self.table, "known": self.known}
        return {**super().get_config(), **config}
