"""Adapters: what is not whole and safe is refused, and what is served is always hash-valid."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.adapters import (
    TRANSITIONS,
    Adapter,
    Registry,
    State,
    add_documents,
    hash_tensors,
    seal,
    tensors_hash,
    verify,
)
from agent.errors import AdapterError

NOW = "2026-01-01T00:00:00Z"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "auto_mapping": None}


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return with_header(header, data)


def with_header(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def make(home: Path, id: str, content: bytes | None = None) -> Path:
    folder = home / id
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    weights = {"a": ("F32", [2, 1], (content or id.encode())[:8].ljust(8, b"."))}
    (folder / "adapter_model.safetensors").write_bytes(safetensors(weights))
    (folder / "README.md").write_text("# card")
    return folder


def sealed(home: Path, id: str, content: bytes | None = None) -> Path:
    folder = make(home, id, content)
    seal_as(folder, id)
    return folder


def seal_as(folder: Path, id: str) -> None:
    seal(
        folder,
        id=id,
        base="smollm2",
        base_revision="1",
        dataset_hash="d",
        parent=None,
        tuning="t1",
        created_at=NOW,
        code_version="0.1",
    )


def served(registry: Registry) -> str | None:
    active = registry.active()
    return None if active is None else active.id


def ready(home: Path, *ids: str) -> Registry:
    """A registry in which each of `ids` has passed the gate."""
    registry = Registry(home)
    for id in ids:
        registry.add(sealed(home, id))
        registry.transition(id, State.GATED, "passed", NOW)
    return registry


def test_a_sealed_folder_verifies(tmp_path: Path) -> None:
    folder = sealed(tmp_path, "a1")
    manifest = verify(folder)
    assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert manifest.tensors_sha256 == tensors_hash(folder / "adapter_model.safetensors")
    assert (manifest.id, manifest.base, manifest.parent) == ("a1", "smollm2", None)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def set_manifest(folder: Path, **values: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed weight": (
        lambda folder: flip(folder / "adapter_model.safetensors"),
        "adapter_model.safetensors is not",
    ),
    "a changed card": (lambda folder: flip(folder / "README.md"), "README.md is not what was sealed"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "never finished"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "lacks adapter_model"),
    "a pickle": (
        lambda folder: (folder / "adapter_model.bin").write_bytes(pickle.dumps(1)),
        "adapter_model.bin",
    ),
    "a python file": (lambda folder: (folder / "modeling.py").write_text(""), "modeling.py may not be"),
    "a hidden file": (lambda folder: (folder / ".x").write_text(""), ".x may not be"),
    "a folder": (lambda folder: (folder / "more").mkdir(), "more may not be"),
    "a link": (lambda folder: (folder / "report").symlink_to("/tmp"), "report may not be"),
    "a newer manifest": (lambda folder: set_manifest(folder, version=9), "version 9.*upgrade"),
    "other tensors named": (lambda folder: set_manifest(folder, tensors_sha256="0"), "tensors of"),
    "an unknown field": (lambda folder: set_manifest(folder, surprise=1), "not a manifest"),
    "no list of files": (lambda folder: set_manifest(folder, files=[]), "not a manifest"),
    "no file named": (lambda folder: set_manifest(folder, files={}), "does not name adapter_config"),
    "a file outside": (lambda folder: set_manifest(folder, files={"../x": "0"}), "does not name"),
    "no JSON": (lambda folder: (folder / "manifest.json").write_text("{"), "not a manifest"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_folder_is_refused_by_name(tmp_path: Path, case: str) -> None:
    tamper, said = TAMPERED[case]
    folder = sealed(tmp_path, "a1")
    tamper(folder)
    with pytest.raises(AdapterError, match=said):
        verify(folder)


def test_a_linked_file_is_refused(tmp_path: Path) -> None:
    folder = sealed(tmp_path, "a1")
    (folder / "README.md").rename(tmp_path / "card")
    (folder / "README.md").symlink_to(tmp_path / "card")
    with pytest.raises(AdapterError, match=r"README.md is not a plain file"):
        verify(folder)
    (tmp_path / "a2").symlink_to(folder)
    with pytest.raises(AdapterError, match="not a folder"):
        verify(tmp_path / "a2")


@pytest.mark.parametrize("name", ["run.py", "x.pkl", ".hidden.md", "deep"])
def test_a_report_holds_documents_only(tmp_path: Path, name: str) -> None:
    folder = sealed(tmp_path, "a1")
    (folder / "report").mkdir()
    (folder / "report" / "gate.json").write_text("{}")
    verify(folder)
    (folder / "report" / name).write_text("")
    with pytest.raises(AdapterError, match=name):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}}, "auto_mapping"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"r": 0}, "r = 0"),
        ({"r": True}, "r = True"),
    ],
)
def test_a_configuration_that_names_code_or_is_no_lora_is_not_sealed(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    folder = make(tmp_path, "a1")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(AdapterError, match=said):
        seal_as(folder, "a1")
    assert not (folder / "manifest.json").exists()


def test_a_report_is_added_to_a_sealed_folder(tmp_path: Path) -> None:
    folder = sealed(tmp_path, "a1")
    before = verify(folder)
    add_documents(folder, {"report/gate.json": b"{}", "README.md": b"# better card"})
    add_documents(folder, {"report/gate.json": b'{"ship": true}'})
    after = verify(folder)
    assert set(after.files) - set(before.files) == {"report/gate.json"}
    assert after.tensors_sha256 == before.tensors_sha256
    for name in ("adapter_model.safetensors", "report/../manifest.json", "report/x.py", "../x.md"):
        with pytest.raises(AdapterError):
            add_documents(folder, {name: b""})


def test_the_hash_of_tensors_ignores_order_and_metadata_but_nothing_else(tmp_path: Path) -> None:
    a = ("F32", [1, 2], b"12345678")
    b: tuple[str, list[int], bytes] = ("BF16", [], b"12")
    path = tmp_path / "x.safetensors"

    def hashed(content: bytes) -> str:
        path.write_bytes(content)
        return tensors_hash(path)

    one = hashed(safetensors({"a": a, "b": b}))
    assert one == hashed(safetensors({"b": b, "a": a}, {"format": "pt"}))
    assert one == hash_tensors([("b", "BF16", (), b"12"), ("a", "F32", (1, 2), memoryview(b"12345678"))])
    others = [
        {"a": a},
        {"a": a, "c": b},
        {"a": ("I32", *a[1:]), "b": b},
        {"a": ("F32", [2, 1], a[2]), "b": b},
        {"a": ("F32", [1, 2], b"12345679"), "b": b},
    ]
    assert len({one, *(hashed(safetensors(other)) for other in others)}) == 6


def test_the_layout_hashed_is_the_one_written_down() -> None:
    import hashlib

    number = struct.Struct("<Q").pack
    expected = b"ratchet-tensors-1\n" + number(1) + b"a" + number(3) + b"F16" + number(2) + number(3) + number(1)
    expected += number(6) + b"abcdef"
    assert hash_tensors([("a", "F16", (3, 1), b"abcdef")]) == hashlib.sha256(expected).hexdigest()


BROKEN = {
    "an empty file": b"",
    "a header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
    "a header that is no object": with_header([], b""),
    "an entry that is no object": with_header({"a": 1}, b""),
    "a gap": with_header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"12"),
    "data behind the tensors": with_header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"12"),
    "data cut off": with_header({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}, b"12"),
    "a shape that does not fit": with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
    "a number below zero": with_header({"a": {"dtype": "U8", "shape": [-1, -2], "data_offsets": [0, 2]}}, b"12"),
    "an unknown dtype": with_header({"a": {"dtype": "OBJ", "shape": [2], "data_offsets": [0, 2]}}, b"12"),
    "two tensors of one name": struct.pack("<Q", 17) + b'{"a": 1, "a": 2} ',
    "overlap": with_header({name: {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} for name in ("a", "b")}, b"12"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_safetensors_file_is_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(BROKEN[case])
    with pytest.raises(AdapterError, match="safetensors"):
        tensors_hash(tmp_path / "x.safetensors")


def test_an_adapter_goes_from_trained_to_active_to_retired(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert registry.active() is None
    registry.add(sealed(tmp_path, "a1"))
    registry.transition("a1", State.GATED, "gain 3 of 20", NOW)
    registry.transition("a1", State.CANARY, "try it", NOW)
    canary = registry.canary()
    assert canary is not None
    assert canary.id == "a1"
    registry.promote("a1", "held", NOW)
    assert served(registry) == "a1"
    ready(tmp_path, "b2").promote("b2", "better", NOW)
    assert served(registry) == "b2"
    assert registry.get("a").state is State.RETIRED
    assert [change.after for change in registry.history() if change.adapter == "a1"] == [
        State.TRAINED,
        State.GATED,
        State.CANARY,
        State.ACTIVE,
        State.RETIRED,
    ]


def test_rolling_back_goes_further_back_each_time_and_ends_at_the_base(tmp_path: Path) -> None:
    registry = ready(tmp_path, "a1", "b2", "c3")
    for id in ("a1", "b2", "c3"):
        registry.promote(id, "better", NOW)
    back = [registry.rollback("worse", NOW) for _ in range(3)]
    assert [one and one.id for one in back] == ["b2", "a1", None]
    assert served(registry) is None
    with pytest.raises(AdapterError, match="nothing to roll back"):
        registry.rollback("worse", NOW)


def test_a_rolled_back_adapter_passes_the_gate_again_before_it_is_promoted_again(tmp_path: Path) -> None:
    registry = ready(tmp_path, "a1")
    registry.promote("a1", "better", NOW)
    registry.rollback("worse", NOW)
    with pytest.raises(AdapterError, match="retired; gate it again"):
        registry.promote("a1", "after all", NOW)
    registry.transition("a1", State.GATED, "passed again", NOW)
    registry.promote("a1", "after all", NOW)
    assert served(registry) == "a1"


@pytest.mark.parametrize(
    ("before", "to"), [(before, to) for before in State for to in State if to not in TRANSITIONS[before]]
)
def test_what_the_table_does_not_allow_is_refused(tmp_path: Path, before: State, to: State) -> None:
    registry = Registry(tmp_path)
    registry.add(sealed(tmp_path, "a1"))
    way = {
        State.TRAINED: [],
        State.GATED: [State.GATED],
        State.CANARY: [State.GATED, State.CANARY],
        State.ACTIVE: [State.GATED, State.ACTIVE],
        State.RETIRED: [State.GATED, State.ACTIVE],
        State.REJECTED: [State.REJECTED],
    }[before]
    for state in way:
        registry.transition("a1", state, "", NOW)
    if before is State.RETIRED:
        registry.rollback("", NOW)
    known = (tmp_path / "registry.json").read_bytes()
    with pytest.raises(AdapterError, match=f"is {before}, which {to} cannot follow"):
        registry.transition("a1", to, "", NOW)
    assert (tmp_path / "registry.json").read_bytes() == known


def test_there_is_one_canary_at_most(tmp_path: Path) -> None:
    registry = ready(tmp_path, "a1", "b2")
    registry.transition("a1", State.CANARY, "", NOW)
    with pytest.raises(AdapterError, match="a1 is the canary"):
        registry.transition("b2", State.CANARY, "", NOW)


def test_an_active_adapter_that_breaks_gives_way_to_the_one_before_it_and_says_so(tmp_path: Path) -> None:
    registry = ready(tmp_path, "a1", "b2")
    registry.promote("a1", "better", NOW)
    registry.promote("b2", "better", NOW)
    assert served(registry) == "b2"
    assert registry.serving().warning is None
    flip(tmp_path / "b2" / "adapter_model.safetensors")
    assert served(registry) == "a1"
    assert "adapter a1 is served instead" in (registry.serving().warning or "")
    (tmp_path / "a1" / "manifest.json").unlink()
    assert served(registry) is None
    assert "the base is served instead" in (registry.serving().warning or "")
    assert registry.rollback("broken", NOW) is None


def test_a_folder_sealed_anew_with_other_weights_is_not_served(tmp_path: Path) -> None:
    registry = ready(tmp_path, "a1")
    registry.promote("a1", "better", NOW)
    flip(tmp_path / "a1" / "adapter_model.safetensors")
    seal_as(tmp_path / "a1", "a1")
    assert served(registry) is None
    assert "sealed anew" in (registry.serving().warning or "")


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path: Path) -> None:
    registry = ready(tmp_path, "a1")
    registry.promote("a1", "better", NOW)
    path = tmp_path / "a1" / "adapter_model.safetensors"
    times = path.stat()
    time.sleep(0.15)
    assert served(registry) == "a1"
    flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert served(registry) is None


def test_asking_for_the_active_adapter_is_cheap(tmp_path: Path) -> None:
    registry = ready(tmp_path, "a1")
    registry.promote("a1", "better", NOW)
    time.sleep(0.15)
    registry.active()
    start = time.perf_counter()
    for _ in range(100):
        registry.active()
    assert (time.perf_counter() - start) / 100 < 0.005


def test_another_registry_object_sees_a_change_at_once(tmp_path: Path) -> None:
    writer, reader = ready(tmp_path, "a1"), Registry(tmp_path)
    assert reader.active() is None
    writer.promote("a1", "better", NOW)
    assert served(reader) == "a1"


def test_only_a_folder_of_the_registry_is_added_and_only_once(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "home")
    with pytest.raises(AdapterError, match="move it to"):
        registry.add(sealed(tmp_path / "elsewhere", "a1"))
    registry.add(sealed(tmp_path / "home", "a1"))
    with pytest.raises(AdapterError, match="in the registry already"):
        registry.add(tmp_path / "home" / "a1")


def test_adapters_are_found_by_an_unambiguous_beginning(tmp_path: Path) -> None:
    registry = ready(tmp_path, "ab1", "ab2")
    assert registry.get("ab1").id == "ab1"
    for name, said in (("ab", "begins several"), ("x", "no adapter"), ("", "no adapter")):
        with pytest.raises(AdapterError, match=said):
            registry.get(name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ('{"version": 9}', "upgrade"),
        ("[]", "cannot be read"),
        ('{"version": 1, "line": ["a"], "adapters": [], "history": []}', "disagree"),
    ],
)
def test_a_registry_that_cannot_be_read_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "registry.json").write_text(text)
    with pytest.raises(AdapterError, match=said):
        Registry(tmp_path).active()


def in_another_process(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=Path(__file__).parents[2])


DIE_BEFORE_RENAME = """
import os, sys
from pathlib import Path
from agent.adapters import Registry, seal, add_documents
sys.addaudithook(lambda event, arguments: os._exit(7) if event == "os.rename" else None)
home = Path(sys.argv[1])
if sys.argv[2] == "promote":
    Registry(home).promote("b2", "better", "now")
