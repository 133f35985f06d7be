"""How long one inference takes in the LiteRT interpreter, on one thread.

The models take turns: what else the machine does hits all of them alike. The
figure of a turn is the median of its inferences, and that of a model the median
of its turns, between the smallest and the largest.
"""

import statistics
import time

import numpy as np

# A turn is long against the clock's ticks and short against disturbances.
_SECONDS_PER_TURN = 0.02
_WARM_UP = 5


def measure_latency(files, rounds):
    """Return `{name of a model: {key: milliseconds}}` of LiteRT files.

    Args:
        files: `{name of a model: {form: path}}`.
        rounds: how often each file has its turn.
    """
    runners = {
        (name, form): _filled(interpreter(path))
        for name, paths in files.items()
        for form, path in paths.items()
        if form.startswith("litert")
    }
    counts = {
        key: max(1, round(_SECONDS_PER_TURN / _turn(runner, _WARM_UP)))
        for key, runner in runners.items()
    }
    turns = {key: [] for key in runners}
    for _ in range(rounds):
        for key, runner in runners.items():
            turns[key].append(1000 * _turn(runner, counts[key]))
    found = {name: {} for name in files}
    for (name, form), times in turns.items():
        found[name] |= {
            f"{form}_ms": statistics.median(times),
            f"{form}_ms_low": min(times),
            f"{form}_ms_high": max(times),
        }
    return found


def interpreter(path):
    """Return a LiteRT interpreter of one thread, ready to run."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path), num_threads=1)
    runner.allocate_tensors()
    return runner


def _filled(runner):
    """Return an interpreter with numbers in its inputs."""
    generator = np.random.default_rng(0)
    for detail in runner.get_input_details():
        values = np.zeros(detail["shape"], detail["dtype"])
        if values.dtype.kind == "f":
            values[...] = generator.uniform(size=values.shape)
        runner.set_tensor(detail["index"], values)
    return runner


def _turn(runner, count):
    """Return the median seconds of `count` inferences."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        runner.invoke()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
