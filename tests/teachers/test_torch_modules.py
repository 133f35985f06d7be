"""Torch modules as teachers: in evaluation mode, and left as they were."""

import copy
import functools
import types

import keras
import numpy as np
import pytest
import torch
from common import BACKEND
from common import CLASSES
from common import mlp
from common import to_numpy
from common import vectors
from torch import nn

from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import RecordedTeacher
from keras_distill import record_teacher


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(16, CLASSES),
    )


class FrozenNorm(nn.Module):
    """Keeps its normalization in evaluation mode, as detectors do."""

    def __init__(self):
        super().__init__()
        self.layers = network()

    def train(self, mode=True):
        super().train(mode)
        self.layers[1].eval()
        return self

    def forward(self, x):
        return self.layers(x)


class Noisy(nn.Module):
    """Has a mode of its own, which `train()` sets."""

    def __init__(self):
        super().__init__()
        self.layers, self.noise = network(), True

    def train(self, mode=True):
        self.noise = mode
        return super().train(mode)

    def forward(self, x):
        return self.layers(x) + (torch.randn(()) if self.noise else 0)


class Merging(nn.Module):
    """Merges two weights in evaluation mode, as some adapters do."""

    def __init__(self):
        super().__init__()
        self.base, self.added = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)
        self.merged = False

    def train(self, mode=True):
        if self.merged == mode:
            sign = -1 if mode else 1
            self.base.weight.data += sign * self.added.weight.data
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        out = self.base(x)
        return out if self.merged else out + x @ self.added.weight.T


class Counting(nn.Module):
    """Writes into a buffer whenever it runs."""

    def __init__(self):
        super().__init__()
        self.layers = network()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        self.calls += 1
        self.mean = 0.9 * self.mean + x.mean(0)
        return self.layers(x)


def spectral():
    return nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 16)),
        nn.Dropout(0.5),
        nn.utils.spectral_norm(nn.Linear(16, CLASSES)),
    )


def partly_frozen():
    module = network()
    module.train()
    module[1].eval()
    return module


MODULES = {
    "plain": network,
    "partly frozen": partly_frozen,
    "own train": FrozenNorm,
    "own mode": Noisy,
    "merging": Merging,
    "counting": Counting,
    "spectral": spectral,
    "script": lambda: torch.jit.script(network()),
}


def state_of(module):
    """Return flags, parameters and buffers of a module."""
    flags = [part.training for part in module.modules()]
    values = [*module.parameters(), *module.buffers()]
    return flags, [value.detach().clone() for value in values]


def assert_as_before(module, before):
    flags, values = state_of(module)
    assert flags == before[0]
    for value, expected in zip(values, before[1], strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def expected_of(module, x):
    """Return what a copy of the module computes in evaluation mode."""
    clone = copy.deepcopy(module).eval()
    with torch.no_grad():
        return clone(torch.tensor(x)).numpy()


def divergence(logits, student, x):
    p, q = (
        to_numpy(keras.ops.softmax(each.astype("float64")))
        for each in (logits, student.predict(x, verbose=0))
    )
    return np.mean(np.sum(p * np.log(p / q), axis=-1))


def evaluated(student, teacher, x):
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("sgd", FunctionMatching())
    logs = distiller.evaluate(x, verbose=0, batch_size=8, return_dict=True)
    return logs["loss"]


on_torch = pytest.mark.skipif(
    BACKEND != "torch", reason="a live torch module needs the torch backend"
)


@on_torch
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("listed", [False, True])
def test_it_runs_in_evaluation_mode_and_is_left_as_it_was(name, listed):
    x, _ = vectors()
    module, student = MODULES[name](), mlp()
    before, expected = state_of(module), expected_of(module, x)
    teacher = [module] if listed else module
    loss = evaluated(student, teacher, x)
    np.testing.assert_allclose(
        loss, divergence(expected, student, x), rtol=1e-4
    )
    assert_as_before(module, before)
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("sgd", FunctionMatching())
    distiller.fit(x, verbose=0)
    assert_as_before(module, before)
    assert all(p.grad is None for p in module.parameters())


@on_torch
def test_ensembles_of_keras_models_and_modules():
    x, _ = vectors()
    module, model, student = network(), mlp(16), mlp()
    before = state_of(module)
    loss = evaluated(student, [module, model], x)
    mean = (
        to_numpy(keras.ops.softmax(expected_of(module, x)))
        + to_numpy(keras.ops.softmax(model.predict(x, verbose=0)))
    ) / 2
    np.testing.assert_allclose(
        loss, divergence(np.log(mean), student, x), rtol=1e-4
    )
    assert_as_before(module, before)


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, x):
        self.layers(x)
        raise ValueError("no such file")


