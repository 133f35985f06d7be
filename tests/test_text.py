"""Text in: the preprocessors of KerasHub's text tasks."""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import copy_layers

pytestmark = pytest.mark.any_backend

TEXTS = ["a good film", "a bad film", "really good", "not bad at all"] * 3
LABELS = np.array([1, 0, 1, 1] * 3)
WORDS = sorted({word for text in TEXTS for word in text.split()})


def sizes(vocabulary, depth, width, length):
    """The arguments of a backbone."""
    return {
        "vocabulary_size": vocabulary,
        "num_layers": depth,
        "num_heads": 2,
        "hidden_dim": width,
        "intermediate_dim": 2 * width,
        "max_sequence_length": length,
        "dropout": 0.0,
    }


def classifier(depth=1, words=WORDS, width=8):
    keras.utils.set_random_seed(depth)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    backbone = keras_hub.models.BertBackbone(
        **sizes(len(vocabulary), depth, width, 8)
    )
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.BertTokenizer(vocabulary=vocabulary),
        sequence_length=8,
    )
    return keras_hub.models.BertTextClassifier(
        backbone, preprocessor=preprocessor, num_classes=2, dropout=0.0
    )


def gpt(width, more=()):
    keras.utils.set_random_seed(width)
    letters = sorted({letter for text in TEXTS for letter in text})
    letters = ["Ġ" if letter == " " else letter for letter in letters]
    vocabulary = ["<|endoftext|>", *more, *letters, "oo"]
    tokenizer = keras_hub.models.GPT2Tokenizer(
        vocabulary={word: i for i, word in enumerate(vocabulary)},
        merges=["o o"],
    )
    backbone = keras_hub.models.GPT2Backbone(
        **sizes(len(vocabulary), 1, width, 12)
    )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(
        tokenizer, sequence_length=12
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=preprocessor)


def history(student, teacher, *data, validation_data):
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(keras.optimizers.SGD(0.1), ClassicKD(0.5, 2.0))
    fitted = distiller.fit(
        *data, validation_data=validation_data, shuffle=False, verbose=0
    ).history
    values = [values[0] for _, values in sorted(fitted.items())]
    return values, student.get_weights()


def assert_same(one, other):
    for a, b in zip(one[0] + one[1], other[0] + other[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def as_list(x, y):
    return (x, y), (x, y)


def as_array(x, y):
    return (np.array(x), y), (np.array(x, dtype="object"), y)


def as_dataset(x, y):
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(12)
    return (dataset,), dataset


@pytest.mark.parametrize("form", [as_list, as_array, as_dataset])
def test_text_is_what_its_tokens_are(form):
    tokens = classifier().preprocessor(TEXTS)
    tokens = {
        name: keras.ops.convert_to_numpy(value)
        for name, value in tokens.items()
    }
    expected = history(
        classifier(),
        classifier(2),
        tokens,
        LABELS,
        validation_data=(tokens, LABELS),
    )
    data, validation_data = form(TEXTS, LABELS)
    found = history(
        classifier(), classifier(2), *data, validation_data=validation_data
    )
    assert_same(found, expected)


def test_a_language_model_gets_labels_and_weights_from_its_preprocessor():
    x, y, weights = (
        keras.tree.map_structure(keras.ops.convert_to_numpy, part)
        for part in gpt(8).preprocessor(TEXTS)
    )
    assert weights.min() == 0  # There is padding.
    distillers = []
    for data in ((TEXTS,), (x, y)):
        distiller = Distiller(
            student=gpt(8), teacher=gpt(16), tokens_per_chunk=7
        )
        distiller.compile(keras.optimizers.SGD(0.1), ClassicKD(0.5, 2.0))
        given = {} if len(data) == 1 else {"sample_weight": weights}
        distiller.fit(*data, **given, shuffle=False, verbose=0)
        scores = distiller.evaluate(*data, **given, verbose=0)
        distillers.append((list(scores), distiller.student.get_weights()))
    assert_same(*distillers)


def test_a_language_model_in_chunks_of_tokens():
    def gpt(width, seed):
        keras.utils.set_random_seed(seed)
        backbone = keras_hub.models.GPT2Backbone(**sizes(50, 1, width, 12))
        return keras_hub.models.GPT2CausalLM(backbone)

    tokens = np.random.default_rng(0).integers(0, 50, (4, 13)).astype("int32")
    padding = (np.arange(12) < [[12], [9], [12], [5]]).astype("int32")
    inputs = {"token_ids": tokens[:, :-1], "padding_mask": padding}
    students = []
    for chunk in (None, 7):
        distiller = Distiller(
            student=gpt(8, 1), teacher=gpt(16, 2), tokens_per_chunk=chunk
        )
        loss = ClassicKD(0.5, 2.0, reduction="mean_with_sample_weight")
        distiller.compile(keras.optimizers.SGD(0.5), loss)
        distiller.fit(
            inputs,
            tokens[:, 1:],
            sample_weight=padding.astype("float32"),
            verbose=0,
        )
        students.append(distiller.student.get_weights())
    for one, other in zip(*students):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_student_alone_takes_text_as_well():
    student, teacher = classifier(1), classifier(2)
    copy_layers(teacher, student)
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("adam", ClassicKD(), metrics=["accuracy"])
    distiller.fit(TEXTS, LABELS, epochs=2, verbose=0)
    expected = distiller.student.predict(TEXTS, verbose=0)
    assert expected.shape == (12, 2)
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS).batch(5)
    tokens = student.preprocessor(TEXTS)
    for text in (TEXTS, np.array(TEXTS), dataset, tokens):
        outputs = distiller.predict(text, verbose=0)
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-6)


def test_other_vocabularies_are_refused():
    with pytest.raises(ValueError) as error:
        Distiller(student=classifier(), teacher=classifier(2, WORDS[:-1]))
    message = str(error.value)
    assert "BertTokenizer with 13 tokens in the student" in message
    assert "BertTokenizer with 12 tokens in the teacher" in message
