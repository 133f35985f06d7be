"""Zeros stay zero and follow the schedule; the optimizer is restored."""

import contextlib
import threading

import keras
import numpy as np
import pytest
from common import BACKEND
from common import StopAfterTwoEpochs
from common import cnn
from common import images
from common import mlp
from common import same_weights
from common import to_numpy
from common import vectors
from common import weights_of

from keras_distill import Distiller
from keras_distill.compression import MagnitudePruning

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(model, optimizer="adam", **options):
    model.compile(optimizer, LOSS, **options)
    return model


def kernels_of(model):
    return [
        to_numpy(w.value) for w in model.weights if w.name.endswith("kernel")
    ]


def sparsity(model):
    kernels = kernels_of(model)
    zeros = sum(np.count_nonzero(kernel == 0) for kernel in kernels)
    return zeros / sum(kernel.size for kernel in kernels)


class Watch(keras.callbacks.Callback):
    """Records after each execution the sparsity, and zeros that were lost."""

    def __init__(self):
        super().__init__()
        self.sparsities, self.back, self.zeros = [], 0, None

    def on_train_batch_begin(self, batch, logs=None):
        self.zeros = [k == 0 for k in kernels_of(self.model)]

    def on_train_batch_end(self, batch, logs=None):
        kernels = kernels_of(self.model)
        self.sparsities.append(sparsity(self.model))
        for kernel, zeros in zip(kernels, self.zeros):
            # Zeros must have the same sign too.
            self.back += np.count_nonzero(kernel.view("uint32")[zeros])


OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.05, 0.9, weight_decay=1e-2),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "average": lambda: keras.optimizers.Adam(0.01, use_ema=True),
    "accumulate": lambda: keras.optimizers.Adam(
        0.01, gradient_accumulation_steps=2
    ),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.01)
    ),
    "together": lambda: keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(0.01, 60),
        weight_decay=0.1,
        clipnorm=0.5,
        use_ema=True,
        ema_momentum=0.9,
        gradient_accumulation_steps=2,
    ),
}
if hasattr(keras.optimizers, "MultiOptimizer"):  # of newer versions of Keras
    OPTIMIZERS["several"] = lambda: keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            default_optimizer=keras.optimizers.AdamW(0.01),
            optimizer_map={".*kernel": keras.optimizers.SGD(0.05, 0.9)},
        )
    )


class Masked(keras.constraints.Constraint):
    def __init__(self, kept):
        self.kept = kept.astype("float32")

    def __call__(self, weight):
        return weight * self.kept


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_left_is_trained_as_under_a_constraint(optimizer):
    x, y = vectors(64)
    start = mlp(16).get_weights()
    kept = []
    for index in (0, 2):
        limit = np.sort(np.abs(start[index]).ravel())[
            round(0.75 * start[index].size) - 1
        ]
        kept.append(np.abs(start[index]) > limit)
        start[index] = start[index] * kept[-1]

    def run(*callbacks, constrained):
        model = mlp(16)
        model.set_weights(start)
        if constrained:
            for layer, mask in zip(model.layers, kept):
                layer.kernel.constraint = Masked(mask)
        compiled(model, OPTIMIZERS[optimizer]())
        model.fit(
            x,
            y,
            batch_size=8,
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=list(callbacks),
        )
        return model.get_weights()

    pruning = MagnitudePruning(0.75, end_step=0)
    expected = run(constrained=True)
    for index, mask in zip((0, 2), kept):
        # Keras updates averages before it applies constraints.
        expected[index] = expected[index] * mask
    result = run(pruning, constrained=False)
    assert np.abs(result[0] - start[0]).max() > 0.01
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 8])
def test_zeros_stay_zero_while_more_come(optimizer, steps):
    if BACKEND == "torch" and steps > 1:
        pytest.skip("PyTorch has one step per execution.")
    x, y = vectors(160)
    jit = {"tensorflow": steps == 8 or optimizer == "momentum"}
    model = compiled(
        mlp(8),
        OPTIMIZERS[optimizer](),
        steps_per_execution=steps,
        jit_compile=jit.get(BACKEND, "auto"),
    )
    watch = Watch()
    pruning = MagnitudePruning(0.8, begin_step=2, end_step=30, frequency=3)
    model.fit(
        x, y, batch_size=8, epochs=2, verbose=0, callbacks=[pruning, watch]
    )
    assert watch.back == 0
    assert len(watch.sparsities) == (40 if steps == 1 else 6)
    assert np.all(np.diff(watch.sparsities) >= 0)
    for kernel in kernels_of(model):
        assert np.count_nonzero(kernel == 0) == round(0.8 * kernel.size)


