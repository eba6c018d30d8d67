"""What another user could have written is refused, with what was found and what to do; what is one's own is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.other_user import OTHER, as_root, open_to_readers, run_as_other
from tools.trust import TRUST, find_fault, find_tools_fault


def own(folder: Path, name: str = "ratchet.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("")
    (folder / name).chmod(0o644)
    folder.chmod(0o755)
    return folder / name


def test_a_file_of_ones_own_that_nobody_else_may_write_to_is_trusted(tmp_path: Path) -> None:
    file = own(tmp_path / "project")
    assert find_fault(file) is None
    assert find_tools_fault(file) is None
    assert find_fault(file.parent) is None
    file.chmod(0o400)
    file.parent.chmod(0o500)
    assert find_fault(file) is None


@as_root
@pytest.mark.parametrize("name", ["project/ratchet.toml", "project"])
def test_what_belongs_to_another_user_is_refused(tmp_path: Path, name: str) -> None:
    file = own(tmp_path / "project")
    os.chown(tmp_path / name, OTHER, -1)
    fault = find_fault(file) or ""
    assert fault.startswith(f"{tmp_path / name}: it belongs to ")
    assert f"uid {OTHER}" in fault
    assert "expected root" in fault
    assert f"{TRUST}={tmp_path / 'project'}" in fault
    assert find_fault(file, [tmp_path / "project"]) is None
    assert find_fault(file, [tmp_path]) is None
    assert find_fault(file, [tmp_path / "proj"]) is not None


@as_root
def test_what_belongs_to_root_is_trusted_by_everybody(tmp_path: Path) -> None:
    file = own(tmp_path / "project")
    open_to_readers(tmp_path)
    imports = "from pathlib import Path\nfrom tools.trust import find_fault"
    code = "print(find_fault(Path(sys.argv[1])))"
    assert run_as_other(imports, code, file) == "None"
    os.chown(file, 12345, -1)
    assert "it belongs to uid 12345, expected you, " in run_as_other(imports, code, file)


def test_what_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    file = own(tmp_path / "project")
    file.chmod(0o646)
    assert f"{file}: everybody may write to it" in (find_fault(file) or "")
    assert f"`chmod o-w {file}`" in (find_fault(file) or "")
    file.chmod(0o644)
    file.parent.chmod(0o757)
    assert f"{file.parent}: everybody may write to it" in (find_fault(file) or "")
    assert find_fault(file, [file.parent]) is None


def test_a_folder_above_in_which_everybody_may_replace_what_is_there_is_refused(tmp_path: Path) -> None:
    file = own(tmp_path / "open" / "between" / "project")
    (tmp_path / "open").chmod(0o777)
    assert (find_fault(file) or "").startswith(f"{tmp_path / 'open'}: everybody may replace what is in it")
    assert find_fault(file, [file.parent]) is None
    (tmp_path / "open").chmod(0o1777)
    assert find_fault(file) is None


def test_a_file_of_ones_own_in_a_sticky_folder_is_trusted_but_tools_are_not(tmp_path: Path) -> None:
    file = own(tmp_path / "shared", "own.py")
    file.parent.chmod(0o1777)
    assert find_fault(file) is None
    assert "modules may be put into it" in (find_tools_fault(file) or "")
    assert "move the tools to a folder of their own" in (find_tools_fault(file.parent) or "")


def test_a_group_may_write_only_if_it_is_the_users_own(tmp_path: Path) -> None:
    import grp
    import pwd

    file = own(tmp_path / "project")
    file.chmod(0o664)
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid())
    private = group.gr_name == user and set(group.gr_mem) <= {user}
    os.chown(file, -1, os.getegid())
    assert (find_fault(file) is None) == private


@as_root
def test_a_group_of_several_may_not_write(tmp_path: Path) -> None:
    file = own(tmp_path / "project")
    os.chown(file, -1, OTHER)
    assert find_fault(file) is None
    file.chmod(0o664)
    assert "the group " in (find_fault(file) or "")
    assert f"`chmod g-w {file}`" in (find_fault(file) or "")
    file.chmod(0o644)
    os.chown(file.parent, -1, OTHER)
    file.parent.chmod(0o775)
    assert f"{file.parent}: the group " in (find_fault(file) or "")


@as_root
def test_of_a_link_the_owner_counts_as_well_as_of_what_it_leads_to(tmp_path: Path) -> None:
    file = own(tmp_path / "elsewhere")
    link = tmp_path / "project" / "ratchet.toml"
    link.parent.mkdir(mode=0o755)
    link.symlink_to(Path("..") / "elsewhere" / "ratchet.toml")
    assert find_fault(link) is None
    os.chown(link, OTHER, -1, follow_symlinks=False)
    assert (find_fault(link) or "").startswith(f"{link}: it belongs to ")
    assert find_fault(link, [link.parent]) is None
    os.chown(link, 0, -1, follow_symlinks=False)
    os.chown(file, OTHER, -1)
    assert (find_fault(link) or "").startswith(f"{file}: it belongs to ")
    assert find_fault(link, [link.parent]) is not None
    assert find_fault(link, [file.parent]) is None


@as_root
def test_a_link_on_the_way_to_a_file_is_looked_at_too(tmp_path: Path) -> None:
    own(tmp_path / "real")
    (tmp_path / "home").symlink_to(tmp_path / "real")
    assert find_fault(tmp_path / "home" / "ratchet.toml") is None
    os.chown(tmp_path / "home", OTHER, -1, follow_symlinks=False)
    assert (find_fault(tmp_path / "home" / "ratchet.toml") or "").startswith(f"{tmp_path / 'home'}: it belongs to ")


def test_links_that_lead_in_circles_or_nowhere_are_refused_and_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "cannot be read" in (find_fault(tmp_path / "a") or "")
    assert "cannot be read" in (find_fault(tmp_path / "none") or "")


@as_root
@pytest.mark.parametrize("name", ["helper.py", "kit", "__pycache__", "fast.so", "old.pyc"])
def test_a_module_beside_the_tools_of_another_user_is_refused(tmp_path: Path, name: str) -> None:
    file = own(tmp_path / "project", "own.py")
    own(tmp_path / "project" / "kit", "__init__.py")
    (file.parent / "__pycache__").mkdir()
    for other in ("helper.py", "fast.so", "old.pyc", "notes.txt"):
        own(file.parent, other)
    os.chown(file.parent / "notes.txt", OTHER, -1)
    assert find_tools_fault(file) is None
    os.chown(file.parent / name, OTHER, -1)
    for place in (file, file.parent):
        assert (find_tools_fault(place) or "").startswith(f"{file.parent / name}: it belongs to ")
        assert find_tools_fault(place, [file.parent]) is None


def test_a_link_to_nothing_beside_the_tools_does_no_harm(tmp_path: Path) -> None:
    file = own(tmp_path / "project", "own.py")
    (file.parent / ".#own.py").symlink_to("ann@host.4711")
    assert find_tools_fault(file) is None
