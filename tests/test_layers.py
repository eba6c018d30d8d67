"""Imports only go down: the table of layers, held against the source of every module.

Imports inside functions and those for types alone count too; what differs is only noted where it is allowed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("agent", "tuner", "tools")

LAYERS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (0, ("tools",)),
    (1, ("agent.errors", "agent.records", "agent.config", "agent.text", "agent.util")),
    (2, ("agent.storage", "agent.registry", "agent.privacy.redaction", "agent.privacy.subject")),
    (3, ("agent.llm", "agent.encoders", "agent.knowledge", "agent.grounding")),
    # Erasure reaches into everything that keeps what a person wrote.
    (4, ("agent.run", "agent.feedback", "agent.runtime", "agent.privacy")),
    (5, ("agent.api", "agent.serve", "agent.cli")),
    (6, ("tuner",)),
)
"""A name stands for the module and, if it is a package, for everything in it."""

TUNER_SEES = frozenset({0, 1, 2, 3, 4, 6})
"""The tuner knows nothing of the service and the command line."""

MAY_START_TUNER = ("agent.cli.main", "agent.cli.parser", "agent.api")
"""Alone may import `tuner`: inside functions, or for types alone."""

HEAVY = frozenset({"torch", "transformers", "peft", "chromadb", "sentence_transformers", "matplotlib", "trl", "optuna"})

MAY_BE_HEAVY = frozenset(
    {
        "agent.llm.engine.attention",
        "agent.llm.engine.scheduler",
        "agent.llm.chat_model",
        "agent.llm.engine.loaded_adapters",
        "tuner.tree.mixed_precision",
        "tuner.tasks.head.model",
        "tuner.tasks.head.training",
        "tuner.training.trainer",
    }
)
"""Import heavy libraries at their top; everything else does it inside functions, or for types alone."""


@dataclass(frozen=True)
class Import:
    """One imported name, as far as it names a module."""

    module: str
    target: str
    line: int
    in_function: bool
    for_types: bool
    through_package: bool
    """A name taken from a package's `__init__`, not a module of its own."""

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    paths = (path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
    return {module_name(path): path for path in sorted(paths)}


@cache
def imports() -> tuple[Import, ...]:
    return tuple(found for name, path in modules().items() for found in imports_of(name, path))


def imports_of(name: str, path: Path) -> Iterator[Import]:
    def walk(node: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(name, alias.name, child.lineno, in_function, for_types, False)
            elif isinstance(child, ast.ImportFrom):
                source = absolute(name, path, child)
                for alias in child.names:
                    inner = f"{source}.{alias.name}"
                    target = inner if inner in modules() else source
                    through = target == source and is_package(source)
                    yield Import(name, target, child.lineno, in_function, for_types, through)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, in_function, True)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, in_function or inside, for_types)

    return walk(ast.parse(path.read_text("utf-8"), str(path)), False, False)


def absolute(name: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def is_package(name: str) -> bool:
    return name in modules() and modules()[name].name == "__init__.py"


def is_ours(name: str) -> bool:
    return name.split(".")[0] in PACKAGES


def starts_tuner(found: Import) -> bool:
    """Whether it is an import of the tuner where one is allowed."""
    is_allowed = any(found.module == name or found.module.startswith(f"{name}.") for name in MAY_START_TUNER)
    return found.target.split(".")[0] == "tuner" and is_allowed and (found.in_function or found.for_types)


def layer(name: str) -> int | None:
    if name == "agent":
        return 5  # exports the Python API
    for number, names in LAYERS:
        if any(name == entry or name.startswith(entry + ".") for entry in names):
            return number
    return None


def test_every_module_has_a_layer() -> None:
    assert [name for name in modules() if layer(name) is None] == []


def test_an_import_only_goes_down() -> None:
    wrong = []
    for found in imports():
        if not is_ours(found.target) or found.target == "agent":
            continue
        above, below = layer(found.module), layer(found.target)
        if above is None or below is None or (below > above and not starts_tuner(found)):
            wrong.append(str(found))
    assert wrong == []


def test_the_tuner_knows_nothing_of_the_service_and_the_command_line() -> None:
    ours = [found for found in imports() if found.module.startswith("tuner") and is_ours(found.target)]
    assert [str(found) for found in ours if layer(found.target) not in TUNER_SEES] == []


def test_only_the_api_and_the_command_line_import_the_tuner_and_only_when_it_is_used() -> None:
    wrong = [
        str(found)
        for found in imports()
        if found.target.split(".")[0] == "tuner" and found.module.split(".")[0] != "tuner" and not starts_tuner(found)
    ]
    assert wrong == []


def test_no_module_takes_a_name_from_the_init_of_a_package_it_is_in() -> None:
    wrong = [
        str(found)
        for found in imports()
        if (found.through_package or found.target == found.module.split(".")[0])
        and (found.module == found.target or found.module.startswith(found.target + "."))
    ]
    assert wrong == []


def test_nothing_is_imported_that_is_not_there() -> None:
    missing = [
        str(found)
        for found in imports()
        if is_ours(found.target) and found.target not in modules() and not found.target.startswith("tuner._desk")
    ]
    assert missing == []


def test_there_is_no_cycle() -> None:
    graph = {name: {found.target for found in imports() if found.module == name} for name in modules()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            pytest.fail(" -> ".join([*path[path.index(name) :], name]))
        if name in done:
            return
        for target in sorted(graph[name] & graph.keys()):
            visit(target, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_heavy_libraries_are_imported_at_the_top_of_a_few_named_modules_only() -> None:
    wrong = [
        str(found)
        for found in imports()
        if found.target.split(".")[0] in HEAVY
        and not (found.in_function or found.for_types or found.module in MAY_BE_HEAVY)
    ]
    assert wrong == []


def test_the_packages_do_nothing_when_they_are_imported() -> None:
    """`agent` sets how threads wait, see tests/agent/util/test_waiting.py, and refuses a module that hides `tools`."""
    for name, path in modules().items():
        if path.name != "__init__.py":
            continue
        body = ast.parse(path.read_text("utf-8")).body
        if name in PACKAGES:
            definitions = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.Assign
            types = [node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
            rest = [node for node in body if not isinstance(node, definitions) and node not in types]
            assert len(rest) == (3 if name == "agent" else 1), f"{name}: exports names and does nothing else"
        else:
            assert all(isinstance(node, ast.Expr) for node in body), f"{name}: a docstring alone is expected"