@on_torch
def test_it_is_left_as_it_was_when_it_raises():
    x, _ = vectors()
    module = Failing()
    before = state_of(module)
    distiller = Distiller(student=mlp(), teacher=module)
    distiller.compile("sgd", FunctionMatching())
    with pytest.raises(ValueError, match="no such file"):
        distiller.fit(x, verbose=0)
    assert_as_before(module, before)


class Holder:
    """A callable object that has its module somewhere inside."""

    def __init__(self, module):
        self.parts = {"networks": [module]}

    def __call__(self, x):
        return self.parts["networks"][0](x)


def _apply(module, x):
    return module(x)


def as_global(module):
    """Return a function that finds its module by a global name."""
    scope = {"net": module}
    exec("def ask(x):\n    return [net(each) for each in [x]][0]", scope)
    return scope["ask"]


WAYS = {
    "closure": lambda module: lambda x: module(x),
    "default": lambda module: lambda x, module=module: module(x),
    "global": as_global,
    "bound method": lambda module: module.forward,
    "partial": lambda module: functools.partial(_apply, module),
    "object": Holder,
    "wrapped": lambda module: functools.wraps(_apply)(lambda x: module(x)),
    "function of a function": lambda module: WAYS["closure"](as_global(module)),
}


@pytest.mark.parametrize("way", WAYS)
def test_modules_are_found_inside_functions(way, tmp_path):
    x, _ = vectors()
    module, student = network(), mlp()
    before, expected = state_of(module), expected_of(module, x)
    function = WAYS[way](module)
    if BACKEND == "torch":
        loss = evaluated(student, function, x)
        np.testing.assert_allclose(
            loss, divergence(expected, student, x), rtol=1e-4
        )
        assert_as_before(module, before)
    record_teacher(
        WAYS[way](module) if BACKEND == "torch" else on_arrays(function),
        x,
        tmp_path,
        seed=None,
        storage_dtype="float32",
        verbose=0,
    )
    assert_as_before(module, before)
    np.testing.assert_allclose(recorded_in(tmp_path), expected, rtol=1e-4)


def on_arrays(function):
    return lambda x: function(torch.tensor(x))


def recorded_in(path):
    recording = RecordedTeacher(path)
    rows = [recording.rows(0, i) for i in range(recording.num_batches)]
    return np.concatenate(
        [recording.outputs_in(each)["output_0"] for each in rows]
    )


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("listed", [False, True])
def test_recorded_on_every_backend(name, listed, tmp_path):
    x, _ = vectors()
    module = MODULES[name]()
    before, expected = state_of(module), expected_of(module, x)
    teacher = [module] if listed else module
    options = {"storage_dtype": "float32", "seed": None, "verbose": 0}
    record_teacher(teacher, x, tmp_path, **options)
    np.testing.assert_allclose(
        recorded_in(tmp_path), expected, rtol=1e-5, atol=1e-6
    )
    assert_as_before(module, before)
    assert all(p.grad is None for p in module.parameters())
    distiller = Distiller(student=mlp(), teacher=RecordedTeacher(tmp_path))
    distiller.compile("sgd", FunctionMatching())
    distiller.fit(x, verbose=0)


def test_a_recording_knows_the_module_that_it_is_of(tmp_path):
    x, _ = vectors()
    module = network()
    record_teacher(module, x, tmp_path, verbose=0)
    record_teacher(copy.deepcopy(module), x, tmp_path, epochs=2, verbose=0)
    with torch.no_grad():
        module[0].weight += 1
    with pytest.raises(ValueError, match="another recording"):
        record_teacher(module, x, tmp_path, epochs=3, verbose=0)


def test_ensembles_are_recorded(tmp_path):
    """A torch module, a Keras model and a function, averaged."""
    x, _ = vectors()
    module, model, matrix = network(), mlp(16), np.ones((6, CLASSES), "float32")
    members = [module, model, lambda x: keras.ops.matmul(x, matrix)]
    logits = [expected_of(module, x), model.predict(x, verbose=0), x @ matrix]
    record_teacher(
        members, x, tmp_path, seed=None, storage_dtype="float32", verbose=0
    )
    mean = np.mean([to_numpy(keras.ops.softmax(each)) for each in logits], 0)
    recorded = to_numpy(keras.ops.softmax(recorded_in(tmp_path)))
    np.testing.assert_allclose(recorded, mean, rtol=1e-4)


