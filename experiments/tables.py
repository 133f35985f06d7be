"""Writes the tables of docs/results.md and README.md.

    python examples/tables.py

They come from examples/results: the rows that each experiment wrote to its
`results.json`, and the table of `--report`. Rows that differ in their seed
alone become one line: mean and standard deviation.
"""

import json
import pathlib
import re
import statistics

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "examples" / "results"
HEADINGS = (
    "network",
    "taught by",
    "epochs",
    "accuracy",
    "agreement",
    "parameters",
)
LOSSES = {
    "classic_kd": "`ClassicKD`",
    "function_matching": "`FunctionMatching`",
    "standardized": "`FunctionMatching`, standardized logits",
    "dist": "`DIST`",
}
# What the README shows of them.
HIGHLIGHTS = {
    "MNIST": (
        "mnist",
        (
            "alone_25-epochs",
            "function_matching_by-teacher_T2_25-epochs",
            "function_matching_by-teacher_T2_100-epochs",
        ),
    ),
    "CIFAR-10": (
        "cifar10",
        (
            "cnn_alone_10-epochs",
            "cnn_function_matching_by-teacher_T2_10-epochs",
            "cnn_alone_30-epochs",
            "cnn_function_matching_by-teacher_T2_30-epochs",
            "resnet20_function_matching_by-resnet56_T4_mixup-0.3_30-epochs",
        ),
    ),
    "CIFAR-10, half of the filters": (
        "prune_resnet",
        (
            "pruned",
            "alone_6-epochs",
            "function_matching_by-resnet56_T4_6-epochs",
        ),
    ),
    "Flowers-102": (
        "flowers102",
        (
            "small_resnet_alone_150-epochs",
            "small_resnet_function_matching_by-mobilenet_v2_T1_mixup_150-epochs",
        ),
    ),
}


def rows_of(experiment):
    return json.loads((RESULTS / f"{experiment}.json").read_text())


def grouped(rows):
    """Return lists of rows that differ in their seed alone, by their name."""
    groups = {}
    for row in rows:
        name = re.sub(r"_?seed-\d+", "", row["name"])
        groups.setdefault(name, []).append(row)
    return groups


def table(headings, lines):
    lines = [headings, ("---",) * len(headings), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def details(rows):
    """Return the table of some rows, and the commands that made them."""
    lines = _teachers(rows)
    lines += [_line(group) for group in grouped(rows).values()]
    return f"{table(HEADINGS, lines)}\n\n{_sources(rows)}"


def compressed(rows):
    """Return the table of Deep Compression's stages, and their commands."""
    return f"{_stages(rows)}\n\n{_sources(rows)}"


def _stages(rows):
    headings = (
        "network",
        "stage",
        "zeros",
        "bytes",
        "smaller",
        "`zlib -9`",
        "error",
    )
    lines = [
        (
            group[0]["network"],
            group[0]["stage"],
            _percent(_mean_of(group, "zeros")),
            f"{_mean_of(group, 'bytes'):,.0f}",
            _times_smaller(group, "bytes"),
            _times_smaller(group, "zlib_bytes"),
            _mean([row["error"] for row in group]),
        )
        for group in grouped(rows).values()
    ]
    return table(headings, lines)


def _mean_of(group, key):
    return statistics.mean(row[key] for row in group)


def _times_smaller(group, key):
    times = statistics.mean(row["float32_bytes"] / row[key] for row in group)
    return f"{times:.1f} times"


# What makes the part of the results page that has the same name.
EXPERIMENTS = {
    "mnist": details,
    "cifar10": details,
    "cifar10_linear": details,
    "cifar10_linear_validation": details,
    "prune_resnet": details,
    "deep_compression": compressed,
    "deep_compression_validation": compressed,
    "flowers102": details,
}


def highlights():
    """Return the tables of the README."""
    lines = []
    for title, (experiment, names) in HIGHLIGHTS.items():
        rows = rows_of(experiment)
        runs = grouped(rows)
        chosen = _teachers(rows) + [_line(runs[name]) for name in names]
        lines += [(title, *line[:4]) for line in chosen]
    smallest = [
        x for x in rows_of("deep_compression") if x["stage"] == "shared"
    ]
    return f"{table(('data', *HEADINGS[:4]), lines)}\n\n{_stages(smallest)}"


def _teachers(rows):
    teachers = {
        row["teacher"]: (
            row["teacher"],
            "labels",
            "",
            _percent(row["teacher_accuracy"]),
            "",
            f"{row['teacher_parameters']:,}",
        )
        for row in rows
        if "teacher" in row
    }
    return list(teachers.values())


def _line(group):
    row = group[0]
    taught = {"alone": "labels", "untrained": ""}.get(row["loss"])
    if taught is None:
        taught = f"{row['teacher']}, {LOSSES[row['loss']]}"
        taught += f", T={row['temperature']:g}"
    if row["mix"]:
        taught += ", MixUp"
        taught += f" {row['mix']:g}" if row["mix"] != 1 else ""
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
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{_percent(mean)} (one seed)"
    spread = _percent(statistics.stdev(values))
    return f"{100 * mean:.2f} ± {spread} ({len(values)} seeds)"


def _percent(share):
    return f"{100 * share:.2f} %"


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


def pages():
    """Return the text of each page with its tables written anew."""
    results, readme = ROOT / "docs" / "results.md", ROOT / "README.md"
    text = results.read_text()
    for name, part in EXPERIMENTS.items():
        text = _filled(text, name, part(rows_of(name)))
    comparison = (RESULTS / "prune_resnet_comparison.md").read_text()
    text = _filled(text, "prune_resnet_comparison", comparison.strip())
    return {
        results: text,
        readme: _filled(readme.read_text(), "results", highlights()),
    }


def _filled(page, name, text):
    begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
    head, rest = page.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}\n{text}\n{end}{tail}"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
