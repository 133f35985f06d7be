"""Writes the tables of docs/results.md from examples/results/*.json.

    python examples/tables.py

Each file holds the rows that an experiment wrote to its `results.json`. Rows
that differ in their seed alone become one line: mean and standard deviation.
"""

import json
import pathlib
import re
import statistics

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "examples" / "results"
PAGE = ROOT / "docs" / "results.md"
EXPERIMENTS = ("mnist", "cifar10", "flowers102")
HEADINGS = (
    "network",
    "taught by",
    "epochs",
    "test accuracy",
    "agreement",
    "parameters",
)


def text(rows):
    """Return the table of some rows, and the commands that made them."""
    groups = {}
    for row in rows:
        name = re.sub(r"_?seed-\d+", "", row["name"])
        groups.setdefault(name, []).append(row)
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    lines += [_line(group) for group in groups.values()]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{_sources(rows)}"


def _line(group):
    row = group[0]
    taught = "labels"
    if row["loss"] != "alone":
        taught = f"{row['teacher']}, {row['loss']}, T={row['temperature']:g}"
    if row["mix"]:
        taught += ", MixUp"
    return (
        row["student"],
        taught,
        str(row["epochs"]),
        _mean([row["accuracy"] for row in group]),
        _mean([row["agreement"] for row in group if "agreement" in row]),
        f"{row['parameters']:,}",
    )


def _mean(values):
    """Return mean and standard deviation in percent, and how many seeds."""
    if not values:
        return ""
    mean = f"{100 * statistics.mean(values):.2f}"
    if len(values) == 1:
        return f"{mean} % (one seed)"
    spread = 100 * statistics.stdev(values)
    return f"{mean} ± {spread:.2f} % ({len(values)} seeds)"


def _sources(rows):
    """Return commands, commits and hardware, each once."""
    commands = dict.fromkeys(
        re.sub(r"--seed \d+", "--seed S", row["command"]) for row in rows
    )
    commits = dict.fromkeys(row["commit"] for row in rows)
    hardware = dict.fromkeys(row["hardware"] for row in rows)
    return (
        "```text\n" + "\n".join(commands) + "\n```\n\n"
        f"Commit {', '.join(commits)}; {'; '.join(hardware)}."
    )


def page(before):
    """Return the page with all tables written anew."""
    for name in EXPERIMENTS:
        begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
        rows = json.loads((RESULTS / f"{name}.json").read_text())
        head, rest = before.split(begin)
        _, tail = rest.split(end)
        before = f"{head}{begin}\n{text(rows)}\n{end}{tail}"
    return before


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
