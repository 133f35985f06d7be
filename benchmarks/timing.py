"""Times two things by turns, in one process.

A machine has other work as well, and its speed drifts. Two things that are
timed by turns suffer alike, so their ratio says more than their times. And a
compiled step that is built again may be a little faster or slower, so each side
is built several times and its fastest instance counts.
"""

import gc
import pathlib
import statistics
import time

SAMPLE_SECONDS = 0.2
MAX_STEPS = 40


def compare(ours, reference, instances=3, seconds=5.0, smoke=False):
    """Time `ours` and `reference`, and return their ratio.

    Args:
        ours: function that builds an instance and returns `run(steps)`.
        reference: the same for what ours is compared with.
        instances: int. How often each of them is built.
        seconds: float. How long to take turns; at least three rounds.
        smoke: bool. One round of one step of one instance.

    Returns:
        Dict with `ratio`, of the fastest instances' median times; the quartiles
        `low` and `high` of all ratios taken side by side; `cpu_ratio`, the same
        as `ratio` in CPU time, which other processes hardly touch; the
        milliseconds per step and used cores of both; and `others`, the cores
        that other processes used meanwhile.
    """
    instances = 1 if smoke else instances
    runs = [(ours(), reference()) for _ in range(instances)]
    steps = 1 if smoke else _steps(runs[0])
    for pair in runs:
        for run in pair:
            run(1)
    gc.collect()
    samples = [([], []) for _ in runs]
    start, cores_before = time.perf_counter(), _machine_seconds()
    own_before = time.process_time()
    rounds = 0
    while rounds < (1 if smoke else 3) or (
        not smoke and time.perf_counter() - start < seconds
    ):
        for pair, kept in zip(runs, samples):
            for side in (0, 1) if rounds % 2 else (1, 0):
                kept[side].append(_sample(pair[side], steps))
        rounds += 1
    elapsed = time.perf_counter() - start
    own = time.process_time() - own_before
    others = None
    if cores_before is not None:
        others = (_machine_seconds() - cores_before - own) / elapsed
        others = round(max(0.0, others), 2)
    return {**_summary(samples), "others": others}


def _steps(pair):
    """Choose how many steps one sample takes."""
    slower = 0.0
    for run in pair:
        run(1)
        slower = max(slower, _sample(run, 1)[0])
    return min(MAX_STEPS, max(1, round(SAMPLE_SECONDS / slower)))


def _sample(run, steps):
    """Return wall-clock and CPU seconds of a step."""
    wall, cpu = time.perf_counter(), time.process_time()
    run(steps)
    cpu = time.process_time() - cpu
    return (time.perf_counter() - wall) / steps, cpu / steps


def _summary(samples):
    ratios = [
        first[0] / second[0] for pair in samples for first, second in zip(*pair)
    ]
    low, high = ratios[0], ratios[0]
    if len(ratios) > 1:
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    wall = [_fastest(samples, side, 0) for side in (0, 1)]
    cpu = [_fastest(samples, side, 1) for side in (0, 1)]
    return {
        "ratio": round(wall[0] / wall[1], 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "cpu_ratio": round(cpu[0] / cpu[1], 4),
        "milliseconds": [round(1000 * seconds, 3) for seconds in wall],
        "cores": [round(c / w, 2) for c, w in zip(cpu, wall)],
        "samples": len(ratios),
    }


def _fastest(samples, side, kind):
    return min(
        statistics.median(sample[kind] for sample in pair[side])
        for pair in samples
    )


def _machine_seconds():
    """Return the CPU seconds that all processes have used, on Linux."""
    path = pathlib.Path("/proc/stat")
    if not path.exists():
        return None
    fields = path.read_text().split("\n", 1)[0].split()[1:9]
    ticks = [int(field) for field in fields]
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / 100
