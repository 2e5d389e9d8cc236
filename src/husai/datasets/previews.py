"""Pages and figures, with previews that Kedro-Viz shows whole."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path

from kedro_datasets._typing import HTMLPreview, ImagePreview
from kedro_datasets.matplotlib import MatplotlibDataset
from kedro_datasets.text import TextDataset

WIDEST = 1.5
"""Width over height of the widest picture that Kedro-Viz shows whole: what is wider it cuts off."""


class PageDataset(TextDataset):
    """A page of Markdown, whose preview shows it with its pictures."""

    def preview(self) -> HTMLPreview:
        """Give the page as HTML, its pictures within."""
        from markdown_it import MarkdownIt

        path = Path(self._get_load_path())
        html = MarkdownIt("commonmark").enable("table").render(path.read_text(encoding="utf-8"))

        def within(source: re.Match[str]) -> str:
            picture = path.parent / source[1]
            if not picture.is_file():  # a pipeline that draws it was not run
                return source[0]
            data = base64.b64encode(picture.read_bytes()).decode()
            return f'src="data:image/png;base64,{data}" style="max-width: 100%"'

        return HTMLPreview(re.sub(r'src="([^":]+\.png)"', within, html))


class FigureDataset(MatplotlibDataset):
    """A figure, whose preview has space around it where it is wide."""

    def preview(self) -> ImagePreview:
        """Give the picture, higher where it would be cut off."""
        from PIL import Image

        with Image.open(self._get_load_path()) as picture:
            high = max(picture.height, round(picture.width / WIDEST))
            if high == picture.height:
                return super().preview()
            page = Image.new("RGB", (picture.width, high), "white")
            page.paste(picture.convert("RGB"), (0, (high - picture.height) // 2))
        content = BytesIO()
        page.save(content, format="png")
        return ImagePreview(base64.b64encode(content.getvalue()).decode())
