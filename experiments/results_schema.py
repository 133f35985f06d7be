"""The rows of `results.json` and of `experiments/results`: one schema.

A file is a JSON list of rows. A row is a dict:

- `schema`: the version of this description, an int.
- `name`: unique in its file.
- `settings`: every option that the numbers depend on, also where it had its
  default; the names of the networks beside them. A setting that a row lacks
  did not exist yet in the commit that made it.
- `metrics`: numbers, or lists of numbers: one number for each seed or epoch.
- `command`: what to run, with FOLDER and RUNS in place of this machine's
  folders.
- `commit`: what ran, with a + where files were changed; None if unknown.
- `hardware`: cores, processor, backend and its version; None if unknown.
- `note`: only where something must be explained; it must be there if `commit`
  or `hardware` is None.
"""

import json
import pathlib

SCHEMA = 1
# Options that change where a run reads and writes, and not its numbers.
NO_SETTINGS = ("data", "workdir", "out", "report")

_TYPES = {
    "schema": int,
    "name": str,
    "settings": dict,
    "metrics": dict,
    "command": str,
    "commit": str | None,
    "hardware": str | None,
}


def new_row(name, options, metrics, command, commit, hardware, **settings):
    """Return a row that was checked.

    Args:
        name: of the row.
        options: parsed arguments, an `argparse.Namespace`.
        metrics: `{name: number or list of numbers}`.
        command: the command line.
        commit: the commit that ran.
        hardware: what the numbers were made on.
        **settings: settings that no option tells.
    """
    row = {
        "schema": SCHEMA,
        "name": name,
        "settings": {**settings_of(options), **settings},
        "metrics": metrics,
        "command": command,
        "commit": commit,
        "hardware": hardware,
    }
    check(row)
    return row


def settings_of(options):
    """Return the options that the numbers of a run depend on."""
    return {
        name: value
        for name, value in vars(options).items()
        if name not in NO_SETTINGS
    }


def check(row):
    """Raise a ValueError unless a row follows the schema."""
    problem = _problem(row)
    if problem:
        raise ValueError(f"Row {row.get('name')!r}: {problem}")


def read(path):
    """Return the checked rows of a file; none if there is no file."""
    path = pathlib.Path(path)
    rows = json.loads(path.read_text()) if path.exists() else []
    if not isinstance(rows, list):
        raise ValueError(
            f"{path} must hold a list of rows. Received: {type(rows).__name__}"
        )
    for row in rows:
        check(row)
    return rows


def write(rows, path):
    """Write rows, with a line for each number."""
    path.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n")


def _problem(row):
    """Return what is wrong with a row, or None."""
    if row.get("schema") != SCHEMA:
        return f"`schema` must be {SCHEMA}. Received: {row.get('schema')!r}"
    expected = {*_TYPES, "note"} if "note" in row else {*_TYPES}
    if row.keys() != expected:
        return f"the keys must be {sorted(expected)}. Received: {sorted(row)}"
    for key, kind in _TYPES.items():
        if not isinstance(row[key], kind):
            return f"`{key}` must be {kind}. Received: {row[key]!r}"
    for setting, value in row["settings"].items():
        if not isinstance(value, bool | int | float | str | None):
            return f"setting {setting} must be one value. Received: {value!r}"
    for metric, value in row["metrics"].items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(x) in (int, float) for x in values):
            return f"metric {metric} must be numbers. Received: {value!r}"
    unknown = row["commit"] is None or row["hardware"] is None
    if unknown and "note" not in row:
        return "`note` must say why `commit` or `hardware` is unknown."
    return None
