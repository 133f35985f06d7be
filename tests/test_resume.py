"""`Resume`: a killed run ends, bit for bit, like one that never stopped."""

import contextlib
import resource
import signal
import subprocess
import textwrap

import keras
import numpy as np
import pytest
import torch
from common import cnn
from common import images
from common import to_numpy
from programs import command
from programs import environment

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import Resume
from keras_distill import record_teacher
from keras_distill.compression import KeepCompressed
from keras_distill.compression import MagnitudePruning
from keras_distill.compression import WeightSharing

X, Y = images(40)
EPOCHS = 4


class Killed(BaseException):
    """In place of a signal: ends `fit()` between two batches."""


class KillAt(keras.callbacks.Callback):
    """Ends a run after some batches, and counts what it sees."""

    def __init__(self, kill_after=None):
        super().__init__()
        self.kill_after, self.begun = kill_after, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.begun += 1

    def on_train_batch_end(self, batch, logs=None):
        if self.kill_after is not None:
            self.kill_after -= 1  # not restored: it is an argument
            if self.kill_after == 0:
                raise Killed


class OneOrderAnEpoch(keras.utils.PyDataset):
    """Shuffles itself at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.generator, self.order = np.random.default_rng(0), np.arange(40)

    def __len__(self):
        return 5

    def __getitem__(self, index):
        rows = self.order[8 * index : 8 * index + 8]
        return X[rows], Y[rows]

    def on_epoch_end(self):
        self.generator.shuffle(self.order)


def tf_dataset():
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((X, Y))
    return dataset.shuffle(40, seed=3).batch(8)


def loader():
    torch.manual_seed(7)  # Keras seeds PyTorch as a backend only
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    return torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)


DATA = {
    "arrays": lambda: dict(x=X, y=Y, batch_size=8),
    "arrays in batches": lambda: dict(x=X, y=Y, batch_size=8, shuffle="batch"),
    "PyDataset": lambda: dict(x=OneOrderAnEpoch()),
    "PyDataset in one order": lambda: dict(x=OneOrderAnEpoch(), shuffle=False),
    "tf.data": lambda: dict(x=tf_dataset(), shuffle=False),
    "tf.data of unknown size": lambda: dict(
        x=tf_dataset().filter(lambda x, y: True), shuffle=False
    ),
    "tf.data over epochs": lambda: dict(
        x=tf_dataset().repeat(), steps_per_epoch=4, shuffle=False
    ),
    "DataLoader": lambda: dict(x=loader(), shuffle=False),
}


def plain_model():
    model = keras.Sequential(
        [
            keras.layers.Flatten(),
            keras.layers.Dense(8, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(5),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 20)
    optimizer = keras.optimizers.Adam(schedule, use_ema=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def view():
    return ConsistentAugment([InceptionCrop(8, 8), MixUp()], seed=4)


def distiller():
    model = Distiller(student=cnn(2), teacher=cnn(16), augment=view())
    model.compile(
        keras.optimizers.Adam(0.01), ClassicKD(0.8), metrics=["accuracy"]
    )
    return model


def run(make, data, folder=None, kill_after=None, save_freq=2):
    """Run one `fit()` from its beginning; return everything it ends with."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(7)
    model = make()
    counter = KillAt(kill_after)
    resume = [] if folder is None else [Resume(folder, save_freq=save_freq)]
    plateau = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=0, min_delta=10
    )
    learning_rate = model.optimizer.get_config()["learning_rate"]
    history = model.fit(
        **{"validation_data": (X[:8], Y[:8]), **data()},
        epochs=EPOCHS,
        verbose=0,
        callbacks=[
            counter,
            *resume,
            *([plateau] if isinstance(learning_rate, float) else []),
        ],
    )
    variables = [*model.variables, *model.optimizer.variables]
    return (
        [to_numpy(variable) for variable in variables],
        history.history,
        counter.begun,
    )


