"""Where the rules of the layers are kept; see `_layer_rules.py`."""

from collections.abc import Callable
from typing import Any

from keras_distill.compression.channels._coupling import Rule

RULES: dict[type, Callable] = {}  # for layers with one input tensor
MERGING_RULES: dict[type, Rule] = {}  # for layers with several input tensors
# For layers with one input tensor that compute something else without some
# channels. They keep all channels, unless the user wants it otherwise.
ON_REQUEST: dict[type, Callable] = {}


def rule(*classes: type, rules: dict[type, Any] = RULES) -> Callable:
    """Register a rule for layers with one input tensor."""

    def register(function: Callable) -> Callable:
        rules.update(dict.fromkeys(classes, function))
        return function

    return register


def merging_rule(*classes: type) -> Callable:
    """Register a rule for layers with several input tensors."""
    return rule(*classes, rules=MERGING_RULES)
