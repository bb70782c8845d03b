"""The notebooks: equal to their pages, and they run from the first cell to the last.

python docs/notebooks.py makes them anew after a change of course.md or exercises.md.
"""
import pathlib
import re

import pytest

jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed")
nbformat = pytest.importorskip("nbformat")

DOCS = pathlib.Path(__file__).resolve().parent


def read(page):
    return nbformat.read(DOCS / f"{page}.ipynb", as_version=4)


@pytest.mark.parametrize("page", ["course", "exercises"])
def test_a_notebook_equals_its_page(page, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    from notebooks import notebook_of
    made = [(cell.cell_type, cell.source) for cell in notebook_of(page).cells]
    kept = [(cell.cell_type, cell.source) for cell in read(page).cells]
    assert made == kept, "run python docs/notebooks.py"

    # Not by the same program: the page's Python blocks are the cells, in order.
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)\n```$", text, re.M | re.S)
    assert [source for kind, source in kept if kind == "code"][1:] == blocks


@pytest.mark.parametrize("page", ["course", "exercises"])
def test_the_pictures_of_a_notebook_are_there(page):
    for cell in read(page).cells:
        for picture in re.findall(r"!\[[^]]*\]\((.*?)\)", cell.source):
            assert (DOCS / picture).is_file()


@pytest.mark.parametrize("page, folder", [("course", DOCS), ("exercises", DOCS.parent)])
def test_a_notebook_runs_from_the_first_cell_to_the_last(page, folder, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = read(page)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3",
        resources={"metadata": {"path": str(folder)}}).execute()

    # Under a cell of the course, the page has what the cell prints.
    outputs = [printed(cell) for cell in notebook.cells if cell.cell_type == "code"]
    if page == "exercises":
        not_yet = [text for text in outputs if text]
        assert not_yet and all(text.endswith(": not yet\n") for text in not_yet)
        return
    for cell, after in zip(notebook.cells, notebook.cells[1:]):
        if cell.cell_type == "code" and printed(cell):
            shown = re.match(r"```text\n(.*?)^```", after.source, re.M | re.S)
            assert lines(shown.group(1)) == lines(printed(cell))


def printed(cell):
    return "".join(output.text for output in cell.outputs if "text" in output)


def lines(text):
    return [line.rstrip() for line in text.splitlines()]
