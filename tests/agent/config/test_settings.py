"""Settings: a file is checked as a whole, descriptions reach the template, and homes are found."""

from __future__ import annotations

import contextlib
import os
import tomllib
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config.environment import read_log_level
from agent.config.project import Home, find_project
from agent.config.reader import load_settings, settings_template
from agent.config.settings import Settings
from agent.errors import SettingsError
from tests.other_user import OTHER, as_root, open_to_readers, run_as_other


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_template_gives_back_the_defaults(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path / "ratchet.toml", settings_template())) == Settings()


def test_the_template_has_every_key_with_its_description_above_it() -> None:
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
    message = "\n".join(faults)
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
        assert part in message


def test_the_fault_of_a_key_outside_its_section_names_the_section(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"port outside a section; it belongs in \[serve\]"):
        load_settings(write(tmp_path / "ratchet.toml", "port = 1"))


def test_a_file_that_is_not_toml_or_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not TOML"):
        load_settings(write(tmp_path / "ratchet.toml", "[model"))
    with pytest.raises(SettingsError, match="ratchet init"):
        load_settings(tmp_path / "none.toml")


def test_a_fault_names_the_line_of_the_file(tmp_path: Path) -> None:
    text = '# first\n[agent]\nplan = "no"\n\n[memry]\nx = 1\n[tuning]\nr = 0\n[tools]\ntasks = { ok = "" }\n'
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path / "ratchet.toml", text))
    assert set(caught.value.faults) == {
        'line 3: [agent] plan = "no": expected true or false',
        "line 5: unknown section [memry]; did you mean memory?",
        "line 8: [tuning] r = 0: expected 1 to 1024",
        'line 10: [tools] tasks = {"ok": ""}: expected a text that is not empty',
    }


def test_keys_of_earlier_versions_are_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = '[tuning]\ncontexts = 4\nabstain = 0.5\nepochs = 2\n[memory]\nrecall_as = "both"\n'
    settings = load_settings(write(tmp_path / "ratchet.toml", text))
    assert (settings.tuning.epochs, settings.memory.recall_as) == (2, "text")
    messages = [record.getMessage() for record in caplog.records if record.name == "ratchet.config"]
    assert len(messages) == 3
    assert "[tuning] contexts = 4 is no longer used and was ignored; remove it" in messages[0]


@pytest.mark.parametrize(("section", "change"), [("model", {"threads": -1}), ("tuning", {"schedule": "steps"})])
def test_sections_made_in_python_are_checked_too(section: str, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(getattr(Settings(), section), **change)


def test_a_public_address_needs_a_key_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="key_file"):
        load_settings(write(tmp_path / "ratchet.toml", '[serve]\nhost = "0.0.0.0"'))
    with pytest.raises(SettingsError, match="key_file"):
        load_settings(write(tmp_path / "ratchet.toml", '[serve]\nhost = "127.evil.com"'))
    settings = load_settings(write(tmp_path / "ratchet.toml", '[serve]\nhost = "0.0.0.0"\nkey_file = "key"'))
    assert settings.serve.host == "0.0.0.0"


def test_a_whole_number_is_accepted_where_a_number_is_expected(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path / "ratchet.toml", "[agent]\nmax_seconds = 5"))
    assert isinstance(settings.agent.max_seconds, float)


@given(
    st.dictionaries(
        st.sampled_from(["model", "tuning", "x"]),
        st.dictionaries(st.sampled_from(["r", "base", "epochs", "y"]), st.integers() | st.booleans()),
    )
)
def test_any_file_gives_settings_or_a_settings_error(tmp_path_factory: pytest.TempPathFactory, data: object) -> None:
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


def test_a_home_elsewhere_may_contain_the_settings(tmp_path: Path) -> None:
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


def test_the_log_level_comes_from_the_environment(tmp_path: Path) -> None:
    assert read_log_level({"RATCHET_LOG": "Debug", "RATCHET_THREADS": "many"}) == "debug"
    assert read_log_level({"RATCHET_LOG": ""}) is None
    with pytest.raises(SettingsError, match=r'RATCHET_LOG = "loud": expected one of "debug", "info"'):
        read_log_level({"RATCHET_LOG": "loud"})
    with pytest.raises(SettingsError, match="RATCHET_LOG"):
        find_project(tmp_path, {"RATCHET_LOG": "loud"})


