"""Write the PDFs of this folder.

    python paper/build.py                               # all documents: build/paper/*.pdf
    python paper/build.py paper --pages build/pages     # one; and its pages as pictures, to look at

Needs only the package ``typst``, which brings the compiler and its fonts; nothing is downloaded.
Figures are drawn before, by ``paper/figures.py``. Results that may be missing are named to the
documents (``have`` in ``common.typ``), so that a section about them stands only where they are.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

import typst

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / "paper"
OUT = ROOT / "build" / "paper"
SHARED = {"common"}  # imported, no documents
_ASKED = re.compile(r'have\("(/[^"]+)"\)')


def optional_files(root: Path = ROOT) -> list[str]:
    """List the files that the documents ask for with ``have`` and that are there."""
    asked = {name for page in PAPER.rglob("*.typ") for name in _ASKED.findall(page.read_text())}
    return sorted(name for name in asked if (root / name.lstrip("/")).is_file())


def compile_document(name: str, fonts: list[str], **options: object) -> None:
    """Compile one document of this folder, from the root of the repository."""
    typst.compile(
        str(PAPER / f"{name}.typ"),
        root=str(ROOT),
        font_paths=fonts,
        ignore_system_fonts=True,
        sys_inputs={"present": json.dumps(optional_files())},
        **options,
    )


def main() -> None:
    """Compile the documents that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("documents", nargs="*", help="names without .typ; all by default")
    parser.add_argument("--fonts", nargs="*", default=[], help="folders of further fonts")
    parser.add_argument("--pages", type=Path, help="folder for pictures of the pages")
    parser.add_argument("--ppi", type=float, default=90.0, help="of the pictures")
    asked = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    everything = sorted({page.stem for page in PAPER.glob("*.typ")} - SHARED)
    for name in asked.documents or everything:
        began = time.perf_counter()
        try:
            compile_document(name, asked.fonts, output=str(OUT / f"{name}.pdf"))
            if asked.pages:
                asked.pages.mkdir(parents=True, exist_ok=True)
                pattern = str(asked.pages / f"{name}-{{0p}}.png")
                compile_document(name, asked.fonts, output=pattern, format="png", ppi=asked.ppi)
        except typst.TypstError as error:
            sys.exit(f"paper/{name}.typ: {error}\n{getattr(error, 'diagnostic', '')}")
        size = (OUT / f"{name}.pdf").stat().st_size / 2**20
        print(f"build/paper/{name}.pdf: {size:.1f} MiB, {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