# Warnings of `torch.compile` are ignored.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(BACKEND != "torch", reason="the tests above compile")
def test_zeros_stay_zero_in_steps_that_pytorch_compiles():
    x, y = vectors(32)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5)])
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    compiled(model, optimizer, jit_compile=True)
    watch = Watch()
    pruning = MagnitudePruning(0.8, end_step=3)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[pruning, watch])
    assert watch.back == 0
    assert np.all(np.diff(watch.sparsities) > 0)
    assert watch.sparsities[-1] == 0.8


def test_the_schedule_is_the_published_one():
    pruning = MagnitudePruning(
        0.9, initial_sparsity=0.3, begin_step=10, end_step=50
    )
    assert pruning.sparsity(9) == 0
    for step in (10, 23, 40, 50):
        expected = 0.9 + (0.3 - 0.9) * (1 - (step - 10) / 40) ** 3
        assert pruning.sparsity(step) == pytest.approx(expected, abs=1e-12)
    assert pruning.sparsity(1000) == 0.9


def test_zeros_are_chosen_when_the_schedule_says():
    x, y = vectors(80)
    model = compiled(mlp(40), "sgd")
    watch = Watch()
    pruning = MagnitudePruning(
        0.8, initial_sparsity=0.2, begin_step=3, end_step=9, frequency=4
    )
    model.fit(
        x, y, batch_size=8, epochs=2, verbose=0, callbacks=[pruning, watch]
    )
    # Batch `t` is trained with the last choice up to step `t`.
    # The curve is at 77.8 %, less than 25 choices of 5 % of the rest.
    at_seven = 1 - 0.8 * 0.95**24
    assert at_seven < pruning.sparsity(7) < 1 - 0.8 * 0.95**25
    expected = [0] * 3 + [0.2] * 4 + [at_seven] * 2 + [0.8] * 11
    np.testing.assert_allclose(watch.sparsities, expected, atol=2e-3)


def test_choices_are_few_and_near_the_curve():
    x, y = vectors(8 * 700)
    model = compiled(mlp(200), "sgd")
    watch = Watch()
    pruning = MagnitudePruning(0.9, begin_step=10, end_step=600)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[pruning, watch])
    curve = np.array([pruning.sparsity(step) for step in range(700)])
    rest = 1 - curve
    assert np.all(watch.sparsities <= curve + 1e-3)
    assert np.all(watch.sparsities >= curve - 0.053 * rest - 1e-3)
    assert 30 < len(set(watch.sparsities)) <= 20 * np.log(10) + 2
    assert watch.sparsities[600:] == [watch.sparsities[-1]] * 100
    for kernel in kernels_of(model):
        assert np.count_nonzero(kernel == 0) == round(0.9 * kernel.size)


@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
@pytest.mark.parametrize("zeros", [0.3, 0.8])
def test_equal_weights_and_zeros_are_counted(scope, zeros):
    x, y = vectors()
    model = compiled(mlp(16), keras.optimizers.SGD(0.0))
    random = np.random.default_rng(0)
    for layer in model.layers:
        kernel = random.integers(1, 3, layer.kernel.shape) * 0.5
        kernel[random.random(kernel.shape) < zeros] = 0
        layer.kernel.assign(kernel)
    before = sparsity(model)
    size = sum(kernel.size for kernel in kernels_of(model))
    pruning = MagnitudePruning(0.6, end_step=0, scope=scope)
    pruned = []

    class Pruned(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            _ = self.model  # On JAX, this is when variables get their values.
            pruned[:] = [to_numpy(z.pruned.value) for z in pruning._hook.kept]

    too_many = pytest.warns(UserWarning, match="are trained again")
    with too_many if zeros > 0.6 else contextlib.nullcontext():
        model.fit(x, y, verbose=0, callbacks=[pruning, Pruned()])
    assert sparsity(model) == pytest.approx(max(before, 0.6), abs=1 / size)
    held = sum(np.count_nonzero(p) for p in pruned)
    assert held == pytest.approx(0.6 * size, abs=1)


def test_validation_sees_what_the_epoch_ends_with():
    x, y = vectors(64)
    model = compiled(mlp(16))
    seen = []

    class Validation(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            seen.append(sparsity(self.model))

    pruning = MagnitudePruning(0.5, begin_step=4, end_step=4)
    model.fit(
        x,
        y,
        batch_size=16,
        validation_data=(x, y),
        verbose=0,
        callbacks=[pruning, Validation()],
    )
    assert seen == [pytest.approx(0.5, abs=0.01)]


def reference_lamp(weights):
    """The score of Lee et al., weight by weight."""
    scores = []
    for w in weights.ravel():
        larger = weights[np.abs(weights) >= abs(w)]
        scores.append(w**2 / np.sum(larger.astype("float64") ** 2))
    return np.array(scores).reshape(weights.shape)


@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
def test_the_smallest_weights_are_pruned(scope):
    x, y = vectors()
    model = compiled(mlp(10), keras.optimizers.SGD(0.0))
    model.layers[0].kernel.assign(model.layers[0].kernel * 3)
    before = kernels_of(model)
    pruning = MagnitudePruning(0.6, end_step=0, scope=scope)
    model.fit(x, y, verbose=0, callbacks=[pruning])
    score = reference_lamp if scope == "lamp" else np.abs
    scores = [score(kernel) for kernel in before]
    everything = np.concatenate([s.ravel() for s in scores])
    for kernel, old, own in zip(kernels_of(model), before, scores):
        among = own.ravel() if scope == "layer" else everything
        limit = np.sort(among)[round(0.6 * among.size) - 1]
        np.testing.assert_array_equal(kernel == 0, own <= limit)
        np.testing.assert_array_equal(kernel[kernel != 0], old[kernel != 0])


def test_only_kernels_that_are_not_excluded():
    x, y = images()
    model = cnn(4)
    inner = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(5)], name="head"
    )
    model.add(inner)
    compiled(model)
    pruning = MagnitudePruning(
        0.5, end_step=0, exclude=[model.layers[0].name, "head"]
    )
    model.fit(x, y, verbose=0, callbacks=[pruning])
    shares = [np.mean(k == 0) for k in kernels_of(model)]
    assert shares == [0, 0.5, 0]
    assert not np.any(to_numpy(model.layers[1].gamma.value) == 0)


