"""Run the user's Python files as modules of a package that no other project shares.

The files of a folder are modules of the package `ratchet_tools_<hash of the folder>`, so two projects may both have a
`shop.py`. An `import helper` in such a file finds the `helper.py` beside it, also inside functions: its modules have
an `__import__` of their own. `sys.path` stays as it is. Standard library modules and the packages of Ratchet come
first, as everywhere. Does not confine the code, which has the user's rights.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

PACKAGES = ("agent", "tools", "tuner")
"""The packages of Ratchet. A user's file or folder of such a name is hidden by them, or hides them."""

PREFIX = "ratchet_tools_"

loading = threading.RLock()
"""Held while user code is loaded: one file at a time."""

_Version = tuple[int, int]
"""Time of the last change in nanoseconds, and size in bytes."""


@dataclass
class _Folder:
    """The modules of one folder that are loaded now."""

    path: Path
    name: str
    versions: dict[str, tuple[Path, _Version]] = field(default_factory=dict)
    """By full module name: its file, and the version of it that ran."""

    def has_changed(self) -> bool:
        return any(_version_of(path) != version for path, version in list(self.versions.values()))

    def unload(self) -> None:
        """Forget the modules. What runs still hold of them goes on working."""
        for name in list(self.versions):
            sys.modules.pop(name, None)
        self.versions.clear()


_folders: dict[Path, _Folder] = {}


def load_file(path: Path) -> types.ModuleType:
    """Return the module of a file. It runs again only when it, or a module beside it that it uses, has changed.

    Raises:
        Exception: Whatever the file raises.
    """
    with loading:
        folder = _folder_of(path.parent)
        name = f"{folder.name}.{path.stem}"
        if folder.has_changed():
            folder.unload()
        if name in folder.versions and name in sys.modules:
            return sys.modules[name]
        spec = spec_from_file_location(name, path, loader=_Loader(folder, name, str(path)))
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            folder.unload()
            sys.modules.pop(name, None)
            raise
        return module


def load_module(name: str, folder: Path) -> types.ModuleType:
    """Import a dotted module, from `folder` too; it stays loaded until the process ends."""
    with loading:
        if name in sys.modules:
            return sys.modules[name]
        sys.path.insert(0, str(folder))
        try:
            return importlib.import_module(name)
        finally:
            if str(folder) in sys.path:
                sys.path.remove(str(folder))


def explain_hidden(fault: BaseException, folder: Path) -> str | None:
    """Return why an import failed that meant a file of the user's named like a package of Ratchet; else None."""
    missing = getattr(fault, "name", None)
    if isinstance(fault, AttributeError):
        missing = getattr(fault.obj, "__name__", None)
    top = str(missing or "").partition(".")[0]
    own = next((path for path in (folder / f"{top}.py", folder / top) if top in PACKAGES and path.exists()), None)
    if own is None:
        return None
    package = Path(str(sys.modules[top].__file__)).parent if top in sys.modules else top
    return f"`{top}` is the package of Ratchet in {package}, which hides {own}; rename {own.name}"


def _folder_of(path: Path) -> _Folder:
    """Return the folder's package, made and registered the first time."""
    folder = _folders.get(path)
    if folder is None:
        name = f"{PREFIX}{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
        folder = _folders[path] = _Folder(path, name)
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
        if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _Finder())
    return folder


class _Finder:
    """Finds the modules of users' folders, so that they are loaded by `_Loader`."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(PREFIX) or path is None:
            return None
        folder = next((one for one in list(_folders.values()) if name.startswith(f"{one.name}.")), None)
        spec = PathFinder.find_spec(name, list(path), target)
        if folder is not None and spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(folder, name, str(spec.origin))
        return spec


class _Loader(SourceFileLoader):
    """Runs a module with an `__import__` that looks beside the file first."""

    def __init__(self, folder: _Folder, name: str, path: str) -> None:
        super().__init__(name, path)
        self._folder = folder

    def exec_module(self, module: types.ModuleType) -> None:
        path = Path(self.path)
        # Before it runs: what changes meanwhile is loaded again.
        self._folder.versions[module.__name__] = (path, _version_of(path))
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _importer(self._folder)}
        super().exec_module(module)


def _importer(folder: _Folder) -> Any:
    """Return an `__import__` for which the modules of a folder are at the top."""

    def import_name(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        top = name.partition(".")[0]
        if level or not _is_beside(top, folder.path):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = builtins.__import__(f"{folder.name}.{name}", globals, locals, fromlist or (), 0)
        return module if fromlist else sys.modules[f"{folder.name}.{top}"]

    return import_name


def _is_beside(top: str, folder: Path) -> bool:
    """Whether `import top` means a module in this folder."""
    if top in sys.stdlib_module_names or top in PACKAGES:
        return False
    spec = PathFinder.find_spec(top, [str(folder)])
    if spec is None:
        return False
    # A folder without __init__.py is a package only where there is no other of its name.
    return spec.loader is not None or (top not in sys.modules and find_spec(top) is None)


def _version_of(path: Path) -> _Version:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)
