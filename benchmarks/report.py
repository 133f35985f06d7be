"""Writes the tables of docs/performance.md from benchmarks/results.json.

python -m benchmarks.report
"""

import json
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "performance.md"
MARKERS = ("<!-- tables: begin -->", "<!-- tables: end -->")
BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}

# A table for each of these: its heading, and the measurements that it shows.
TABLES = {
    "A step, beside its parts": (
        "overhead",
        "by_hand",
        "keras_logits",
        "keras_features",
        "memory",
        "replay",
    ),
    "Views": ("views",),
    "Faster teachers": ("cheaper_teachers",),
    "Pruning, weight sharing and packing": ("compression", "packing"),
    "How the cost grows": ("batch_size", "teachers", "hints", "classes"),
    "Language models": ("tokens", "token_recording"),
    "Several processes": ("scaling", "teacher_variables"),
}


def text(results):
    """Return what stands between the markers."""
    parts = [_conditions(results)]
    for heading, names in TABLES.items():
        lines = [line for name in names for line in _lines(results, name)]
        if lines:
            parts.append(f"### {heading}\n\n{_table(lines)}")
    return "\n\n".join(parts)


def _table(lines):
    rows = [("time of", "goal", *BACKENDS.values()), ("---",) * 5, *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _lines(results, name):
    """Return a measurement's rows, each with a cell for every backend."""
    found = {}
    for backend in BACKENDS:
        entry = results.get(backend, {}).get(name, {"rows": []})
        for row in entry["rows"]:
            found.setdefault(row["title"], {})[backend] = row
    for title, rows in found.items():
        goal = next(iter(rows.values())).get("goal")
        cells = [_cell(rows.get(backend)) for backend in BACKENDS]
        yield (title, "" if goal is None else f"≤ {goal:.2f}", *cells)


def _cell(row):
    if row is None:
        return "not measured"
    ratio = f"{row['ratio']:.2f}"
    spread = f" ({row['low']:.2f} to {row['high']:.2f})"
    if "goal" in row and not met(row):
        ratio, spread = f"**{ratio}**", f"{spread}, **missed**"
    if "images_per_second" in row:
        ours, theirs = row["images_per_second"]
        spread += f", {ours:,} / {theirs:,} images/s"
    if "loss_change" in row:
        spread += f", loss {row['loss_change']:.1g}"
    return ratio + spread


def met(row):
    """Tell whether a goal is met, to the two digits that the table shows."""
    return round(row["ratio"], 2) <= row["goal"]


def _conditions(results):
    entries = [
        entry
        for backend in BACKENDS
        for entry in results.get(backend, {}).values()
    ]
    machines = [
        f"{entry['machine']['cores']} cores of "
        f"{entry['machine']['processor']}, {_versions(entry['machine'])}"
        for entry in entries
    ]
    dates = sorted({entry["date"] for entry in entries})
    busy = [
        (row["others"], title)
        for entry in entries
        for row in entry["rows"]
        for title in [row["title"]]
        if row.get("others") is not None
    ]
    quiet = sum(others < 0.1 for others, _ in busy)
    period = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return (
        f"Measured {period} on {'; '.join(dict.fromkeys(machines))}. "
        f"In {quiet} of {len(busy)} comparisons other processes used less than "
        "0.1 cores meanwhile; in the busiest they used "
        f"{max(others for others, _ in busy):.1f}."
    )


def _versions(machine):
    return ", ".join(f"{k} {v}" for k, v in machine["versions"].items())


def main():
    before, rest = PAGE.read_text().split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    inside = text(json.loads(RESULTS.read_text()))
    PAGE.write_text(f"{before}{MARKERS[0]}\n{inside}\n{MARKERS[1]}{after}")


if __name__ == "__main__":
    main()
