"""Replay: which earlier tasks are learnt again."""

from __future__ import annotations

import numpy as np

from agent.encoders.encoder import HashEncoder
from agent.records.run import Provenance, Step, Task, ToolCall, Trajectory
from tuner.data.curate import TrainingRow
from tuner.data.replay import cover, select_replay


def row(task: str, text: str) -> TrainingRow:
    step = Step(ToolCall("answer", {"text": "yes"}))
    run = Trajectory(f"run-{task}", Task(task, text), Provenance(), "", (step,))
    return TrainingRow(run.id, task, "accepted", run, {0: step}, ("ann",))


def test_cover_takes_the_middle_first_and_then_what_is_farthest() -> None:
    angles = np.radians([0, 10, 20, 30, 90, 100])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert cover(vectors, 3) == [3, 5, 0]
    assert sorted(cover(vectors, 9)) == list(range(6))
    assert cover(vectors, 0) == []


def test_new_tasks_stay_and_of_the_old_a_share_that_covers_them() -> None:
    same = [row(f"same-{number}", "where is my parcel") for number in range(6)]
    others = [row("refund", "i want my money back"), row("invoice", "send the invoice please")]
    fresh = [row("new", "cancel the order")]
    learnt = {one.task for one in [*same, *others]}
    encoder = HashEncoder()
    half = {one.task for one in select_replay([*same, *others, *fresh], learnt, 3 / 8, encoder)}
    assert half >= {"new", "refund", "invoice"}
    assert len(half) == 4
    assert [one.task for one in select_replay([*same, *fresh], learnt, 0.0, encoder)] == ["new"]
    assert len(select_replay([*same, *others, *fresh], learnt, 1.0, encoder)) == 9
