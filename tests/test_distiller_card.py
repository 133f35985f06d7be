"""The card of a Distiller in a notebook."""

import html
import re

import keras
from common import mlp
from common import vectors

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import FunctionMatching
from keras_distill import Hint
from keras_distill import MixUp
from keras_distill import record_teacher


def rows_of(distiller):
    text = distiller._repr_html_()
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    return {head: html.unescape(value) for head, value in cells}


def test_a_distiller_shows_its_parts():
    student = mlp(4, name="small")
    distiller = Distiller(
        student=student,
        teacher=[mlp(8, name="big"), lambda x: x],
        augment=ConsistentAugment([MixUp()]),
    )
    rows = rows_of(distiller)
    assert rows["student"] == "small (Sequential, 53 parameters)"
    assert rows["teacher"] == "big (Sequential, 101 parameters) + function"
    assert rows["view"] == "MixUp" and rows["hints"] == "none"
    assert rows["loss"] == "not compiled"
    schedule = keras.optimizers.schedules.PolynomialDecay(4.0, 10, 1.0)
    distiller.compile("sgd", loss=ClassicKD(0.5, schedule))
    loss = rows_of(distiller)["loss"]
    assert loss == "ClassicKD(alpha=0.5, temperature=scheduled)"


def test_a_recording_and_a_loss_on_labels(tmp_path):
    recording = record_teacher(mlp(8), vectors()[0], tmp_path, verbose=0)
    distiller = Distiller(student=mlp(), teacher=recording)
    distiller.compile(
        loss=FunctionMatching(2.0) + keras.losses.MeanSquaredError()
    )
    rows = rows_of(distiller)
    assert rows["teacher"] == f"recorded in {tmp_path}, 1 epochs"
    assert "FunctionMatching(temperature=2)" in rows["loss"]
    assert "mean_squared_error (labels)" in rows["loss"]


def test_names_are_escaped_and_hints_are_listed():
    distiller = Distiller(
        student=mlp(),
        teacher=mlp(8),
        hints=[Hint("dense_2", "dense", weight=0.1)],
        name="a<b>c",
    )
    assert "<b>" not in distiller._repr_html_()
    assert rows_of(distiller)["Distiller"] == "a<b>c"
    assert "dense_2" in rows_of(distiller)["hints"]
