"""Which passages of which runs fit a query, which do not, and which part a query is in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from agent.encoders.encoder import HashEncoder
from agent.errors import DatasetError
from agent.knowledge.chunking import Chunk
from agent.knowledge.knowledge import Knowledge
from agent.records.feedback import Correction, Rating
from agent.records.run import Outcome, Provenance, Step, Task, ToolCall, Trajectory
from agent.storage.store import Store
from tools.context import Passage
from tuner.encoder import dataset as encoder_lessons
from tuner.encoder import queries as encoder_pairs
from tuner.encoder.dataset import EncoderDataset, Part, RelevanceJudgement, read_encoder_dataset, write_encoder_dataset
from tuner.encoder.queries import gather_dataset

AT = "2026-01-01T00:00:00Z"


def part_of(task: str) -> Part:
    """The part that queries of a task are in."""
    rest = 1 - encoder_pairs.HELD_OUT
    return encoder_lessons.part_of_group(
        task, held_out=encoder_pairs.HELD_OUT, validation=rest * encoder_pairs.VALIDATION
    )


def passage(label: int, id: str) -> Passage:
    return Passage(label, id, f"{id}.md", "Help", f"All about {id}.")


def run(
    name: str, task: str, shown: Sequence[str], cited: Sequence[int], *, query: str = "", labels: Sequence[int] = ()
) -> Trajectory:
    """A run that searched once and answered."""
    passages = tuple(passage(label, id) for label, id in enumerate(shown, 1))
    steps = (
        Step(ToolCall("search_knowledge", {"query": query or f"about {task}"}), "found", passages=passages),
        Step(ToolCall("answer", {"text": "So.", "citations": list(cited)})),
    )
    return Trajectory(name, Task(f"t-{name}", task), Provenance(), AT, steps, Outcome.ANSWERED, None, AT)


def rating(name: str, verdict: Literal["up", "down"]) -> Rating:
    return Rating(f"{name}-{verdict}", name, verdict, "ann", "", AT)


def correction(name: str, index: int, tool: str, **arguments: object) -> Correction:
    return Correction(f"{name}-{index}", name, index, ToolCall(tool, arguments), "", (), "bob", "", AT)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "ratchet.db") as opened:
        for number in range(40):  # enough of each part, whatever the test adds
            keep(opened, run(f"filler-{number}", f"filler {number}", [f"f{number}", f"g{number}"], [1]))
        yield opened


def keep(store: Store, trajectory: Trajectory, verdict: Literal["up", "down"] | None = "up") -> None:
    store.begin(trajectory)
    if verdict is not None:
        store.feedback.add_rating(rating(trajectory.id, verdict))


def nothing(ids: Sequence[str]) -> dict[str, Chunk]:
    return {}


def of(dataset: EncoderDataset, query: str) -> tuple[set[str], tuple[str, ...]] | None:
    """Ids of the passages that fit a query, and of those that do not."""
    for one in dataset.judgements:
        if one.query == query:
            return set(one.positives), one.negatives
    return None


def test_what_an_accepted_answer_cites_fits_the_task_and_what_was_searched_for(store: Store) -> None:
    keep(store, run("a", "How long may I keep it?", ["loan", "fees", "card"], [2], query="loan period"))
    dataset = gather_dataset(store, nothing)
    assert of(dataset, "How long may I keep it?") == ({"fees"}, ("loan", "card"))
    assert of(dataset, "loan period") == ({"fees"}, ("loan", "card"))
    assert dataset.passages["fees"] == Chunk("fees", "fees.md", "Help", 0, "All about fees.")


def test_what_nobody_accepted_and_what_cites_nothing_teaches_nothing(store: Store) -> None:
    keep(store, run("a", "unseen", ["loan"], [1]), None)
    keep(store, run("b", "down", ["loan"], [1]), "down")
    keep(store, run("c", "citing nothing", ["loan"], []))
    dataset = gather_dataset(store, nothing)
    assert [of(dataset, text) for text in ("unseen", "down", "citing nothing")] == [None, None, None]


def test_what_a_corrected_answer_cited_is_the_hardest_negative(store: Store) -> None:
    keep(store, run("a", "Which card?", ["loan", "fees", "card"], [2]), "down")
    store.feedback.add_correction(correction("a", 1, "answer", text="This.", citations=[3]))
    assert of(gather_dataset(store, nothing), "Which card?") == ({"card"}, ("fees", "loan"))


def test_an_answer_behind_a_corrected_step_is_stale(store: Store) -> None:
    keep(store, run("a", "Which card?", ["loan", "card"], [2]))
    store.feedback.add_correction(correction("a", 0, "search_knowledge", query="cards"))
    assert of(gather_dataset(store, nothing), "Which card?") is None


def test_the_same_query_of_several_runs_is_one_and_what_fits_once_is_never_wrong(store: Store) -> None:
    keep(store, run("a", "Which card?", ["loan", "card"], [2]))
    keep(store, run("b", "which  CARD?", ["loan", "fees", "card"], [1]))
    dataset = gather_dataset(store, nothing)
    assert of(dataset, "Which card?") == ({"card", "loan"}, ("fees",))
    assert of(dataset, "which  CARD?") is None


def test_a_joined_passage_is_the_chunks_that_are_still_there_with_the_text_of_now(store: Store) -> None:
    there = {"c1": Chunk("c1", "now.md", "New", 3, "The text of now.")}
    keep(store, run("a", "Which card?", ["c1+c2", "gone1+gone2"], [1]))
    dataset = gather_dataset(store, lambda ids: {id: there[id] for id in ids if id in there})
    assert of(dataset, "Which card?") == ({"c1"}, ("gone1+gone2",))
    assert dataset.passages["c1"].text == "The text of now."
    assert dataset.passages["gone1+gone2"].text == "All about gone1+gone2."


def test_a_near_copy_of_what_fits_is_not_taken_for_wrong(store: Store) -> None:
    shown = run("a", "Which card?", ["card", "copy", "fees"], [1])
    text = "All about card."
    first, *others = shown.steps
    copies = tuple(replace(one, text=text) if one.id == "copy" else one for one in first.passages)
    keep(store, replace(shown, steps=(replace(first, passages=copies), *others)))
    assert of(gather_dataset(store, nothing), "Which card?") == ({"card"}, ("fees",))


def test_further_negatives_stand_below_what_fits_in_the_search(store: Store, tmp_path: Path) -> None:
    keep(store, run("a", "tents", ["unused"], [1]))
    folder = tmp_path / "help"
    folder.mkdir()
    for name, text in (
        ("best", "tents tents tents and nothing but tents"),
        ("right", "tents are sent back by post"),
        ("copy", "tents are sent back by post"),
        ("below", "shoes and tents and hats and gloves of wool"),
    ):
        (folder / f"{name}.txt").write_text(text)
    memory = Knowledge.open(tmp_path / "m.db", tmp_path / "index", HashEncoder())
    memory.add_folder(folder)
    order = {one.document: one.id for one in memory.search("tents", 9, join=False)}
    assert next(iter(order)) == "best.txt"
    right = next(id for name, id in order.items() if name in ("right.txt", "copy.txt"))
    shown = run("b", "Where do tents go?", [right], [1], query="tents")
    keep(store, shown)
    dataset = gather_dataset(store, nothing, search=lambda query, k: memory.search(query, k, join=False))
    memory.close()
    found = of(dataset, "tents")
    assert found is not None
    assert right in found[0]
    assert order["below.txt"] in found[1]
    assert order["best.txt"] not in found[1], "it may be right as well: nobody said that it is not"


def test_all_queries_of_a_task_are_in_the_part_its_text_says_and_parts_never_change(store: Store) -> None:
    dataset = gather_dataset(store, nothing)
    assert {one.part for one in dataset.judgements} == {"train", "validation", "held_out"}
    for number in range(40):
        parts = {one.part for one in dataset.judgements if one.query.endswith(f"filler {number}")}
        assert parts == {part_of(f"filler {number}")}
    before = {one.query: one.part for one in dataset.judgements}
    for number in range(40, 60):
        keep(store, run(f"filler-{number}", f"filler {number}", [f"f{number}"], [1]))
    after = {one.query: one.part for one in gather_dataset(store, nothing).judgements}
    assert {query: after[query] for query in before} == before
    shares = [part_of(str(number)) for number in range(2000)]
    assert 0.27 < shares.count("held_out") / 2000 < 0.33
    assert 0.11 < shares.count("validation") / 2000 < 0.17


def test_a_query_that_is_held_out_in_one_run_is_trained_on_in_none(store: Store) -> None:
    kept = next(text for text in map(str, range(99)) if part_of(text) == "train")
    held = next(text for text in map(str, range(99)) if part_of(text) == "held_out")
    for name, task in (("a", kept), ("b", held)):
        keep(store, run(name, task, ["loan"], [1], query="the same words"))
    dataset = gather_dataset(store, nothing)
    assert {one.part for one in dataset.judgements if one.query == "the same words"} == {"held_out"}
    assert {one.part for one in dataset.judgements if one.query == kept} == {"train"}


def test_pairs_come_from_a_file_and_are_chunks_of_the_documents_where_they_say_the_same(
    store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"query": "blue hat", "positive": "Hats  are blue.", "negatives": ["Line\u2028end."]},
        {"query": "red hat", "positive": "Only in the file."},
    ]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    known = Chunk("k1", "hats.md", "Hats", 0, "Hats are blue.")
    dataset = gather_dataset(store, nothing, pairs=file, known=[known])
    found, other = of(dataset, "blue hat"), of(dataset, "red hat")
    assert found is not None
    assert other is not None
    assert found[0] == {"k1"}
    assert [dataset.passages[id].text for id in (*found[1], *other[0])] == ["Line\u2028end.", "Only in the file."]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1 is no JSON"),
        ('{"query": "a"}', 'line 1 is \'{"query": "a"}\'; expected'),
        ('{"query": "a", "positive": " "}', "expected"),
        ('{"query": "a", "positive": "b", "negatives": "c"}', "expected"),
        ('{"query": "a", "positive": "b", "label": 1}', "expected"),
        ("[]", "expected"),
    ],
)
def test_a_pair_that_is_none_is_named_by_its_line(store: Store, tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(line)
    with pytest.raises(DatasetError) as fault:
        gather_dataset(store, nothing, pairs=file)
    assert said in str(fault.value)


def test_a_file_of_pairs_that_is_not_there_is_said_so(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        gather_dataset(store, nothing, pairs=tmp_path / "none.jsonl")


def test_without_feedback_and_with_too_little_it_says_what_to_do(tmp_path: Path) -> None:
    with Store(tmp_path / "empty.db") as empty:
        with pytest.raises(DatasetError, match="no feedback to tune the encoder with"):
            gather_dataset(empty, nothing)
        keep(empty, run("a", "one task", ["loan"], [1]))
        with pytest.raises(DatasetError, match="2 queries with right passages are too few"):
            gather_dataset(empty, nothing)


def test_lessons_are_read_back_as_they_were_and_a_changed_file_is_refused(store: Store, tmp_path: Path) -> None:
    keep(store, run("a", "With\u2028an odd end of line", ["loan", "fees"], [1]))
    dataset = gather_dataset(store, nothing)
    folder = write_encoder_dataset(dataset, tmp_path, created_at=AT)
    assert folder == write_encoder_dataset(gather_dataset(store, nothing), tmp_path, created_at="later")
    assert read_encoder_dataset(folder) == dataset
    assert all(isinstance(one, RelevanceJudgement) for one in dataset.judgements_in("train"))
    queries = folder / "queries.jsonl"
    queries.write_text(queries.read_text("utf-8").replace("held_out", "train", 1), encoding="utf-8")
    with pytest.raises(DatasetError, match="its hash differs"):
        read_encoder_dataset(folder)
