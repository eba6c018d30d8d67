"""`make bench-house`: how the source is laid out, counted from the syntax trees of `agent`, `tuner` and `tools`.

The figures say how easily the code is found and read. They do not say whether it is right; the tests do that.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.bench.results import ROOT, write_result
from tests.test_layers import Import, absolute, imports, is_ours, layer, modules, starts_tuner

PACKAGES = ("agent", "tuner", "tools")
LONG_FILE, LONG_FUNCTION, LONG_CLASS = 400, 60, 300
"""Lines above which a file, a function or a class is counted as long."""

# fmt: off
FORBIDDEN_NAMES = frozenset({
    "backed", "beginnings", "chosen", "due", "faces", "found", "going", "guess", "heard", "held", "judged",
    "keeping", "kept", "known", "learnt", "lessons", "looseness", "made", "one", "phrases", "said", "sealing",
    "shelf", "shown", "telling", "told", "tunable",
})
# fmt: on
"""Words of `style.md` that no top-level public name consists of, in any case."""

IMPORT_PROBE = """
import time
started = time.process_time()
import agent, tuner, tools
print(time.process_time() - started)
"""

Row = dict[str, Any]


def main() -> int:
    metrics, rows = measure()
    path = write_result("house", "make bench-house", metrics, rows)
    for name, value in metrics.items():
        print(f"{name}: {'not measured' if value is None else round(value, 3)}")
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def measure() -> tuple[dict[str, float | None], list[Row]]:
    """Return every metric, and a row for each place that a count names."""
    rooms = Counter(str(path.parent.relative_to(ROOT)) for path in sources())
    room, most = rooms.most_common(1)[0]
    places = {
        "files_over_400": long_files(LONG_FILE),
        "functions_over_60": long_functions(),
        "classes_over_300": long_classes(),
        "duplicate_class_names": [
            {"name": name, "places": found} for name, found in sorted(duplicate_class_names().items())
        ],
        "arrows_up": [{"name": str(arrow)} for arrow in upward_imports()],
        "patches_in_tests": [{"name": place} for place in patches_in_tests()],
    }
    metrics: dict[str, float | None] = {
        "source_lines": sum(line_count(path) for path in sources()),
        **{name: len(rows) for name, rows in places.items()},
        "rooms_flat_max": most,
        "quickstart_lines": quickstart_lines((ROOT / "README.md").read_text("utf-8")),
        "light_import_seconds": light_import_seconds(),
    }
    rows = [{"metric": name, **row} for name, group in places.items() for row in group]
    lines = Counter({package: sum(line_count(path) for path in sources(package)) for package in PACKAGES})
    rows += [{"metric": "source_lines", "name": package, "lines": count} for package, count in lines.items()]
    rows.append({"metric": "rooms_flat_max", "name": room, "files": most})
    return metrics, rows


@cache
def sources(*packages: str) -> tuple[Path, ...]:
    """Return the Python files of these packages, or of all three."""
    return tuple(path for package in packages or PACKAGES for path in sorted((ROOT / package).rglob("*.py")))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@cache
def line_count(path: Path) -> int:
    return len(path.read_text("utf-8").split("\n")) - 1


def long_files(limit: int) -> list[Row]:
    """Return the files of more than `limit` lines."""
    return [{"name": _name(path), "lines": line_count(path)} for path in sources() if line_count(path) > limit]


def long_functions() -> list[Row]:
    """Return the functions and methods of more than 60 lines, signature and docstring included."""
    return _long((ast.FunctionDef, ast.AsyncFunctionDef), LONG_FUNCTION)


def long_classes() -> list[Row]:
    return _long((ast.ClassDef,), LONG_CLASS)


def duplicate_class_names() -> dict[str, list[str]]:
    """Return each class name that is defined more than once, private ones included, with its files."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sources():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(_name(path))
    return {name: files for name, files in places.items() if len(files) > 1}


def private_imports() -> list[str]:
    """Return the imports of a name that begins with an underscore from another of our modules."""
    return [
        f"{_name(path)}:{node.lineno} imports {alias.name} from {source}"
        for name, path in modules().items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and is_ours(source := absolute(name, path, node))
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__") and f"{source}.{alias.name}" not in modules()
    ]


def public_names() -> Iterator[tuple[str, str]]:
    """Yield the file and the name of each public top-level function, class and constant."""
    for path in sources():
        for node in tree_of(path).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            else:
                continue
            yield from ((_name(path), name) for name in names if not name.startswith("_"))


def upward_imports() -> list[Import]:
    """Return the imports that the table of `tests/test_layers.py` does not allow."""
    return [
        arrow
        for arrow in imports()
        if is_ours(arrow.target) and arrow.target != "agent" and _goes_up(arrow) and not starts_tuner(arrow)
    ]


def patches_in_tests(folder: Path = ROOT / "tests") -> list[str]:
    """Return the places where a test replaces an attribute of our own code.

    An object that the file did not import from a foreign library counts as ours, instances included.
    """
    return [f"{_name(path)}:{line}" for path in sorted(folder.rglob("*.py")) for line in patched_lines(tree_of(path))]


def patched_lines(tree: ast.Module) -> list[int]:
    """Return the lines of a test file that patch our own code."""
    foreign = set(_foreign_names(tree))
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        function = ast.unparse(node.func)
        if function.endswith(("monkeypatch.setattr", "monkeypatch.delattr", "patch", "patch.object")):
            target = node.args[0]
            if isinstance(target, ast.Constant):
                patched = isinstance(target.value, str) and is_ours(target.value)
            else:
                patched = _root(target) not in foreign
            lines += [node.lineno] if patched else []
    return lines


def quickstart_lines(readme: str) -> int | None:
    """Return the code lines of the first Python block that imports `Agent`, or None where there is none."""
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    block = next((block for block in blocks if "from agent import Agent" in block), None)
    if block is None:
        return None
    lines = (line.strip() for line in block.splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def light_import_seconds(repeats: int = 5) -> float:
    """Return the CPU seconds that importing the three packages takes in a fresh process, the best of `repeats`."""
    command = [sys.executable, "-c", IMPORT_PROBE]
    outputs = [
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
        for _ in range(repeats)
    ]
    return min(float(output) for output in outputs)


def _long(kinds: tuple[type[ast.stmt], ...], limit: int) -> list[Row]:
    return [
        {"name": f"{_name(path)}:{getattr(node, 'name', '')}", "lines": lines}
        for path in sources()
        for node in ast.walk(tree_of(path))
        if isinstance(node, kinds) and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > limit
    ]


def _goes_up(arrow: Import) -> bool:
    above, below = layer(arrow.module), layer(arrow.target)
    return above is None or below is None or below > above


def _foreign_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names: Mapping[str, str] = {(alias.asname or alias.name.split(".")[0]): alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(alias.asname or alias.name): node.module or "" for alias in node.names}
        else:
            continue
        yield from (name for name, source in names.items() if source.split(".")[0] not in (*PACKAGES, "tests"))


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def forbidden_public_names(words: Sequence[str] = tuple(FORBIDDEN_NAMES)) -> list[str]:
    """Return the public top-level names that consist of one of these words."""
    return [f"{file}: {name}" for file, name in public_names() if name.lower() in words]


if __name__ == "__main__":
    raise SystemExit(main())
