"""Language: a small character model learns from a larger one, on Shakespeare.

The text has 1.1 million characters of 65 kinds. The first 90 % are for training
and the last 10 % are scored. The teacher has three blocks of width 128. The
student has one block of width 64, about a tenth of the parameters.

- "alone": cross-entropy with the text.
- The divergences of `FunctionMatching` to the teacher, without labels.
- "labels and teacher": `ClassicKD` with half of its weight on the labels.
- "sequence-level": cross-entropy with text that the teacher generated once, as
  much as one epoch of the text itself.
- "on-policy": "forward", but in half of the batches the student itself
  continues the first eight characters, and the teacher scores what it wrote.

A LiteRT file is written of the first student of "forward", and of the teacher.

The teacher is recorded once for each seed, and all students of a seed replay
the same windows. Only "on-policy" asks the teacher itself. Per seed, all
students have the same initial weights, optimizer and number of steps. Settings
were fixed beforehand.

    python experiments/shakespeare.py --data FOLDER \\
        --out experiments/results/shakespeare.json

`--only NAME` trains one kind of student. The backend is Keras's:
`KERAS_BACKEND=jax`.
"""

import argparse
import math
import pathlib
import tempfile

import experiment_results as results
import keras
import keras_hub
import numpy as np
import results_schema

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import record_teacher

TIME = 128
BATCH = 32
PROMPT = 8


def load(options):
    """Return the training and the test text as ids, and their number."""
    text = (options.data / "tinyshakespeare.txt").read_text()
    kinds = sorted(set(text))
    ids = np.array([kinds.index(c) for c in text], "int32")
    if options.smoke:
        ids = ids[: 20 * TIME]
    return *np.split(ids, [int(0.9 * len(ids))]), len(kinds)


def gpt(width, layers, kinds):
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=kinds,
        num_layers=layers,
        num_heads=4,
        hidden_dim=width,
        intermediate_dim=4 * width,
        max_sequence_length=TIME,
        dropout=0.0,
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)


def inputs_of(ids):
    return {"token_ids": ids, "padding_mask": np.ones_like(ids)}


def windows(text, epochs, generator):
    """Return `(inputs, labels)`: per epoch, the text at another offset."""
    count = (len(text) - TIME - 1) // TIME
    starts = [
        np.arange(count) * TIME + generator.integers(TIME)
        for _ in range(epochs)
    ]
    starts = np.concatenate([generator.permutation(s) for s in starts])
    rows = text[starts[:, None] + np.arange(TIME + 1)]
    return inputs_of(rows[:, :-1]), rows[:, 1:]


def fit(model, loss, data, options):
    """Fit once to all windows, with a rate that falls to zero."""
    steps = math.ceil(len(data[1]) / BATCH)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=3e-3, warmup_steps=min(50, steps)
    )
    model.compile(keras.optimizers.AdamW(rate, weight_decay=0.01), loss)
    size = None if isinstance(model, Distiller) else BATCH  # as recorded
    verbose = 2 if options.verbose else 0
    x, y, weights = (*data, None)[:3]
    model.fit(
        x,
        y,
        sample_weight=weights,
        batch_size=size,
        shuffle=False,
        verbose=verbose,
    )


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def scored(text):
    """Return `(inputs, labels)`: text in windows of their own."""
    count = (len(text) - 1) // TIME
    rows = text[np.arange(count)[:, None] * TIME + np.arange(TIME + 1)]
    return inputs_of(rows[:, :-1]), rows[:, 1:]


def bits(model, text):
    """Return the bits per character of text."""
    model.compile(loss=cross_entropy())
    logs = model.evaluate(
        *scored(text),
        batch_size=BATCH,
        verbose=0,
        return_dict=True,
    )
    return float(logs["loss"]) / math.log(2)


def litert_files(networks, text):
    """Return `{name: figures of its LiteRT files}`, for windows of text."""
    fixed = {}
    for name, network in networks.items():
        # A file has inputs of one length.
        inputs = {
            key: keras.Input((TIME,), dtype="int32", name=key)
            for key in ("token_ids", "padding_mask")
        }
        fixed[name] = keras.Model(inputs, network(inputs))
    return results.litert_files(fixed, scored(text))


