"""OnPolicy: batches whose text the student generates itself.

A student that learns from texts of others sees, at inference, its own mistakes
for the first time. On-policy distillation trains it on them: before a step, the
student continues the prompts of the batch, and the teacher scores what it
wrote.

Generating happens between the compiled steps, with the weights of this very
step. Which steps, and the random numbers of the sampler, depend on the seed of
the sampler and the number of the step only, so a resumed run continues exactly.

Source: Agarwal et al. 2024, "On-Policy Distillation of Language Models",
https://arxiv.org/abs/2306.13649.
"""

import keras
import numpy as np
from keras import ops

from keras_distill import _arguments
from keras_distill import _backend
from keras_distill._keras_internals import compiled_label_metrics
from keras_distill.distiller._text import text_preprocessor


def on_policy_of(student, share):
    """Return the `OnPolicy` of a Distiller; without a share, `None`."""
    return None if share is None else OnPolicy(student, share)


class OnPolicy:
    """Replaces a share of the batches.

    A plain object: Keras does not track the student a second time.

    Args:
        student: the student, a `CausalLM` of KerasHub.
        share: float in (0, 1], the share of batches.

    Raises:
        ValueError: if the student cannot generate.
    """

    def __init__(self, student, share):
        self.share = _arguments.fraction("on_policy", share)
        if self.share == 0.0:
            raise ValueError(
                "`on_policy` must be above 0. Received: on_policy=0. Leave it "
                "out to train on the data alone."
            )
        if not hasattr(student, "make_generate_function"):
            raise ValueError(
                "`on_policy` requires a student that generates text, a "
                "`CausalLM` of KerasHub. Received: "
                f"student={student!r}, on_policy={share}"
            )
        self._student = student

    def check(self, distiller, objective):
        """Raise if losses or steps do not fit.

        Args:
            distiller: the Distiller, which was compiled.
            objective: its `Objective`.
        """
        for term in objective.output_terms:
            if term.uses_labels:
                raise ValueError(
                    "Text that the student generates has no labels, and "
                    f"on_policy={self.share} trains on it. Received: "
                    f"{term.loss!r}, which compares with labels. Use "
                    "`FunctionMatching()`, or `alpha=1`."
                )
        if compiled_label_metrics(distiller) is not None:
            raise ValueError(
                "Text that the student generates has no labels, so metrics "
                "cannot compare with them. Received: metrics besides "
                f"`TeacherAgreement` and `TeacherDivergence`, and on_policy="
                f"{self.share}. Compute them with `distiller.student`."
            )
        if distiller.steps_per_execution != 1:
            raise ValueError(
                "With `on_policy`, the student generates between the steps. "
                "Received: steps_per_execution="
                f"{distiller.steps_per_execution}. Leave it out."
            )
        if not _backend.is_on_one_device(distiller):
            raise ValueError(
                "`on_policy` trains on one device of one process. Received: "
                f"on_policy={self.share} and several devices or processes."
            )

    def is_chosen(self, step):
        """Return whether the student generates the batch of a step."""
        return self._random(step, 0).random() < self.share

    def generated(self, batch, step):
        """Return a batch with the student's text after its prompts.

        The prompt of a sequence ends with the last token before the first label
        that counts. Each token that the student wrote has the weight 1.

        Args:
            batch: `(x, y, sample_weight)` of the data.
            step: int, the number of the step.

        Raises:
            ValueError: if the batch is not one of a language model.
        """
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        _check_batch(x, weights)
        ids, mask, counts = (
            ops.convert_to_numpy(leaf)
            for leaf in (x["token_ids"], x["padding_mask"], weights)
        )
        places, length = np.arange(ids.shape[1]), ids.shape[1]
        counts = counts != 0
        first = np.where(counts.any(axis=1), counts.argmax(axis=1), length)
        is_prompt = (places <= first[:, None]) & (mask != 0)
        self._set_seed(step)
        written = self._student.make_generate_function()(
            {
                "token_ids": np.where(is_prompt, ids, 0).astype(ids.dtype),
                "padding_mask": is_prompt.astype(mask.dtype),
            },
            stop_token_ids=self._stop_tokens(),
        )
        ids, is_text = (
            ops.convert_to_numpy(written[name])
            for name in ("token_ids", "padding_mask")
        )
        labels = np.concatenate([ids[:, 1:], ids[:, :1]], axis=1)
        has_next = np.roll(is_text, -1, axis=1) != 0
        has_next[:, -1] = False
        counts = has_next & (places >= first[:, None])
        replaced = {**x, "token_ids": ids, "padding_mask": is_text}
        y = y if y is None else _like(y, labels)
        x = {name: _like(x[name], replaced[name]) for name in x}
        return x, y, _like(weights, counts)

    def _random(self, step, purpose):
        seed = getattr(self._student.sampler, "seed", None) or 0
        return np.random.default_rng([seed, step, purpose])

    def _set_seed(self, step):
        random = self._random(step, 1)
        for state in self._student.sampler.variables:
            state.assign(random.integers(0, 2**31, state.shape))

    def _stop_tokens(self):
        preprocessor = text_preprocessor(self._student)
        if preprocessor is None:
            return None
        names = ("end_token_id", "end_token2_id")
        found = (getattr(preprocessor.tokenizer, name, None) for name in names)
        return tuple(token for token in found if token is not None)


def _check_batch(x, weights):
    names = sorted(x) if isinstance(x, dict) else type(x).__name__
    if weights is None or not {"token_ids", "padding_mask"} <= set(names):
        raise ValueError(
            "`on_policy` requires batches of a preprocessor of KerasHub: a "
            "dict with 'token_ids' and 'padding_mask', labels, and a "
            "`sample_weight` for each token, which is 0 for the prompt. "
            f"Received: x={names}, and "
            f"{'no' if weights is None else 'a'} sample_weight."
        )


def _like(old, values):
    """Return values as a tensor of the same shape and dtype as another one."""
    return ops.convert_to_tensor(
        ops.reshape(values, tuple(old.shape)), dtype=old.dtype
    )
