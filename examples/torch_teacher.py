"""A PyTorch teacher for a Keras student, on every backend.

A `torch.nn.Module` is trained in PyTorch and recorded. The student is a Keras
model, and learns from the recording. Needs PyTorch beside the backend of
Keras: `pip install keras-distill[torch]`.

    KERAS_BACKEND=jax python examples/torch_teacher.py

Takes half a minute on two CPU cores.
"""

# Import torch before TensorFlow: the other order can crash.
import torch  # noqa: I001

import keras
from keras import layers
from sklearn.datasets import load_digits

from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import record_teacher

# ## Load the digits, images of 8x8 pixels
keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = (x / 16).astype("float32").reshape(-1, 8, 8, 1)
x, x_test, y, y_test = x[:1297], x[1297:], y[:1297], y[1297:]


# ## Train the teacher in PyTorch, which has the channels first
def channels_first(images):
    return images.permute(0, 3, 1, 2)


teacher = torch.nn.Sequential(
    torch.nn.Conv2d(1, 64, 3, stride=2, padding=1),
    torch.nn.ReLU(),
    torch.nn.Conv2d(64, 128, 3, stride=2, padding=1),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(512, 10),
)
optimizer = torch.optim.Adam(teacher.parameters(), 1e-3)
images, labels = channels_first(torch.tensor(x)), torch.tensor(y)
for _ in range(20):
    for batch in torch.randperm(len(images)).split(32):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            teacher(images[batch]), labels[batch]
        )
        loss.backward()
        optimizer.step()

# ## Record its outputs for ten epochs of views, which Keras draws
augment = ConsistentAugment([InceptionCrop(8, 8, area_range=(0.6, 1.0))])
recording = record_teacher(
    teacher,
    x,
    "recording",
    augment=augment,
    epochs=10,
    teacher_preprocessing=channels_first,
)

# ## Distil a Keras student
conv = {"strides": 2, "padding": "same", "activation": "relu"}
student = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        layers.Conv2D(8, 3, **conv),
        layers.Conv2D(16, 3, **conv),
        layers.Flatten(),
        layers.Dense(10),
    ]
)
distiller = Distiller(student=student, teacher=recording, augment=augment)
distiller.compile(keras.optimizers.Adam(3e-3), FunctionMatching())
distiller.fit(x, epochs=40, verbose=2)

# ## Compare and save
with torch.no_grad():
    logits = teacher(channels_first(torch.tensor(x_test))).numpy()
predicted = student.predict(x_test, verbose=0).argmax(-1)
print(f"teacher accuracy {(logits.argmax(-1) == y_test).mean():.1%}")
print(f"student accuracy {(predicted == y_test).mean():.1%}")
print(f"agreement        {(predicted == logits.argmax(-1)).mean():.1%}")
student.save("student.keras")
