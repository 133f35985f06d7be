"""What a run of `shrink` keeps on disk, so that it can go on after a kill."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_distill import _files
from keras_distill.recording import RecordedTeacher
from keras_distill.recording._manifest import teacher_fingerprint
from keras_distill.reports._measure import Files
from keras_distill.reports._measure import write_form
from keras_distill.resuming import Resume
from keras_distill.teachers._live_teacher import LiveTeacher


class Stage:
    """The folder of a stage: numbers that were found, and the training.

    Args:
        folder: path of the folder, which is created.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def number(self, name: str, find: Callable[[], int | None]) -> int | None:
        """Return a number, or None, which is found only once."""
        path = self._folder / f"{name}.json"
        if not path.exists():
            _write_json(path, find())
        return json.loads(path.read_text())

    def resume(self) -> Resume:
        """Return the callback that continues the training."""
        return Resume(self._folder / "states", keep=1)


class Run:
    """The directory of a run, with a folder for each candidate.

    Args:
        directory: path of the folder, which is created.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Write the settings, or compare them with those of before.

        Raises:
            ValueError: if the directory has a run with other settings.
        """
        path = self.directory / "settings.json"
        if not path.exists():
            _write_json(path, settings)
            return
        before = json.loads(path.read_text())
        changed = {
            name: {"before": before.get(name), "now": value}
            for name, value in settings.items()
            if before.get(name) != value
        }
        if changed:
            raise ValueError(
                "The directory has a run with other settings. Use another "
                "directory, or delete this one. Received: "
                f"directory={str(self.directory)!r} with changes in {changed}"
            )

    def stage(self, candidate: str, name: str) -> Stage:
        """Return a stage of a candidate."""
        return Stage(self.directory / candidate / name)

    def write_files(
        self,
        models: dict[str, keras.Model],
        form: str,
        samples: list[np.ndarray],
    ) -> tuple[dict[str, Files], list[str]]:
        """Write the file of each model.

        Args:
            models: `{name: model}`.
            form, samples: as for `write_form`.

        Returns:
            `{name: {form: path}}`, and a list of warnings.
        """
        files: dict[str, Files] = {}
        notes = []
        for name, model in models.items():
            folder = self.directory / name
            folder.mkdir(exist_ok=True)
            path = folder / form
            found = write_form(model, path, form, samples)
            files[name] = {form: path}
            notes += [f"{form} of {name}: {note}" for note in found]
        return files, notes


def _write_json(path, value):
    text = json.dumps(value, indent=1)
    _files.write(path, lambda out: out.write(text.encode()))


def described(given: Any) -> Any:
    """Return what tells a loss from others, as JSON has it.

    Args:
        given: a loss, whose config counts; or a structure of losses.
    """
    if isinstance(given, (list, tuple)):
        return [described(part) for part in given]
    if isinstance(given, dict):
        return {str(key): described(part) for key, part in given.items()}
    if hasattr(given, "get_config"):
        return f"{type(given).__name__} {given.get_config()}"
    if isinstance(given, str):
        return given
    # Other objects have no text that is the same in each process.
    return getattr(given, "__qualname__", type(given).__name__)


def fingerprint(teacher: Any) -> Any:
    """Return what tells a teacher from others: its weights, or its rows."""
    if isinstance(teacher, RecordedTeacher):
        return teacher.manifest["fingerprint"]
    return teacher_fingerprint(LiveTeacher(teacher, None, None), None)
