"""Refuse settings and tools that another user of the machine could have written.

Settings name Python files that run with the user's rights, and both are looked for in parent folders, which on a
shared machine may be anybody's. As git's `safe.directory` does, a file and its folder must belong to the user who
runs this, or to root, who may do anything anyway; as OpenSSH's `StrictModes` does, nobody else may write to them:

- Not writable by all. A folder that is (`/tmp`) will do if it is sticky, for then nobody can replace the file in it;
  not so the folder of tools, in which a module put beside them would be imported.
- Not writable by its group, unless that is the user's own private group: the process's own group, named as the user
  and without other members, which Debian and Fedora make with a umask of 002.
- None of the folders above is writable by all, unless it is sticky. Their owners are not checked.
- Of a symbolic link, its own owner and folder are checked, and what it leads to.

Root trusts root alone, not the user who called sudo. Files are checked before they are read, without a lock. Access
control lists and modules deep inside of packages are not checked. On a system without owners nothing is refused.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from importlib.machinery import all_suffixes
from pathlib import Path

TRUST = "RATCHET_TRUST"
"""The environment variable that names trusted folders. `agent.config.environment` reads it."""


def find_fault(path: Path, trusted: Sequence[Path] = ()) -> str | None:
    """Return why a file or folder is not trusted, and what to do; None when it is.

    Args:
        path: The file or folder.
        trusted: Folders in which everything is trusted whoever owns it, but not what a link leads to outside of them.
    """
    if not hasattr(os, "geteuid"):
        return None
    try:
        faults = (_fault_of(place, status, trusted) for place, status in _places(path.absolute()))
        return next((fault for fault in faults if fault is not None), None)
    except OSError as fault:
        return f"{path} cannot be read ({fault.strerror}), so its owner is not known; give yourself access"


def find_tools_fault(place: Path, trusted: Sequence[Path] = ()) -> str | None:
    """Return why a tools file, or a folder of tool modules, must not be run; None when it may be.

    A path that does not exist has no fault.
    """
    if place.is_file():
        return find_fault(place, trusted) or _fault_beside(place.resolve().parent, trusted)
    return _fault_beside(place, trusted) if place.is_dir() else None


def _fault_beside(folder: Path, trusted: Sequence[Path]) -> str | None:
    """What is wrong with a folder that is imported from, and with the modules and packages that lie in it."""
    fault = find_fault(folder, trusted)
    folder = folder.resolve()
    if fault is not None or _is_in(folder, trusted) or not hasattr(os, "geteuid"):
        return fault
    suffixes = (*all_suffixes(), ".pyc")
    try:
        # Sticky will not do here: whoever may add a file may add a module.
        fault = _own_fault(folder, os.lstat(folder), sticky=False)
        if fault is not None:
            return fault
        entries = [entry for entry in os.scandir(folder) if entry.name.endswith(suffixes) or _is_package(entry)]
        for entry in sorted(entries, key=lambda entry: entry.name):
            place, status = Path(entry.path), entry.stat(follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                fault = _own_fault(place, status)
            elif place.exists():  # editors leave links to nothing beside a file that is open
                fault = find_fault(place, trusted)
            if fault is not None:
                return fault
    except OSError as failed:
        return f"{folder} cannot be read ({failed.strerror}), so who owns its files is not known; allow reading it"
    return None


def _places(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Each link on the way to a path, then what it leads to; every place is free of links in front of its name."""
    at = Path(path.anchor)
    names = list(reversed(path.parts[1:]))
    links = 0
    while names:
        name = names.pop()
        if name == "..":
            at = at.parent
            continue
        status = os.lstat(at / name)
        if not stat.S_ISLNK(status.st_mode):
            at = at / name
            continue
        links += 1
        if links > 40:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        yield at / name, status
        target = (at / name).readlink()
        at = Path(target.anchor) if target.is_absolute() else at
        names += reversed(target.parts[1:] if target.is_absolute() else target.parts)
    yield at, os.lstat(at)


def _fault_of(place: Path, status: os.stat_result, trusted: Sequence[Path]) -> str | None:
    if _is_in(place, trusted):
        return None
    fault = _own_fault(place, status)
    if fault is None and not stat.S_ISDIR(status.st_mode):
        fault = _own_fault(place.parent, os.lstat(place.parent))
    for folder in () if fault else place.parents:
        mode = os.lstat(folder).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return _advise(folder, "everybody may replace what is in it", f"run `chmod o-w {folder}`", place)
    return fault


def _own_fault(place: Path, status: os.stat_result, *, sticky: bool = True) -> str | None:
    """What is wrong with who owns this entry and who may write to it; a `sticky` folder others may write to will do."""
    me = os.geteuid()
    if status.st_uid not in (me, 0):
        mine = "root" if me == 0 else f"you, {_user(me)}, or root"
        return _advise(place, f"it belongs to {_user(status.st_uid)}, expected {mine}", "copy it, or make it yours")
    if stat.S_ISLNK(status.st_mode):  # has no mode of its own
        return None
    if sticky and stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return None
    if status.st_mode & stat.S_IWOTH:
        what, change = "everybody may write to it", f"`chmod o-w {place}`"
    elif status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid):
        what, change = f"the group {_group(status.st_gid)} may write to it", f"`chmod g-w {place}`"
    else:
        return None
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return _advise(place, f"{what}, so that modules may be put into it", "move the tools to a folder of their own")
    return _advise(place, what, f"run {change}")


def _advise(path: Path, what: str, change: str, place: Path | None = None) -> str:
    """Say what is wrong with a path, and how to correct or to trust it."""
    place = place or path
    folder = place if place.is_dir() and not place.is_symlink() else place.parent
    return (
        f"{path}: {what}; others could run programs as you through it: {change}, "
        f"or, where you trust them, name the project's folder in the environment: {TRUST}={folder}"
    )


def _is_in(place: Path, trusted: Sequence[Path]) -> bool:
    return any(place.is_relative_to(folder) for folder in trusted)


def _is_package(entry: os.DirEntry[str]) -> bool:
    return entry.name == "__pycache__" or Path(entry.path, "__init__.py").exists()


def _is_private(gid: int) -> bool:
    """Whether a group is the user's own: the process's, named as the user, without other members."""
    import grp
    import pwd

    if gid != os.getegid():
        return False
    try:
        user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(gid)
    except KeyError:  # an id without a name, as in containers
        return gid == os.geteuid()
    return group.gr_name == user and set(group.gr_mem) <= {user}


def _user(uid: int) -> str:
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    import grp

    try:
        return f"{grp.getgrgid(gid).gr_name} (gid {gid})"
    except KeyError:
        return f"gid {gid}"
