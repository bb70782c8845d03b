"""The pictures of the pages: all there, and the same file when drawn again."""
import re

import pytest

from conftest import ROOT


def test_every_picture_that_a_page_shows_is_there():
    shown = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for name in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", page.read_text()):
            shown.add(page.parent / name)
    assert shown
    assert [picture for picture in shown if not picture.is_file()] == []


@pytest.mark.parametrize("name", ["adjacency", "messages", "segment_softmax"])
def test_a_picture_drawn_again_is_the_same_file(name, tmp_path):
    matplotlib = pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    from lab import figures
    committed = (ROOT / "docs" / f"{name}.svg").read_text()
    if f"Matplotlib v{matplotlib.__version__}," not in committed:
        pytest.skip("another version of matplotlib drew it")
    assert figures.draw(name, tmp_path).read_text() == committed
