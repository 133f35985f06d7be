"""Compares three losses with the published PyTorch code of others.

torchdistill has DIST and logit standardization. It has no decoupled KD, for
which the code of its authors is read from a checkout of mdistiller. Neither is
a dependency of the suite: torchdistill asks for torchvision, mdistiller is no
package. So this is run by hand, from the root of the checkout:

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install -e '.[torch]'
    /tmp/peers/bin/pip install --no-deps torchdistill==1.1.5
    git clone https://github.com/megvii-research/mdistiller /tmp/mdistiller
    KERAS_BACKEND=torch /tmp/peers/bin/python \
        tests/reference/compare_with_torchdistill.py /tmp/mdistiller

It prints the largest relative differences of values and gradients, and fails if
one is above 1e-4. The peers compute in float64 here.
"""

import os
import pathlib
import sys
import types
import warnings

os.environ["KERAS_BACKEND"] = "torch"

import torch  # noqa: I001
import numpy as np
from torchdistill.losses.mid_level import DISTLoss
from torchdistill.losses.mid_level import LogitStdKDLoss

import keras_distill

SAMPLES = 32
IO = ("model", "output", "model", "output")


def load_dkd_loss(checkout):
    """Return `dkd_loss` without importing all of mdistiller."""
    path = pathlib.Path(checkout) / "mdistiller" / "distillers" / "DKD.py"
    base = types.ModuleType("peer._base")
    base.Distiller = object
    sys.modules["peer"] = types.ModuleType("peer")
    sys.modules["peer._base"] = base
    module = {"__name__": "peer.DKD", "__package__": "peer"}
    exec(compile(path.read_text(), str(path), "exec"), module)
    return module["dkd_loss"]


def from_torchdistill(loss):
    def compute(teacher, student, labels):
        return loss(
            {"model": {"output": student}}, {"model": {"output": teacher}}
        )

    return compute


def cases(temperature, classes, dkd_loss):
    """Yield `(name, our loss, the peer's function)`."""
    # Its epsilon of 1e-8 leaves out, in part or in all, the classes that are
    # improbable in the whole batch: 40 % of the gradient in one case below. The
    # paper has none, and neither do we.
    peer = DISTLoss(*IO, beta=1.5, gamma=2.5, tau=temperature, eps=1e-150)
    yield (
        "DIST",
        keras_distill.DIST(1.5, 2.5, label_weight=0.0, temperature=temperature),
        from_torchdistill(peer),
    )
    # The published code divides by the unbiased standard deviation, and the
    # paper by that of the population. The code at a temperature lower by their
    # quotient is the paper. The factor T^2 it leaves to the caller.
    lower = temperature / np.sqrt(classes / (classes - 1))
    peer = LogitStdKDLoss(*IO, temperature=lower, alpha=0.0)
    yield (
        "standardize_logits",
        keras_distill.FunctionMatching(temperature, standardize_logits=True),
        lambda *args: temperature**2 * from_torchdistill(peer)(*args),
    )
    if dkd_loss is not None:
        yield (
            "DecoupledKD",
            keras_distill.DecoupledKD(
                1.5, 2.5, label_weight=0.0, temperature=temperature
            ),
            lambda teacher, student, labels: dkd_loss(
                student, teacher, labels, 1.5, 2.5, temperature
            ),
        )


def value_and_gradient(function, student):
    student = student.clone().requires_grad_()
    value = function(student)
    value.backward()
    return value.detach().double(), student.grad.double()


def differences(ours, peer, teacher, student, labels):
    """Return the relative differences of value and gradient."""
    y_true = {"labels": labels, "teacher": teacher}
    value, gradient = value_and_gradient(lambda s: ours(y_true, s), student)
    expected, slope = value_and_gradient(
        lambda s: peer(teacher.double(), s, labels), student.double()
    )
    return (
        float(abs(value - expected) / expected),
        float((gradient - slope).abs().max() / slope.abs().max()),
    )


def main(checkout=None):
    # `size_average` of mdistiller, and the default reduction of `kl_div`.
    warnings.simplefilter("ignore")
    dkd_loss = load_dkd_loss(checkout) if checkout else None
    generator = torch.Generator().manual_seed(0)
    worst = {}
    for classes in (3, 10, 100):
        for temperature in (0.5, 1.0, 4.0, 20.0):
            for scale in (0.5, 3.0, 10.0):
                teacher, student = scale * torch.randn(
                    2, SAMPLES, classes, generator=generator
                )
                labels = torch.randint(classes, (SAMPLES,), generator=generator)
                for name, ours, peer in cases(temperature, classes, dkd_loss):
                    found = differences(ours, peer, teacher, student, labels)
                    before = worst.get(name, (0.0, 0.0))
                    worst[name] = tuple(np.maximum(before, found))
    for name, (value, gradient) in worst.items():
        print(f"{name:20} value {value:.1e}, gradient {gradient:.1e}")
    if not all(d < 1e-4 for pair in worst.values() for d in pair):
        sys.exit("A difference is above 1e-4.")


if __name__ == "__main__":
    main(*sys.argv[1:2])