def generated(teacher, text):
    """Return windows that the teacher wrote, after a few characters of text."""
    teacher.compile(sampler=keras_hub.samplers.RandomSampler(seed=1))
    count = len(text) // TIME
    rows = text[: count * TIME].reshape(count, TIME).copy()
    mask = np.zeros_like(rows)
    mask[:, :PROMPT] = 1
    written = [
        teacher.generate(
            {"token_ids": rows[i : i + 256], "padding_mask": mask[i : i + 256]},
            stop_token_ids=None,
        )["token_ids"]
        for i in range(0, count, 256)
    ]
    return keras.ops.convert_to_numpy(keras.ops.concatenate(written))


METHODS = {
    "forward": FunctionMatching(),
    "reverse": FunctionMatching(divergence="reverse"),
    "jensen_shannon": FunctionMatching(divergence="jensen_shannon"),
    "labels and teacher": ClassicKD(alpha=0.5, temperature=1.0),
}


def run_seed(seed, teacher, texts, kinds, options, rows):
    """Add the bits of all students to rows, and return the students."""
    trained = {}
    train, test, written = texts
    generator = np.random.default_rng(seed)
    data = windows(train, options.epochs, generator)
    students = {"alone": (data, cross_entropy())}
    for name, loss in METHODS.items():
        students[name] = data, loss
    if written is not None:
        shown = np.concatenate(
            [generator.permutation(written) for _ in range(options.epochs)]
        )
        shown = inputs_of(shown[:, :-1]), shown[:, 1:]
        students["sequence-level"] = shown, cross_entropy()
    counts = np.ones(data[1].shape, "float32")
    counts[:, : PROMPT - 1] = 0  # The student continues the rest.
    students["on-policy"] = (*data, counts), FunctionMatching()
    with tempfile.TemporaryDirectory() as folder:
        if options.only is None or options.only in METHODS:
            recording = record_teacher(
                teacher, data[0], folder, batch_size=BATCH, seed=seed, verbose=0
            )
        for name, (shown, loss) in students.items():
            if options.only not in (None, name):
                continue
            keras.utils.set_random_seed(seed)
            trained[name] = student = model = gpt(64, 1, kinds)
            if name in METHODS:
                model = Distiller(student=student, teacher=recording)
            elif name == "on-policy":
                sampler = keras_hub.samplers.RandomSampler(seed=seed)
                student.compile(sampler=sampler)
                model = Distiller(
                    student=student, teacher=teacher, on_policy=0.5
                )
            fit(model, loss, shown, options)
            rows.setdefault(name, []).append(bits(student, test))
            print(f"seed {seed}, {name}: {rows[name][-1]:.4f}", flush=True)
    return trained


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--teacher-epochs", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a few windows")
    parser.add_argument("--only", help="one kind of student")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, help="results as JSON")
    options = parser.parse_args()
    if options.smoke:
        options.seeds = options.epochs = options.teacher_epochs = 1
    train, test, kinds = load(options)
    keras.utils.set_random_seed(0)
    teacher = gpt(128, 3, kinds)
    data = windows(train, options.teacher_epochs, np.random.default_rng(99))
    fit(teacher, cross_entropy(), data, options)
    rows = {"teacher": [bits(teacher, test)]}
    print(f"teacher: {rows['teacher'][0]:.4f}", flush=True)
    written = None
    if options.only in (None, "sequence-level"):
        written = generated(teacher, train)
    texts = train, test, written
    networks = {"teacher": teacher}
    for seed in range(options.seeds):
        students = run_seed(seed, teacher, texts, kinds, options, rows)
        networks = {**students, **networks}  # The first seed stays.
    files = {}
    if "forward" in networks:
        compared = {name: networks[name] for name in ("teacher", "forward")}
        files = litert_files(compared, test)
    for name, values in rows.items():
        print(f"{name:20} {np.mean(values):.3f} ± {np.std(values):.3f}")
    if options.out:
        results_schema.write(
            [
                results.row_of(
                    name,
                    options,
                    {
                        "bits_per_character": values,
                        "parameters": networks[name].count_params(),
                        **files.get(name, {}),
                    },
                    model=name,
                )
                for name, values in rows.items()
            ],
            options.out,
        )


if __name__ == "__main__":
    main()