@pytest.mark.skipif(BACKEND == "torch", reason="there it works")
@pytest.mark.parametrize("listed", [False, True])
def test_a_live_module_is_refused_where_the_backends_differ(listed, tmp_path):
    module = network()
    teacher = [mlp(), module] if listed else module
    message = r"torch\.nn\.Module.*Sequential.*record_teacher"
    with pytest.raises(TypeError, match=message):
        Distiller(student=mlp(), teacher=teacher)
    record_teacher(module, vectors()[0], tmp_path, verbose=0)
    with pytest.raises(TypeError, match=message):
        Distiller(student=mlp(), teacher=RecordedTeacher(tmp_path, live=module))


def test_a_module_without_weights_is_refused(tmp_path):
    module = nn.Sequential(nn.LazyLinear(CLASSES))
    with pytest.raises(ValueError, match="no weights"):
        record_teacher(module, vectors()[0], tmp_path, verbose=0)


def test_preprocessing_works_on_what_the_module_gets(tmp_path):
    x = np.random.default_rng(0).uniform(size=(8, 4, 4, 3)).astype("float32")
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(5))
    channels_first = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    module(torch.tensor(channels_first))
    expected = expected_of(module, channels_first)
    for index, preprocessing in enumerate(
        (
            lambda x: x.permute(0, 3, 1, 2),
            lambda x: keras.ops.transpose(x, (0, 3, 1, 2)),
            lambda x: np.asarray(x).transpose(0, 3, 1, 2),
            keras.layers.Permute((3, 1, 2)),
        )
    ):
        record_teacher(
            module,
            x,
            tmp_path / str(index),
            teacher_preprocessing=preprocessing,
            seed=None,
            storage_dtype="float32",
            verbose=0,
        )
        np.testing.assert_allclose(
            recorded_in(tmp_path / str(index)), expected, rtol=1e-4, atol=1e-5
        )


@on_torch
def test_modules_inside_keras_models_keep_their_flags():
    x, _ = vectors()
    module = network()
    teacher = keras.Sequential(
        [keras.Input((6,)), keras.layers.TorchModuleWrapper(module)]
    )
    module.train()
    module[1].eval()
    before, expected = state_of(module), expected_of(module, x)
    student = mlp()
    loss = evaluated(student, teacher, x)
    np.testing.assert_allclose(
        loss, divergence(expected, student, x), rtol=1e-4
    )
    assert_as_before(module, before)


@on_torch
def test_an_exported_program_that_has_no_modes():
    """`eval()` raises there, and is not needed."""
    x, _ = vectors()
    module = network().eval()
    exported = torch.export.export(
        module,
        (torch.zeros(8, 6),),
        dynamic_shapes=[{0: torch.export.Dim("batch")}],
    ).module()
    student = mlp()
    np.testing.assert_allclose(
        evaluated(student, exported, x),
        divergence(expected_of(module, x), student, x),
        rtol=1e-4,
    )


@on_torch
def test_new_weights_of_the_module_take_effect_between_steps():
    x, _ = vectors()
    module, student = network(), mlp()
    distiller = Distiller(student=student, teacher=module)
    distiller.compile("sgd", FunctionMatching())
    before = distiller.evaluate(x, verbose=0, return_dict=True)["loss"]
    with torch.no_grad():
        module[4].weight *= 3
    after = distiller.evaluate(x, verbose=0, return_dict=True)["loss"]
    assert before != after
    np.testing.assert_allclose(
        after, divergence(expected_of(module, x), student, x), rtol=1e-4
    )


def test_half_precision_outputs_are_recorded(tmp_path):
    """NumPy has no bfloat16."""
    x, _ = vectors()
    module = network().bfloat16()
    record_teacher(
        module,
        x,
        tmp_path,
        seed=None,
        teacher_preprocessing=lambda x: x.bfloat16(),
        verbose=0,
    )
    clone = copy.deepcopy(module).eval()
    with torch.no_grad():
        expected = clone(torch.tensor(x).bfloat16()).float().numpy()
    np.testing.assert_allclose(recorded_in(tmp_path), expected, atol=1e-3)


def test_logits_of_an_object(tmp_path):
    x, _ = vectors()
    module = network()
    outputs = types.SimpleNamespace(logits=None, loss=None)

    def teacher(x):
        outputs.logits = module(torch.as_tensor(np.asarray(x)))
        return outputs

    record_teacher(
        teacher, x, tmp_path, seed=None, storage_dtype="float32", verbose=0
    )
    np.testing.assert_allclose(
        recorded_in(tmp_path), expected_of(module, x), rtol=1e-4
    )
