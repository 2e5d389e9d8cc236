"""The paper and its companions: no number is typed, every citation and file is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "paper"
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(PAPER.rglob("*.typ"))}
SECTIONS = [path for path in SOURCES if path.parent.name == "sections" or path.stem == "paper"]
REFERENCES = yaml.safe_load((PAPER / "references.yml").read_text(encoding="utf-8"))

# Names that hold a digit. Anything else with a digit in running text is a typed number.
NAMES = re.compile(r"\b(F1|L0|L1|GPT-2|GPT2|A0|H100|Python 3\.\d+|numpy2?|sha256)\b")
# 0, 1 and 2 are part of formulas
IN_FORMULAS = re.compile(r"(?<![\d.])[012](?![\d.])")
PRINTED = re.compile(r"\b(num|pct|count|word|Word|est|p-value|span)\(\s*\(?\s*[\"']?-?\d")


class Piece(NamedTuple):
    """A stretch of a Typst source: ``prose``, ``math``, or ``code``."""

    kind: str
    text: str
    line: int


class Reader:
    """Tell the running text of a Typst source from its code.

    It knows as much of the language as the documents use: comments, raw text, formulas, ``#``
    expressions with arguments in (), content in [] and blocks in {}, and ``#let``-like statements.
    """

    STATEMENTS = ("let", "import", "set", "show", "include")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.pieces: list[Piece] = []

    def line(self, at: int) -> int:
        return self.text.count("\n", 0, at) + 1

    def add(self, kind: str, start: int, end: int) -> None:
        if self.text[start:end].strip():
            self.pieces.append(Piece(kind, self.text[start:end], self.line(start)))

    def skip_string(self) -> None:
        self.at += 1
        while self.text[self.at] != '"':
            self.at += 2 if self.text[self.at] == "\\" else 1
        self.at += 1

    def skip_comment(self) -> bool:
        if self.text.startswith("//", self.at) and self.text[self.at - 1 : self.at] != ":":
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end
        elif self.text.startswith("/*", self.at):
            self.at = self.text.index("*/", self.at) + 2
        else:
            return False
        return True

    def skip_raw(self) -> None:
        fence = re.match(r"`+", self.text[self.at :])
        assert fence
        self.at = self.text.index(fence[0], self.at + len(fence[0])) + len(fence[0])

    def markup(self, closing: str | None = None) -> None:
        """Read markup up to a closing bracket, or to the end."""
        start = self.at
        while self.at < len(self.text):
            here = self.text[self.at]
            if here == closing:
                break
            if here == "\\":
                self.at += 2
                continue
            if here in "`$#" or self.text.startswith(("//", "/*"), self.at):
                self.add("prose", start, self.at)
                if here == "`":
                    self.skip_raw()
                elif here == "$":
                    self.math()
                elif here == "#":
                    self.at += 1
                    self.expression()
                elif not self.skip_comment():  # the // of an address
                    start = self.at
                    self.at += 2
                    continue
                start = self.at
                continue
            self.at += 1
        self.add("prose", start, self.at)

    def math(self) -> None:
        start = self.at
        self.at += 1
        while self.text[self.at] != "$":
            self.at += 2 if self.text[self.at] == "\\" else 1
        self.at += 1
        self.add("math", start, self.at)

    def bracket(self, opening: str) -> None:
        """Read what is between brackets: content in [], code in () and {}."""
        self.at += 1
        if opening == "[":
            self.markup("]")
            self.at += 1
            return
        start = self.at
        closing = {"(": ")", "{": "}"}[opening]
        while self.text[self.at] != closing:
            here = self.text[self.at]
            if here == '"':
                self.skip_string()
            elif here == "`":
                self.skip_raw()
            elif here in "([{":
                self.add("code", start, self.at)
                self.bracket(here)
                start = self.at
            elif here == "$":
                self.math()
            elif not self.skip_comment():
                self.at += 1
        self.add("code", start, self.at)
        self.at += 1

    def expression(self) -> None:
        """Read the code after a #."""
        start = self.at
        word = re.match(r"[A-Za-z_][\w-]*", self.text[self.at :])
        if word and word[0] in self.STATEMENTS:
            while self.at < len(self.text) and self.text[self.at] != "\n":
                if self.text[self.at] == '"':
                    self.skip_string()
                elif self.text[self.at] in "([{":
                    self.bracket(self.text[self.at])
                elif self.text[self.at] == "$":
                    self.math()
                elif not self.skip_comment():
                    self.at += 1
            self.add("statement", start, self.at)
            return
        if word and word[0] in ("if", "for", "while"):
            self.condition()
            while re.match(r"\s*else\b", self.text[self.at :]):
                self.at = self.text.index("else", self.at) + 4
                self.condition()
            return
        if not word and self.text[self.at] not in "([{\"'":
            self.at += 1
            self.add("code", start, self.at)
            return
        self.at += len(word[0]) if word else 0
        if not word and self.text[self.at] == '"':
            self.skip_string()
            self.add("printed", start, self.at)
            return
        self.add("code", start, self.at)
        if not word:
            self.bracket(self.text[self.at])
        while self.at < len(self.text):
            field = re.match(r"\.[A-Za-z_][\w-]*", self.text[self.at :])
            if field:
                self.at += len(field[0])
            elif self.text[self.at] in "([":
                opened = self.at
                self.bracket(self.text[self.at])
                name = re.search(r"[\w-]+$", self.text[start:opened])
                if self.text[opened] == "(" and name:
                    call = self.text[start : self.at]
                    self.pieces.append(Piece("call", call, self.line(start)))
            else:
                break
        if self.text[self.at : self.at + 1] == ";":
            self.pieces.append(Piece("lost", self.text[start : self.at + 1], self.line(start)))

    def condition(self) -> None:
        """Read up to the content or block that follows an if, a for or an else, and that."""
        while self.text[self.at] not in "[{":
            if self.text[self.at] == '"':
                self.skip_string()
            elif self.text[self.at] == "(":
                self.bracket("(")
            else:
                self.at += 1
        self.bracket(self.text[self.at])


