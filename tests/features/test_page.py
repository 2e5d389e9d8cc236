"""The page of features, in the text of the file and in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from husai.consistency.analyses.labels import class_labels
from husai.errors import InputError
from husai.features import FeaturesConfig, RowFacts, feature_cards, features_page

from .conftest import P
from .test_cards import answers

BROWSER = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here to open the page in")


def payload(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.fixture(scope="module")
def cards(planted):
    return feature_cards(planted.group, [class_labels("answer", answers())])


@pytest.fixture(scope="module")
def mapped(cards):
    return features_page(cards, RowFacts(modulus=P), title="Features of <a & b>")


@pytest.fixture(scope="module")
def bare(cards):
    words = [f" w{i}" for i in range(P * P)]
    words[0] = "</script><b>"
    contexts = pd.DataFrame({"document": np.arange(P * P) // 20, "token": words})
    labels = pd.DataFrame({"answer": answers()})
    return features_page(cards, RowFacts(labels=labels, contexts=contexts))


def test_the_file_loads_nothing(mapped, bare):
    for page in (mapped, bare):
        head = page[: page.index("<script")]
        sources = re.findall(r"""\b(?:src|href)="([^"]*)""", head)
        assert all(source.startswith("data:") for source in sources)
        assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in page
        assert page.count("</script>") == 2  # no text of a token ends the script early
    assert "Features of &lt;a &amp; b&gt;" in mapped


def test_the_page_has_every_feature_with_its_partners(cards, mapped):
    data = payload(mapped)
    assert len(data["features"]) == len(data["maps"]) == len(cards.features)
    for at, (feature, partners) in enumerate(zip(data["features"], data["partners"], strict=True)):
        assert len(partners) == 2
        for sae, latent, other, *_ in partners:
            assert data["features"][other][:2] == [sae, latent]
            # partners are mutual
            assert any(back[2] == at for back in data["partners"][other])
        assert feature[0] in (0, 1, 2)


def test_the_strongest_rows_have_their_contexts_and_labels(bare):
    data = payload(bare)
    for rows, _ in data["rows"]:
        for row in rows:
            assert data["facts"][str(row)]["labels"] == f"answer = {answers()[row]}"
            assert len(data["facts"][str(row)]["context"]) == 3


def test_a_page_that_would_be_too_large_shows_a_part_and_says_so(cards):
    page = features_page(cards, RowFacts(modulus=P), FeaturesConfig(max_features=9))
    assert "shows 9 of 60 features" in page
    data = payload(page)
    first = [i for i, feature in enumerate(data["features"]) if feature[0] == 0]
    assert len(first) == 3
    assert all(partner[2] >= 0 for i in first for partner in data["partners"][i])
    whole = len(features_page(cards, RowFacts(modulus=P)).encode())
    small = features_page(
        cards, RowFacts(modulus=P), FeaturesConfig(max_megabytes=0.8 * whole / 1e6)
    )
    assert len(small.encode()) <= 0.8 * whole
    with pytest.raises(InputError, match="max_megabytes"):
        features_page(cards, RowFacts(modulus=P), FeaturesConfig(max_megabytes=0.001))


@pytest.mark.parametrize(
    "facts",
    [RowFacts(modulus=P + 1), RowFacts(labels=pd.DataFrame({"x": [1]}))],
)
def test_facts_of_other_rows_are_refused(cards, facts):
    with pytest.raises(InputError, match="rows"):
        features_page(cards, facts)


def in_browser(page: str, script: str, folder: Path, *options: str, address: str = "") -> Any:
    """Open the page, run a script in it, and return its result or the error."""
    watch = (
        "<script>var wrong=[];addEventListener('error',e=>wrong.push(String(e.message)))</script>"
    )
    act = (
        "<pre id=result></pre><script>addEventListener('load',()=>{let found;"
        f"try{{found=(()=>{{{script}}})()}}catch(e){{wrong.push(String(e))}}"
        "document.getElementById('result').textContent=JSON.stringify({wrong,found})})</script>"
    )
    file = folder / "page.html"
    file.write_text(page.replace("<head>", f"<head>{watch}", 1).replace("</body>", f"{act}</body>"))
    assert BROWSER
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(f"--user-data-dir={folder / 'profile'}", *options, f"{file.as_uri()}{address}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    result = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.S)
    assert result, done.stderr[-2000:]
    answer = json.loads(html.unescape(result[1]))
    assert answer["wrong"] == []
    return answer["found"]


KEY = """
const key = (k) => document.activeElement.dispatchEvent(
  new KeyboardEvent('keydown', {key: k, bubbles: true}));
"""


@needs_browser
def test_search_sort_cards_and_keys(mapped, tmp_path):
    found = in_browser(
        mapped,
        KEY
        + """
        const out = {}, q = (s) => document.querySelector(s);
        const rows = () => document.querySelectorAll('#body tr').length;
        out.rows = rows();
        q('#sae').value = ''; q('#sae').onchange(); out.all = rows();
        const head = [...document.querySelectorAll('#head button')];
        head.find((b) => b.textContent === 'latent').click();
        out.first = q('#body tr td').textContent;
        out.sort = q('#head th').getAttribute('aria-sort');
        key('/'); out.focus = document.activeElement.id;
        q('#search').value = 'answer = 3'; q('#search').oninput(); out.found = rows();
        key('ArrowDown'); out.row = document.activeElement.tagName;
        key('Enter'); out.open = q('#card').open; out.title = q('#card-title').textContent;
        out.pictures = document.querySelectorAll('#card img').length;
        out.address = location.hash;
        key('ArrowRight'); out.next = q('#card-title').textContent !== out.title;
        q('#card figcaption button').click(); out.partner = q('#card-title').textContent;
        q('#close').click(); out.closed = !q('#card').open;
        return out;
        """,
        tmp_path,
    )
    assert found["rows"] == 20
    assert found["all"] == 60
    assert (found["first"], found["sort"]) == ("0", "ascending")
    assert found["focus"] == "search"
    assert found["found"] == 3
    assert found["row"] == "TR"
    assert found["open"]
    assert "answer = 3" in found["title"]
    assert found["pictures"] == 3
    assert re.fullmatch(r"#\d/\d+", found["address"])
    assert found["next"]
    assert "answer = 3" in found["partner"]
    assert found["closed"]


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_a_card_fits_the_screen_in_the_colours_of_the_system(bare, tmp_path, width, dark):
    frame = html.escape(bare, quote=True)
    outside = (
        f'<!doctype html><html><head></head><body><iframe srcdoc="{frame}" '
        f'style="width:{width}px;height:800px;border:0"></iframe></body></html>'
    )
    found = in_browser(
        outside,
        """
        const inside = document.querySelector('iframe').contentWindow;
        return inside.eval(`(() => {
          visit(0);
          const card = document.querySelector('#card'), all = document.documentElement;
          const paper = getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g);
          return {
            light: +paper[0] > 128, open: card.open, wide: innerWidth,
            fits: all.scrollWidth <= innerWidth && card.scrollWidth <= card.clientWidth + 1,
            mark: !!document.querySelector('#card mark'),
            bars: document.querySelectorAll('#card svg').length,
          };
        })()`);
        """,
        tmp_path,
        "--window-size=1400,900",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    )
    assert found == {
        "light": not dark,
        "open": True,
        "wide": width,
        "fits": True,
        "mark": True,
        "bars": 3,
    }
