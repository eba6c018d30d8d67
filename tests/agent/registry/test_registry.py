"""The registry: only what the table allows happens, and what is served is always hash-valid."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.errors import AdapterError
from agent.registry.registry import TRANSITIONS, Adapter, Registry, State
from tests.agent.registry.test_artifact import NOW, flip, seal_as, sealed


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


def test_the_line_is_what_rolling_back_comes_to(tmp_path: Path) -> None:
    registry = ready(tmp_path, "a1", "b2", "c3", "d4")
    assert registry.line() == ()
    for id in ("a1", "b2", "c3"):
        registry.promote(id, "better", NOW)
    assert [one.id for one in registry.line()] == ["c3", "b2", "a1"]
    flip(tmp_path / "b2" / "adapter_model.safetensors")
    assert [one.id for one in registry.line()] == ["c3", "a1"]
    registry.rollback("worse", NOW)
    assert [one.id for one in registry.line()] == ["a1"]


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
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=Path(__file__).parents[3])


DIE_BEFORE_RENAME = """
import os, sys
from pathlib import Path
from agent.registry.registry import Registry
sys.addaudithook(lambda event, arguments: os._exit(7) if event == "os.rename" else None)
Registry(Path(sys.argv[1])).promote("b2", "better", "now")
"""


def test_a_crash_between_write_and_rename_changes_nothing(tmp_path: Path) -> None:
    registry = ready(tmp_path, "a1", "b2")
    registry.promote("a1", "better", NOW)
    assert in_another_process(DIE_BEFORE_RENAME, str(tmp_path)).wait(60) == 7
    assert served(registry) == "a1"
    registry.promote("b2", "better", NOW)
    assert served(registry) == "b2"


SWING = """
import sys
from pathlib import Path
from agent.registry.registry import Registry, State
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
