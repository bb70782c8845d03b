"""What the pages show: every Python block runs, and prints what stands under it."""
import code
import contextlib
import importlib.util
import io
import pathlib
import re
import sys
import warnings

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\s*^```text\n(.*?)^```\n)?", re.M | re.S)


class Console(code.InteractiveConsole):
    """The interactive Python into which a reader pastes a block, line by line.

    An error ends the test.
    """

    def showtraceback(self):
        raise

    def showsyntaxerror(self, *_, **__):
        raise


def has_networkx():
    return importlib.util.find_spec("networkx") is not None


def run_blocks(page):
    """Run all blocks of a page in one session -> (the session, blocks left out)."""
    text = (ROOT / page).read_text(encoding="utf-8")
    console, left_out = Console(), 0
    for source, expected in BLOCK.findall(text):
        if "import networkx" in source and not has_networkx():
            left_out += 1
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            for line in [*source.splitlines(), ""]:     # "" ends an indented block
                waiting = console.push(line)
        assert not waiting
        printed = [line.rstrip() for line in out.getvalue().splitlines()]
        assert printed == [line.rstrip() for line in expected.splitlines()]
    return console, left_out


@pytest.mark.parametrize("page", ["README.md", "docs/course.md"])
def test_every_python_block_runs_and_prints_what_the_page_says(
        page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    console, left_out = run_blocks(page)
    assert console.locals["params"]
    if left_out:
        warnings.warn("networkx is not installed: its block was left out", stacklevel=1)


def test_without_networkx_only_its_block_is_left_out(monkeypatch):
    text = (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
    assert sum("import networkx" in source for source, _ in BLOCK.findall(text)) == 1
    ran = []
    monkeypatch.setattr(Console, "push", lambda self, line: ran.append(line))
    monkeypatch.setattr(sys.modules[__name__], "has_networkx", lambda: False)
    monkeypatch.setattr(sys.modules[__name__], "BLOCK", re.compile(
        r"^```python\n(.*?)^```\n()", re.M | re.S))
    _, left_out = run_blocks("docs/course.md")
    assert left_out == 1 and not any("import networkx" in line for line in ran)
    assert sum(line == "" for line in ran) >= len(BLOCK.findall(text)) - 1
