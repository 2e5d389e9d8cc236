"""The four documents compile from the committed results, and nothing runs over a page."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import typst

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "paper"
FONTS = [str(Path(mpl.get_data_path()) / "fonts" / "ttf")]
SMALLEST = 12  # points, on a slide


def script(name: str):
    """A script of the paper's folder, as a module."""
    sys.path.insert(0, str(PAPER))
    try:
        spec = importlib.util.spec_from_file_location(f"paper_{name}", PAPER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(PAPER))
    return module


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """How many pages each document has, drawn from the files as they are now."""
    for name in sorted(path.stem for path in PAPER.glob("figures*.py")):
        found = script(name)
        if hasattr(found, "main"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", [name])
                found.main()
    build = script("build")
    folder = tmp_path_factory.mktemp("pages")

    def count(name: str) -> int:
        pattern = str(folder / f"{name}-{{0p}}.png")
        build.compile_document(name, FONTS, output=pattern, format="png", ppi=8.0)
        return len(list(folder.glob(f"{name}-*.png")))

    return {name: count(name) for name in ("paper", "supplement", "slides", "poster")}


def slides() -> int:
    """How many slides the talk has with the results that are there, from marks in it."""
    found = typst.query(
        str(PAPER / "slides.typ"),
        "<one-slide>",
        root=str(ROOT),
        font_paths=FONTS,
        sys_inputs={"present": json.dumps(script("build").optional_files())},
    )
    return len(json.loads(found))


def test_every_slide_and_the_poster_fit_their_page(pages):
    assert pages["slides"] == 1 + slides()  # and the title
    assert 15 <= pages["slides"] <= 20
    assert pages["poster"] == 1


def test_the_paper_and_the_supplement_have_their_pages(pages):
    assert pages["paper"] >= 15
    assert pages["supplement"] >= 20


def test_no_type_on_a_slide_is_smaller_than_said():
    slides = (PAPER / "slides.typ").read_text(encoding="utf-8")
    sizes = [float(size) for size in re.findall(r"size: ([\d.]+)pt", slides)]
    assert min(sizes) >= SMALLEST
    talk = (PAPER / "figures_talk.py").read_text(encoding="utf-8")
    font = int(re.search(r"^FONT = (\d+)$", talk, re.MULTILINE)[1])
    less = max(int(step) for step in re.findall(r"FONT - (\d+)", talk))
    # a figure is drawn 11.6 inches wide; the least height that a slide gives it shrinks it
    heights = [float(cm) / 2.54 for cm in re.findall(r"height: ([\d.]+)cm\)", slides)]
    drawn = [float(height) for height in re.findall(r"canvas\(11\.6, ([\d.]+)", talk)]
    assert (font - less) * min(heights) / max(drawn) >= SMALLEST
