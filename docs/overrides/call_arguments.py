"""Makes a list of the `Call arguments:` of a docstring, for the reference."""

import re

import griffe


class CallArguments(griffe.Extension):
    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"(?<=^Call arguments:\n)(?:    .*\n?)+",
                lambda found: _as_list(found.group()),
                obj.docstring.value,
                flags=re.M,
            )


def _as_list(arguments):
    return re.sub(r"^    (\w+): ", r"    - `\1`: ", arguments, flags=re.M)
