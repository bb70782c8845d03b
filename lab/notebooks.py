"""Make the notebooks of two pages: python lab/notebooks.py

writes docs/course.ipynb and docs/exercises.ipynb, from the .md of the same name. Blocks
of Python become cells to run, all between them becomes text. What a block prints is
left out: the notebook prints it. A first cell finds minignn.py.
"""
import itertools
import json
import pathlib
import re

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
PAGES = "course", "exercises"

FIRST_CELL = """\
# Go to the folder of minignn.py, so that the cells can import it and read data/.
import os
import pathlib
import sys

here = pathlib.Path.cwd()
folders = [here, *here.parents]
found = [folder for folder in folders if (folder / "minignn.py").exists()]
if not found:
    raise FileNotFoundError(
        "This notebook needs its repository: minignn.py, data/ and lab/. Get the whole "
        "of it (git clone, or download and unpack the archive), and open the notebook "
        "in its folder docs. On a hosted machine, put the three beside the notebook. "
        "JAX is needed, too: pip install jax")
os.chdir(found[0])
sys.path.insert(0, str(found[0]))"""

# ```python is run by the tests of the page; ```py needs matplotlib, and is not.
BLOCK = re.compile(r"^```(?:python|py)\n(.*?)\n```\n(?:\s*^```text\n.*?^```\n)?",
                   re.M | re.S)


def for_jupyter(text):
    """A page, its links to headings and pages made into Jupyter's."""
    for heading in re.findall(r"^#+ (.*)", text, re.M):
        on_the_page = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        in_jupyter = heading.replace(" ", "-")
        text = text.replace(f"](#{on_the_page})", f"](#{in_jupyter})")
    for page in PAGES:
        text = text.replace(f"({page}.md)", f"({page}.ipynb)")
    return text


def notebook_of(page):
    """The notebook of a page, "course" of course.md, as the dict in its file."""
    text = for_jupyter((DOCS / f"{page}.md").read_text(encoding="utf-8"))
    kinds = itertools.cycle(["markdown", "code"])       # text and blocks take turns
    cells = []
    for kind, part in zip(kinds, ["", FIRST_CELL, *BLOCK.split(text)]):
        source = part.strip()
        if not source:
            continue
        cell = {"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {},
                "source": source.splitlines(keepends=True)}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "nbformat": 4, "nbformat_minor": 5,
            "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}}


if __name__ == "__main__":
    for page in PAGES:
        text = json.dumps(notebook_of(page), indent=1, ensure_ascii=False)
        (DOCS / f"{page}.ipynb").write_text(text + "\n", encoding="utf-8")
