"""The CIFAR ResNets of the experiments compute what the published ones do."""

import pathlib

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.any_backend

EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"


def torch_resnet(depth):
    """The network of the published CIFAR-10 states, written in PyTorch."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, narrow, width, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(narrow, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.pad = (width - narrow) // 2
            self.stride = stride

        def forward(self, x):
            shortcut = x[:, :, :: self.stride, :: self.stride]
            pad = (0, 0, 0, 0, self.pad, self.pad)
            shortcut = nn.functional.pad(shortcut, pad)
            x = torch.relu(self.bn1(self.conv1(x)))
            return torch.relu(self.bn2(self.conv2(x)) + shortcut)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            blocks = (depth - 2) // 6
            for stage in (1, 2, 3):
                width = 8 * 2**stage
                narrow = width if stage == 1 else width // 2
                first = Block(narrow, width, 1 if stage == 1 else 2)
                rest = [Block(width, width, 1) for _ in range(blocks - 1)]
                setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.linear(x.mean((2, 3)))

    torch.manual_seed(0)
    network = Network()
    for name, value in network.state_dict().items():
        if value.ndim == 1 and "running_mean" not in name:
            value.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("depth", [20, 56])
def test_the_published_resnets(depth, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import cifar10
    import torch

    reference = torch_resnet(depth)
    state = {
        name: value.numpy()
        for name, value in reference.state_dict().items()
        if "num_batches" not in name
    }
    file = f"cifar10_resnet{depth}_state.npz"
    np.savez(tmp_path / file, **state)
    model = cifar10.pretrained(depth, tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), "uint8")
    mean, deviation = np.array(cifar10.MEAN), np.array(cifar10.DEVIATION)
    normalized = ((x / 255 - mean) / deviation).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = reference(torch.tensor(normalized, dtype=torch.float32))
    expected = expected.cpu().numpy()
    scale = np.abs(expected).max()
    outputs = keras.ops.convert_to_numpy(model(x, training=False))
    np.testing.assert_allclose(outputs / scale, expected / scale, atol=1e-5)
    loaded = model.count_params() - sum(
        keras.ops.size(w)
        for layer in model.layers
        if layer.name.endswith("_pad")
        for w in layer.weights
    )
    assert int(loaded) == sum(value.size for value in state.values())
