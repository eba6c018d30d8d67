"""The doctor tells what is there and what to do, quickly and without loading anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from agent.cli.doctor import Finding, diagnose
from agent.config.project import Home, Project
from agent.config.settings import ModelSettings, Settings
from agent.llm.weights.catalog import CATALOG, DEFAULT_MODEL
from agent.llm.weights.convert import converted_folder


def findings(folder: Path, settings: Settings | None = None) -> dict[str, Finding]:
    found = diagnose(Project(folder, Home(folder / ".ratchet"), settings or Settings()))
    assert len({finding.what for finding in found}) == len(found)
    return {finding.what: finding for finding in found}


def test_an_empty_folder_on_a_ready_machine_has_nothing_missing(tmp_path: Path) -> None:
    found = findings(tmp_path)
    assert {
        "Python",
        "torch",
        "transformers",
        "cores",
        "memory",
        "disk",
        "sandbox",
        "settings",
        "store",
    } <= set(found)
    assert [finding for finding in found.values() if finding.level == "missing"] == []
    assert found[f"weights of {DEFAULT_MODEL}"].found.endswith("SHA-256 b179c9523d0e… as pinned")
    assert found[f"model {DEFAULT_MODEL}"].found.startswith("not converted")
    assert not (tmp_path / ".ratchet").exists()


def test_everything_that_is_not_right_comes_with_what_to_do(tmp_path: Path) -> None:
    folder = converted_folder(CATALOG[0], tmp_path / ".ratchet" / "models")
    folder.mkdir(parents=True)
    settings = Settings(model=ModelSettings(base="someone/some-model"))
    found = findings(tmp_path, settings)
    assert found[f"model {DEFAULT_MODEL}"].level == "warn"
    assert "delete the folder" in found[f"model {DEFAULT_MODEL}"].advice
    assert "needs a network" in found["model someone/some-model"].advice
    assert all(finding.advice for finding in found.values() if finding.level != "ok")


def test_it_loads_no_library_and_is_quick(tmp_path: Path) -> None:
    code = (
        "import json, sys, time; started = time.perf_counter(); from pathlib import Path\n"
        "from agent.cli.doctor import diagnose; from agent.config.project import find_project\n"
        "diagnose(find_project(Path(sys.argv[1]), {}))\n"
        "heavy = sorted({'torch', 'transformers', 'chromadb', 'peft', 'numpy'} & set(sys.modules))\n"
        "print(json.dumps([time.perf_counter() - started, heavy]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    seconds, heavy = json.loads(done.stdout)
    assert heavy == []
    assert seconds < 3
