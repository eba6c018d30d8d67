"""Settings: files are checked whole, notes reach the template, and homes are found."""

from __future__ import annotations

import contextlib
import tomllib
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import SettingsError
from agent.settings import Home, Settings, find_project, load_settings, settings_template


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_template_gives_back_the_defaults(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path / "ratchet.toml", settings_template())) == Settings()


def test_the_template_names_every_key_with_a_note_above_it() -> None:
    lines = settings_template().splitlines()
    parsed = tomllib.loads(settings_template())
    for section in fields(Settings):
        keys = {key.name for key in fields(getattr(Settings(), section.name))}
        assert set(parsed[section.name]) == keys
    for above, line in pairwise(lines):
        if line and not line.startswith("#"):
            assert above.startswith("# ")
            assert len(above) > 10


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path / "ratchet.toml", "")) == Settings()


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    text = """
    top = 1
    [modle]
    base = "x"
    [model]
    dtype = "int3"
    threads = -1
    max_sessions = true
    [tuning]
    lerning_rate = 0.1
    learning_rate = nan
    targets = []
    epochs = 2.5
    [tools]
    files = "desk.py"
    [gate]
    resamples = 1
    """
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path / "ratchet.toml", text))
    faults = caught.value.faults
    assert len(faults) == 11
    said = "\n".join(faults)
    for part in (
        "unknown key top outside a section",
        "unknown section [modle]; did you mean model?",
        '[model] dtype = "int3": expected one of "auto", "float32"',
        "[model] threads = -1: expected 0 to 1024",
        "[model] max_sessions = true: expected a whole number",
        "[tuning] unknown key lerning_rate; did you mean learning_rate?",
        "[tuning] learning_rate = NaN: expected a number",
        "at least one",
        "[tuning] epochs = 2.5: expected a whole number",
        '[tools] files = "desk.py": expected a list of texts',
        "[gate] resamples = 1: expected 100 or more",
    ):
        assert part in said


def test_a_key_outside_its_section_is_told_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"port outside a section; it belongs in \[serve\]"):
        load_settings(write(tmp_path / "ratchet.toml", "port = 1"))


def test_a_file_that_is_no_toml_or_not_there_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not TOML"):
        load_settings(write(tmp_path / "ratchet.toml", "[model"))
    with pytest.raises(SettingsError, match="ratchet init"):
        load_settings(tmp_path / "none.toml")


def test_a_public_address_needs_a_key_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="key_file"):
        load_settings(write(tmp_path / "ratchet.toml", '[serve]\nhost = "0.0.0.0"'))
    settings = load_settings(write(tmp_path / "ratchet.toml", '[serve]\nhost = "0.0.0.0"\nkey_file = "key"'))
    assert settings.serve.host == "0.0.0.0"


def test_a_whole_number_will_do_for_a_real_one(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path / "ratchet.toml", "[agent]\nmax_seconds = 5"))
    assert isinstance(settings.agent.max_seconds, float)


@given(
    st.dictionaries(
        st.sampled_from(["model", "tuning", "x"]),
        st.dictionaries(st.sampled_from(["r", "base", "epochs", "y"]), st.integers() | st.booleans()),
    )
)
def test_a_file_is_read_or_refused_but_never_breaks(tmp_path_factory: pytest.TempPathFactory, data: object) -> None:
    assert isinstance(data, dict)
    lines = []
    for section, keys in data.items():
        lines += [f"[{section}]", *(f"{key} = {str(value).lower()}" for key, value in keys.items())]
    path = write(tmp_path_factory.mktemp("settings") / "ratchet.toml", "\n".join(lines))
    with contextlib.suppress(SettingsError):
        assert isinstance(load_settings(path), Settings)


def test_the_home_is_beside_the_nearest_settings_upward(tmp_path: Path) -> None:
    write(tmp_path / "ratchet.toml", "")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert Home.find(inner, {}).root == tmp_path / ".ratchet"
    write(inner / "ratchet.toml", "")
    assert Home.find(inner, {}).root == inner / ".ratchet"


def test_without_settings_the_home_is_in_the_starting_folder(tmp_path: Path) -> None:
    assert Home.find(tmp_path, {}).root == tmp_path / ".ratchet"
    assert not (tmp_path / ".ratchet").exists()


def test_ratchet_home_goes_before_everything(tmp_path: Path) -> None:
    write(tmp_path / "ratchet.toml", "")
    home = Home.find(tmp_path, {"RATCHET_HOME": "/srv/ratchet"})
    assert home.database == Path("/srv/ratchet/ratchet.db")
    assert Home.find(tmp_path, {"RATCHET_HOME": ""}).root == tmp_path / ".ratchet"


def test_settings_beside_the_project_go_before_those_in_the_home(tmp_path: Path) -> None:
    write(tmp_path / ".ratchet" / "ratchet.toml", "[model]\nthreads = 3")
    (tmp_path / "inner").mkdir()
    project = find_project(tmp_path / "inner", {})
    assert (project.folder, project.settings.model.threads) == (tmp_path, 3)
    assert project.home.root == tmp_path / ".ratchet"
    write(tmp_path / "ratchet.toml", "[model]\nthreads = 2")
    project = find_project(tmp_path, {})
    assert (project.folder, project.settings.model.threads) == (tmp_path, 2)
    assert project.resolve("desk.py") == tmp_path / "desk.py"


def test_a_home_elsewhere_may_hold_the_settings(tmp_path: Path) -> None:
    write(tmp_path / "home" / "ratchet.toml", "[model]\nthreads = 3")
    start = tmp_path / "work"
    start.mkdir()
    project = find_project(start, {"RATCHET_HOME": str(tmp_path / "home")})
    assert (project.folder, project.settings.model.threads) == (tmp_path / "home", 3)


def test_starting_inside_the_home_finds_its_project(tmp_path: Path) -> None:
    write(tmp_path / ".ratchet" / "ratchet.toml", "[model]\nthreads = 3")
    project = find_project(tmp_path / ".ratchet", {})
    assert (project.folder, project.home.root) == (tmp_path, tmp_path / ".ratchet")


def test_threads_from_the_environment_go_before_the_file(tmp_path: Path) -> None:
    write(tmp_path / "ratchet.toml", "[model]\nthreads = 2")
    assert find_project(tmp_path, {"RATCHET_THREADS": "1"}).settings.model.threads == 1
    with pytest.raises(SettingsError, match="RATCHET_THREADS"):
        find_project(tmp_path, {"RATCHET_THREADS": "many"})


def test_faults_of_file_and_environment_are_reported_together(tmp_path: Path) -> None:
    write(tmp_path / "ratchet.toml", "[model]\nthreads = -2")
    with pytest.raises(SettingsError) as caught:
        find_project(tmp_path, {"RATCHET_THREADS": "many"})
    assert len(caught.value.faults) == 2


def test_without_a_file_all_is_default(tmp_path: Path) -> None:
    project = find_project(tmp_path, {})
    assert (project.settings, project.settings_file, project.folder) == (Settings(), None, tmp_path)