def test_faults_of_file_and_environment_are_reported_together(tmp_path: Path) -> None:
    write(tmp_path / "ratchet.toml", "[model]\nthreads = -2")
    with pytest.raises(SettingsError) as caught:
        find_project(tmp_path, {"RATCHET_THREADS": "many"})
    assert len(caught.value.faults) == 2


def test_without_a_file_all_is_default(tmp_path: Path) -> None:
    project = find_project(tmp_path, {})
    assert (project.settings, project.settings_file, project.folder) == (Settings(), None, tmp_path)


def test_settings_that_others_could_have_written_are_not_read(tmp_path: Path) -> None:
    file = write(tmp_path / "project" / "ratchet.toml", "not even TOML")
    inner = tmp_path / "project" / "inner"
    inner.mkdir()
    file.chmod(0o666)
    with pytest.raises(SettingsError, match=r"ratchet\.toml: everybody may write to it.*RATCHET_TRUST=") as caught:
        find_project(inner, {})
    assert caught.value.source == str(file)
    assert len(caught.value.faults) == 1
    file.chmod(0o644)
    file.parent.chmod(0o777)
    with pytest.raises(SettingsError, match="project: everybody may write to it"):
        find_project(inner, {})
    write(inner / "ratchet.toml", "")
    with pytest.raises(SettingsError, match="project: everybody may replace what is in it"):
        find_project(inner, {})


@pytest.mark.parametrize("open_to_all", [".ratchet/ratchet.toml", ".ratchet", "."])
def test_settings_inside_a_home_are_looked_at_with_both_folders(tmp_path: Path, open_to_all: str) -> None:
    project = tmp_path / "project"
    write(project / ".ratchet" / "ratchet.toml", "[model]\nthreads = 3")
    (project / open_to_all).chmod(0o777)
    with pytest.raises(SettingsError, match="everybody may"):
        find_project(project, {})
    with pytest.raises(SettingsError, match="everybody may"):
        find_project(tmp_path, {"RATCHET_HOME": str(project / ".ratchet")})
    assert find_project(project, {"RATCHET_TRUST": str(project)}).settings.model.threads == 3


@as_root
def test_settings_of_another_user_in_a_parent_folder_are_refused_unless_it_is_trusted(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    os.chown(write(tmp_path / "ratchet.toml", "[model]\nthreads = 3"), OTHER, -1)
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(SettingsError, match=r"it belongs to .*expected root"):
        find_project(work, {})
    trusting = find_project(work, {"RATCHET_TRUST": f"/none{os.pathsep}{tmp_path}{os.pathsep}"})
    assert (trusting.settings.model.threads, trusting.trusted) == (3, (Path("/none"), tmp_path))
    # Settings of one's own that are nearer go before them.
    write(work / "ratchet.toml", "[model]\nthreads = 2")
    assert find_project(work, {}).settings.model.threads == 2


def test_settings_of_ones_own_in_a_sticky_folder_are_read(tmp_path: Path) -> None:
    write(tmp_path / "ratchet.toml", "[model]\nthreads = 2").chmod(0o644)
    tmp_path.chmod(0o1777)
    assert find_project(tmp_path, {}).settings.model.threads == 2


def test_trusted_folders_are_absolute(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r'the environment.*\n.*RATCHET_TRUST = "project": expected an absolute'):
        find_project(tmp_path, {"RATCHET_TRUST": "project"})


@as_root
def test_a_closed_folder_of_another_user_above_is_no_project_and_no_failure(tmp_path: Path) -> None:
    write(tmp_path / ".ratchet" / "ratchet.toml", "").parent.chmod(0o700)
    open_to_readers(tmp_path)
    (tmp_path / "work").mkdir(mode=0o755)
    imports = "from pathlib import Path\nfrom agent.config.project import find_project"
    code = "print(find_project(Path(sys.argv[1]), {}).settings_file)"
    assert run_as_other(imports, code, tmp_path / "work") == "None"