def test_a_constraint_holds_for_what_is_left():
    x, y = vectors(64)
    model = mlp(8)
    norm = keras.constraints.UnitNorm(axis=0)
    model.layers[0].kernel.constraint = norm
    compiled(model, keras.optimizers.SGD(0.1, momentum=0.9))
    pruning = MagnitudePruning(0.5, end_step=3)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[pruning])
    kernel = kernels_of(model)[0]
    assert np.mean(kernel == 0) == 0.5
    norms = np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(norms[norms > 0], 1, atol=1e-5)


def test_nothing_is_left_behind(tmp_path):
    x, y = vectors(64)
    model = compiled(mlp(), keras.optimizers.Adam(0.01))
    model.fit(x, y, verbose=0)
    optimizer = model.optimizer
    attributes, count = set(vars(optimizer)), len(optimizer.variables)
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "during.keras")
    pruning = MagnitudePruning(0.5, end_step=2)
    model.fit(x, y, verbose=0, callbacks=[pruning, checkpoint])
    assert model.optimizer is optimizer
    assert set(vars(optimizer)) == attributes
    assert len(optimizer.variables) == count
    model.save(tmp_path / "after.keras")
    for name in ("during.keras", "after.keras"):
        loaded = keras.models.load_model(tmp_path / name)
        assert type(loaded.optimizer) is type(optimizer)
        assert same_weights(
            [to_numpy(v.value) for v in loaded.optimizer.variables],
            [to_numpy(v.value) for v in optimizer.variables],
        )
        assert sparsity(loaded) == sparsity(model) > 0.4
    model.fit(x, y, verbose=0)  # without the callback, nothing is held
    assert sparsity(model) == 0


@pytest.mark.parametrize("backup_first", [True, False])
def test_a_resumed_run_ends_like_one_never_stopped(tmp_path, backup_first):
    x, y = vectors(64)

    def run(folder, *more):
        keras.utils.set_random_seed(3)
        model = compiled(mlp(8), keras.optimizers.SGD(0.05, momentum=0.9))
        callbacks = [
            keras.callbacks.BackupAndRestore(tmp_path / folder),
            MagnitudePruning(0.8, end_step=27, frequency=5, scope="lamp"),
            *more,
        ]
        if not backup_first:
            callbacks[:2] = callbacks[1::-1]
        model.fit(
            x,
            y,
            batch_size=8,
            epochs=4,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )
        return model

    with pytest.raises(InterruptedError):
        run("stopped", StopAfterTwoEpochs())
    resumed, whole = run("stopped"), run("whole")
    assert sparsity(whole) == pytest.approx(0.8, abs=0.01)
    assert same_weights(weights_of(resumed), weights_of(whole), 1e-6)


def test_steps_are_counted_whatever_the_order_of_threads():
    x, y = vectors(64)
    pruning = MagnitudePruning(0.8, begin_step=8, end_step=8)
    ended = pruning.on_train_batch_end
    held_back = []
    is_held_back = threading.Event()

    def late(batch, logs=None):
        # The last batch but one may end after the last one in Keras, which
        # calls both from threads of its own on JAX.
        if batch == 6:
            held_back.append(batch)
            is_held_back.set()
            return
        ended(batch)
        if batch == 7:
            assert is_held_back.wait(timeout=60)
            ended(*held_back)

    pruning.on_train_batch_end = late
    model = compiled(mlp(16))
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[pruning])
    assert held_back == [6]
    assert sparsity(model) == pytest.approx(0.8, abs=0.01)


