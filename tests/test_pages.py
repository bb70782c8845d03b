"""What the pages show: every Python block runs, and prints what stands under it.

README.md, course.md and solutions.md run from top to bottom, as does exercises.md with
nothing filled in. howto.md runs answer by answer, each in a session of its own.
course.md takes long, and so does not run twice: where the libraries for it are there,
it runs as a notebook, in test_notebooks.py. (python docs/notebooks.py makes the
notebooks anew after a change of course.md or exercises.md.)
"""
import code
import contextlib
import importlib.util
import io
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from docs import checks  # noqa: E402

BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\s*^```text\n(.*?)^```\n)?", re.M | re.S)


class Console(code.InteractiveConsole):
    """The interactive Python into which a reader pastes a block, line by line.

    An error ends the test.
    """

    def showtraceback(self):
        raise

    def showsyntaxerror(self, *_, **__):
        raise


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def run(console, source):
    """Paste a block -> the lines that it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for line in [*source.splitlines(), ""]:         # "" ends an indented block
            waiting = console.push(line)
    assert not waiting
    return [line.rstrip() for line in out.getvalue().splitlines()]


def run_blocks(text):
    """Run all blocks in one session, and hold what they print against the page."""
    console = Console()
    for source, expected in BLOCK.findall(text):
        assert run(console, source) == [line.rstrip() for line in expected.splitlines()]
    return console


@pytest.fixture
def as_a_reader(monkeypatch, tmp_path):
    """Files of a page go to a folder of their own; minignn.py is found from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))


def is_installed(*libraries):
    return all(importlib.util.find_spec(library) for library in libraries)


def pages_that_run():
    if is_installed("jupytext", "nbclient", "ipykernel"):
        return ["README.md"]
    return ["README.md", "docs/course.md"]


@pytest.mark.parametrize("page", pages_that_run())
def test_every_python_block_runs_and_prints_what_the_page_says(page, as_a_reader):
    console = run_blocks(read(page))
    assert console.locals["params"]


class Paste(Console):
    """Takes what is pasted, line by line, and does not run it."""

    def runcode(self, code):
        pass


@pytest.mark.parametrize("page", ["README.md", *sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))])
def test_every_python_block_can_be_pasted(page):
    for source, _ in BLOCK.findall(read(page)):
        assert run(Paste(), source) == []


# howto.md -----------------------------------------------------------------------------


def answers():
    """The answers of howto.md that have Python blocks: their titles and texts."""
    found = {}
    for part in re.split(r"^## ", read("docs/howto.md"), flags=re.M)[1:]:
        title, text = part.split("\n", maxsplit=1)
        if BLOCK.search(text):
            found[title] = text
    return found


@pytest.mark.parametrize("title", answers())
def test_each_answer_runs_by_itself(title, as_a_reader):
    text = answers()[title]
    if "import networkx" in text and not is_installed("networkx"):
        pytest.skip("networkx is not installed")
    run_blocks(text)


def test_few_answers_are_left_out_without_networkx():
    assert len(answers()) > 8
    left_out = [title for title in answers() if "import networkx" in answers()[title]]
    assert left_out == ["From networkx", "One prediction per graph"]


def test_the_list_of_answers_is_complete():
    text = read("docs/howto.md")
    titles = re.findall(r"^## (.*)", text, re.M)
    assert re.findall(r"^- \[(.*)\]\(#", text, re.M) == titles
    for title, anchor in re.findall(r"^- \[(.*)\]\(#(.*)\)", text, re.M):
        assert re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") == anchor


# The exercises ------------------------------------------------------------------------


def test_the_solutions_are_right_and_other_numbers_are_wrong(
        as_a_reader, monkeypatch, capsys):
    numbers = {}

    def check(name, number):
        numbers[name] = float(number)
        real_check(name, number)

    real_check = checks.check
    monkeypatch.setattr(checks, "check", check)
    run_blocks(read("docs/solutions.md"))       # the page says "right" for each of them

    assert list(numbers) == list(checks.ENTRIES)
    for name, number in numbers.items():
        step, _ = checks.ENTRIES[name]
        assert checks.is_right(name, number)
        off = 1 if step == 1 else 3
        for wrong in (number + off * step, number - off * step, 0, -number, 100):
            assert not checks.is_right(name, wrong), (name, wrong)
        real_check(name, number + off * step)
        assert capsys.readouterr().out == f"{name}: wrong\n"


def test_a_check_takes_what_an_exercise_may_end_with(capsys):
    numpy, jax_numpy = pytest.importorskip("numpy"), pytest.importorskip("jax.numpy")
    step, right = checks.entry("2.2", 1630, 1)
    assert (step, right) == checks.ENTRIES["2.2"]
    for number in (1630, 1630.0, numpy.float32(1630), jax_numpy.array(1630.0)):
        checks.check("2.2", number)
    for number in (..., float("nan"), float("inf")):
        checks.check("2.2", number)
    assert capsys.readouterr().out.splitlines() == ["2.2: right"] * 4 + [
        "2.2: not yet", "2.2: wrong, nan is no number", "2.2: wrong, inf is no number"]


def test_the_exercises_run_with_nothing_filled_in(as_a_reader):
    console = Console()
    printed = []
    for source, _ in BLOCK.findall(read("docs/exercises.md")):
        printed += run(console, source)
    assert printed == [f"{name}: not yet" for name in checks.ENTRIES]


def test_exercises_and_solutions_have_the_same_headings_and_given_code():
    exercises, solutions = read("docs/exercises.md"), read("docs/solutions.md")
    headings = re.findall(r"^##.*", exercises, re.M)
    assert headings == re.findall(r"^##.*", solutions, re.M)
    of_checks = re.findall(r'^check\("(.*?)", answer\)', exercises, re.M)
    assert of_checks == list(checks.ENTRIES)
    for name in checks.ENTRIES:                 # each exercise has its heading
        assert any(heading.startswith(f"### {name} ") for heading in headings)
        assert f"{name}: right" in solutions