def pieces(text: str) -> list[Piece]:
    reader = Reader(text)
    reader.markup()
    return reader.pieces


def typed_numbers(text: str) -> Iterator[tuple[int, str]]:
    """Numbers that stand in running text, with their lines, and those given to print."""
    for piece in pieces(text):
        if piece.kind == "prose":
            said = re.sub(r"<[\w-]+>|@[\w-]+|https?://\S+", "", piece.text)
            said = NAMES.sub("", said)
            found = re.search(r"\S*\d\S*", said)
        elif piece.kind == "math":
            found = re.search(r"\d[\d.]*", IN_FORMULAS.sub("", piece.text))
        elif piece.kind == "printed":
            found = re.search(r"\d+", piece.text)
        elif piece.kind == "call" and not piece.text.startswith("claim("):
            found = PRINTED.search(piece.text)
        else:
            found = None
        if found:
            yield piece.line, found[0]


def words(path: Path) -> int:
    prose = " ".join(piece.text for piece in pieces(SOURCES[path]) if piece.kind == "prose")
    return len(re.findall(r"[^\W\d_][\w'’-]*", re.sub(r"<[\w-]+>|@[\w-]+", "", prose)))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_number_is_typed(path: Path) -> None:
    found = [f"{path.name}:{line}: {number!r}" for line, number in typed_numbers(SOURCES[path])]
    assert not found, "read these from a result file: " + "; ".join(found)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_semicolon_is_lost(path: Path) -> None:
    """A ; right after an expression ends it and is not printed: ``\\;`` is."""
    assert not [piece for piece in pieces(SOURCES[path]) if piece.kind == "lost"]


@pytest.mark.parametrize(
    "text",
    [
        "It comes back at 0.98 there.",
        "#claim(true, [a]) and 111 answers",
        '#figure(image("x"), caption: [All 36 of them])',
        "#if n > 0 [some] else [the other 12]",
        "$ p < 0.05 $",
        "it is #num(0.98)",
        "it is #text(fill: blue)[at 7]",
        'it is #"0.98"',
        'it is #pct("0.98", digits: 1)',
        "from #span((0.1, 0.3))",
        "#let a = [then 5 more]\n",
    ],
)
def test_a_typed_number_is_found(text: str) -> None:
    assert list(typed_numbers(text))


