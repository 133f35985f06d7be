"""N devices or processes give the update that one gives on the same batch.

Virtual devices have to be asked for before a backend starts, and processes have
to be connected, so each run is a program of its own.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from common import BACKEND

TESTS = pathlib.Path(__file__).parent
# The engines of each backend: how many devices, in how many processes.
ENGINES = {
    "tensorflow": [("mirrored", 2, 1), ("mirrored", 4, 1), ("workers", 1, 2)],
    "jax": [("data", 4, 1), ("model", 4, 1), ("processes", 1, 2)],
    "torch": [("torchrun", 1, 2)],
}
PROCESSES = ENGINES[BACKEND][-1]
# What a process says when another one is gone.
GONE = {
    "tensorflow": "UnavailableError|unhealthy|Connection reset",
    "jax": "Connection closed|UNAVAILABLE|Connection reset",
    "torch": "Connection closed by peer|Connection reset",
}


def free_ports(count):
    """Return ports of this machine that nobody uses."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def environments(processes, devices=1):
    """Return, for each process, how its engine is told of the others."""
    ports = free_ports(processes)
    hosts = [f"localhost:{port}" for port in ports]
    for rank in range(processes):
        own = {
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "OMP_NUM_THREADS": "1",
        }
        if processes > 1:
            task = {"type": "worker", "index": rank}
            own |= {
                "TF_CONFIG": json.dumps(
                    {"cluster": {"worker": hosts}, "task": task}
                ),
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": hosts[0],
                "KERAS_DISTRIBUTION_NUM_PROCESSES": str(processes),
                "KERAS_DISTRIBUTION_PROCESS_ID": str(rank),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(ports[0]),
                "WORLD_SIZE": str(processes),
                "RANK": str(rank),
            }
        yield {**os.environ, **own}


def start(out, engine, devices, processes, *arguments):
    """Start the program `train_on_devices.py`, and return its processes."""
    program = [sys.executable, "-W", "ignore", TESTS / "train_on_devices.py"]
    return [
        subprocess.Popen(
            [*program, out, f"{engine}-{devices}", *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments(processes, devices)
    ]


def run(out, *engine):
    """Run the program, and return what each process wrote."""
    out.mkdir()
    started = start(out, *engine)
    errors = [process.communicate(timeout=120)[1] for process in started]
    for process, error in zip(started, errors):
        assert process.returncode == 0, error
    results = []
    for rank in range(len(started)):
        with np.load(out / f"{rank}.npz") as file:
            results.append(dict(file))
    return results


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process on one device gives."""
    (result,) = run(tmp_path_factory.mktemp("one") / "out", "one", 1, 1)
    return result


@pytest.mark.parametrize("engine", ENGINES[BACKEND], ids=str)
def test_all_devices_give_the_update_of_one(engine, one, tmp_path):
    results = run(tmp_path / "out", *engine)
    assert len(results) == engine[-1]
    logs = {"loss", "classes_soft_loss", "hint_loss", "val_classes_accuracy"}
    assert logs < set(one)
    for many in results:
        assert set(one) == set(many)
        for name in one:
            np.testing.assert_allclose(
                many[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name
            )


def test_when_a_process_is_killed_the_others_fail(tmp_path):
    other, killed = start(tmp_path, *PROCESSES, "--kill")
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    try:
        _, error = other.communicate(timeout=60)
    finally:
        other.kill()
    assert other.returncode != 0
    assert re.search(GONE[BACKEND], error), error
