"""What Kedro-Viz shows of pages and figures."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from husai.datasets import FigureDataset, PageDataset


def picture_of(preview: Any) -> Any:
    return np.asarray(Image.open(BytesIO(base64.b64decode(preview))).convert("RGB"))


@pytest.mark.parametrize("size", [(8.0, 2.0), (4.0, 4.0)])
def test_a_wide_figure_gets_more_space_and_others_do_not(tmp_path, size):
    dataset = FigureDataset(filepath=str(tmp_path / "wide.png"))
    figure = Figure(figsize=size)
    figure.patch.set_facecolor("#336699")
    dataset.save(figure)
    saved = np.asarray(Image.open(tmp_path / "wide.png").convert("RGB"))
    shown = picture_of(dataset.preview())
    assert shown.shape[1] / shown.shape[0] == pytest.approx(
        1.5 if size[0] > size[1] else 1.0, abs=0.01
    )
    top = (len(shown) - len(saved)) // 2
    np.testing.assert_array_equal(shown[top : top + len(saved)], saved)
    assert (shown[:top] == 255).all()


def test_a_page_is_shown_with_its_table_and_its_existing_pictures(tmp_path):
    Image.new("RGB", (2, 2), "red").save(tmp_path / "there.png")
    dataset = PageDataset(filepath=str(tmp_path / "pages" / "page.md"))
    dataset.save("# Title\n\n![a](../there.png)\n\n![b](../absent.png)\n\n| x |\n|---|\n| 1 |\n")
    html = dataset.preview()
    assert "<h1>Title</h1>" in html
    assert "<td>1</td>" in html
    data = html.split("base64,")[1].split('"')[0]
    assert (picture_of(data) == (255, 0, 0)).all()
    assert 'src="../absent.png"' in html
    # Kedro-Viz finds out from this annotation how to show it
    assert dataset.preview.__annotations__["return"] == "HTMLPreview"
