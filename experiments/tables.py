"""Writes the tables of docs/results.md and README.md.

    python experiments/tables.py

They come from experiments/results: the rows that each experiment wrote to its
`results.json` (see `results_schema.py`), and the table of `--report`. Rows
whose settings differ only in the seed become one line: mean and standard
deviation.
"""

import json
import pathlib
import statistics

import goals
import results_schema

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
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
_MATCHED = {"loss": "function_matching"}
# What the README shows of them: the lines with these settings.
HIGHLIGHTS = {
    "MNIST": (
        "mnist",
        (
            {"loss": "alone", "epochs": 25},
            {**_MATCHED, "epochs": 25},
            {**_MATCHED, "epochs": 100},
        ),
    ),
    "CIFAR-10": (
        "cifar10",
        (
            {"loss": "alone", "epochs": 10},
            {**_MATCHED, "student": "cnn", "epochs": 10},
            {"loss": "alone", "epochs": 30},
            {**_MATCHED, "student": "cnn", "epochs": 30},
            {**_MATCHED, "student": "resnet20", "epochs": 30},
        ),
    ),
    "CIFAR-10, half of the filters": (
        "prune_resnet",
        ({"loss": "untrained"}, {"loss": "alone"}, _MATCHED),
    ),
    "Flowers-102": ("flowers102", ({"loss": "alone"}, _MATCHED)),
}


def rows_of(experiment):
    return results_schema.read(RESULTS / f"{experiment}.json")


def grouped(rows):
    """Return lists of rows whose settings differ only in the seed."""
    groups = {}
    for row in rows:
        settings = {**row["settings"], "seed": None, "recording_seed": None}
        key = json.dumps(settings, sort_keys=True)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def line_with(settings, groups):
    """Return the only group of rows with these settings."""
    (group,) = (
        group
        for group in groups
        if settings.items() <= group[0]["settings"].items()
    )
    return group


def table(headings, lines):
    lines = [headings, ("---",) * len(headings), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def details(rows):
    """Return the table of some rows, and the commands that made them."""
    lines = _teachers(rows)
    lines += [_line(group) for group in grouped(rows)]
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
            group[0]["settings"]["network"],
            _stage(group[0]["settings"]),
            _percent(_mean_of(group, "zeros")),
            f"{_mean_of(group, 'bytes'):,.0f}",
            _times_smaller(group, "bytes"),
            _times_smaller(group, "zlib_bytes"),
            _mean([row["metrics"]["error"] for row in group]),
        )
        for group in grouped(rows)
    ]
    return table(headings, lines)


def _stage(settings):
    narrow = settings.get("narrow")
    if not narrow or settings["stage"] == "dense":
        return settings["stage"]
    return f"{settings['stage']}, without {100 * narrow:g} % of its channels"


def _mean_of(group, key):
    return statistics.mean(row["metrics"][key] for row in group)


def _times_smaller(group, key):
    return f"{_times(group, key):.1f} times"


def _times(group, key):
    metrics = [row["metrics"] for row in group]
    return statistics.mean(x["float32_bytes"] / x[key] for x in metrics)


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


def goals_and_figures():
    """Return the table of goals, with the best figures of each."""
    headings = ("experiment", "published", "goal", "here", "reached")
    return table(headings, map(_goal_line, goals.GOALS))


def _goal_line(goal):
    rows = rows_of(goal.file) if goal.file else []
    chosen = [r for r in rows if goal.settings.items() <= r["settings"].items()]
    line = (goal.experiment, goal.published, f"{100 * goal.accuracy:g} %")
    if not chosen:
        return (*line, "", f"no: {goal.why_not}")
    figures = [
        (_times(group, "bytes") if goal.times else 0.0, _accuracy(group), group)
        for group in grouped(chosen)
    ]
    times, accuracy, group = max(
        figures, key=lambda f: (f[0] >= goal.times, f[1])
    )
    here = f"{times:.0f} times, " if goal.times else ""
    here += f"{100 * accuracy:.2f} % ({_seeds(group)})"
    reached = accuracy >= goal.accuracy and times >= goal.times
    return (*line, here, "yes" if reached else f"no: {goal.why_not}")


def _accuracy(group):
    metrics = [row["metrics"] for row in group]
    return statistics.mean(
        m["accuracy"] if "accuracy" in m else 1 - m["error"] for m in metrics
    )


def highlights():
    """Return the tables of the README."""
    lines = []
    for title, (experiment, shown) in HIGHLIGHTS.items():
        rows = rows_of(experiment)
        runs = grouped(rows)
        chosen = _teachers(rows)
        chosen += [_line(line_with(settings, runs)) for settings in shown]
        lines += [(title, *line[:4]) for line in chosen]
    smallest = [
        row
        for row in rows_of("deep_compression")
        if row["settings"]["stage"] == "shared"
    ]
    return f"{table(('data', *HEADINGS[:4]), lines)}\n\n{_stages(smallest)}"


def _teachers(rows):
    teachers = {}
    for row in rows:
        settings, metrics = row["settings"], row["metrics"]
        # The first one, if a teacher was trained twice.
        if "taught_by" in settings and settings["taught_by"] not in teachers:
            teachers[settings["taught_by"]] = (
                settings["taught_by"],
                "labels",
                "",
                _percent(metrics["teacher_accuracy"]),
                "",
                f"{metrics['teacher_parameters']:,}",
            )
    return list(teachers.values())


def _line(group):
    settings = group[0]["settings"]
    taught = {"alone": "labels", "untrained": ""}.get(settings["loss"])
    if taught is None:
        taught = f"{settings['taught_by']}, {LOSSES[settings['loss']]}"
        taught += f", T={settings['temperature']:g}"
    if settings["mix"]:
        taught += ", MixUp"
        taught += f" {settings['mix']:g}" if settings["mix"] != 1 else ""
    metrics = [row["metrics"] for row in group]
    return (
        settings["network"],
        taught,
        str(settings["epochs"]),
        _mean([x["accuracy"] for x in metrics]),
        _mean([x["agreement"] for x in metrics if "agreement" in x]),
        f"{metrics[0]['parameters']:,}",
    )


def _mean(values):
    """Return mean and standard deviation in percent, and how many seeds."""
    if not values:
        return ""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{_percent(mean)} ({_seeds(values)})"
    spread = _percent(statistics.stdev(values))
    return f"{100 * mean:.2f} ± {spread} ({_seeds(values)})"


def _seeds(values):
    return "one seed" if len(values) == 1 else f"{len(values)} seeds"


def _percent(share):
    return f"{100 * share:.2f} %"


def _sources(rows):
    """Return commands, commits and hardware, each once."""
    commands = dict.fromkeys(
        row["command"].replace(f"--seed {row['settings']['seed']}", "--seed S")
        for row in rows
    )
    commits = dict.fromkeys(row["commit"] for row in rows)
    hardware = dict.fromkeys(row["hardware"] for row in rows)
    return (
        "```text\n" + "\n".join(commands) + "\n```\n\n"
        f"Commit {', '.join(commits)}; {'; '.join(hardware)}."
    )


def pages():
    """Return the text of each page with its tables written again."""
    results, readme = ROOT / "docs" / "results.md", ROOT / "README.md"
    text = _filled(results.read_text(), "goals", goals_and_figures())
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
