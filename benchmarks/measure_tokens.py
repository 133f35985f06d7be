"""Language models with a large vocabulary: steps in chunks, and recordings.

Each side of a step runs in a process of its own: the step on the logits of all
tokens, and the step with `tokens_per_chunk`. Compared are the time of a step,
and the peak memory as in `measure_memory.py`. Both models are an embedding
whose weights are also the last layer, so nearly all of the step is their
vocabulary.

The time to record a token is that of further tokens, without the start.
"""

import json
import statistics
import sys
import tempfile
import time

import keras
import numpy as np
from keras import layers

from benchmarks.measure_memory import forget_peak
from benchmarks.measure_memory import in_a_process
from benchmarks.measure_memory import resident
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import record_teacher

ROUNDS = 2
STEPS = 3
VOCABULARY, WIDTH, BATCH, TIME, CHUNK = 262_144, 256, 2, 1024, 128


def tokens(smoke):
    found = {None: [], CHUNK: []}
    for _ in range(1 if smoke else ROUNDS):
        for chunk, values in found.items():
            size = "smoke" if smoke else "full"
            values.append(in_a_process(__name__, str(chunk or 0), size))
    size = (
        f"{VOCABULARY:,} tokens, width {WIDTH}, a batch of {BATCH} x {TIME:,}"
    )
    return [
        _row(
            f"peak memory with chunks of {CHUNK} / without, {size}",
            0.25,
            0,
            found,
        ),
        _row(f"a step with chunks of {CHUNK} / without, {size}", 1.2, 1, found),
    ]


def _row(title, goal, index, found):
    whole, chunks = ([each[index] for each in found[c]] for c in (None, CHUNK))
    unit = ("mebibytes", "seconds")[index]
    return {
        "title": title,
        "goal": goal,
        **_ratio(chunks, whole),
        unit: [
            round(statistics.median(values), 2) for values in (chunks, whole)
        ],
    }


def _ratio(ours, others):
    """Return the median of ratios of pairs, their range and their number."""
    ratios = [one / other for one, other in zip(ours, others)]
    return {
        "ratio": round(statistics.median(ratios), 4),
        "low": round(min(ratios), 4),
        "high": round(max(ratios), 4),
        "samples": len(ratios),
    }


def token_recording(smoke):
    vocabulary, length = (512, 16) if smoke else (VOCABULARY, 64)
    teacher = _language_model(vocabulary)
    # Long enough to time: with `top_k`, a token takes a hundred times as long.
    sides = (34, {"top_k": 16}), (2002, {"hidden_states": True})
    found = [
        [
            _seconds_per_token(teacher, length, 4 if smoke else count, options)
            for count, options in sides
        ]
        for _ in range(1 if smoke else 3)
    ]
    top_k, hidden = zip(*found)
    title = "recording a token: `top_k=16` / hidden states"
    return [
        {
            "title": f"{title}, {VOCABULARY:,} tokens, width {WIDTH}",
            **_ratio(top_k, hidden),
            "tokens_per_second": [
                round(1 / statistics.median(times)) for times in (top_k, hidden)
            ],
        }
    ]


def _seconds_per_token(teacher, length, many, options):
    few, times = 2, []
    for count in (few, many):
        x = np.random.default_rng(0).integers(0, 512, (count, length))
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            record_teacher(
                teacher, x, folder, batch_size=2, verbose=0, **options
            )
            times.append(time.perf_counter() - start)
    # Of so few tokens as the smoke run has, the start may take longer.
    return max(times[1] - times[0], 1e-9) / ((many - few) * length)


def peak_and_time(chunk, smoke):
    """Return the mebibytes that training adds here, and the time of a step."""
    vocabulary, length = (512, 16) if smoke else (VOCABULARY, TIME)
    teacher, student = (_language_model(vocabulary) for _ in range(2))
    x = np.random.default_rng(0).integers(0, vocabulary, (BATCH, length))
    before = resident("VmRSS")
    distiller = Distiller(
        student=student, teacher=teacher, tokens_per_chunk=chunk
    )
    # Without slots, the optimizer adds nothing to either side.
    distiller.compile(
        keras.optimizers.SGD(1e-3), FunctionMatching(), check_values=False
    )
    distiller.train_on_batch(x)
    forget_peak()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        distiller.train_on_batch(x)
        times.append(time.perf_counter() - start)
    peak = (resident("VmHWM") - before) / 2**20
    return peak, statistics.median(times)


def _language_model(vocabulary):
    embedding = layers.ReversibleEmbedding(vocabulary, WIDTH)
    inputs = keras.Input((None,), dtype="int32")
    hidden = layers.Dense(WIDTH, "gelu")(embedding(inputs))
    return keras.Model(inputs, embedding(hidden, reverse=True))


if __name__ == "__main__":
    print(
        json.dumps(
            peak_and_time(int(sys.argv[1]) or None, sys.argv[2] == "smoke")
        )
    )
