"""Checks what is installed, what is missing, and what to do about it.

Nothing is loaded, downloaded or changed, so it is quick and works on an incomplete installation. It does not check that
torch computes correctly; `ratchet demo --quick` does.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.config.project import Project
from agent.errors import AdapterError, SettingsError, WeightsError
from agent.llm.weights.catalog import CATALOG
from agent.llm.weights.convert import packaged_file
from agent.llm.weights.load import list_models
from tools.trust import find_tools_fault

Level = Literal["ok", "warn", "missing"]

DISTRIBUTION = "ratchet-loop"
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "langchain-core",
    "llguidance",
    "chromadb",
    "sentence-transformers",
    "sqlalchemy",
)
"""Always reported; other dependencies are reported only when something is wrong with them."""

GIGABYTE = 10**9
MEMORY_NEEDED = 4 * GIGABYTE
"""For tuning the default model; serving it needs a third."""
DISK_NEEDED = 3 * GIGABYTE
"""For the converted default model, and some adapters with checkpoints."""


@dataclass(frozen=True)
class Finding:
    """One line of `ratchet doctor`."""

    what: str
    found: str
    level: Level
    advice: str = ""
    """What to do; empty when nothing needs to be done."""


def diagnose(project: Project, settings_error: SettingsError | None = None) -> list[Finding]:
    """Check everything that a first run needs, in the order in which a person would fix it.

    Args:
        project: The project; with default settings when its own are faulty.
        settings_error: The faults of the settings.
    """
    return [
        _python(),
        _system(),
        *_libraries(),
        _extra("serve", "the HTTP service and the web page"),
        _extra("files", "documents other than Markdown and text"),
        _gpu(),
        _cores(),
        _memory(),
        _disk(project.home.root),
        *_packaged(),
        *_models(project),
        *([_settings(project)] if settings_error is None else _settings_faults(settings_error)),
        *_tools(project),
        *_tasks(project),
        _store(project.home.database),
        _sandbox(),
    ]


def _python() -> Finding:
    return Finding(
        "Python", f"{platform.python_version()} at {sys.executable}", "ok"
    )  # an older Python cannot import this module


def _system() -> Finding:
    found = f"{platform.system()} {platform.release()} on {platform.machine()}"
    if platform.system() == "Linux":
        return Finding("system", found, "ok")
    return Finding("system", found, "warn", "only Linux is tested; on other systems some features may fail")


def _libraries() -> Iterator[Finding]:
    ranges = _required("")
    for name in [*LIBRARIES, *sorted(ranges.keys() - set(LIBRARIES))]:
        finding = _library(name, ranges.get(name, ""))
        if name in LIBRARIES or finding.level != "ok":
            yield finding


def _library(name: str, wanted: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed", "missing", f"pip install '{name}{wanted}'")
    if not SpecifierSet(wanted, prereleases=True).contains(version):
        return Finding(name, version, "warn", f"{wanted} is needed: pip install '{name}{wanted}'")
    return Finding(name, version, "ok")


def _extra(extra: str, what_for: str) -> Finding:
    ranges = _required(extra)
    absent = [name for name, wanted in ranges.items() if _library(name, wanted).level != "ok"]
    if not absent:
        return Finding(f"extra {extra}", ", ".join(ranges) or "nothing to install", "ok")
    advice = f"only for {what_for}: pip install '{DISTRIBUTION}[{extra}]'"
    return Finding(f"extra {extra}", f"without {', '.join(absent)}", "warn", advice)


def _required(extra: str) -> dict[str, str]:
    """Return the names and version ranges that `extra` requires; for "", those that are always required."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
        requirements = [Requirement(line) for line in lines]
        selected = [
            item
            for item in requirements
            if (extra == "" and (item.marker is None or item.marker.evaluate({"extra": ""})))
            or (extra and item.marker and "extra" in str(item.marker) and item.marker.evaluate({"extra": extra}))
        ]
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that was not installed
        file = Path(__file__).parents[2] / "pyproject.toml"
        declared = tomllib.loads(file.read_text("utf-8"))["project"] if file.is_file() else {}
        lines = declared.get("optional-dependencies", {}).get(extra, []) if extra else declared.get("dependencies", [])
        selected = [Requirement(line) for line in lines]
    return {item.name: str(item.specifier) for item in selected}


def _gpu() -> Finding:
    seen = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()
    try:
        build = importlib.metadata.version("torch").partition("+")[2]
    except importlib.metadata.PackageNotFoundError:
        build = ""
    if not seen:
        return Finding("GPU", "none found; the CPU is used", "ok")
    if build == "cpu":
        advice = "install a torch built for CUDA to use it: pip install --force-reinstall torch"
        return Finding("GPU", "an NVIDIA driver, but torch is built for the CPU", "warn", advice)
    return Finding("GPU", "an NVIDIA driver", "ok")


