"""A page keeps its pictures and links when it is copied to the documentation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "copy_results.py"


def test_pictures_are_copied_with_the_page_and_documents_are_linked(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("copy_results", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = tmp_path / "data" / "reporting" / "home_study.md"
    (tmp_path / "data" / "consistency").mkdir(parents=True)
    page.parent.mkdir()
    (tmp_path / "data" / "consistency" / "kinds.png").write_bytes(b"picture")
    (tmp_path / "data" / "consistency" / "cards.html").write_text("<p>cards</p>")
    page.write_text(
        "# A\n\n![kinds](../consistency/kinds.png)\n\n![none](../consistency/none.png)\n\n"
        "[cards](../consistency/cards.html), [absent](../consistency/absent.html)\n\n"
        "`docs/glossary.md` and `docs/nothing.md`\n"
    )
    target = tmp_path / "docs" / "results"
    written = module.copy_page(page, target)
    assert [path.name for path in written] == ["home_study.md", "kinds.png", "cards.html"]
    assert (target / "kinds.png").read_bytes() == b"picture"
    text = (target / "home_study.md").read_text()
    assert "![kinds](kinds.png)" in text
    assert "none.png" not in text
    assert "[cards](cards.html), absent\n" in text
    assert (target / "cards.html").read_text() == "<p>cards</p>"
    link = text.split("[docs/glossary.md](")[1].split(")")[0]
    assert (target / link).resolve() == (SCRIPT.parent / "glossary.md").resolve()
    assert "`docs/nothing.md`" in text
    renamed = module.copy_page(page, target / "campaign.md")
    assert renamed[0].name == "campaign.md"
