"""N devices or processes give the update that one gives on the same batch.

Virtual devices have to be asked for before a backend starts, and processes have
to be connected, so each run is a program of its own.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import train_on_devices
from common import BACKEND
from programs import TESTS
from programs import command
from programs import environment

from benchmarks.processes import free_ports
from benchmarks.processes import variables_of

# The engines of each backend with the devices of one process, and the engine of
# two processes. On PyTorch, each device has a process of its own. TensorFlow
# cancels the steps of a second strategy in one process.
ENGINES = {
    "tensorflow": [["mirrored-2"], ["mirrored-4"]],
    "jax": [["data-4", "model-4"]],
    "torch": [],
}[BACKEND]
OF_PROCESSES = {
    "tensorflow": "workers-1",
    "jax": "processes-1",
    "torch": "torchrun-1",
}[BACKEND]
# What a process says when another one is gone.
GONE = {
    "tensorflow": "UnavailableError|unhealthy|Connection reset",
    "jax": "Connection closed|UNAVAILABLE|Connection reset",
    "torch": "Connection closed by peer|Connection reset",
}


def environments(processes, devices=1):
    """Return, for each process, how its engine is told of the others."""
    ports = free_ports(processes)
    for rank in range(processes):
        # Beside the flags with which this suite compiles, see conftest.py.
        flags = os.environ.get("XLA_FLAGS", "")
        own = {
            "XLA_FLAGS": f"{flags} "
            f"--xla_force_host_platform_device_count={devices}",
            "OMP_NUM_THREADS": "1",
        }
        if processes > 1:
            own |= variables_of(rank, ports)
        yield environment(**own)


def start(processes, devices, program, *arguments):
    """Start a program of this folder, and return its processes."""
    return [
        subprocess.Popen(
            command(TESTS / program, *arguments),
            env=each,
            stderr=subprocess.PIPE,
            text=True,
        )
        for each in environments(processes, devices)
    ]


def finish(started):
    """Wait for processes, which must end without an error."""
    errors = [process.communicate(timeout=600)[1] for process in started]
    for process, error in zip(started, errors):
        assert process.returncode == 0, error


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one device gives: what is written, and the folder of it."""
    folder = tmp_path_factory.mktemp("one")
    train_on_devices.main(folder, "one-1")
    with np.load(folder / "one-1-0.npz") as file:
        return dict(file), folder


def check(file, one):
    """Check what an engine wrote, with its replay of a recording."""
    with np.load(file) as arrays:
        result = dict(arrays)
    of_replay = {name for name in result if name.startswith("replay")}
    assert len(of_replay) == 5
    assert {"loss", "classes_soft_loss", "val_classes_accuracy"} < set(result)
    assert sum(name.startswith("compressed") for name in result) == 2 * 4
    assert set(result) - of_replay == {
        name for name in one if not name.startswith("replay")
    }
    for name in result:
        np.testing.assert_allclose(
            result[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name
        )


@pytest.mark.every_backend
@pytest.mark.parametrize("engines", ENGINES, ids=str)
def test_all_devices_give_the_update_of_one(engines, one, tmp_path):
    one, recordings = one
    program = "train_on_devices.py", tmp_path, ",".join(engines)
    finish(start(1, 4, *program, "--replay", recordings))
    for engine in engines:
        check(tmp_path / f"{engine}-0.npz", one)


def test_when_a_process_is_killed_the_others_fail_and_all_resume(one, tmp_path):
    """Together they give the update of one."""
    one, recordings = one
    program = 2, 1, "train_on_devices.py", tmp_path, OF_PROCESSES
    other, killed = start(*program, "--kill")
    try:
        _, error = killed.communicate(timeout=600)
        assert killed.returncode == -signal.SIGKILL, error
        _, error = other.communicate(timeout=60)
    finally:
        other.kill()
        other.communicate()
    assert other.returncode != 0
    assert re.search(GONE[BACKEND], error), error
    finish(start(*program, "--resume", "--replay", recordings))
    for rank in range(2):
        check(tmp_path / f"{OF_PROCESSES}-{rank}.npz", one)


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
    variables = next(environments(1))
    variables["PATH"] = os.pathsep.join(
        [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
    )
    ended = subprocess.run(
        ["bash", "-c", commands],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    one, two = re.findall(r"\[\d.*?\]", ended.stdout)
    assert one == two
