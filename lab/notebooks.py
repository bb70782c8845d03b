"""Make the notebooks of the pages: python docs/notebooks.py

writes course.ipynb and exercises.ipynb, from course.md and exercises.md. jupytext reads
Markdown as it is: a Python block becomes a cell to run, all between them becomes text.
What is added here is a first cell, which finds minignn.py. Needs jupytext.
"""
import pathlib

import jupytext
import nbformat

DOCS = pathlib.Path(__file__).resolve().parent
PAGES = "course", "exercises"

FIRST_CELL = """\
# Find minignn.py, here or in a folder above, so that the notebook can import it.
import pathlib
import sys

here = pathlib.Path.cwd()
root = next(f for f in [here, *here.parents] if (f / "minignn.py").exists())
sys.path.insert(0, str(root))"""


def notebook_of(page):
    """The notebook of a page: course of course.md."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    # jupytext would make a cell of a shell command, too, and run it. It makes none of a
    # "console" block.
    text = text.replace("\n```sh\n", "\n```console\n")
    notebook = jupytext.reads(text, fmt="md")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FIRST_CELL))
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"           # jupytext's are random; these stay as they are
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3",
                       "language": "python"},
        "language_info": {"name": "python"}}
    return notebook


def main():
    for page in PAGES:
        nbformat.write(notebook_of(page), DOCS / f"{page}.ipynb")


if __name__ == "__main__":
    main()