def test_an_interrupted_fit_is_tidied_up_by_the_next():
    x, y = vectors()
    model = compiled(mlp())

    def fail(batch, logs):
        raise InterruptedError

    stop = keras.callbacks.LambdaCallback(on_train_batch_end=fail)
    with pytest.raises(InterruptedError):
        model.fit(
            x, y, verbose=0, callbacks=[MagnitudePruning(0.5, end_step=0), stop]
        )
    model.fit(x, y, verbose=0, callbacks=[MagnitudePruning(0.9, end_step=0)])
    assert sparsity(model) == pytest.approx(0.9, abs=0.02)
    assert "apply" not in vars(model.optimizer)


def test_two_at_once_are_refused():
    x, y = vectors()
    pruning = [MagnitudePruning(0.5, end_step=0) for _ in range(2)]
    with pytest.raises(ValueError, match="only one of the callbacks"):
        compiled(mlp()).fit(x, y, verbose=0, callbacks=pruning)


def test_the_student_of_a_distiller_is_pruned():
    x, y = vectors(64)
    teacher = mlp(16)
    before = weights_of(teacher)
    distiller = Distiller(student=mlp(8), teacher=teacher)
    distiller.compile(keras.optimizers.AdamW(0.01, weight_decay=0.1))
    pruning = MagnitudePruning(0.75, end_step=6)
    distiller.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[pruning])
    assert sparsity(distiller.student) == pytest.approx(0.75, abs=0.02)
    assert same_weights(weights_of(teacher), before)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(final_sparsity=1.0), "`final_sparsity` must be below 1"),
        (dict(final_sparsity=-0.1), "`final_sparsity` must be a number"),
        (dict(initial_sparsity=1), "`initial_sparsity` must be below 1.*=1"),
        (dict(initial_sparsity=0.9), "must not be above `final_sparsity`"),
        (dict(begin_step=9), "`end_step` must not be before"),
        (dict(end_step=1.5), "`end_step` must be a whole number"),
        (dict(frequency=0), "`frequency` must be a whole number"),
        (dict(scope="model"), "`scope` must be one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    arguments = dict(final_sparsity=0.5, end_step=5) | arguments
    with pytest.raises(ValueError, match=message):
        MagnitudePruning(arguments.pop("final_sparsity"), **arguments)


def test_wrong_models_are_refused():
    x, y = vectors()
    pruning = MagnitudePruning(0.5, end_step=5, exclude="dance")
    with pytest.raises(ValueError, match=r"'dance'.*'dense'"):
        compiled(mlp()).fit(x, y, verbose=0, callbacks=[pruning])
    frozen = mlp()
    frozen.layers[0].trainable = frozen.layers[1].trainable = False
    frozen.add(keras.layers.BatchNormalization())
    pruning = MagnitudePruning(0.5, end_step=5)
    with pytest.raises(ValueError, match="no trainable kernels"):
        compiled(frozen).fit(x, y, verbose=0, callbacks=[pruning])
    pruning.set_model(keras.Sequential([keras.layers.Dense(2)]))
    pruning.model.compile("sgd", LOSS)
    with pytest.raises(ValueError, match="requires a model that is built"):
        pruning.on_train_begin()


def test_a_model_without_an_optimizer_is_refused():
    x, y = vectors()
    pruning = MagnitudePruning(0.5, end_step=5)
    message = "MagnitudePruning requires a model that is compiled with an opt"
    with pytest.raises(ValueError, match=message):
        compiled(mlp(), None).fit(x, y, verbose=0, callbacks=[pruning])


def test_an_attribute_called_student_is_a_part_like_others():
    x, y = vectors(32)
    model = mlp(8)
    model.student = mlp(4)
    model.student.trainable = False
    compiled(model)
    model.fit(x, y, verbose=0, callbacks=[MagnitudePruning(0.5, end_step=0)])
    for layer in model.layers:
        assert np.mean(to_numpy(layer.kernel.value) == 0) == 0.5


class OwnDistiller(Distiller):
    pass


def test_the_student_of_a_class_derived_from_distiller():
    x, y = vectors(32)
    distiller = OwnDistiller(student=mlp(8), teacher=mlp(8))
    distiller.compile("adam")
    last = distiller.student.layers[-1].name
    pruning = MagnitudePruning(0.5, end_step=0, exclude=last)
    distiller.fit(x, y, verbose=0, callbacks=[pruning])
    first, second = kernels_of(distiller.student)
    assert np.mean(first == 0) == 0.5 and np.all(second)
