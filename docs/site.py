"""A hook of MkDocs (see mkdocs.yml): adds pages from outside ``docs``, and writes formulas.

Pages outside ``docs`` have such paths in the site that the links between the files also work in
the site.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *(f"src/husai/{room}/shipped/README.md" for room in ("transformer", "sae")),
)
FOLDERS = ("benchmarks/results", "conf/team", "notebooks")
LINK = re.compile(r"(\]\(|<img src=\")(?!https?:|#|mailto:)([^)\"#]+)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages outside the folder of documents, and their pictures."""
    outside = [ROOT / name for name in PAGES]
    for folder in FOLDERS:
        outside += sorted(path for path in (ROOT / folder).rglob("*") if path.is_file())
    for path in [one for one in outside if one.suffix != ".py" and "__pycache__" not in one.parts]:
        name = path.relative_to(ROOT).as_posix()
        linked = path.suffix == ".md" and name not in PAGES  # from other pages, not from the menu
        files.append(
            File(
                name,
                str(ROOT),
                config.site_dir,
                config.use_directory_urls,
                inclusion=InclusionLevel.NOT_IN_NAV if linked else InclusionLevel.INCLUDED,
            )
        )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn a link between files of the repository into one between pages of the site."""
    here = posixpath.dirname(place(page.file.src_uri, inward=False))

    def moved(match: re.Match[str]) -> str:
        target = place(posixpath.normpath(posixpath.join(here, match[2])), inward=True)
        return match[1] + posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)


def place(name: str, inward: bool) -> str:
    """Map the path of a file in the repository to that in the site (inward), or back."""
    if inward:
        return name.removeprefix("docs/")
    outside = name in PAGES or name.startswith(tuple(f"{folder}/" for folder in FOLDERS))
    return name if outside else f"docs/{name}"


def on_page_content(content: str, **_: Any) -> str:
    """Write formulas as MathML, which every browser draws by itself: no script, no network."""

    def written(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return convert(html.unescape(match[2]).strip(), display=display)

    return FORMULA.sub(written, content)
