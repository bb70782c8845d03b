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

    # What a cell prints is what stands under it on the page.
    checks = 0
    for cell, after in zip(notebook.cells, [*notebook.cells[1:], None]):
        if cell.cell_type != "code":
            continue
        if cell.source.startswith("check("):
            shown = f"{cell.source[7:10]}: not yet"
            checks += 1
        else:
            shown = re.match(r"```text\n(.*?)^```", after.source, re.M | re.S)
            shown = shown.group(1) if shown else ""
        printed = "".join(output.get("text", "?") for output in cell.outputs
                          if output.get("name") != "stderr")
        assert lines(printed) == lines(shown), cell.source
    assert (checks > 10) == (page == "exercises")


def lines(text):
    return [line.rstrip() for line in text.splitlines()]
