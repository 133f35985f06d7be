"""Turns the examples into Jupyter notebooks, which also open in Colab.

    python examples/make_notebooks.py              # writes build/notebooks
    python examples/make_notebooks.py --execute    # and runs them

A script's docstring becomes the first cell, then comes a cell that installs the
package, tagged `install`. A comment that begins with `# ## ` starts a new cell
of text, up to the first line that is no comment. Needs `nbformat`; `--execute`
needs `nbclient` and `ipykernel`, and runs what needs no download. It skips the
cells that install.
"""

import argparse
import ast
import pathlib
import tempfile

import nbformat
from nbformat.v4 import new_code_cell
from nbformat.v4 import new_markdown_cell
from nbformat.v4 import new_notebook

EXAMPLES = pathlib.Path(__file__).parent
OUT = EXAMPLES.parent / "build" / "notebooks"
NO_EXAMPLES = (pathlib.Path(__file__).name,)
# What the install cells of some examples install.
NEEDS = {
    "torch_teacher": '"keras-distill[examples,torch]"',
    "prune_and_export": '"keras-distill[examples,litert]"',
    "flowers102": '"keras-distill[examples]" tensorflow-datasets',
}
DOWNLOADS = (
    "mnist",
    "cifar10",
    "flowers102",
    "language_model",
    "text_classifier",
)
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def scripts():
    """Return the paths of all examples."""
    return sorted(
        path for path in EXAMPLES.glob("*.py") if path.name not in NO_EXAMPLES
    )


def notebook_of(path):
    """Return the notebook of a script."""
    source = path.read_text()
    docstring = ast.parse(source).body[0]
    code = "\n".join(source.splitlines()[docstring.end_lineno :])
    title, _, text = ast.get_docstring(ast.parse(source)).partition("\n")
    needs = NEEDS.get(path.stem, '"keras-distill[examples]"')
    cells = [
        new_markdown_cell(f"# {title.removesuffix('.')}\n{text}"),
        new_code_cell(
            f"%pip install -q {needs}",
            metadata={"tags": ["install"]},
        ),
        *_cells(code),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # The same in each run.
    return new_notebook(cells=cells, metadata={"kernelspec": KERNEL})


def _cells(code):
    """Yield a cell for the imports, and two for each heading."""
    imports, *parts = f"\n{code}".split("\n# ## ")
    yield new_code_cell(imports.strip())
    for part in parts:
        lines = part.splitlines()
        count = 1
        while count < len(lines) and lines[count].startswith("# "):
            count += 1
        text = "\n".join(line.removeprefix("# ") for line in lines[1:count])
        yield new_markdown_cell(f"## {lines[0]}\n\n{text}".strip())
        yield new_code_cell("\n".join(lines[count:]).strip())


def execute(notebook):
    """Run a notebook in a new folder, without the cell that installs."""
    from nbclient import NotebookClient

    cells = [
        cell
        for cell in notebook.cells
        if "install" not in cell.metadata.get("tags", ())
    ]
    notebook = new_notebook(cells=cells, metadata=notebook.metadata)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=1800, resources=resources)
        return client.execute()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    parser.add_argument("--execute", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for path in scripts():
        notebook = notebook_of(path)
        nbformat.validate(notebook)
        file = options.out / f"{path.stem}.ipynb"
        nbformat.write(notebook, file)
        print(file, flush=True)
        if options.execute and path.stem not in DOWNLOADS:
            execute(notebook)
            print("  executed")


if __name__ == "__main__":
    main()
