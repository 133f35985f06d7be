"""What a training step costs, beside what it can't do without and its rivals.

All sides share models, optimizer, batches and loss, or as near as they can.
"""

import keras

from benchmarks import models
from benchmarks import setups
from benchmarks.timing import compare
from keras_distill import ClassicKD
from keras_distill import Hint

TITLES = {
    "cnn": "CNN (256, 512) to CNN (16, 32)",
    "resnet": "ResNet-56 to ResNet-20",
    "imagenet": "ResNet-50 to MobileNetV2, 96 px",
}


def _effort(name):
    """The larger the networks, the longer to build them."""
    return {"instances": 3 if name == "cnn" else 2, "seconds": 5.0}


def overhead(smoke, only=("cnn", "resnet", "imagenet")):
    """The Distiller against one pass of the teacher and a student's step."""
    rows = []
    for name in only:
        pair = models.pairs(smoke)[name]
        measured = compare(
            lambda pair=pair: setups.distiller(pair),
            lambda pair=pair: setups.teacher_and_student(pair),
            smoke=smoke,
            **_effort(name),
        )
        title = f"step / (teacher + student alone), {TITLES[name]}"
        rows.append({"title": title, "goal": 1.03, **measured})
    return rows


def by_hand(smoke):
    """The Distiller against a loop written for the backend."""
    rows = []
    for name in ("cnn", "resnet"):
        pair = models.pairs(smoke)[name]
        measured = compare(
            lambda pair=pair: setups.distiller(pair),
            lambda pair=pair: setups.hand_written(pair),
            smoke=smoke,
            **_effort(name),
        )
        title = f"step / hand-written loop, {TITLES[name]}"
        rows.append({"title": title, "goal": 1.0, **measured})
    return rows


def keras_logits(smoke):
    """Both with half the weight on labels, half on softened logits."""
    pair = models.pairs(smoke)["cnn"]
    measured = compare(
        lambda: setups.distiller(
            pair, ClassicKD(alpha=0.5, temperature=3.0), labels=True
        ),
        lambda: setups.keras_distiller(
            pair, keras.distillation.LogitsDistillation(temperature=3.0)
        ),
        smoke=smoke,
        **_effort("cnn"),
    )
    title = f"step / `keras.distillation`, logits, {TITLES['cnn']}"
    return [{"title": title, "goal": 1.0, **measured}]


def keras_features(smoke):
    """One inner layer, of the same shape in both: no projector is needed.

    `keras.distillation` has the labels and the feature in its loss, ours the
    labels and the feature, and the logits as well.
    """
    pair = models.pairs(smoke)["resnet"]
    measured = compare(
        lambda: setups.distiller(
            pair,
            ClassicKD(alpha=0.5),
            labels=True,
            hints=[Hint("stage3", "stage3")],
        ),
        lambda: setups.keras_distiller(
            pair,
            keras.distillation.FeatureDistillation(
                teacher_layer_name="stage3", student_layer_name="stage3"
            ),
        ),
        smoke=smoke,
        **_effort("resnet"),
    )
    title = f"step / `keras.distillation`, one feature, {TITLES['resnet']}"
    return [{"title": title, "goal": 0.8, **measured}]


def _growth(kind, values, make, smoke):
    """Compare the step of each further value with that of the first."""
    first, *others = values
    rows = []
    for value in others:
        measured = compare(
            lambda value=value: make(value),
            lambda: make(first),
            instances=1,
            seconds=2.0,
            smoke=smoke,
        )
        rows.append({"title": f"step, {kind}: {value} / {first}", **measured})
    return rows


def batch_size(smoke):
    pair = models.pairs(smoke)["cnn"]
    sizes = (2, 4) if smoke else (32, 128, 512)
    return _growth(
        "batch size",
        sizes,
        lambda size: setups.distiller(pair._replace(batch=size)),
        smoke,
    )


def teachers(smoke):
    pair = models.pairs(smoke)["cnn"]
    return _growth(
        "teachers",
        (1, 2) if smoke else (1, 2, 4),
        lambda count: setups.distiller(
            pair, teachers=[pair.teacher() for _ in range(count)]
        ),
        smoke,
    )


def hints(smoke):
    pair = models.pairs(smoke)["resnet"]
    stages = ["stage3", "stage2"]
    return _growth(
        "hints",
        (0, 1) if smoke else (0, 1, 2),
        lambda count: setups.distiller(
            pair, hints=[Hint(stage, stage) for stage in stages[:count]]
        ),
        smoke,
    )


def classes(smoke):
    """Here the models are nearly nothing and the loss is most of the step."""
    pair = models.pairs(smoke)["cnn"]

    def make(count):
        def tiny():
            return models.cnn((1, 1), count)

        return setups.distiller(
            pair._replace(teacher=tiny, student=tiny, classes=count)
        )

    counts = (10, 20) if smoke else (10, 1000, 20000)
    return _growth("classes (tiny models)", counts, make, smoke)
