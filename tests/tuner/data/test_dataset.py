"""A dataset folder is named by what is in it, and anything else that lies there is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent.errors import DatasetError
from agent.records.run import Outcome, Provenance, Step, Task, ToolCall, Trajectory, Usage
from tools.context import Passage
from tuner.data.curate import Curated, TrainingRow
from tuner.data.dataset import Dataset, describe_held_back, read_dataset, write_dataset

ODD = 'a\u2028b\u2029c\x85d\x1ce "quoted" \\ é 漢 \U0001f600\n\ttail'
"""Text with every mark that some reader takes for the end of a line."""


def row(task: str, text: str = "Do it.") -> TrainingRow:
    said = Step(
        ToolCall("look", {"text": text, "list": [1, None, 2.5]}),
        text,
        thought=text,
        plan=("one", text),
        error=text,
        notice="again",
        token_ids=(3, 4),
        passages=(Passage(1, "p1", "doc.md", "Heading", text, 0.5),),
        usage=Usage(1, 2, 3, 4),
    )
    made_by = Provenance("small", "r1", tools={"look": "v1"})
    trajectory = Trajectory(f"run-{task}", Task(task, text, {"id": text}), made_by, "now", (said,), Outcome.ANSWERED)
    target = Step(ToolCall("answer", {"text": text}), thought="Better.", author="correction")
    return TrainingRow(trajectory.id, task, "corrected", trajectory, {0: target}, ("ann",))


def written(folder: Path, rows: Sequence[TrainingRow], share: float = 0.3) -> Dataset:
    curated = Curated(tuple(rows), {"run-x": "rated down"}, len(rows), 0)
    return write_dataset(curated, folder, validation_share=share, created_at="now", provenance={"base": "small"})


def test_a_dataset_reads_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [row(f"t-{number}", ODD if number % 2 else "Do it.") for number in range(20)]
    made = written(tmp_path, rows)
    assert sorted(made.train + made.held_out, key=lambda one: rows.index(one)) == rows
    assert read_dataset(made.folder) == made
    assert sorted(path.name for path in made.folder.iterdir()) == ["held_out.jsonl", "manifest.json", "train.jsonl"]
    assert [path.name for path in tmp_path.iterdir()] == [made.folder.name] == [made.hash[:16]]
    assert made.manifest["rows"] == {"train": len(made.train), "held_out": len(made.held_out)}
    assert (made.manifest["tasks"], made.manifest["corrections"]) == (20, 20)
    assert made.manifest["reviewers"] == ["ann"]
    assert made.manifest["left_out"] == {"run-x": "rated down"}
    assert made.manifest["base"] == "small"


def test_the_same_rows_give_the_same_folder_and_other_rows_another(tmp_path: Path) -> None:
    rows = [row(f"t-{number}") for number in range(12)]
    first, again, more = written(tmp_path, rows), written(tmp_path, rows), written(tmp_path, [*rows, row("t-12")])
    assert first == again
    assert first.hash != more.hash
    assert written(tmp_path / "other", rows).hash == first.hash


def test_a_task_stays_in_its_part_when_rows_are_added(tmp_path: Path) -> None:
    rows = [row(f"t-{number}") for number in range(60)]
    held = [{one.task for one in written(tmp_path, rows[:count]).held_out} for count in (20, 40, 60)]
    assert held[0] <= held[1] <= held[2]
    assert held[1] & {f"t-{number}" for number in range(20)} == held[0]
    assert 6 <= len(held[2]) <= 30


def test_what_the_parent_was_trained_on_is_not_held_out(tmp_path: Path) -> None:
    rows = [row(f"t-{number}") for number in range(60)]
    curated = Curated(tuple(rows), {}, 0, 0)

    def held(*known: str) -> set[str]:
        made = write_dataset(curated, tmp_path, validation_share=0.3, created_at="now", provenance={}, trained_on=known)
        assert len(made.train) + len(made.held_out) == 60
        return {one.task for one in made.held_out}

    everything = held()
    known = sorted(everything)[:3]
    assert held(*known) == everything - set(known)


def test_all_rows_of_a_task_lie_in_one_part(tmp_path: Path) -> None:
    rows = [row(f"t-{number % 15}", f"text {number}") for number in range(45)]
    made = written(tmp_path, rows)
    assert not {one.task for one in made.train} & {one.task for one in made.held_out}
    assert len(made.train) + len(made.held_out) == 45


def test_few_tasks_are_all_trained_on(tmp_path: Path) -> None:
    assert written(tmp_path, [row(f"t-{number}") for number in range(9)], share=0.3).held_out == ()


def test_nothing_to_learn_from_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="see `ratchet log`"):
        written(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train.jsonl", "held_out.jsonl"])
def test_a_changed_row_is_found_out(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path, [row(f"t-{number}") for number in range(20)]).folder
    lines = (folder / name).read_text("utf-8")
    (folder / name).write_text(lines.replace("Do it.", "Do not.", 1), "utf-8")
    with pytest.raises(DatasetError, match="has changed since it was written"):
        read_dataset(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": 1, "hash": "x"}', '{"version": 99, "hash": "x"}'])
def test_a_broken_manifest_is_found_out(tmp_path: Path, text: str) -> None:
    folder = written(tmp_path, [row("t-1")]).folder
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match=f"{folder.name}"):
        read_dataset(folder)


def test_a_folder_without_its_manifest_is_not_whole_and_is_written_again(tmp_path: Path) -> None:
    rows = [row("t-1")]
    made = written(tmp_path, rows)
    (made.folder / "manifest.json").unlink()
    (made.folder / "train.jsonl").write_text("half a l")
    with pytest.raises(DatasetError, match="is not a complete dataset"):
        read_dataset(made.folder)
    assert written(tmp_path, rows) == made


def test_the_manifest_is_the_last_thing_written(tmp_path: Path) -> None:
    folder = written(tmp_path, [row(f"t-{number}") for number in range(20)]).folder
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert max(times, key=lambda name: times[name]) == "manifest.json"
    assert json.loads((folder / "manifest.json").read_text("utf-8"))["version"] == 1


def test_what_is_held_back_is_named_with_its_reason(tmp_path: Path) -> None:
    kinds = {"fact": 2, "exception": 1}
    curated = Curated((row("t"),), {}, 4, 0, {"c1": "fact, says ann: new"}, kinds)
    made = write_dataset(curated, tmp_path, validation_share=0.0, created_at="now", provenance={})
    assert made.manifest["held_back"] == {"c1": "fact, says ann: new"}
    assert made.manifest["held_back_kinds"] == kinds
    assert describe_held_back(kinds) == "1 exception, 2 knowledge gaps"
    with pytest.raises(DatasetError, match=r"not trained \(1 exception, 2 knowledge gaps\); see `ratchet corrections`"):
        write_dataset(replace(curated, rows=()), tmp_path, validation_share=0.0, created_at="now", provenance={})