def assert_equal(left, right):
    assert len(left[0]) == len(right[0])
    for a, b in zip(left[0], right[0]):
        np.testing.assert_array_equal(a, b)
    assert left[1:] == right[1:]


def killed(*arguments, **options):
    with pytest.raises(Killed):
        run(*arguments, **options)


# Keras says so at the end of each epoch whose size it did not know.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("kind", DATA)
def test_a_killed_run_ends_like_one_never_stopped(kind, tmp_path):
    """In the middle of the third epoch, and again four batches later."""
    whole = run(plain_model, DATA[kind])
    killed(plain_model, DATA[kind], tmp_path, kill_after=9)
    killed(plain_model, DATA[kind], tmp_path, kill_after=4)
    assert_equal(run(plain_model, DATA[kind], tmp_path), whole)


@pytest.mark.parametrize("kind", ["arrays", "tf.data"])
@pytest.mark.parametrize("save_freq", [3, "epoch"])
def test_a_killed_distillation(kind, save_freq, tmp_path):
    whole = run(distiller, DATA[kind])
    options = dict(save_freq=save_freq)
    killed(distiller, DATA[kind], tmp_path, kill_after=7, **options)
    assert_equal(run(distiller, DATA[kind], tmp_path, **options), whole)


@pytest.mark.parametrize("kind", ["arrays", "tf.data"])
def test_a_killed_replay_of_a_recording(kind, tmp_path):
    keras.utils.set_random_seed(7)  # the shuffle depends on it
    recorded = record_teacher(
        cnn(16),
        X if kind == "arrays" else tf_dataset(),
        tmp_path / "recording",
        augment=view(),
        epochs=2 if kind == "arrays" else EPOCHS,
        batch_size=8,
        verbose=0,
    )

    def make():
        model = Distiller(student=cnn(2), teacher=recorded, augment=view())
        model.compile(keras.optimizers.Adam(0.01), FunctionMatching())
        return model

    def data():
        return {**DATA[kind](), "validation_data": None}

    whole = run(make, data)
    killed(make, data, tmp_path / "run", kill_after=9)
    assert_equal(run(make, data, tmp_path / "run"), whole)


def test_a_finished_run_returns_at_once_and_more_epochs_continue_it(tmp_path):
    def fit(epochs):
        keras.utils.set_random_seed(7)
        model = distiller()
        history = model.fit(
            X, Y, 8, epochs=epochs, verbose=0, callbacks=[Resume(tmp_path)]
        )
        return model.get_weights(), history.history["loss"]

    weights, losses = fit(2)
    again, same_losses = fit(2)
    for a, b in zip(weights, again):
        np.testing.assert_array_equal(a, b)
    assert same_losses == losses
    more, more_losses = fit(3)
    assert more_losses[:2] == losses and len(more_losses) == 3
    assert any((a != b).any() for a, b in zip(weights, more))


