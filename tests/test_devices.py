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
import textwrap

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


def start(processes, devices, program, *arguments):
    """Start a program of this folder, and return its processes."""
    command = [sys.executable, "-W", "ignore", TESTS / program, *arguments]
    return [
        subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, text=True
        )
        for environment in environments(processes, devices)
    ]


def finish(started):
    """Wait for processes, which must end without an error."""
    errors = [process.communicate(timeout=120)[1] for process in started]
    for process, error in zip(started, errors):
        assert process.returncode == 0, error


def start_training(out, engine, devices, processes, *options):
    return start(
        processes,
        devices,
        "train_on_devices.py",
        out,
        f"{engine}-{devices}",
        *options,
    )


def train(out, *engine):
    """Train on an engine, and return what each process wrote."""
    out.mkdir()
    return finish_training(out, start_training(out, *engine))


def finish_training(out, started):
    """Return what each process wrote."""
    finish(started)
    results = []
    for rank in range(len(started)):
        with np.load(out / f"{rank}.npz") as file:
            results.append(dict(file))
    return results


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process on one device gives, and where its recordings are."""
    folder = tmp_path_factory.mktemp("one") / "out"
    (result,) = train(folder, "one", 1, 1)
    return result, folder


def assert_equal(results, one):
    for many in results:
        for name in many:
            np.testing.assert_allclose(
                many[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name
            )


@pytest.mark.parametrize("engine", ENGINES[BACKEND], ids=str)
def test_all_devices_give_the_update_of_one(engine, one, tmp_path):
    one, recordings = one
    results = train(tmp_path / "out", *engine, "--replay", str(recordings))
    assert len(results) == engine[-1]
    logs = {"loss", "classes_soft_loss", "hint_loss", "val_classes_accuracy"}
    for result in results:
        of_replay = {name for name in result if name.startswith("replay")}
        assert logs < set(result) and len(of_replay) == 5
        assert set(result) - of_replay == {
            name for name in one if not name.startswith("replay")
        }
    assert_equal(results, one)


def test_when_a_process_is_killed_the_others_fail_and_all_resume(one, tmp_path):
    other, killed = start_training(tmp_path, *PROCESSES, "--kill")
    try:
        _, error = killed.communicate(timeout=120)
        assert killed.returncode == -signal.SIGKILL, error
        _, error = other.communicate(timeout=60)
    finally:
        other.kill()
        other.communicate()
    assert other.returncode != 0
    assert re.search(GONE[BACKEND], error), error
    again = start_training(tmp_path, *PROCESSES, "--resume")
    assert_equal(finish_training(tmp_path, again), one[0])


@pytest.mark.one_backend("torch")
def test_what_the_processes_of_torch_share():
    finish(start(2, 1, "two_torch_processes.py"))


def test_the_commands_of_the_page_run(tmp_path):
    """Save the program of this backend, and start it with its commands."""
    page = TESTS.parent / "docs/how-to/many-devices-and-mixed-precision.md"
    title = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
    processes = page.read_text().split("## Several processes")[1]
    tab = processes.split(f'=== "{title[BACKEND]}"')[1].split("\n===")[0]
    blocks = re.findall(r"    ```(\w+)\n(.*?)    ```", tab, re.S)
    program, commands = (
        textwrap.dedent(next(text for kind, text in blocks if kind == language))
        for language in ("py", "bash")
    )
    (tmp_path / "train.py").write_text(program)
    for written, free in zip(("12345", "12346"), free_ports(2)):
        commands = commands.replace(written, str(free))
    environment = next(environments(1))
    environment["PATH"] = os.pathsep.join(
        [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
    )
    ended = subprocess.run(
        ["bash", "-c", commands],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    one, two = re.findall(r"\[\d.*?\]", ended.stdout)
    assert one == two
