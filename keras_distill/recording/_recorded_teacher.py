"""RecordedTeacher: answers that were recorded, in the place of a teacher."""

import keras
import numpy as np
from keras import tree

from keras_distill._graphs import _outputs
from keras_distill.recording import _storage
from keras_distill.teachers._live_teacher import AbsentTeacher
from keras_distill.views import ConsistentAugment


class RecordedTeacher:
    """The answers of a teacher from a file, for the views they belong to.

    Stands for a teacher in a `Distiller`: each epoch of `fit()` replays one
    recorded epoch, with the very same samples in the same order and the same
    views, so that a step costs what the student alone costs. More epochs than
    were recorded start over from the first. Any number of students, losses and
    temperatures can learn from one recording.

    The Distiller must have the `augment` of the recording, and `fit()` must get
    its data: the arrays themselves, or the same dataset in the same order.
    Other data, another order and other views are refused. Hints are too: a
    recording holds outputs and no inner features.

    A recording has no answers for validation data. Give the teacher as `live`
    to have it answer there, or validate the student by itself.

    Args:
        path: folder that `record_teacher` wrote.
        live: the teacher itself, for `evaluate()` and `validation_data`, or
            `None`.

    Raises:
        ValueError: if there is no whole recording at `path`.

    Example:

    ```python
    import keras
    import numpy as np
    from keras_distill import Distiller, FunctionMatching
    from keras_distill import record_teacher

    def mlp(units):
        return keras.Sequential(
            [keras.Input((8,)), keras.layers.Dense(units, "relu"),
             keras.layers.Dense(3)]
        )

    x = np.random.rand(64, 8).astype("float32")
    recording = record_teacher(mlp(64), x, "recording", epochs=2, verbose=0)
    distiller = Distiller(student=mlp(4), teacher=recording)
    distiller.compile("adam", loss=FunctionMatching())
    distiller.fit(x, epochs=4, verbose=0)
    ```
    """

    def __init__(self, path, live=None):
        manifest = _storage.read_manifest(path)
        if manifest is None:
            raise ValueError(
                f"There is no recording at {str(path)!r}. Make one with "
                "`record_teacher(teacher, dataset, path)`."
            )
        self.path, self.live = path, live
        self.manifest = manifest
        self.shards = _storage.Shards(path, manifest)
        rows = manifest["rows_per_epoch"]
        if rows is None or self.shards.num_rows < rows * manifest["epochs"]:
            raise ValueError(
                f"The recording at {str(path)!r} is not finished: "
                f"{self.shards.num_rows} views are there. Call "
                "`record_teacher` again as before, and it goes on from there."
            )
        self.outputs = outputs_of(manifest)

    @property
    def live_or_absent(self):
        """The teacher for views that were not recorded."""
        if self.live is not None:
            return self.live
        return AbsentTeacher(
            "A recording answers for its own views only, and not for "
            "validation data. Pass `RecordedTeacher(path, live=teacher)`, or "
            "evaluate the student by itself."
        )

    @property
    def epochs(self):
        """How many different epochs were recorded."""
        return self.manifest["epochs"]

    @property
    def num_batches(self):
        """How many batches an epoch has."""
        rows, size = (
            self.manifest[key] for key in ("rows_per_epoch", "batch_size")
        )
        return -(-rows // size)

    def rows(self, epoch, batch):
        """Return the rows of a batch, as a structured array."""
        per_epoch = self.manifest["rows_per_epoch"]
        size = self.manifest["batch_size"]
        start = batch * size
        stop = min(start + size, per_epoch)
        offset = (epoch % self.epochs) * per_epoch
        return self.shards.read(offset + start, offset + stop)

    def outputs_in(self, rows):
        """Return the answers in rows, a dict of float32 arrays by output."""
        return {output.name: output.read(rows) for output in self.outputs}

    def structured(self, answers):
        """Return answers by output in the structure that the teacher gave."""
        return tree.map_structure(
            lambda name: answers[name], self.manifest["structure"]
        )

    def specs(self):
        """Return symbolic tensors like the teacher's outputs."""
        return self.structured(
            {
                output.name: keras.KerasTensor(
                    (None, *output.shape), dtype="float32"
                )
                for output in self.outputs
            }
        )

    def endings(self, path):
        """Return the last activations that a student's output compares with.

        Args:
            path: where the output lies in the student's outputs.

        Returns:
            A list with one dict per teacher that shows it, of `"model"`,
            `"layer"` and `"activation"`.
        """
        name = _outputs.teacher_at(self.manifest["structure"], path)
        names = [output.name for output in self.outputs]
        return self.manifest["endings"][names.index(name)]

    def check_loss(self, loss):
        """Raise if a loss takes outputs for something else than was recorded.

        What one teacher returned is kept as it is. Of several teachers, or of
        the likeliest classes, there is what `predicts` made of them.

        Args:
            loss: a `DistillationLoss`.
        """
        recorded, logits = (
            self.manifest[key] for key in ("predicts", "from_logits")
        )
        name = type(loss).__name__
        members = self.manifest["fingerprint"]["teacher"]["members"]
        worked = len(members) > 1 or self.manifest["top_k"] is not None
        if worked and loss.predicts not in (None, recorded):
            raise ValueError(
                f"The outputs were recorded with predicts={recorded!r}, and "
                f"averaged or shortened as such. Received: {name}, which "
                f"compares {loss.predicts}. Record the teacher with "
                f"`predicts={loss.predicts!r}`."
            )
        if "values" in (loss.predicts, recorded) or loss.predicts is None:
            return
        if loss.from_logits != logits:
            raise ValueError(
                f"The outputs were recorded with from_logits={logits}. "
                f"Received: {name}(from_logits={loss.from_logits}). Use the "
                "same in both."
            )

    def drawn(self, rows):
        """Return what was drawn for rows, a dict of arrays."""
        return {
            name: rows[f"drawn_{name}"] if per_row else rows[f"drawn_{name}"][0]
            for name, per_row in self.manifest["drawn_per_row"].items()
        }

    def check_augment(self, augment):
        """Raise unless `augment` draws views as the recorded one did."""
        recorded = self.manifest["fingerprint"]["augment"]
        given = augment_fingerprint(augment)
        if given != recorded:
            raise ValueError(
                f"The recording at {str(self.path)!r} was made with other "
                "views, and a teacher's answer holds for its own view only. "
                f"Received: augment={given}, recorded: {recorded}. Give the "
                "Distiller the `augment` that `record_teacher` got."
            )


def outputs_of(manifest):
    """Return the `Output` of each output of a recording."""
    return [
        _storage.Output(
            f"output_{index}",
            shape,
            manifest["storage_dtype"],
            manifest["top_k"],
            manifest["from_logits"],
        )
        for index, shape in enumerate(manifest["output_shapes"])
    ]


def augment_fingerprint(augment):
    """Return the config of a view, less names and seeds."""
    if augment is None:
        return None
    config = keras.saving.serialize_keras_object(
        augment
        if isinstance(augment, ConsistentAugment)
        else ConsistentAugment(augment)
    )
    return _without(config, ("name", "seed", "build_config"))


def _without(config, keys):
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return config["config"]["name"]
        return {
            key: _without(value, keys)
            for key, value in config.items()
            if key not in keys
        }
    if isinstance(config, (list, tuple)):
        return [_without(value, keys) for value in config]
    if isinstance(config, np.generic):
        return config.item()
    return config
