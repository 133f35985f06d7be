"""With `--share-parameters`, the three backends together run all tests."""

import pathlib

import keras
import pytest

CONFTEST = str(pathlib.Path(__file__).parent / "conftest.py")

pytestmark = pytest.mark.any_backend


def test_each_collected_test_runs_on_a_backend(request, monkeypatch):
    suite = request.config.pluginmanager.get_plugin(CONFTEST)
    items = request.config.stash[suite.COLLECTED]
    run = set()
    for backend in suite.BACKENDS:
        monkeypatch.setattr(keras.backend, "backend", lambda name=backend: name)
        run |= suite.selected(items, share=True)
    assert run == set(map(id, items))
