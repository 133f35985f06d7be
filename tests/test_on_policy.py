"""`on_policy`: the student continues prompts, and the teacher scores them."""

import keras
import keras_hub
import numpy as np
import pytest
from common import to_numpy
from test_text import sizes

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import Resume
from keras_distill import record_teacher
from keras_distill.distiller._on_policy import OnPolicy

pytestmark = pytest.mark.any_backend

WORDS, TIME = 30, 10


def gpt(width, seed=0):
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.GPT2Backbone(**sizes(WORDS, 1, width, TIME))
    model = keras_hub.models.GPT2CausalLM(backbone)
    model.compile(sampler=keras_hub.samplers.RandomSampler(seed=5))
    return model


def texts(count=8):
    """Return `(x, y, weights)` with prompts of one to four tokens."""
    random = np.random.default_rng(0)
    ids = random.integers(1, WORDS, (count, TIME + 1)).astype("int32")
    inputs = {
        "token_ids": ids[:, :-1],
        "padding_mask": np.ones((count, TIME), "int32"),
    }
    first = random.integers(0, 4, (count, 1))
    weights = (np.arange(TIME) >= first).astype("float32")
    weights[:, -1] = 0.0
    return inputs, ids[:, 1:], weights


def fitted(share, epochs=1, callbacks=(), data=None, **options):
    x, y, weights = texts() if data is None else data
    distiller = Distiller(
        student=gpt(8), teacher=gpt(16, 1), on_policy=share, **options
    )
    loss = FunctionMatching(reduction="mean_with_sample_weight")
    distiller.compile(keras.optimizers.SGD(0.5), loss)
    history = distiller.fit(
        x,
        y,
        sample_weight=weights,
        batch_size=4,
        shuffle=data is None,
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
    )
    return distiller, history.history["loss"]


def test_prompts_are_kept_and_the_rest_is_written_by_the_student():
    student = gpt(8)
    x, y, weights = texts()
    on_policy = OnPolicy(student, 1.0)
    (new, labels, counts), again, other = (
        to_numpy(on_policy.generated((x, y, weights), step))
        for step in (3, 3, 4)
    )
    ids = new["token_ids"]
    is_prompt = np.arange(TIME) <= weights.argmax(axis=1)[:, None]
    np.testing.assert_array_equal(ids[is_prompt], x["token_ids"][is_prompt])
    assert np.mean(ids[~is_prompt] == x["token_ids"][~is_prompt]) < 0.2
    np.testing.assert_array_equal(labels[:, :-1], ids[:, 1:])
    np.testing.assert_array_equal(counts, weights)
    assert (labels.dtype, counts.dtype) == (y.dtype, weights.dtype)
    np.testing.assert_array_equal(again[0]["token_ids"], ids)
    assert not np.array_equal(other[0]["token_ids"], ids)


def test_text_ends_with_the_stop_token(monkeypatch):
    student = gpt(8)
    on_policy = OnPolicy(student, 1.0)
    monkeypatch.setattr(on_policy, "_stop_tokens", lambda: tuple(range(15)))
    (new, _, counts) = to_numpy(on_policy.generated(texts(), 0))
    ids, mask = new["token_ids"], new["padding_mask"]
    assert 0 < mask.mean() < 1
    for row, is_text, counted in zip(ids, mask, counts):
        end = is_text.sum()
        assert is_text[:end].all()
        # A label counts if it is text: up to the stop token.
        assert not counted[end - 1 :].any() and counted[end - 2]
        assert end == TIME or row[end - 1] < 15


def test_the_teacher_scores_what_the_student_wrote():
    """A step is the same as a step on its text, generated beforehand."""
    data = texts(4)
    distiller, (loss,) = fitted(1.0, data=data)
    written = to_numpy(OnPolicy(gpt(8), 1.0).generated(data, 0))
    expected, (value,) = fitted(None, data=written)
    np.testing.assert_allclose(loss, value, rtol=1e-3)
    for one, other in zip(
        distiller.student.get_weights(), expected.student.get_weights()
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_share_of_batches(monkeypatch):
    steps = []
    generated = OnPolicy.generated

    def counted(self, batch, step):
        steps.append(step)
        return generated(self, batch, step)

    monkeypatch.setattr(OnPolicy, "generated", counted)
    fitted(0.5, epochs=10, tokens_per_chunk=7)
    assert 5 <= len(steps) <= 15 and max(steps) < 20
    assert steps == sorted(set(steps))


def test_a_resumed_run_ends_like_one_never_stopped(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations == 3:
                raise KeyboardInterrupt

    whole, _ = fitted(0.5, epochs=4, callbacks=[Resume(tmp_path / "whole")])
    with pytest.raises(KeyboardInterrupt):
        parts = [Resume(tmp_path / "parts", save_freq=1), Stop()]
        fitted(0.5, epochs=4, callbacks=parts)
    resumed, _ = fitted(0.5, epochs=4, callbacks=[Resume(tmp_path / "parts")])
    for one, other in zip(
        whole.student.get_weights(), resumed.student.get_weights()
    ):
        np.testing.assert_array_equal(one, other)


def test_refused(tmp_path):
    x, y, _ = texts()
    with pytest.raises(ValueError, match="Leave it out"):
        fitted(0)
    with pytest.raises(ValueError, match="number from 0 to 1"):
        fitted(1.5)
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="`CausalLM` of KerasHub"):
        Distiller(student=plain, teacher=gpt(8), on_policy=0.5)
    recording = record_teacher(gpt(16, 1), x, tmp_path, verbose=0)
    with pytest.raises(ValueError, match="and a RecordedTeacher"):
        Distiller(student=gpt(8), teacher=recording, on_policy=0.5)

    def fit(*data, loss=None, **options):
        distiller = Distiller(student=gpt(8), teacher=gpt(16, 1), on_policy=1.0)
        distiller.compile("sgd", loss, **options)
        distiller.fit(*data, batch_size=4, verbose=0)

    with pytest.raises(ValueError, match="compares with labels"):
        fit(x, y, loss=ClassicKD())
    with pytest.raises(ValueError, match="metrics cannot compare"):
        fit(x, y, metrics=["accuracy"])
    with pytest.raises(ValueError, match="steps_per_execution=2"):
        fit(x, y, steps_per_execution=2)
    with pytest.raises(ValueError, match="and no sample_weight"):
        fit(x, y)
