"""The benchmarks run, and the page shows what they wrote."""

import json
import pathlib
import platform
import subprocess
import sys

import keras
import pytest
from programs import environment

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def report(monkeypatch):
    from benchmarks import report

    return report


def test_the_page_shows_the_results(report):
    page = report.PAGE.read_text()
    inside = page.split(report.MARKERS[0])[1].split(report.MARKERS[1])[0]
    results = json.loads(report.RESULTS.read_text())
    assert inside.strip() == report.text(results).strip(), (
        "Run `python -m benchmarks.report`."
    )


def test_missed_goals_are_shown_as_missed(report):
    row = {"title": "a", "goal": 1.0, "low": 1.0, "high": 1.1}
    machine = {"processor": "p", "cores": 2, "versions": {"keras": "3"}}
    entry = {
        "date": "2026-01-01",
        "machine": machine,
        "rows": [
            {**row, "ratio": 1.0049, "others": 0.0},
            {**row, "title": "b", "ratio": 1.0051, "others": 0.5},
        ],
    }
    lines = report.text({"jax": {"overhead": entry}}).splitlines()
    (kept,) = [line for line in lines if line.startswith("| a")]
    (missed,) = [line for line in lines if line.startswith("| b")]
    assert "missed" not in kept and "1.00" in kept
    assert "**missed**" in missed and "not measured" in missed
    assert "In 1 of 2 comparisons" in lines[0]


@pytest.mark.one_backend("torch")
@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="no other processor has AMX",
)
def test_amx_is_refused():
    arch_prctl = f"{158}, {0x1023}, 18"  # Asks for the tiles of AMX.
    script = (
        "import ctypes, errno; libc = ctypes.CDLL(None, use_errno=True); "
        f"assert libc.syscall({arch_prctl}) == -1; "
        "assert ctypes.get_errno() == errno.EINVAL"
    )
    command = [sys.executable, "-m", "benchmarks.without_amx"]
    subprocess.run(
        [*command, sys.executable, "-c", script], check=True, cwd=ROOT
    )
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "Name the command" in done.stderr


# The first three have loops for each backend. The others run on one.
ON_EVERY_BACKEND = ("overhead", "by_hand", "memory")
ON_PYTORCH = (
    "classes",
    "compression",
    "views",
    "packing",
    "batch_size",
    "keras_logits",
    "keras_features",
    "replay",
    "cheaper_teachers",
    "teachers",
    "hints",
    "scaling",
    "teacher_variables",
    "tokens",
    "token_recording",
)


def test_no_benchmark_is_forgotten(monkeypatch):
    from benchmarks import run

    tested = [*ON_EVERY_BACKEND, *ON_PYTORCH]
    assert sorted(tested) == sorted(run.MEASUREMENTS)


@pytest.mark.any_backend
def test_every_benchmark_runs(tmp_path, monkeypatch, capsys):
    from benchmarks import run

    out = tmp_path / "results.json"
    backend = keras.backend.backend()
    names = [*ON_EVERY_BACKEND, *(ON_PYTORCH if backend == "torch" else ())]
    options = ["--smoke", "--out", str(out), "--only", ",".join(names)]
    command = [sys.executable, "-m", "benchmarks.run", *options]
    subprocess.run(command, check=True, cwd=ROOT, env=environment())
    results = json.loads(out.read_text())[backend]
    rows = [row for entry in results.values() for row in entry["rows"]]
    assert sorted(results) == sorted(names)
    assert all(row["ratio"] > 0 for row in rows)
    # Nothing is left to do.
    monkeypatch.setattr(run, "measure", None)
    monkeypatch.setattr("sys.argv", ["run", *options, "--resume"])
    run.main()
    assert capsys.readouterr().out == ""


@pytest.mark.any_backend
def test_the_gpu_benchmark_runs(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--out", out]
    subprocess.run(
        [*command, "--peak-tflops", "0.0001"],
        check=True,
        cwd=ROOT,
        env=environment(),
    )
    result = json.loads(out.read_text())[keras.backend.backend()]
    assert result["images_per_second"] > 0 and result["ratio"] > 0
    assert result["utilisation"] > 0


@pytest.mark.one_backend("torch")
def test_flops_are_those_that_are_published(report):
    from benchmarks import gpu

    resnet = keras.applications.ResNet50(weights=None)
    assert gpu.forward_flops(resnet) == pytest.approx(2 * 3.86e9, rel=0.01)


@pytest.mark.one_backend("torch")
def test_an_unknown_benchmark():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--only", "speed"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "No measurement is called speed" in done.stderr
    assert "overhead" in done.stderr
