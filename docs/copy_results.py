"""Copy the pages of a study, with their pictures and HTML pages, to a folder of the documentation.

python docs/copy_results.py data/reporting/home_study.md docs/results
python docs/copy_results.py data/campaign/reporting/home_study.md docs/results/campaign/campaign.md
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy_page(page: Path, target: Path) -> list[Path]:
    """Copy a page and its pictures and HTML pages, and turn names of documents into links.

    Parameters
    ----------
    page
        A Markdown file; its pictures have paths relative to it.
    target
        A folder, or the new file's path.

    Returns
    -------
    list of Path
        The files written. Pictures that do not exist are left out of the page, and links to HTML
        pages that do not exist become plain text.
    """
    if target.suffix != ".md":
        target = target / page.name
    target.parent.mkdir(parents=True, exist_ok=True)
    written = [target]

    def picture(link: re.Match[str]) -> str:
        source = page.parent / link[2]
        if not source.is_file():
            return ""
        written.append(target.parent / source.name)
        shutil.copyfile(source, written[-1])
        return f"![{link[1]}]({source.name})"

    def html(link: re.Match[str]) -> str:
        source = page.parent / link[2]
        if not source.is_file():
            return link[1]
        written.append(target.parent / source.name)
        shutil.copyfile(source, written[-1])
        return f"[{link[1]}]({source.name})"

    def document(name: re.Match[str]) -> str:
        path = ROOT / name[1]
        if not path.is_file():
            return name[0]
        return f"[{name[1]}]({os.path.relpath(path, target.parent.resolve())})"

    text = re.sub(r"!\[([^\]]*)\]\(([^)]+)\)", picture, page.read_text(encoding="utf-8"))
    text = re.sub(r"\[([^\]]*)\]\(([^)]+\.html)\)", html, text)
    text = re.sub(r"`(docs/[\w/]+\.md)`", document, text)
    target.write_text(text, encoding="utf-8")
    return written


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for path in copy_page(Path(sys.argv[1]), Path(sys.argv[2])):
        print(path)