def test_a_stopped_run_stays_stopped_with_its_best_weights(tmp_path):
    def fit():
        keras.utils.set_random_seed(7)
        model = plain_model()
        stopping = keras.callbacks.EarlyStopping(
            "loss", patience=0, min_delta=100, restore_best_weights=True
        )
        resume = Resume(tmp_path)
        history = model.fit(
            X, Y, epochs=9, verbose=0, callbacks=[resume, stopping]
        )
        return model.get_weights(), history.epoch, stopping.stopped_epoch

    first, second = fit(), fit()
    assert first[1:] == second[1:] == ([0, 1], 1)
    for a, b in zip(first[0], second[0]):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "make, zeros, values",
    [
        (
            lambda: MagnitudePruning(
                0.8, begin_step=2, end_step=14, frequency=3
            ),
            0.7,
            None,
        ),
        # All zeros are chosen before the kill.
        (lambda: MagnitudePruning(0.5, end_step=3), 0.49, None),
        (lambda: WeightSharing(4), None, 4),
        (KeepCompressed, 0.1, None),
    ],
    ids=["rising", "chosen", "shared", "kept"],
)
@pytest.mark.parametrize("save_freq", ["epoch", 2])
def test_compression_goes_on(tmp_path, make, zeros, values, save_freq):
    """With the same zeros and the same clusters."""

    def fit(folder, kill_after=None):
        keras.utils.set_random_seed(7)
        model = keras.Sequential(
            [
                keras.Input(X.shape[1:]),
                keras.layers.Flatten(),
                keras.layers.Dense(8, "relu"),
                keras.layers.Dense(5),
            ]
        )
        if make is KeepCompressed:
            for kernel in model.trainable_variables[::2]:
                array = to_numpy(kernel)
                kernel.assign(np.where(np.abs(array) < 0.05, 0.0, array))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss)
        resume = Resume(folder, save_freq=save_freq)
        model.fit(
            X,
            Y,
            8,
            epochs=4,
            verbose=0,
            callbacks=[KillAt(kill_after), resume, make()],
        )
        return model.get_weights()

    whole = fit(tmp_path / "whole")
    with pytest.raises(Killed):
        fit(tmp_path / "killed", kill_after=9)
    for a, b in zip(whole, fit(tmp_path / "killed")):
        np.testing.assert_array_equal(a, b)
    if zeros is not None:
        assert (whole[0] == 0).mean() > zeros
    if values is not None:
        assert len(np.unique(whole[0])) <= values


def states(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir())


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path):
    data = DATA["arrays"]
    whole = run(plain_model, data)
    killed(plain_model, data, tmp_path, kill_after=9)
    newest = states(tmp_path)[-1]
    assert len(states(tmp_path)) == 2
    file = newest / "model.weights.h5"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="is damaged"):
        resumed = run(plain_model, data, tmp_path)
    assert_equal(resumed, whole)
    for state in states(tmp_path):
        (state / "SHA256SUMS").unlink()
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match="No state of the run is complete"),
    ):
        run(plain_model, data, tmp_path)


