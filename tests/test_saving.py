"""What is written holds the student; what is read goes on training."""

import subprocess

import h5py
import keras
import numpy as np
import pytest
from common import cnn
from common import images
from common import mlp
from common import same_weights
from common import to_numpy
from common import vectors
from common import weights_of
from programs import command
from programs import environment

from keras_distill import ClassicKD
from keras_distill import ConsistentAugment
from keras_distill import Distiller
from keras_distill import InceptionCrop
from keras_distill import MixUp
from keras_distill import TeacherAgreement


def distiller_of(student, teacher, **compile_options):
    augment = ConsistentAugment([InceptionCrop(8, 8), MixUp()], seed=4)
    distiller = Distiller(student=student, teacher=teacher, augment=augment)
    options = dict(
        loss=ClassicKD(0.8, 3.0), metrics=["accuracy", TeacherAgreement()]
    )
    distiller.compile(
        keras.optimizers.Adam(0.01), **{**options, **compile_options}
    )
    return distiller


def test_a_loaded_distiller_goes_on_training_like_the_saved_one(tmp_path):
    x, y = images()
    teacher = cnn(16)
    distiller = distiller_of(cnn(2), teacher)
    distiller.fit(x, y, shuffle=False, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    with pytest.raises(
        ValueError, match=r"Assign `distiller.teacher = teacher`"
    ):
        loaded.evaluate(x, y, verbose=0)
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), distiller.predict(x, verbose=0)
    )
    loaded.teacher = teacher
    for model in (distiller, loaded):
        # On PyTorch both draw from one global generator.
        keras.utils.set_random_seed(5)
        model.fit(x, y, epochs=2, shuffle=False, verbose=0)
    assert same_weights(weights_of(distiller), weights_of(loaded), 1e-6)
    assert same_weights(
        [to_numpy(v.value) for v in distiller.optimizer.variables],
        [to_numpy(v.value) for v in loaded.optimizer.variables],
        1e-6,
    )


def test_files_are_of_the_students_size(tmp_path):
    x, _ = vectors()
    teacher = mlp(4000)
    distiller = Distiller(student=mlp(), teacher=teacher)
    distiller.compile("adam")
    callbacks = [
        keras.callbacks.ModelCheckpoint(tmp_path / "checkpoint.keras"),
        keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False),
    ]
    distiller.fit(x, verbose=0, callbacks=callbacks)
    distiller.save(tmp_path / "distiller.keras")
    distiller.save_weights(tmp_path / "distiller.weights.h5")
    distiller.student.save(tmp_path / "student.keras")
    sizes = {
        p.name: p.stat().st_size for p in tmp_path.iterdir() if p.is_file()
    }
    assert len(sizes) == 6
    teacher_bytes = 4 * teacher.count_params()
    assert all(size < teacher_bytes / 2 for size in sizes.values())
    with h5py.File(tmp_path / "latest.weights.h5") as file:
        values = {}
        file.visititems(lambda k, o: values.update({k: getattr(o, "size", 0)}))
    values.pop("vars/global_random_state", None)
    # Adam keeps two slots for each weight of the student.
    assert sum(values.values()) <= 3 * distiller.student.count_params() + 20


def test_the_saved_student_needs_no_keras_distill(tmp_path):
    x, _ = vectors()
    distiller = Distiller(student=mlp(), teacher=mlp(16))
    distiller.compile("adam")
    distiller.fit(x, verbose=0)
    distiller.student.save(tmp_path / "student.keras")
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, keras, numpy as np; "
        f"m = keras.models.load_model(r'{tmp_path}/student.keras'); "
        f"np.save(r'{tmp_path}/y.npy', m.predict(np.load(r'{tmp_path}/x.npy'),"
        " verbose=0)); assert 'keras_distill' not in sys.modules"
    )
    subprocess.run(command("-c", code), env=environment(), check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), distiller.predict(x, verbose=0), atol=1e-6
    )


def test_a_file_with_code_is_refused(tmp_path):
    student = keras.Sequential(
        [keras.Input((6,)), keras.layers.Lambda(lambda x: x), mlp()]
    )
    distiller = Distiller(student=student, teacher=mlp(16))
    distiller.save(tmp_path / "distiller.keras")
    with pytest.raises(ValueError, match="Lambda"):
        keras.models.load_model(tmp_path / "distiller.keras")


def test_weights_round_trip(tmp_path):
    x, y = images()
    distiller = distiller_of(cnn(2), cnn(16))
    distiller.fit(x, y, verbose=0)
    distiller.save_weights(tmp_path / "d.weights.h5")
    twin = distiller_of(cnn(2), cnn(16))
    twin.load_weights(tmp_path / "d.weights.h5")
    assert same_weights(weights_of(distiller), weights_of(twin))


def test_weights_of_another_set_up_are_refused(tmp_path):
    distiller = distiller_of(cnn(2), cnn(16))
    distiller.save_weights(tmp_path / "d.weights.h5")
    other = Distiller(student=cnn(2), teacher=cnn(16))
    with pytest.raises(
        ValueError, match="with 4 states for a Distiller with 1 generators"
    ):
        other.load_weights(tmp_path / "d.weights.h5")


def test_a_loaded_distiller_keeps_its_compile_arguments(tmp_path):
    distiller = distiller_of(
        cnn(2),
        cnn(16),
        check_values=False,
        weighted_metrics=[TeacherAgreement(2)],
    )
    distiller.optimizer.build(distiller.trainable_variables)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert loaded.get_compile_config() == distiller.get_compile_config()
    assert loaded.get_config()["augment"] == distiller.get_config()["augment"]


def test_backup_needs_no_manual_build(tmp_path):
    x, y = images()
    student = keras.Sequential(
        [keras.layers.Flatten(), keras.layers.Dense(5)], name="unbuilt"
    )
    distiller = distiller_of(student, cnn(16))
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    distiller.fit(x, y, verbose=0, callbacks=[backup])
    assert student.built


def test_a_stopped_run_goes_on_with_the_callback_of_keras(tmp_path):
    """In the middle of an epoch, of which it does not keep the batches."""
    x, y = images(64)

    class Stop(keras.callbacks.Callback):
        batches = 0

        def on_train_batch_end(self, batch, logs=None):
            self.batches += 1
            if self.batches == 10:  # of 4 in each epoch
                raise KeyboardInterrupt

    def fit(folder, *callbacks):
        keras.utils.set_random_seed(11)
        teacher, student = cnn(16), cnn(2)
        backup = keras.callbacks.BackupAndRestore(
            tmp_path / folder, delete_checkpoint=False
        )
        history = distiller_of(student, teacher).fit(
            x,
            y,
            batch_size=16,
            epochs=4,
            shuffle=False,
            verbose=0,
            callbacks=[backup, *callbacks],
        )
        return student.get_weights(), history.epoch

    with pytest.raises(KeyboardInterrupt):
        fit("stopped", Stop())
    weights, epochs = fit("stopped")
    assert epochs == [2, 3]
    for one, two in zip(fit("whole")[0], weights, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-6)
