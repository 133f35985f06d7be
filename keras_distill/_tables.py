"""Tables of strings: as plain text, in Markdown and in HTML.

A table is a list of rows, which are lists of strings. The first row is the
head. The first column is aligned to the left, the others to the right.
"""

import html
from collections.abc import Iterable
from collections.abc import Sequence

# Tables have the colors of the page, so they are readable in dark mode too.
_TABLE = (
    "border-collapse: collapse; color: inherit; "
    "font-variant-numeric: tabular-nums"
)
_CELL = "padding: 0.25em 0.75em; text-align: {side}"
_RULE = "border-bottom: 1px solid currentColor"


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as plain text, for fonts of fixed width."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        )
        for row in rows
    )


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    head, *body = rows
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def html_table(rows: Sequence[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """Return a table in HTML, with paragraphs of notes below it.

    All text is escaped. The HTML uses no style sheet and no other resource.
    """
    head, *body = rows
    return "".join(
        [
            f'<table style="{_TABLE}"><thead>',
            _html_row(head, "th", f"; {_RULE}"),
            "</thead><tbody>",
            *(_html_row(row, "td") for row in body),
            "</tbody></table>",
            *(f"<p>{html.escape(note)}</p>" for note in notes),
        ]
    )


def _html_row(row, tag, more=""):
    cells = []
    for index, text in enumerate(row):
        # The first cell of each row is the head of the row.
        name = "th" if index == 0 else tag
        scope = "row" if index == 0 and tag == "td" else "col"
        attributes = f' scope="{scope}"' if name == "th" else ""
        style = _CELL.format(side="left" if index == 0 else "right") + more
        cells.append(
            f'<{name}{attributes} style="{style}">{html.escape(text)}</{name}>'
        )
    return f"<tr>{''.join(cells)}</tr>"
