"""The datasets of pages and figures, with previews for Kedro-Viz."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path

from kedro_datasets._typing import HTMLPreview, ImagePreview
from kedro_datasets.matplotlib import MatplotlibDataset
from kedro_datasets.text import TextDataset

WIDEST = 1.5
"""Largest width over height of a picture in Kedro-Viz, which cuts off wider ones."""


class PageDataset(TextDataset):
    """A page of Markdown; its preview shows it with its pictures."""

    def preview(self) -> HTMLPreview:
        """Return the page as HTML with its pictures inside."""
        from markdown_it import MarkdownIt

        path = Path(self._get_load_path())
        html = MarkdownIt("commonmark").enable("table").render(path.read_text(encoding="utf-8"))

        def within(source: re.Match[str]) -> str:
            picture = path.parent / source[1]
            if not picture.is_file():  # the pipeline that draws it was not run
                return source[0]
            data = base64.b64encode(picture.read_bytes()).decode()
            return f'src="data:image/png;base64,{data}" style="max-width: 100%"'

        return HTMLPreview(re.sub(r'src="([^":]+\.png)"', within, html))


class FigureDataset(MatplotlibDataset):
    """A figure; the preview of a wide one has space above and below it."""

    def preview(self) -> ImagePreview:
        """Return the picture, made higher if it would be cut off."""
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