def _cores() -> Finding:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count >= 2:
        return Finding("cores", str(count), "ok")
    return Finding("cores", str(count), "warn", "two or more are expected; with one, everything takes twice as long")


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        total, free = sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return Finding("memory", "cannot be read on this system", "warn", f"{_gb(MEMORY_NEEDED)} should be free")
    found = f"{_gb(free)} free of {_gb(total)}"
    if free >= MEMORY_NEEDED:
        return Finding("memory", found, "ok")
    return Finding("memory", found, "warn", f"{_gb(MEMORY_NEEDED)} should be free to tune; close other programs")


def _disk(home: Path) -> Finding:
    folder = next(folder for folder in (home, *home.parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    found = f"{_gb(free)} free at {home}"
    if free >= DISK_NEEDED:
        return Finding("disk", found, "ok")
    advice = f"{_gb(DISK_NEEDED)} should be free; free some or set RATCHET_HOME to a larger disk"
    return Finding("disk", found, "warn", advice)


def _packaged() -> Iterator[Finding]:
    for entry in CATALOG:
        what = f"weights of {entry.name}"
        try:
            path = packaged_file(entry)
        except WeightsError as error:
            level: Level = "missing" if entry.find() is None else "warn"
            yield Finding(what, str(error).partition("; ")[0], level, str(error).partition("; ")[2])
        else:
            yield Finding(what, f"{path}, SHA-256 {entry.sha256[:12]}… as pinned", "ok")


def _models(project: Project) -> Iterator[Finding]:
    entries = list_models(project.home.models)
    for entry in entries:
        if entry.state == "not installed":
            continue  # reported with its wheel
        level: Level = "warn" if entry.state == "broken" else "ok"
        found = f"{entry.state}, {entry.size / 10**6:,.0f} MB in {entry.where}"
        yield Finding(f"{entry.kind} {Path(entry.name).name}", found, level, entry.advice)
    names = {entry.name for entry in entries}
    configured = {"model": project.settings.model.base, "encoder": project.settings.model.encoder}
    for kind, name in configured.items():
        if name.lower() not in names and not Path(name).expanduser().is_dir():
            advice = "downloaded at first use; needs a network, or the local Hugging Face cache"
            yield Finding(f"{kind} {name}", "neither a known name nor a folder, so a hub id", "warn", advice)


def _settings(project: Project) -> Finding:
    if project.settings_file is not None:
        return Finding("settings", str(project.settings_file), "ok")
    return Finding("settings", "no ratchet.toml; every setting has its default", "ok")


def _settings_faults(error: SettingsError) -> Iterator[Finding]:
    """Faults of the settings; all other findings then describe the defaults."""
    for number, fault in enumerate(error.faults):
        what, _, advice = fault.partition("; ")
        name = "settings" if number == 0 else f"settings ({number + 1})"
        yield Finding(name, what, "missing", advice or f"correct {error.source}")


def _tools(project: Project) -> Iterator[Finding]:
    """The files and modules of tools, checked without running them."""
    for name in dict.fromkeys(project.settings.tools.files):
        is_file = name.endswith(".py") or "/" in name
        place = project.resolve(name) if is_file else project.folder
        fault = find_tools_fault(place, project.trusted)
        if fault is not None:
            what, _, advice = fault.partition("; ")
            yield Finding(f"tools {name}", what, "missing", advice)
        elif is_file and not place.is_file():
            yield Finding(f"tools {name}", f"{place} does not exist", "missing", "correct its path in ratchet.toml")
        else:
            yield Finding(f"tools {name}", str(place) if is_file else "a module, imported by name", "ok")


def _tasks(project: Project) -> Iterator[Finding]:
    """The trained tasks in [tools] tasks."""
    from agent.registry.artifact import verify
    from agent.registry.task_models import find_task, serving

    for tool in project.settings.tools.tasks:
        try:
            folder = find_task(project, tool)
            served = serving(folder)
            version = folder if served.adapter is None else served.adapter.folder
            manifest = verify(version)
        except AdapterError as error:
            yield Finding(f"task {tool}", str(error).partition("; ")[0], "missing", str(error).partition("; ")[2])
        else:
            level: Level = "warn" if served.warning else "ok"
            yield Finding(f"task {tool}", f"{manifest.id} on {manifest.base} in {version}", level, served.warning or "")


def _store(path: Path) -> Finding:
    if not path.is_file():
        return Finding("store", f"none yet; the first run creates {path}", "ok")
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return Finding("store", f"{path}, {path.stat().st_size / 10**6:,.1f} MB", "ok")
    return Finding("store", f"{path} cannot be written", "warn", f"give yourself write access to {path.parent}")


def _sandbox() -> Finding:
    found = [name for name in ("bwrap", "docker") if shutil.which(name)]
    if found:
        return Finding("sandbox", f"{' and '.join(found)}; no built-in tool needs one", "ok")
    advice = "no built-in tool needs one; to confine tools of your own, install bubblewrap"
    return Finding("sandbox", "neither bubblewrap nor docker", "ok", advice)


def _gb(size: int) -> str:
    return f"{size / GIGABYTE:.1f} GB"