def test_what_cannot_be_resumed_is_said(tmp_path):
    data = DATA["arrays"]
    killed(plain_model, data, tmp_path, kill_after=9)

    def other_model():
        model = keras.Sequential(
            [keras.layers.Flatten(), keras.layers.Dense(5)]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"])
        return model

    with pytest.raises(ValueError, match="must be of the same model"):
        run(other_model, data, tmp_path)
    with pytest.raises(ValueError, match="must be that of the run"):
        run(plain_model, lambda: dict(x=X[:16], y=Y[:16]), tmp_path)
    for options in ({"save_freq": 0}, {"save_freq": 1.5}, {"keep": 0}):
        with pytest.raises(ValueError, match="Received"):
            Resume(tmp_path, **options)


def test_an_order_that_cannot_be_restored_is_said_at_the_start(tmp_path):
    import tensorflow as tf

    def batches():
        while True:
            yield X[:8], Y[:8]

    def generator():
        return dict(x=batches(), steps_per_epoch=5, shuffle=False)

    with pytest.warns(UserWarning, match="order of the data cannot be"):
        run(plain_model, generator, tmp_path / "generator")

    def unseeded():
        tf.random.set_seed(None)
        dataset = tf.data.Dataset.from_tensor_slices((X, Y))
        return dict(x=dataset.shuffle(40).batch(8), shuffle=False)

    with pytest.warns(UserWarning, match="without a seed"):
        run(plain_model, unseeded, tmp_path / "unseeded")

    def drawn():
        tf.random.set_seed(None)
        dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
        return dict(
            x=dataset.map(lambda x, y: (x + tf.random.uniform(()), y)),
            shuffle=False,
        )

    with pytest.warns(UserWarning, match="RandomUniform"):
        run(plain_model, drawn, tmp_path / "drawn")


@pytest.mark.one_backend("tensorflow")
def test_arrays_are_shuffled_again_without_a_seed(tmp_path):
    """TensorFlow's own order of arrays without a seed is lost with a process.

    The order is a part of the state then: no sample is seen twice in an epoch.
    """
    import tensorflow as tf

    x = np.arange(40, dtype="float32")[:, None]
    seen = []

    class Seen(keras.layers.Layer):
        def call(self, inputs, training=None):
            def add(rows):
                seen.extend(rows[:, 0].numpy().astype(int).tolist())

            if training:
                tf.py_function(add, [inputs], [])
            return inputs

    def fit(kill_after=None):
        tf.random.set_seed(None)
        model = keras.Sequential(
            [keras.Input((1,)), Seen(), keras.layers.Dense(1)]
        )
        model.compile("sgd", "mse", jit_compile=False)
        callbacks = [KillAt(kill_after), Resume(tmp_path, save_freq=1)]
        model.fit(x, x, 8, epochs=2, verbose=0, callbacks=callbacks)

    with pytest.raises(Killed):
        fit(kill_after=3)
    # The third batch was seen and not saved.
    del seen[16:]
    fit()
    assert sorted(seen[:40]) == sorted(seen[40:]) == list(range(40))
    assert seen[:40] != seen[40:]


PROGRAM = textwrap.dedent(
    """
    import time
    import torch
    import keras
    import numpy as np
    from common import to_numpy
    from test_resume import X, Y, distiller
    from keras_distill import Resume

    keras.utils.set_random_seed(7)
    model = distiller()

    def report(batch, logs):
        print("batch", flush=True)
        time.sleep({pause})

    report = keras.callbacks.LambdaCallback(on_train_batch_end=report)
    model.fit(
        X, Y, batch_size=4, epochs=4, verbose=0,
        callbacks=[report, Resume({folder!r}, save_freq=7)],
    )
    np.savez({out!r}, *[to_numpy(v) for v in model.variables])
    """
)


def start(tmp_path, name, pause=0):
    code = PROGRAM.format(
        folder=str(tmp_path / name),
        out=str(tmp_path / f"{name}.npz"),
        pause=pause,
    )
    return subprocess.Popen(
        command("-c", code), env=environment(), stdout=subprocess.PIPE
    )


def wait_for_batches(process, number):
    for _ in range(number):
        assert process.stdout.readline() == b"batch\n"


# `random_kills.py` kills on every backend, which takes too long for a suite.
@pytest.mark.one_backend("torch")
def test_kill_9_and_sigterm_and_two_processes(tmp_path):
    """Real processes: the second one is refused, both signals are survived."""
    with start(tmp_path, "whole") as whole:
        whole.communicate()
    with start(tmp_path, "run", pause=0.3) as first:
        wait_for_batches(first, 10)
        # On a busy machine, it would end before the second run starts.
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(RuntimeError, match="Only one run can use"):
            run(distiller, DATA["arrays"], tmp_path / "run")
        first.send_signal(signal.SIGKILL)
    with start(tmp_path, "run", pause=0.3) as process:
        wait_for_batches(process, 12)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert len(states(tmp_path / "run")) == 2
    with start(tmp_path, "run") as process:
        process.communicate()
    assert process.returncode == 0
    with (
        np.load(tmp_path / "whole.npz") as a,
        np.load(tmp_path / "run.npz") as b,
    ):
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


@contextlib.contextmanager
def small_files():
    """The system refuses to write more than 20 kB: `EFBIG`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.one_backend("torch")
def test_a_full_disk_leaves_the_states_before(tmp_path):
    """The weights of this Distiller take more than 20 kB, other files less."""
    data = DATA["arrays"]
    whole = run(distiller, data)
    killed(distiller, data, tmp_path, kill_after=9)
    before = states(tmp_path)
    intact = pytest.raises(OSError, match="The states before it are intact")
    with small_files(), intact:
        run(distiller, data, tmp_path)
    assert states(tmp_path) == before
    assert_equal(run(distiller, data, tmp_path), whole)
