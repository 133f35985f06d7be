"""A language model by character: a GPT teaches one of a tenth of its size.

The teacher learns from Shakespeare's plays. One student learns from the plays
too, the other from the teacher's distribution of the next character.

    python examples/language_model.py                    # downloads the plays
    python examples/language_model.py --data FOLDER      # reads FOLDER/...

FOLDER holds tinyshakespeare.txt; any other text will do.
"""

import argparse
import math
import pathlib

import keras
import keras_hub
import numpy as np

from keras_distill import Distiller
from keras_distill import FunctionMatching

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=pathlib.Path, help="folder of the text")
parser.add_argument("--epochs", type=int, default=5)
options, _ = parser.parse_known_args()  # A notebook has other arguments.

# ## Load the text, as windows of 128 characters
keras.utils.set_random_seed(0)
NAME = "tinyshakespeare.txt"
URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/"
    "tinyshakespeare/input.txt"
)
path = options.data / NAME if options.data else keras.utils.get_file(NAME, URL)
text = pathlib.Path(path).read_text()
characters = sorted(set(text))
ids = np.array([characters.index(c) for c in text], "int32")
windows = ids[: (len(ids) - 1) // 128 * 128].reshape(-1, 128)
following = ids[1 : windows.size + 1].reshape(-1, 128)
split = int(0.9 * len(windows))


def inputs_of(windows):
    return {"token_ids": windows, "padding_mask": np.ones_like(windows)}


# KerasHub does not shuffle arrays.
order = np.random.default_rng(0).permutation(split)
train = inputs_of(windows[order]), following[order]
test = inputs_of(windows[split:]), following[split:]


# ## Train the teacher, and a student without it
def gpt(width, layers):
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=len(characters),
        num_layers=layers,
        num_heads=4,
        hidden_dim=width,
        intermediate_dim=4 * width,
        max_sequence_length=128,
        dropout=0.0,
    )
    return keras_hub.models.GPT2CausalLM(backbone)


def fit(model, loss):
    steps = options.epochs * math.ceil(split / 32)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=3e-3, warmup_steps=math.ceil(steps / 20)
    )
    model.compile(keras.optimizers.AdamW(rate, weight_decay=0.01), loss)
    model.fit(*train, batch_size=32, epochs=options.epochs, shuffle=False)


cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
teacher, alone, student = gpt(128, 3), gpt(64, 1), gpt(64, 1)
fit(teacher, cross_entropy)
fit(alone, cross_entropy)

# ## Distil
# The labels are not used. For a vocabulary of many thousand tokens, add
# `tokens_per_chunk=256`.
fit(Distiller(student=student, teacher=teacher), FunctionMatching())


# ## Compare
for name, model in {
    "teacher": teacher,
    "alone": alone,
    "distilled": student,
}.items():
    model.compile(loss=cross_entropy)
    loss = model.evaluate(*test, verbose=0, return_dict=True)["loss"]
    size = model.count_params()
    bits = loss / math.log(2)
    print(f"{name}: {size:,} parameters, {bits:.3f} bits per character")

# ## Write with the student, and save it
start = np.zeros((1, 128), "int32")
start[0, :16] = test[0]["token_ids"][0, :16]
given = {"token_ids": start, "padding_mask": (np.arange(128) < 16)[None]}
student.compile(sampler="top_k")
written = student.generate(given, stop_token_ids=None)["token_ids"]
written = keras.ops.convert_to_numpy(written)[0]
print("".join(characters[i] for i in written))
student.save("student.keras")