elif sys.argv[2] == "report":
    add_documents(home / "a1", {"report/gate.json": b"{}"})
else:
    seal(home / "c3", id="c3", base="b", base_revision="", dataset_hash="", parent=None, tuning="",
         created_at="", code_version="")
"""


def test_a_crash_between_write_and_rename_changes_nothing(tmp_path: Path) -> None:
    registry = ready(tmp_path, "a1", "b2")
    registry.promote("a1", "better", NOW)
    make(tmp_path, "c3")
    for act in ("promote", "report", "seal"):
        assert in_another_process(DIE_BEFORE_RENAME, str(tmp_path), act).wait(60) == 7
    assert served(registry) == "a1"
    with pytest.raises(AdapterError, match="never finished"):
        verify(tmp_path / "c3")
    registry.promote("b2", "better", NOW)
    add_documents(tmp_path / "a1", {"report/gate.json": b"{}"})
    seal_as(tmp_path / "c3", "c3")
    verify(tmp_path / "c3")
    assert served(registry) == "b2"


SWING = """
import sys
from pathlib import Path
from agent.adapters import Registry, State
registry = Registry(Path(sys.argv[1]))
while True:
    state = registry.get("a1").state
    if state is State.ACTIVE:
        registry.rollback("", "now")
    elif state is State.RETIRED:
        registry.transition("a1", State.GATED, "", "now")
    else:
        registry.promote("a1", "", "now")
