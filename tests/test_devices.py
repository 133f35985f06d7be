"""N devices give the update that one device gives on the same global batch.

Virtual devices have to be asked for before a backend starts, so each run is a
process of its own.
"""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from common import BACKEND

SETUP = """
import sys
import torch, keras, numpy as np
sys.path.insert(0, {tests!r})
from common import images, to_numpy
from keras import layers
from keras_distill import *

DEVICES = {devices}
keras.utils.set_random_seed(2)
x, y = images(32)

def network(width):
    inputs = keras.Input((8, 8, 1))
    penalty = keras.regularizers.L2(0.01)
    hidden = layers.Conv2D(
        width, 3, kernel_regularizer=penalty, name="conv"
    )(inputs)
    hidden = layers.GlobalAveragePooling2D()(hidden)
    classes, value = layers.Dense(5)(hidden), layers.Dense(1)(hidden)
    return keras.Model(inputs, {{"classes": classes, "value": value}})

def run(augment=None):
    student = network(2)
    distiller = Distiller(
        student=student,
        teacher=network(8),
        augment=augment,
        hints=[Hint("conv", "conv", weight=1e-4)],
    )
    distiller.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        # A function as loss: Keras's own distiller doubles its gradient.
        {{"classes": ClassicKD(0.5), "value": keras.losses.mean_squared_error}},
        metrics={{"classes": ["accuracy", TeacherAgreement()]}},
    )
    labels = {{"classes": y, "value": x.mean((1, 2)) / 255}}
    history = distiller.fit(
        x, labels, batch_size=16, epochs=2, shuffle=False, verbose=0
    ).history
    np.savez(
        {out!r},
        *[to_numpy(w.value) for w in student.weights],
        **{{name: values for name, values in history.items()}},
    )
"""

RUNS = {
    "tensorflow": """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
names = [f"CPU:{i}" for i in range(DEVICES)]
with tf.distribute.MirroredStrategy(names).scope():
    run()
""",
    # On JAX a batch stays one batch over all devices, so that random views,
    # with partners from the other device, are the same too.
    "jax": """
import jax
assert len(jax.devices()) == DEVICES
if DEVICES > 1:
    keras.distribution.set_distribution(keras.distribution.DataParallel())
run(ConsistentAugment([InceptionCrop(8, 8), MixUp()], seed=3))
""",
}


@pytest.mark.skipif(
    BACKEND == "torch", reason="Keras has no distribution there"
)
def test_two_devices_give_the_update_of_one(tmp_path):
    results = []
    for devices in (1, 2):
        out = tmp_path / f"{devices}.npz"
        setup = SETUP.format(
            tests=os.path.dirname(__file__), devices=devices, out=str(out)
        )
        flags = f"--xla_force_host_platform_device_count={devices}"
        subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                setup + textwrap.dedent(RUNS[BACKEND]),
            ],
            env={**os.environ, "XLA_FLAGS": flags},
            check=True,
        )
        with np.load(out) as file:
            results.append(dict(file))
    one, two = results
    assert set(one) == set(two)
    assert {"loss", "classes_soft_loss", "hint_loss"} < set(one)
    for name in one:
        np.testing.assert_allclose(
            one[name], two[name], rtol=1e-4, err_msg=name
        )
