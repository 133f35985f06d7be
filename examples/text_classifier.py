"""Text classification: two BERTs teach one of a single layer, on strings.

The teachers and the student are built here, with a vocabulary of the words of
the training texts. With pretrained models, use `from_preset`; the rest is the
same.

    python examples/text_classifier.py --data FOLDER

FOLDER holds train.txt and test.txt. Each line is a label and a text, as in the
files of SST-2 and TREC. With `--epochs 3`, it takes five minutes on two CPU
cores.
"""

import argparse
import collections
import pathlib

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from keras_distill import ClassicKD
from keras_distill import Distiller
from keras_distill import TeacherAgreement
from keras_distill import copy_layers

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=pathlib.Path, required=True)
parser.add_argument("--epochs", type=int, default=3)
options, _ = parser.parse_known_args()  # A notebook has other arguments.


# ## Load the texts
def load(split):
    lines = (options.data / f"{split}.txt").read_text(encoding="utf-8")
    pairs = [line.split(" ", 1) for line in lines.splitlines() if line]
    return [label.split(":")[0] for label, _ in pairs], [t for _, t in pairs]


keras.utils.set_random_seed(0)
(names, texts), (test_names, test_texts) = load("train"), load("test")
classes = sorted(set(names))
labels = np.array([classes.index(name) for name in names])
test_labels = np.array([classes.index(name) for name in test_names])
# tf.data shuffles, so `fit()` below does not.
train = tf.data.Dataset.from_tensor_slices((texts, labels))
train = train.shuffle(len(texts), seed=0).batch(32)
test = tf.data.Dataset.from_tensor_slices((test_texts, test_labels)).batch(32)

# ## Build the tokenizer
counts = collections.Counter(word for text in texts for word in text.split())
words = sorted(word for word, count in counts.items() if count > 1)
vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
    keras_hub.models.BertTokenizer(vocabulary=vocabulary), sequence_length=40
)


def bert(layers):
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(vocabulary),
        num_layers=layers,
        num_heads=4,
        hidden_dim=64,
        intermediate_dim=128,
        max_sequence_length=40,
        dropout=0.2,
    )
    return keras_hub.models.BertTextClassifier(
        backbone, preprocessor=preprocessor, num_classes=len(classes)
    )


# ## Train the teachers
teachers = [bert(layers=2) for _ in range(2)]
for teacher in teachers:
    teacher.compile(
        keras.optimizers.Adam(5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    teacher.fit(train, epochs=options.epochs, shuffle=False)

# ## Distil
# The student starts with every other layer of the first teacher, and with its
# embeddings. `fit()` takes strings: it applies the student's preprocessor.
student = bert(layers=1)
copy_layers(teachers[0], student)
distiller = Distiller(student=student, teacher=teachers)
distiller.compile(
    keras.optimizers.Adam(5e-4),
    ClassicKD(alpha=0.5, temperature=2.0),
    metrics=["accuracy", TeacherAgreement()],
)
distiller.fit(train, epochs=options.epochs, validation_data=test, shuffle=False)

# ## Compare and save
models = {"a teacher": teachers[0], "student": student}
for name, model in models.items():
    decisions = model.predict(test_texts, verbose=0).argmax(-1)
    accuracy = np.mean(decisions == test_labels)
    size = model.count_params()
    print(f"{name}: {size:,} parameters, accuracy {accuracy:.1%}")
student.save("student.keras")