"""


def test_the_registry_reads_well_after_every_kill(tmp_path: Path) -> None:
    registry = ready(tmp_path, "a1")
    chance = random.Random(0)
    for _ in range(8):
        before = len(registry.history())
        writer = in_another_process(SWING, str(tmp_path))
        deadline = time.monotonic() + 30
        while len(registry.history()) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        writer.kill()
        writer.wait()
        history = registry.history()
        assert len(history) > before
        assert all(one.after is two.before for one, two in pairwise(history))
        assert (served(registry) == "a1") is (history[-1].after is State.ACTIVE)


class Life(RuleBasedStateMachine):
    """Random transitions; a plain list of what was promoted is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.home = Path(self.place.name)
        self.registry = Registry(self.home)
        self.line: list[str] = []
        self.broken: set[str] = set()

    def teardown(self) -> None:
        self.place.cleanup()

    def adapter(self, data: st.DataObject) -> Adapter:
        return data.draw(st.sampled_from(self.registry.list()))

    @precondition(lambda self: len(self.registry.list()) < 4)
    @rule()
    def add(self) -> None:
        self.registry.add(sealed(self.home, f"a{len(self.registry.list())}"))

    @precondition(lambda self: self.registry.list())
    @rule(data=st.data(), to=st.sampled_from(State))
    def move(self, data: st.DataObject, to: State) -> None:
        adapter = self.adapter(data)
        with contextlib.suppress(AdapterError):
            self.registry.transition(adapter.id, to, "", NOW)
            assert to in TRANSITIONS[adapter.state]
            if to is State.ACTIVE:
                assert adapter.state in (State.GATED, State.CANARY)
                assert adapter.id not in self.broken
                self.line.append(adapter.id)

    @precondition(lambda self: self.line)
    @rule()
    def roll_back(self) -> None:
        states = {adapter.id: adapter.state for adapter in self.registry.list()}
        gone = self.line.pop()
        states[gone] = State.RETIRED
        while self.line and (self.line[-1] in self.broken or states[self.line[-1]] is not State.RETIRED):
            self.line.pop()
        back = self.registry.rollback("", NOW)
        assert (back and back.id) == (self.line[-1] if self.line else None)

    @precondition(lambda self: self.registry.list())
    @rule(data=st.data())
    def tamper(self, data: st.DataObject) -> None:
        adapter = self.adapter(data)
        if adapter.id not in self.broken:
            flip(adapter.folder / "adapter_model.safetensors")
            self.broken.add(adapter.id)

    @rule()
    def restart(self) -> None:
        self.registry = Registry(self.home)

    @invariant()
    def what_is_served_is_valid_and_the_newest_that_is(self) -> None:
        states = {adapter.id: adapter.state for adapter in self.registry.list()}
        assert [id for id, state in states.items() if state is State.ACTIVE] == self.line[-1:]
        good = [id for id in self.line if id not in self.broken and states[id] in (State.ACTIVE, State.RETIRED)]
        serving = self.registry.serving()
        assert (serving.adapter and serving.adapter.id) == (good[-1] if good else None)
        assert (serving.warning is None) is (good[-1:] == self.line[-1:])

    @invariant()
    def history_holds_only_allowed_steps(self) -> None:
        now: dict[str, State] = {}
        for change in self.registry.history():
            assert change.before is now.get(change.adapter)
            assert change.before is None or change.after in TRANSITIONS[change.before]
            now[change.adapter] = change.after
        assert now == {adapter.id: adapter.state for adapter in self.registry.list()}


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
