"""The figures that the experiments should reach, for docs/results.md.

`tables.py` compares them with the rows of `experiments/results`. A goal that no
row reaches is shown as missed.
"""

from typing import Any
from typing import NamedTuple


class Goal(NamedTuple):
    """A figure to reach.

    Attributes:
        experiment: what is compressed or taught.
        published: the figures of others, with their source.
        accuracy: the smallest accuracy that reaches the goal.
        why_not: why it is missed, if it is.
        file: the name of the rows in `experiments/results`, if there are any.
        settings: the settings of the rows that count.
        times: how many times smaller than the weights in float32 the file must
            be at least; 0 if the experiment says the size.
    """

    experiment: str
    published: str
    accuracy: float
    why_not: str
    file: str | None = None
    settings: dict[str, Any] | None = None
    times: float = 0.0


_SMALL = "an epoch of the three candidates takes five minutes on two cores"
_LONG = "longer training is necessary, hours to days on two cores"
GOALS = (
    Goal(
        "CIFAR-10, int8 file of at most 98,496 bytes",
        "MLPerf Tiny: 86.97 %",
        0.90,
        _SMALL,
        "small_devices",
        {"max_bytes": 98_496, "network": "resnet20"},
    ),
    Goal(
        "CIFAR-10, int8 file of at most 512,024 bytes",
        "MLPerf Tiny: 91.31 %",
        0.93,
        _SMALL,
        "small_devices",
        {"max_bytes": 512_024, "network": "resnet56"},
    ),
    Goal(
        "ResNet-56, 2.1 times fewer MACs",
        "[DepGraph](https://arxiv.org/abs/2301.12900): 93.77 %",
        0.932,
        _LONG,
    ),
    Goal(
        "ResNet-56, half of the filters",
        "",
        0.915,
        "six epochs only; " + _LONG,
        "prune_resnet",
        {"loss": "function_matching"},
    ),
    Goal(
        "ResNet-20 taught by ResNet-56",
        "from a ResNet-110: 93.30 %",
        0.931,
        "30 epochs only; " + _LONG,
        "cifar10",
        {"student": "resnet20", "epochs": 30},
    ),
    Goal(
        "LeNet-300-100, packed file, 200 times smaller",
        "[Han et al.](https://arxiv.org/abs/1510.00149): 40 times, 98.42 %",
        0.9842,
        "",
        "deep_compression",
        {"network": "lenet_300_100", "stage": "shared"},
        times=200,
    ),
    Goal(
        "LeNet-5, packed file, 300 times smaller",
        "[MIRACLE](https://arxiv.org/abs/1810.00440): 555 times, 99.31 %",
        0.9926,
        "",
        "deep_compression",
        {"network": "lenet_5", "stage": "shared"},
        times=300,
    ),
    Goal(
        "MNIST, student of 20,490 parameters",
        "",
        0.992,
        "it agrees with its teacher on 99.8 %, and the teacher has 99.17 %",
        "mnist",
        {"loss": "function_matching"},
    ),
    Goal(
        "Flowers-102, student from random weights",
        "",
        0.60,
        "150 epochs only, of 1,000; " + _LONG,
        "flowers102",
        {"loss": "function_matching"},
    ),
    Goal(
        "Flowers-102, student cut out of its teacher, a quarter of the MACs",
        "",
        0.815,
        "no teacher with 87 % yet: ours, at 96 pixels, has 76.71 %",
    ),
)
