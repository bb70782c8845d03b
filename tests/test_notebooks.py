"""The notebooks: made from their pages, and they run from first cell to last.

After a change of docs/course.md or docs/exercises.md: python lab/notebooks.py
"""
import json
import re

import pytest

from conftest import BLOCK, ROOT, slow
from lab.notebooks import PAGES, notebook_of

DOCS = ROOT / "docs"


def read(page):
    return json.loads((DOCS / f"{page}.ipynb").read_text(encoding="utf-8"))


def sources(notebook, kind):
    return ["".join(cell["source"]) for cell in notebook["cells"]
            if cell["cell_type"] == kind]


@pytest.mark.parametrize("page", PAGES)
def test_a_notebook_equals_its_page(page):
    notebook = read(page)
    assert notebook == notebook_of(page), "run python lab/notebooks.py"

    # Not by the same program: the blocks of the page, in order, and nothing printed.
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = [source.rstrip("\n") for source, _ in BLOCK.findall(text)]
    cells = sources(notebook, "code")[1:]
    draws = [cell for cell in cells if "import matplotlib" in cell]
    assert [cell for cell in cells if cell not in draws] == blocks
    assert len(draws) == (page == "course")
    assert "```text" not in "".join(sources(notebook, "markdown"))


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_of_a_notebook_are_there(page):
    text = "\n".join(sources(read(page), "markdown"))
    headings = [line.lstrip("# ") for line in re.findall(r"^#+ .*", text, re.M)]
    for target in re.findall(r"\]\(([^)]*)\)", text):
        if target.startswith("#"):
            assert target[1:].replace("-", " ") in headings
        else:
            assert (DOCS / target.split("#")[0]).is_file(), target


def test_a_notebook_alone_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="needs its repository"):
        exec(sources(read("course"), "code")[0], {})


@slow
@pytest.mark.parametrize("page", PAGES)
def test_a_notebook_runs_from_the_first_cell_to_the_last(page, monkeypatch):
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(DOCS / f"{page}.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3",
        resources={"metadata": {"path": str(DOCS)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code"
               for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == (page == "course")
