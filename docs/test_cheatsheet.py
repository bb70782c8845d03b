"""The cheat sheet against minignn.py: its lines of code and its settings."""
import pathlib
import re

import minignn

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHEET = (ROOT / "docs" / "cheatsheet.md").read_text(encoding="utf-8")


def test_its_lines_of_code_are_lines_of_minignn():
    formulas, settings = SHEET.split("**Settings for Cora**")
    lines = re.findall(r"\| `([^`]+)` \|$", formulas, re.M)
    assert len(lines) > 20
    source = (ROOT / "minignn.py").read_text(encoding="utf-8")
    for line in lines:
        assert line in source, line
    assert "`GCN(16, 7)` | `GAT([8, 1], [8], 7)`" in settings


def test_its_settings_are_the_recipes():
    for row, names in (("step size", ["step_size"]), ("weight decay", ["weight_decay"]),
                       ("epochs, patience", ["epochs", "patience"])):
        line, = re.findall(rf"^\| .*{row}.*$", SHEET, re.M)
        _, _, *cells, _ = line.replace("100 000", "100000").split("|")
        for cell, recipe in zip(cells, (minignn.GCN_RECIPE, minignn.GAT_RECIPE)):
            numbers = [float(n) for n in re.findall(r"[\d.]+", cell)]
            assert numbers == [recipe[name] for name in names]