@pytest.mark.parametrize(
    "text",
    [
        "F1 and L0 at the #p answers, see @paulo2025 and @fig-1.",
        "// 12 in a comment\n`--env=lm2` and #num(row.value, digits: 2)",
        '#let x = select(rows("/a.csv"), d_sae: 256)\n#set text(size: 10pt)\n',
        "$ 1 / 2 sum_(i = 1)^n x_0 $",
        '#claim(float(row.value) > 0.5, "it is above a half")',
        '#figure(image("x", width: 80%), caption: [All of them]) <fig-2>',
    ],
)
def test_what_is_no_typed_number_is_left(text: str) -> None:
    assert not list(typed_numbers(text))


def test_the_paper_has_eight_to_ten_thousand_words() -> None:
    counted = {path.name: words(path) for path in SECTIONS}
    assert 8000 <= sum(counted.values()) <= 10000, counted


def cited(text: str) -> set[str]:
    prose = [piece.text for piece in pieces(text) if piece.kind == "prose"]
    used = {key for said in prose for key in re.findall(r"@([A-Za-z][\w-]*)", said)}
    return used | set(re.findall(r"\b(?:by|cite)\(<([\w-]+)>", text))


def test_citations_exist_and_every_reference_is_used_and_was_checked() -> None:
    used = {key for text in SOURCES.values() for key in cited(text)}
    labels = {
        label for text in SOURCES.values() for label in re.findall(r"(?<!\()<([\w-]+)>", text)
    }
    assert not (used - set(REFERENCES) - labels), "no such reference or label"
    assert not (set(REFERENCES) - used), "references that nothing cites"
    checked = (PAPER / "references_checked.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w-]+)` \|", checked, re.MULTILINE)
    assert sorted(listed) == sorted(REFERENCES)


def test_every_file_that_is_read_is_there() -> None:
    optional = {
        name for text in SOURCES.values() for name in re.findall(r'have\("([^"]+)"\)', text)
    }
    named = {
        (path.name, name)
        for path, text in SOURCES.items()
        for name in re.findall(r'"(/(?:docs|benchmarks|conf|paper)/[^"]*\.\w+)"', text)
        if not name.startswith("/build/")
    }
    named |= {
        (path.name, f"/docs/results/home/{name}.csv")
        for path, text in SOURCES.items()
        for name in re.findall(r'\bhome\("(\w+)"\)', text)
    }
    assert len(named) > 10
    missing = [
        f"{source} reads {name}"
        for source, name in sorted(named)
        if name not in optional and not (ROOT / name.lstrip("/")).is_file()
    ]
    assert not missing


def test_every_text_that_is_searched_for_is_on_its_page() -> None:
    # the templates of pages may change their words, and the paper would no longer build
    n_found = 0
    for document in sorted(PAPER.rglob("*.typ")):
        text = document.read_text()
        names = dict(re.findall(r'#let ([\w-]+) = "(/[^"]+)"', text))
        for page, pattern in re.findall(r'page-find\(\s*([^,()]+),\s*"((?:[^"\\]|\\.)*)"', text):
            path = page.strip('"') if page.startswith('"') else names.get(page)
            if path is None:
                continue
            words = re.sub(r"\s+", " ", (ROOT / path.lstrip("/")).read_text())
            assert re.search(pattern.replace("\\\\", "\\"), words), f"{document.name}: {pattern}"
            n_found += 1
    assert n_found >= 5


def test_every_drawing_is_drawn() -> None:
    text = (PAPER / "figures.py").read_text(encoding="utf-8")
    registry = next(
        node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FIGURES"
    )
    assert isinstance(registry, ast.Dict)
    drawn = {ast.literal_eval(key) for key in registry.keys if key is not None}
    shown = {
        name for text in SOURCES.values() for name in re.findall(r'\bdrawing\(\s*"([\w-]+)"', text)
    }
    assert shown <= drawn, shown - drawn


def test_tests_that_the_paper_names_exist() -> None:
    text = SOURCES[PAPER / "sections" / "5_earlier.typ"]
    named = re.findall(r'"([\w/]+\.py)::\\n([\w,\\]+)"', text)
    assert len(named) == 10
    for file, tests in named:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        for test in tests.replace("\\n", "").split(","):
            assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{file} has no {test}"
