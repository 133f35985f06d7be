"""Programs that tests start, as processes of their own."""

import os
import pathlib
import sys

TESTS = pathlib.Path(__file__).parent


def environment(**own):
    """Return environment variables for a program.

    It imports the modules of this folder, and only the packages that it needs
    (see `quick_start/`).
    """
    folders = [TESTS / "quick_start", TESTS, TESTS.parent]
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(map(str, [*folders, *filter(None, [inherited])]))
    return {**os.environ, "PYTHONPATH": path, **own}


def command(*arguments):
    """Return a command that runs Python without warnings."""
    return [sys.executable, "-W", "ignore", *arguments]
