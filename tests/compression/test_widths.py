"""compare_widths: what a pruned model lost, as text and as HTML."""

import xml.etree.ElementTree as ElementTree

import keras
import pytest
from common import Subclassed
from common import mlp
from keras import layers

from keras_distill import Distiller
from keras_distill.compression import compare_widths
from keras_distill.compression import factorize
from keras_distill.compression import fold_batch_norm
from keras_distill.compression import prune_channels
from keras_distill.compression import separate
from keras_distill.compression.channels._widths import Widths

pytestmark = pytest.mark.any_backend


def residual():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(1024, 3, padding="same", name="stem")(inputs)
    y = layers.Conv2D(6, 3, padding="same", name="a")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.Conv2D(1024, 3, padding="same", name="b")(y)
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(5, name="logits")(x))


def cells_of(html):
    """Return the rows of cells in a table, as a browser would show them."""
    (table,) = ElementTree.fromstring(f"<div>{html}</div>").iter("table")
    return [[cell.text or "" for cell in row] for row in table.iter("tr")]


def test_a_residual_model():
    model = residual()
    pruned = prune_channels(model, {"a": 0.5, "stem": 0.25})
    found = compare_widths(model, pruned)
    assert found.to_dict() == {
        "stem": (1024, 768),
        "a": (6, 3),
        "b": (1024, 768),
        "logits": (5, 5),
    }
    rows = [
        ["layer", "before", "after"],
        ["stem", "1,024", "768"],
        ["a", "6", "3"],
        ["b", "1,024", "768"],
        ["logits", "5", "5"],
        [
            "all parameters",
            f"{model.count_params():,}",
            f"{pruned.count_params():,}",
        ],
    ]
    assert [line.rsplit(maxsplit=2) for line in str(found).splitlines()] == rows
    assert len(set(map(len, str(found).splitlines()))) == 1
    assert cells_of(found._repr_html_()) == rows


def test_a_sequential_model_with_another_inside():
    backbone = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(9, 8, name="words"),
            layers.LSTM(4, name="memory"),
        ],
        name="backbone",
    )
    model = keras.Sequential(
        [backbone, layers.Dense(6, name="hidden"), layers.Dense(2, name="top")]
    )
    pruned = prune_channels(model, 0.5, exclude="words")
    found = compare_widths(model, pruned).to_dict()
    assert found == {
        "backbone/words": (8, 8),
        "backbone/memory": (4, 2),
        "hidden": (6, 3),
        "top": (2, 2),
    }


def test_heads_and_both_directions():
    inputs = keras.Input((7, 4))
    x = layers.MultiHeadAttention(4, 3, name="heads")(inputs, inputs)
    x = layers.Bidirectional(layers.GRU(6, name="gru"), name="both")(x)
    model = keras.Model(inputs, layers.Dense(2, name="top")(x))
    pruned = prune_channels(model, {"heads": 0.5, "backward_gru": 0.5})
    assert compare_widths(model, pruned).to_dict() == {
        "heads": (4, 2),
        "both/forward_gru": (6, 3),
        "both/backward_gru": (6, 3),
        "top": (2, 2),
    }


def test_it_is_what_the_pruned_model_says():
    model = mlp()
    pruned = prune_channels(model, 0.5)
    for path, (before, after) in (
        compare_widths(model, pruned).to_dict().items()
    ):
        assert model.get_layer(path).units == before
        assert pruned.get_layer(path).units == after


def test_factorized_separated_and_folded_models():
    model = residual()
    found = compare_widths(model, factorize(model, rank={"b": 4})).to_dict()
    assert found["b_in"] == (None, 4) and found["b"] == (1024, 1024)
    assert list(found) == ["stem", "a", "b_in", "b", "logits"]
    rows = cells_of(
        compare_widths(model, factorize(model, rank={"b": 4}))._repr_html_()
    )
    assert rows[3] == ["b_in", "-", "4"]
    for change in (separate, fold_batch_norm):
        found = compare_widths(model, change(model)).to_dict()
        assert all(before == after for before, after in found.values())
        assert list(found) == ["stem", "a", "b", "logits"]


def test_of_a_distiller_the_student_counts():
    model = mlp()
    distiller = Distiller(student=model, teacher=mlp())
    found = compare_widths(distiller, prune_channels(distiller, 0.5)).to_dict()
    assert found == compare_widths(model, prune_channels(model, 0.5)).to_dict()


def test_names_are_escaped():
    # TensorFlow allows few characters in the names of layers.
    html = Widths({"<b>&amp;</b>": (2, 1)}, (4, 2))._repr_html_()
    assert "<b>" not in html and "&lt;b&gt;&amp;amp;&lt;/b&gt;" in html
    assert cells_of(html)[1] == ["<b>&amp;</b>", "2", "1"]


def test_refused_models():
    with pytest.raises(ValueError, match=r"`compare_widths` requires a func"):
        compare_widths(Subclassed(), mlp())
    inputs = keras.Input((4,))
    other = keras.Model(inputs, layers.Dense(2, name="other")(inputs))
    with pytest.raises(ValueError, match=r"without a common layer.*'other'"):
        compare_widths(mlp(), other)
