"""map_vocabulary: teacher and student with different tokens."""

import keras
import numpy as np
import pytest
from common import mlp
from common import to_numpy
from test_text import LABELS
from test_text import TEXTS
from test_text import WORDS
from test_text import classifier
from test_text import gpt
from test_text_models import masked_words

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import map_vocabulary

pytestmark = pytest.mark.any_backend

# Before the student's words, so that all ids differ.
MORE = ["aardvark", "abacus", *WORDS]


def test_a_classifier_reads_the_same_words():
    student, teacher = classifier(1, WORDS), classifier(2, MORE)
    mapped = map_vocabulary(teacher, student)
    own, students = (
        to_numpy(model.preprocessor(TEXTS)) for model in (teacher, student)
    )
    assert not np.array_equal(own["token_ids"], students["token_ids"])
    np.testing.assert_allclose(
        to_numpy(mapped(students, training=False)),
        to_numpy(teacher(own, training=False)),
        atol=1e-6,
    )
    distiller = Distiller(student=student, teacher=mapped)
    distiller.compile("sgd", ClassicKD())
    distiller.fit(TEXTS, LABELS, verbose=0)


def test_logits_are_in_the_order_of_the_student():
    student, teacher = masked_words(8), masked_words(16, MORE)
    mapped = map_vocabulary(teacher, student)
    own, students = (
        to_numpy(model.preprocessor(TEXTS)[0]) for model in (teacher, student)
    )
    logits = to_numpy(mapped(students, training=False))
    whole = to_numpy(teacher(own, training=False))
    names = [
        m.preprocessor.tokenizer.get_vocabulary() for m in (teacher, student)
    ]
    order = [names[0].index(token) for token in names[1]]
    np.testing.assert_allclose(logits, whole[..., order], atol=1e-5)


def test_words_that_only_the_student_has():
    student, teacher = masked_words(8, MORE), masked_words(16)
    mapped = map_vocabulary(teacher, student)
    x, _, _ = to_numpy(student.preprocessor(TEXTS))
    probabilities = to_numpy(keras.ops.softmax(mapped(x, training=False)))
    names = student.preprocessor.tokenizer.get_vocabulary()
    ids = [names.index("aardvark"), names.index("abacus")]
    assert probabilities[..., ids].max() == 0.0
    distiller = Distiller(student=student, teacher=mapped)
    distiller.compile("sgd", FunctionMatching())
    assert np.isfinite(distiller.evaluate(TEXTS, verbose=0)).all()


def test_a_few_tokens_at_a_time():
    teacher, losses = gpt(16, more=["Q", "X"]), []
    for tokens_per_chunk in (None, 5):
        student = gpt(8)
        distiller = Distiller(
            student=student,
            teacher=map_vocabulary(teacher, student),
            tokens_per_chunk=tokens_per_chunk,
        )
        distiller.compile("sgd", FunctionMatching())
        losses.append(distiller.evaluate(TEXTS, verbose=0))
    np.testing.assert_allclose(*losses, rtol=1e-5)


# Tasks of KerasHub do not keep how they were compiled.
@pytest.mark.filterwarnings("ignore:`compile\\(\\)` was not called")
@pytest.mark.parametrize("kind", ["masked words", "next letter"])
def test_saved_and_loaded(kind, tmp_path):
    if kind == "masked words":
        student, teacher = masked_words(8), masked_words(16, MORE)
    else:
        student, teacher = gpt(8), gpt(16, more=["Q", "X"])
    mapped = map_vocabulary(teacher, student)
    mapped.save(tmp_path / "mapped.keras")
    again = keras.models.load_model(tmp_path / "mapped.keras", compile=False)
    x, _, _ = to_numpy(student.preprocessor(TEXTS))
    np.testing.assert_allclose(
        to_numpy(mapped(x, training=False)),
        to_numpy(again(x, training=False)),
        atol=1e-6,
    )


def test_refused():
    student, teacher = classifier(1, WORDS), classifier(2, [*WORDS[1:], "zoo"])
    with pytest.raises(ValueError, match=r"1 of the student's 13 .* 1 of the"):
        map_vocabulary(teacher, student)
    with pytest.raises(ValueError, match="map_vocabulary"):
        Distiller(student=student, teacher=teacher)
    with pytest.raises(TypeError, match="The student must be a text task"):
        map_vocabulary(teacher, mlp())
