"""Text in place of token ids: the preprocessors of KerasHub's text tasks.

A text preprocessor returns token ids, and for language models also the labels
and the weights of tokens. It cannot run inside a training step, so `fit()` and
`evaluate()` of a `Distiller` apply the student's to the data. Both models then
see the same tokens.
"""

from typing import Any

import keras
import numpy as np
from keras import tree


def text_preprocessor(model: Any) -> Any:
    """Return the preprocessor of a text task of KerasHub, else `None`."""
    attached = getattr(model, "preprocessor", None)
    has_tokenizer = getattr(attached, "tokenizer", None) is not None
    return attached if has_tokenizer else None


def check_same_tokenizer(student: Any, teacher: Any) -> None:
    """Raise if the two text tasks split text into other tokens.

    Raises:
        ValueError: if both have a tokenizer, and their vocabularies differ.
    """
    preprocessors = [text_preprocessor(model) for model in (student, teacher)]
    if None in preprocessors:
        return
    tokenizers = [preprocessor.tokenizer for preprocessor in preprocessors]
    if tokenizers[0] is tokenizers[1]:
        return
    words = [list(each.get_vocabulary()) for each in tokenizers]
    if words[0] == words[1]:
        return
    names = [
        f"{type(each).__name__} with {len(vocabulary):,} tokens"
        for each, vocabulary in zip(tokenizers, words)
    ]
    raise ValueError(
        "Teacher and student see the same tokens, so their tokenizers must "
        f"have the same vocabulary. Received: {names[0]} in the student "
        f"{student.name!r}, and {names[1]} in the teacher {teacher.name!r}. "
        "Build the student with the teacher's tokenizer. If one vocabulary "
        "contains the other, `map_vocabulary(teacher, student)` is a teacher "
        "with the student's tokens."
    )


def tokenized(model: Any, x: Any, y: Any, sample_weight: Any) -> tuple:
    """Return `(x, y, sample_weight)` with tokens in place of text.

    Args:
        model: the student. Without a text preprocessor, or if the data has no
            text, nothing is changed.
        x, y, sample_weight: as for `fit()`.
    """
    preprocessor = text_preprocessor(model)
    if preprocessor is None or not _is_text(x):
        return x, y, sample_weight
    if hasattr(x, "element_spec"):
        return x.map(preprocessor), y, sample_weight
    batch = keras.utils.unpack_x_y_sample_weight(
        preprocessor(x, y=y, sample_weight=sample_weight)
    )
    return tree.map_structure(
        lambda leaf: None if leaf is None else _as_array(leaf), batch
    )


def _as_array(leaf):
    return np.asarray(keras.ops.convert_to_numpy(leaf))


def _is_text(x):
    spec = getattr(x, "element_spec", None)
    if spec is not None:
        return any("string" in str(leaf) for leaf in tree.flatten(spec))
    first = next(iter(tree.flatten(x)), None)
    if isinstance(first, str):
        return True
    dtype = getattr(first, "dtype", None)
    kind = getattr(dtype, "kind", None)  # of NumPy
    return kind in ("O", "S", "U") or "string" in str(dtype)
