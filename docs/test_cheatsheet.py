"""What the cheat sheet and the course's last section say of minignn.py."""
import pathlib
import re

import minignn

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHEET = (ROOT / "docs" / "cheatsheet.md").read_text(encoding="utf-8")
COURSE = (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
SOURCE = (ROOT / "minignn.py").read_text(encoding="utf-8")


def test_its_lines_of_code_are_lines_of_minignn():
    formulas, settings = SHEET.split("**Settings for Cora**")
    lines = re.findall(r"\| `([^`]+)` \|$", formulas, re.M)
    assert len(lines) > 20
    for line in lines:
        assert line in SOURCE, line
    assert "`GCN(16, 7)` | `GAT([8, 1], [8], 7)`" in settings


def test_its_settings_are_the_recipes():
    for row, names in (("step size", ["step_size"]), ("weight decay", ["weight_decay"]),
                       ("epochs, patience", ["epochs", "patience"])):
        line, = re.findall(rf"^\| .*{row}.*$", SHEET, re.M)
        _, _, *cells, _ = line.replace("100 000", "100000").split("|")
        for cell, recipe in zip(cells, (minignn.GCN_RECIPE, minignn.GAT_RECIPE)):
            numbers = [float(n) for n in re.findall(r"[\d.]+", cell)]
            assert numbers == [recipe[name] for name in names]


def test_the_course_names_each_section_of_minignn_and_what_is_in_it():
    _, text = COURSE.split("## 7. Now read minignn.py")
    text, _ = text.split("## Glossary")
    paragraphs = re.split(r"^\d\. ", text, flags=re.M)[1:]
    sections = re.split(r"^# \d\. (?=.* -)", SOURCE, flags=re.M)[1:]
    assert len(paragraphs) == len(sections) == 7
    for paragraph, section in zip(paragraphs, sections):
        title, = re.findall(r"^\*\*(.*)\.\*\*", paragraph)
        assert section.startswith(title)
        for code in re.findall(r"`([^`]+)`", paragraph.split("\n\n")[0]):
            name, *_ = re.findall(r"[\w.]+|@", code)
            assert name in section or name == "jit", name
