"""CIFAR-10 in the flash of a small device, beside the files of MLPerf Tiny.

    python experiments/small_devices.py --data FOLDER --max-bytes 98496
    python experiments/small_devices.py --data FOLDER --max-bytes 512024 \\
        --depth 56

`shrink` makes a pretrained ResNet fit the budget as an int8 file. Its teacher
is a ResNet-56, recorded once for all candidates. The candidate is chosen on
5,000 training images that are held out; the pretrained networks have seen them,
so their figures only rank. The file of the chosen one is run on the test
images, and so are MLPerf Tiny's own files for the same task, if FOLDER holds
them (mlperf_tiny_*.tflite, of https://github.com/mlcommons/tiny, Apache-2.0).

FOLDER holds cifar10.npz, cifar10_resnet20_state.npz and
cifar10_resnet56_state.npz, see `cifar10.py`. A killed run continues.
"""

import argparse
import pathlib

import cifar10
import experiment
import experiment_results as results
import keras

from keras_distill import shrink
from keras_distill.compression import fold_batch_norm
from keras_distill.compression.litert._arena import arena_bytes
from keras_distill.reports._measure import measure_latency


def parse():
    parser = experiment.parser_of(__doc__, epochs=60)
    parser.add_argument("--max-bytes", type=int, default=98_496)
    parser.add_argument("--depth", type=int, default=20, help="of the ResNet")
    parser.set_defaults(
        recorded_epochs=8, smallest_area=0.7, mix=0.3, temperature=4.0
    )
    options = experiment.parse(parser)
    if options.smoke:
        options.recorded_epochs = 1
    return options


def networks(options):
    """Return the network to begin with, and the teacher."""
    if options.smoke and options.data is None:
        return cifar10.cnn((8, 16), "cnn"), cifar10.cnn((16, 32), "teacher")
    start = cifar10.pretrained(options.depth, options.data)
    teacher = experiment.in_policy(
        options.teacher_dtype, lambda: cifar10.pretrained(56, options.data)
    )
    return start, teacher


def figures(files, scored):
    """Return `{name: figures}` of LiteRT files, measured side by side."""
    times = measure_latency(
        {name: {"litert": path} for name, path in files.items()}, rounds=20
    )
    return {
        name: {
            "accuracy": results.accuracy_of_file(path, scored),
            "bytes": path.stat().st_size,
            "arena_bytes": arena_bytes(path.read_bytes()),
            "ms": times[name]["litert_ms"],
        }
        for name, path in files.items()
    }


def main():
    options = parse()
    whole, test = cifar10.load(options)
    held_out = argparse.Namespace(**{**vars(options), "validation": True})
    data, validation = experiment.split(
        (whole, test), held_out, cifar10.HELD_OUT
    )
    keras.utils.set_random_seed(options.seed)
    start, teacher = networks(options)
    end = f"{options.max_bytes}-bytes_{options.epochs}-epochs"
    name = f"{start.name}_{end}_seed-{options.seed}"
    results.refuse_other_settings(name, options)
    views = cifar10.views(options)
    result = shrink(
        start,
        data,
        validation=validation,
        directory=options.workdir / name,
        epochs=options.epochs,
        max_bytes=options.max_bytes,
        teacher=experiment.recorded(
            fold_batch_norm(teacher), data[0], views, held_out
        ),
        augment=views,
        loss=experiment.loss_of(options),
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        verbose=2,
    )
    print(result)
    path = options.workdir / f"{name}.tflite"
    result.export(path)
    others = sorted((options.data or pathlib.Path()).glob("mlperf_tiny_*"))
    found = figures({name: path, **{p.stem: p for p in others}}, test)
    chosen = result.comparison.to_dict()[result.name]
    found[name] |= {
        "parameters": chosen["parameters"],
        "macs": chosen["macs"],
        "validation_accuracy": chosen["litert_int8_accuracy"],
        "teacher_accuracy": results.accuracy(teacher, test),
    }
    ours = {"network": start.name, "candidate": result.name}
    for row, metrics in found.items():
        published = {"network": row, "candidate": "as published"}
        settings = ours if row == name else published
        results.add(
            results.row_of(row, options, metrics, **settings), options.workdir
        )
        print(row, metrics)


if __name__ == "__main__":
    main()
