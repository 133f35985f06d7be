"""RecordedTeacher: recorded outputs in place of a teacher."""

import os
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from keras_distill._graphs import _outputs
from keras_distill._typing import Tensors
from keras_distill.losses._distillation_loss import DistillationLoss
from keras_distill.losses._most_probable import dense
from keras_distill.recording import _recorded_batch
from keras_distill.recording import _storage
from keras_distill.recording._folders import folder_of
from keras_distill.recording._manifest import augment_fingerprint
from keras_distill.recording._parts import read_recording
from keras_distill.recording._recorded_head import RecordedHead
from keras_distill.recording._recorded_head import read_head
from keras_distill.teachers._live_teacher import AbsentTeacher


class RecordedTeacher:
    """Outputs of a teacher from files, for the views that they belong to.

    Use it as the teacher of a `Distiller` (offline distillation): each epoch of
    `fit()` replays one recorded epoch, with the same samples in the same order
    and the same views. So a step costs as much as a step of the student alone.
    If there are more epochs than were recorded, replay starts again at the
    first. Any number of students, losses and temperatures can use one
    recording.

    The Distiller must have the `augment` of the recording, and `fit()` must get
    its data: the arrays themselves, or the same dataset in the same order.
    Other data, another order and other views are refused. Hints are refused as
    well: a recording holds outputs and no features of inner layers.

    A recording has no outputs for validation data. Pass the teacher as `live`
    to run it there, or evaluate the student alone.

    Args:
        path: folder that `record_teacher` wrote, or its URL.
        live: the teacher itself, for `evaluate()` and `validation_data`, or
            `None`.

    Raises:
        ValueError: if there is no complete recording at `path`, or if it is
            damaged.

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

    def __init__(self, path: str | os.PathLike[str], live: Any = None) -> None:
        self.path, self.live = path, live
        folder = folder_of(path)
        self.manifest, self.shards = read_recording(folder)
        # The teacher's last layer, if hidden states were recorded.
        self.head: RecordedHead | None = read_head(folder, self.manifest)
        self._output_fields = _storage.output_fields(self.manifest)

    @property
    def live_or_absent(self) -> Any:
        """The teacher for views that were not recorded."""
        if self.live is not None:
            return self.live
        return AbsentTeacher(
            "A recording has outputs for its own views only, and not for "
            "validation data. Use `RecordedTeacher(path, live=teacher)`, or "
            "evaluate the student alone."
        )

    @property
    def epochs(self) -> int:
        """The number of epochs that were recorded."""
        return self.manifest["epochs"]

    @property
    def num_batches(self) -> int:
        """The number of batches of an epoch."""
        rows, size = (
            self.manifest[key] for key in ("rows_per_epoch", "batch_size")
        )
        return -(-rows // size)

    def rows(self, epoch: int, batch: int) -> np.ndarray:
        """Return the rows of a batch, as a structured array.

        Args:
            epoch: int, from 0. Later epochs than the last recorded start again
                at the first.
            batch: int, from 0.
        """
        per_epoch = self.manifest["rows_per_epoch"]
        size = self.manifest["batch_size"]
        start = batch * size
        stop = min(start + size, per_epoch)
        offset = (epoch % self.epochs) * per_epoch
        return self.shards.read(offset + start, offset + stop)

    def outputs_in(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs in rows, as float32 arrays by name.

        With `top_k`, the rest is divided evenly among the other classes.
        """
        return {
            name: ops.convert_to_numpy(dense(self._of_head(output)))
            for name, output in self._outputs(self.fields_in(rows)).items()
        }

    def fields_in(self, rows: np.ndarray) -> dict[str, Any]:
        """Return what was stored of the outputs in rows, by their names.

        See `OutputFields.read`: with `top_k`, nothing in it has the size of the
        outputs.
        """
        return {
            fields.name: fields.read(rows) for fields in self._output_fields
        }

    def drawn_in(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return what was drawn for the views in rows, as arrays by name."""
        return _recorded_batch.as_drawn(*self.drawn_rows(rows))

    def drawn_rows(
        self, rows: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return what was drawn for each row, and for all rows of a batch.

        The second are stored in each row of the batch.
        """
        per_row: dict[str, np.ndarray] = {}
        shared: dict[str, np.ndarray] = {}
        for name, differs in self.manifest["drawn_per_row"].items():
            (per_row if differs else shared)[name] = rows[f"drawn_{name}"]
        return per_row, shared

    def teacher_outputs(
        self, values: dict[str, Any], with_head: bool
    ) -> Tensors:
        """Return the teacher's outputs, from what `fields_in` returned.

        They are in the structure that the teacher returned. With `top_k`, each
        is a `MostProbable`.

        Args:
            values: what `fields_in` returned.
            with_head: bool. Whether to apply the head to hidden states.
        """
        outputs = self._outputs(values)
        if with_head:
            outputs = {
                name: self._of_head(output) for name, output in outputs.items()
            }
        return self.in_structure(outputs)

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that replay reads: those of the head."""
        return [] if self.head is None else self.head.variables

    def _of_head(self, output):
        if self.head is None:
            return output
        values = [v.value for v in self.head.variables]
        return self.head(ops.convert_to_tensor(output), values)

    def _outputs(self, values):
        return {
            fields.name: fields.output_of(values[fields.name])
            for fields in self._output_fields
        }

    def in_structure(self, outputs: dict[str, Any]) -> Tensors:
        """Return outputs by name in the structure that the teacher returned."""
        return tree.map_structure(
            lambda name: outputs[name], self.manifest["structure"]
        )

    def specs(self) -> Tensors:
        """Return symbolic tensors like the teacher's outputs."""
        return self.in_structure(
            {
                fields.name: keras.KerasTensor(
                    (None, *self._shape(fields)), dtype="float32"
                )
                for fields in self._output_fields
            }
        )

    def _shape(self, fields):
        head = self.manifest["head"]
        if head is None:
            return fields.shape
        return (*fields.shape[:-1], head["classes"])

    def endings(self, path: tuple) -> list[dict[str, str | None]]:
        """Return the last activations of the teachers, for one output.

        Args:
            path: where the output lies in the student's outputs.

        Returns:
            A list with a dict for each teacher whose graph is known, of
            `"model"`, `"layer"` and `"activation"`.
        """
        name = _outputs.teacher_at(self.manifest["structure"], path)
        names = [fields.name for fields in self._output_fields]
        return self.manifest["endings"][names.index(name)]

    def check_loss(self, loss: DistillationLoss) -> None:
        """Raise if a loss does not fit how the outputs were recorded.

        The outputs of one teacher are recorded unchanged. The average of
        several teachers and `top_k` depend on `predicts`.

        Args:
            loss: a `DistillationLoss`.

        Raises:
            ValueError: if `predicts` or `from_logits` differ, or if the loss
                requires the probabilities that `top_k` left out.
        """
        recorded, logits = (
            self.manifest[key] for key in ("predicts", "from_logits")
        )
        name = type(loss).__name__
        members = self.manifest["fingerprint"]["teacher"]["members"]
        changed = len(members) > 1 or self.manifest["top_k"] is not None
        if changed and loss.predicts not in (None, recorded):
            raise ValueError(
                f"The outputs were recorded with predicts={recorded!r}, and "
                "averaged or shortened accordingly. Received: "
                f"{name}, which compares {loss.predicts}. Record the teacher "
                f"with `predicts={loss.predicts!r}`."
            )
        if (
            self.manifest["top_k"] is not None
            and getattr(loss, "divergence", None) == "reverse"
        ):
            raise ValueError(
                "The reverse divergence depends most on classes that are "
                "likely for the student and not for the teacher. Of these, "
                "`top_k` keeps only the average probability, so the loss would "
                f"be wrong. Received: {name}(divergence='reverse') and a "
                f"recording with top_k={self.manifest['top_k']}. Use the "
                "forward divergence, or record without `top_k`."
            )
        if "values" in (loss.predicts, recorded) or loss.predicts is None:
            return
        if loss.from_logits != logits:
            raise ValueError(
                f"The outputs were recorded with from_logits={logits}. "
                f"Received: {name}(from_logits={loss.from_logits}). Use the "
                "same in both."
            )

    def check_augment(self, augment: keras.layers.Layer | None) -> None:
        """Raise unless `augment` draws the same kind of views as recorded.

        Raises:
            ValueError: if the configs differ in more than names and seeds.
        """
        recorded = self.manifest["fingerprint"]["augment"]
        given = augment_fingerprint(augment)
        if given != recorded:
            raise ValueError(
                f"The recording at {str(self.path)!r} was made with other "
                "views, and a recorded output is valid for its own view only. "
                f"Received: augment={given}, recorded: {recorded}. Pass the "
                "Distiller the `augment` that `record_teacher` got."
            )
