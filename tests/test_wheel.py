"""The wheel holds what it should, nothing else, and works where there is no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(REPOSITORY),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_it_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = names_in(wheel)
    tops = {PurePosixPath(name).parts[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"agent", "tuner", "tools"}
    modules = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("agent", "tuner", "tools")
        for path in (REPOSITORY / package).rglob("*.py")
    }
    assert modules <= names
    assert {f"{package}/py.typed" for package in tops & {"agent", "tuner", "tools"}} <= names
    assert not [name for name in names if "__pycache__" in name or ".ratchet" in name or name.endswith(".db")]


def test_it_carries_its_licence_and_its_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {PurePosixPath(name).name: name for name in archive.namelist() if ".dist-info/" in name}
        assert "Apache License" in archive.read(names["LICENSE"]).decode()
        assert "ratchet = agent.cli.main:main" in archive.read(names["entry_points.txt"]).decode()
        assert "License-Expression: Apache-2.0" in archive.read(names["METADATA"]).decode()


def test_it_carries_the_demo_desk(wheel: Path) -> None:
    desk = REPOSITORY / "examples" / "desk"
    files = [path for path in desk.rglob("*") if path.is_file() and path.suffix in {".py", ".md", ".toml", ".jsonl"}]
    assert files
    shipped = [path.relative_to(desk) for path in files if not path.relative_to(desk).parts[0].startswith(".")]
    assert {f"tuner/_desk/{path.as_posix()}" for path in shipped} <= names_in(wheel)


def test_it_runs_where_there_is_no_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, timeout=120)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "import agent, runpy; print(agent.__file__); runpy.run_module('agent.cli.main', run_name='__main__')"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "RATCHET"))}
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        cwd=elsewhere,
        env={**environment, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(target)
    assert "0.1.0" in done.stdout
    assert list(elsewhere.iterdir()) == []
