"""Rules of the source tree: which package may import which, no cycles, no long files."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from husai.pipeline_registry import register_pipelines

SOURCE = Path(__file__).parents[1] / "src" / "husai"

# From the bottom up; rooms of one line are neighbours and do not import one another.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("config", "errors", "provenance", "processes", "progress", "threads"),
    ("boundary", "memory", "storage"),
    ("tasks", "activations", "text"),
    ("transformer", "sae", "matching"),
    ("consistency",),
    ("features", "language"),
    ("compare",),
    ("campaign",),
    ("studies",),
    ("calibration",),
    ("figures",),
    ("reporting",),
    ("hooks",),
    ("tracking",),
    ("datasets",),
    ("pipelines",),
    ("pipeline_registry", "commands"),
    ("settings", "cli"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Rooms that know Kedro or MLflow; all others are library.
FRAMEWORK_ROOMS = {"tracking", "hooks", "datasets", "pipelines", "pipeline_registry", "settings"}
HINTS = "husai.pipelines.hints"  # names of types, for the nodes of all pipelines
RAY_MODULE = "husai.campaign.executors.ray"
FORBIDDEN: Mapping[str, frozenset[str]] = {
    **{
        room: frozenset({"kedro", "kedro_datasets", "mlflow", "ray"})
        for room in FLOOR_OF
        if room not in FRAMEWORK_ROOMS
    },
    **{
        room: frozenset({"kedro", "kedro_datasets", "mlflow", "ray", "transformer_lens"})
        for room in ("sae", "matching", "consistency")
    },
}


LONGEST_FILE = 520
"""Lines of a source file."""

MOST_POSITIONAL = 8
"""Inputs of a node that has them by position."""


class Import(NamedTuple):
    """One import: importing module, imported name, line, and whether it runs at import time."""

    module: str
    target: str
    line: int
    runs: bool


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def _statements(tree: ast.Module) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Yield import statements with whether they run at import (not in a function, not typing)."""

    def walk(node: ast.AST, runs: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield child, runs
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for inner in child.body:
                    yield from walk(ast.Module([inner], []), False)
                for inner in child.orelse:
                    yield from walk(ast.Module([inner], []), runs)
            else:
                own = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, runs and not own)

    yield from walk(tree, True)


def imports_of(module: str, text: str) -> Iterator[Import]:
    """Yield what a module imports; ``from a import b`` names ``a.b`` where that is a module."""
    for statement, runs in _statements(ast.parse(text)):
        if isinstance(statement, ast.Import):
            for name in statement.names:
                yield Import(module, name.name, statement.lineno, runs)
            continue
        origin = statement.module or ""
        if statement.level:  # in the stubs of packages alone
            origin = f"{module}.{origin}".removesuffix(".")
        for name in statement.names:
            whole = f"{origin}.{name.name}"
            target = whole if whole in MODULES else origin
            yield Import(module, target, statement.lineno, runs)


def stub_imports(module: str, path: Path) -> Iterator[Import]:
    """Yield what a package re-exports lazily: the imports of its ``__init__.pyi``."""
    stub = path.with_suffix(".pyi")
    if stub.is_file():
        yield from (one._replace(runs=False) for one in imports_of(module, stub.read_text()))


IMPORTS = [
    one
    for module, path in MODULES.items()
    for one in (*imports_of(module, path.read_text()), *stub_imports(module, path))
]


def room_of(module: str) -> str:
    """Return the package (its room) that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def broken_rules(imports: list[Import]) -> list[str]:
    """Return one line for each import that breaks the rules."""
    found = []
    for one in imports:
        room, top = room_of(one.module), one.target.split(".")[0]
        where = f"{one.module}:{one.line} imports {one.target}"
        if top != "husai":
            allowed = top == "ray" and one.module == RAY_MODULE
            if top in FORBIDDEN.get(room, ()) and not allowed:
                found.append(f"{where}: {room} knows nothing of {top}")
            continue
        other = room_of(one.target)
        if not room or not other:  # the package's own version
            continue
        if room == other:
            apart = one.module.split(".")[2:3] != one.target.split(".")[2:3]
            hints = one.target == HINTS and one.module.endswith(".nodes")
            if room == "pipelines" and apart and not hints:
                found.append(f"{where}: one pipeline imports another")
        elif one.module == HINTS and one.runs:
            found.append(f"{where}: what nodes share is names of types, and loads none of them")
        elif FLOOR_OF[other] >= FLOOR_OF[room]:
            found.append(f"{where}: {other} is not below {room}")
    return found


def test_every_package_has_its_place_in_the_order():
    rooms = {room_of(module) for module in MODULES} - {""}
    assert rooms <= set(FLOOR_OF), "a new room: give it a floor here and in the design"


def test_imports_go_downwards():
    assert not broken_rules(IMPORTS), "\n".join(broken_rules(IMPORTS))


@pytest.mark.parametrize(
    ("module", "text", "reason"),
    [
        ("husai.sae.x", "from husai.campaign import plan", "campaign is not below sae"),
        ("husai.sae.x", "def f():\n    import transformer_lens", "nothing of transformer_lens"),
        ("husai.consistency.x", "import mlflow.pyfunc", "nothing of mlflow"),
        ("husai.campaign.x", "import ray", "nothing of ray"),
        (
            "husai.pipelines.reporting.nodes",
            "from husai.pipelines.sae_training import nodes",
            "one pipeline imports another",
        ),
        (
            "husai.pipelines.reporting.pipeline",
            "from husai.pipelines.hints import Figure",
            "one pipeline imports another",
        ),
        (HINTS, "from husai.pipelines.reporting import nodes", "one pipeline imports another"),
        (HINTS, "from husai.consistency import SAERecord", "loads none of them"),
        ("husai.tasks.x", "import husai.activations.rows", "activations is not below tasks"),
    ],
)
def test_a_broken_rule_is_found(module, text, reason):
    (found,) = broken_rules(list(imports_of(module, text)))
    assert reason in found


def cycles(imports: list[Import]) -> list[list[str]]:
    """Return the cycles among modules that import one another, also in functions and for types."""
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for one in imports:
        if one.target in MODULES and one.target != one.module:
            graph[one.module].add(one.target)
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
            return
        if module in done:
            return
        for target in sorted(graph[module]):
            visit(target, [*path, module])
        done.add(module)

    for module in graph:
        visit(module, [])
    return found


def test_there_is_no_import_circle():
    assert cycles(IMPORTS) == []
    one, other = "husai.errors", "husai.config"
    assert cycles([Import(one, other, 1, True), Import(other, one, 1, False)])


def test_a_file_can_be_read_in_a_sitting():
    lines = {path: len(path.read_text().splitlines()) for path in MODULES.values()}
    assert {path.name: n for path, n in lines.items() if n > LONGEST_FILE} == {}


def test_nodes_have_few_inputs_or_named_ones_and_use_them_all():
    for pipeline in register_pipelines().values():
        for node in pipeline.nodes:
            assert isinstance(node._inputs, dict) or len(node.inputs) <= MOST_POSITIONAL, node.name
            text = inspect.getsource(node.func)
            unused = [n for n in inspect.signature(node.func).parameters if text.count(n) < 2]
            assert not unused, f"{node.name}: an input that only orders: {unused}"


def test_a_start_of_kedro_imports_nothing_slow():
    script = (
        "import sys, husai.settings\n"
        "from husai.pipeline_registry import register_pipelines\n"
        "register_pipelines()\n"
        "slow = {'torch', 'mlflow', 'scipy', 'matplotlib', 'numba', 'transformer_lens', 'ray'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
