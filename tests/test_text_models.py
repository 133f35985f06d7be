"""Text models of KerasHub end to end: masked words, LoRA, int4, presets."""

import keras
import keras_hub
import numpy as np
import pytest
from common import to_numpy
from test_text import TEXTS
from test_text import WORDS
from test_text import gpt
from test_text import sizes

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching

pytestmark = pytest.mark.any_backend


def outputs_of(model, tokens):
    return model(tokens, training=False)  # `predict` takes text


def masked_words(width, words=WORDS):
    """A BERT that fills in words, with all words of a text masked."""
    keras.utils.set_random_seed(width)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=vocabulary)
    preprocessor = keras_hub.models.BertMaskedLMPreprocessor(
        tokenizer,
        sequence_length=8,
        mask_selection_rate=1.0,
        mask_token_rate=1.0,
        random_token_rate=0.0,
        mask_selection_length=6,
    )
    backbone = keras_hub.models.BertBackbone(
        **sizes(len(vocabulary), 1, width, 8)
    )
    return keras_hub.models.BertMaskedLM(backbone, preprocessor=preprocessor)


# The pooled output of BERT is not used.
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
def test_masked_words():
    student, teacher = masked_words(8), masked_words(16)
    x, y, weights = to_numpy(student.preprocessor(TEXTS))
    assert weights.min() == 0 and weights.max() == 1
    loss = ClassicKD(0.5, 2.0, reduction="mean_with_sample_weight")
    expected = loss(
        {"labels": y, "teacher": outputs_of(teacher, x)},
        outputs_of(student, x),
        sample_weight=weights,
    )
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("sgd", loss)
    found = distiller.evaluate(TEXTS, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["loss"], to_numpy(expected), rtol=1e-5)
    before = student.get_weights()
    distiller.fit(TEXTS, verbose=0)
    assert not np.array_equal(student.get_weights()[0], before[0])


def test_a_student_with_lora_trains_nothing_else():
    student = gpt(8)
    student.backbone.enable_lora(2)
    before = [to_numpy(v.value) for v in student.variables]
    distiller = Distiller(student=student, teacher=gpt(16), tokens_per_chunk=7)
    distiller.compile(keras.optimizers.SGD(0.5), FunctionMatching())
    distiller.fit(TEXTS, verbose=0)
    changed = {
        variable.path.split("/")[-1]
        for variable, old in zip(student.variables, before)
        if not np.array_equal(to_numpy(variable.value), old)
    }
    assert changed == {"lora_kernel_b", "bias"}  # of the layers with LoRA


# Keras warns of the layers that it cannot quantize.
@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")
@pytest.mark.filterwarnings("ignore:.*The use of `x.T` on tensors")
@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_quantized_teacher(precision, chunk):
    student, teacher = gpt(8), gpt(16)
    x, _, weights = to_numpy(student.preprocessor(TEXTS))
    teacher.backbone.quantize(precision)
    loss = FunctionMatching(reduction="mean_with_sample_weight")
    expected = loss(
        outputs_of(teacher, x),
        outputs_of(student, x),
        sample_weight=weights,
    )
    distiller = Distiller(
        student=student, teacher=teacher, tokens_per_chunk=chunk
    )
    distiller.compile("sgd", loss)
    (found,) = distiller.fit(TEXTS, verbose=0).history["loss"]
    np.testing.assert_allclose(found, to_numpy(expected), rtol=1e-4)


def test_the_student_is_saved_as_a_preset(tmp_path):
    student = gpt(8)
    distiller = Distiller(student=student, teacher=gpt(16))
    distiller.compile("adam", FunctionMatching())
    distiller.fit(TEXTS, verbose=0)
    student.save_to_preset(str(tmp_path / "preset"))
    again = keras_hub.models.CausalLM.from_preset(str(tmp_path / "preset"))
    for one, other in zip(student.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(one, other)
    tokens = [
        to_numpy(model.preprocessor(TEXTS))[0] for model in (student, again)
    ]
    keras.tree.map_structure(np.testing.assert_array_equal, *tokens)
