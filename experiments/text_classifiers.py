"""Text: a mean of word vectors learns from three convolutional networks.

SST-2 (sentences of films, two classes) and TREC (questions, six classes). Each
teacher has word vectors of 100 numbers and filters over three, four and five
words. The student is the mean of word vectors of 16 numbers, and one dense
layer: no filters, and a sixth of the memory of one teacher.

- "alone": cross-entropy with the labels.
- "alone, words left out": also with copies without a tenth of the words.
- "ClassicKD": labels and the mean of the teachers.
- "FunctionMatching": the teachers, without labels.
- "FunctionMatching, more text": also with such copies, and with first halves of
  sentences that go on with the second half of another one.

Per seed, all have the same number of steps, and all students have the same
initial weights. Settings were fixed beforehand, and the test sentences are
scored once. Of the first seed, one teacher and the last student are exported as
LiteRT files: their bytes, milliseconds per sentence and accuracy.

    python experiments/text_classifiers.py --data FOLDER \\
        --out experiments/results/text_classifiers.json

FOLDER holds sst2/ and trec/ with train.txt and test.txt, whose lines are a
label and a sentence.
"""

import argparse
import pathlib

import experiment_results as results
import keras
import numpy as np
import results_schema
from keras import layers

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import FunctionMatching

WORDS = 40  # of a sentence
COPIES = 10
WITH_LABELS = 8  # of the copies
TEACHER = "one of the teachers"


def load(folder, smoke):
    """Return `(x, y), (x_test, y_test)` as ids, the vocabulary and classes."""
    splits = []
    for split in ("train", "test"):
        lines = (folder / f"{split}.txt").read_text(encoding="utf-8")
        pairs = [line.split(" ", 1) for line in lines.splitlines() if line]
        # Of TREC, the coarse classes.
        splits.append([(c.split(":")[0], t.split()) for c, t in pairs])
    if smoke:
        splits = [split[:40] for split in splits]
    train = splits[0]
    words = sorted({word for _, text in train for word in text})
    ids = {word: number for number, word in enumerate(words, start=2)}
    classes = sorted({label for label, _ in train})
    arrays = []
    for split in splits:
        x = np.zeros((len(split), WORDS), "int32")
        for row, (_, text) in zip(x, split):
            known = [ids.get(word, 1) for word in text[:WORDS]]
            row[: len(known)] = known
        y = np.array([classes.index(label) for label, _ in split])
        arrays.append((x, y))
    return *arrays, len(words) + 2, len(classes)


def other_versions(x, generator):
    """Return other versions of sentences, in the same order several times.

    Of each sentence, the versions after `WITH_LABELS` end in the second half of
    another sentence, so their labels are unknown.
    """
    versions = []
    for number in range(COPIES):
        words = x.copy()
        if number >= WITH_LABELS:
            other = x[generator.permutation(len(x))]
            for row, second in zip(words, other):
                half = np.count_nonzero(row) // 2
                rest = second[np.count_nonzero(second) // 2 :][: WORDS - half]
                row[half:] = 0
                row[half : half + len(rest)] = rest
        left_out = generator.random(x.shape) < 0.1
        left_out[:, 0] = False  # A sentence without words has no mean.
        words[left_out] = 0
        versions.append(words)
    return np.concatenate([x, *versions])


def teacher_of(words, classes):
    inputs = keras.Input((WORDS,), dtype="int32")
    vectors = layers.Dropout(0.5)(layers.Embedding(words, 100)(inputs))
    found = [
        layers.GlobalMaxPooling1D()(
            layers.Conv1D(64, size, activation="relu")(vectors)
        )
        for size in (3, 4, 5)
    ]
    hidden = layers.Dropout(0.5)(layers.Concatenate()(found))
    return keras.Model(inputs, layers.Dense(classes)(hidden))


def student_of(words, classes):
    inputs = keras.Input((WORDS,), dtype="int32")
    vectors = layers.Embedding(words, 16, mask_zero=True)(inputs)
    mean = layers.GlobalAveragePooling1D()(vectors)
    return keras.Model(inputs, layers.Dense(classes)(mean))


def fit(model, loss, data, steps):
    """Fit for a number of steps of 50 sentences, however few there are."""
    epochs = max(round(50 * steps / len(data[0])), 1)
    model.compile(keras.optimizers.Adam(2e-3), loss)
    model.fit(*data, batch_size=50, epochs=epochs, verbose=0)
    return model


def accuracy(models, x, y):
    """Return the accuracy of the mean of several models."""
    outputs = [
        keras.ops.softmax(model.predict(x, batch_size=500, verbose=0))
        for model in models
    ]
    mean = keras.ops.convert_to_numpy(sum(outputs))
    return float(np.mean(mean.argmax(-1) == y))


def run_seed(seed, train, test, words, classes, options):
    """Return `{name: accuracy}`, and one teacher and the last student."""
    keras.utils.set_random_seed(seed)
    x, y = train
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teachers = [
        fit(
            teacher_of(words, classes),
            cross_entropy,
            train,
            options.teacher_steps,
        )
        for _ in range(options.teachers)
    ]
    more = other_versions(x, np.random.default_rng(seed))
    labelled = 1 + WITH_LABELS
    copies = more[: labelled * len(x)], np.concatenate([y] * labelled)
    methods = {
        "alone": (cross_entropy, train),
        "alone, words left out": (cross_entropy, copies),
        "ClassicKD": (ClassicKD(alpha=0.5, temperature=2.0), train),
        "FunctionMatching": (FunctionMatching(2.0), train[:1]),
        "FunctionMatching, more text": (FunctionMatching(2.0), (more,)),
    }
    scores = {
        "three teachers": accuracy(teachers, *test),
        TEACHER: accuracy(teachers[:1], *test),
    }
    for name, (loss, data) in methods.items():
        keras.utils.set_random_seed(seed)
        student = model = student_of(words, classes)
        if loss is not cross_entropy:
            model = Distiller(student=student, teacher=teachers)
        fit(model, loss, data, options.steps)
        scores[name] = accuracy([student], *test)
    return scores, {TEACHER: teachers[0], name: student}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="one epoch")
    parser.add_argument("--out", type=pathlib.Path, help="results as JSON")
    options = parser.parse_args()
    options.teachers, options.teacher_steps, options.steps = 3, 1000, 2000
    if options.smoke:
        options.seeds, options.teachers = 1, 2
        options.teacher_steps = options.steps = 1
    rows = []
    for name in ("sst2", "trec"):
        data = load(options.data / name, options.smoke)
        runs = [run_seed(seed, *data, options) for seed in range(options.seeds)]
        networks = runs[0][1]
        teacher, student = (n.count_params() for n in networks.values())
        files = results.litert_files(networks, data[1])
        for method in runs[0][0]:
            scores = [scores[method] for scores, _ in runs]
            print(
                f"{name} {method:28} {np.mean(scores):.2%} "
                f"± {np.std(scores):.2%}",
                flush=True,
            )
            metrics = {
                "accuracy": scores,
                "parameters": teacher if "teachers" in method else student,
                **files.get(method, {}),
            }
            rows.append(
                results.row_of(
                    f"{name}, {method}",
                    options,
                    metrics,
                    data=name,
                    model=method,
                )
            )
    if options.out:
        results_schema.write(rows, options.out)


if __name__ == "__main__":
    main()
