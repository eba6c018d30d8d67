from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from agent.encoders.encoder import HashEncoder, Vectors
from agent.errors import MemoryIndexError
from agent.knowledge.knowledge import Knowledge
from agent.knowledge.vector_index import ChromaIndex, IndexLock, Stamp

OpenKnowledge = Callable[..., Knowledge]


def places(memory: Knowledge, query: str, k: int = 1) -> list[str]:
    return [f"{passage.document} > {passage.heading}" for passage in memory.search(query, k)]


def test_results_name_document_and_heading(open_memory: OpenKnowledge, folder: Path) -> None:
    memory = open_memory()
    report = memory.add_folder(folder)
    assert report.added == ("returns.md", "shipping.md", "stoves.txt")
    assert report.chunks_embedded == 4
    best, *others = memory.search("when does the money of refunds arrive", 3)
    assert (best.document, best.heading, best.label) == ("returns.md", "Returns > Refunds", 0)
    assert best.text == "Money arrives after five days."
    assert len(others) == 2
    assert best.score > others[0].score >= others[1].score
    assert len(memory.search("tent", 50)) == 4
    assert memory.search("  ", 3) == []
    assert memory.search("tent", 0) == []


def test_a_search_without_documents_has_no_results(open_memory: OpenKnowledge) -> None:
    assert open_memory().search("tent", 3) == []


def test_adding_again_changes_only_what_changed(open_memory: OpenKnowledge, folder: Path) -> None:
    memory = open_memory()
    memory.add_folder(folder)
    again = memory.add_folder(folder)
    assert again.unchanged == ("returns.md", "shipping.md", "stoves.txt")
    assert again.chunks_embedded == 0
    text = (folder / "returns.md").read_text()
    (folder / "returns.md").write_text(text.replace("five", "seven"))
    (folder / "shipping.md").unlink()
    (folder / "new.md").write_text("# Boots\n\nBoots are waxed.")
    calls: list[tuple[int, int, str]] = []
    third = memory.add_folder(folder, progress=lambda done, total, name: calls.append((done, total, name)))
    assert (third.added, third.changed, third.unchanged, third.removed) == (
        ("new.md",),
        ("returns.md",),
        ("stoves.txt",),
        ("shipping.md",),
    )
    assert third.chunks_embedded == 2  # of the changed document only the changed section
    assert calls == [(1, 2, "new.md"), (2, 2, "returns.md")]
    assert "seven" in memory.search("money refunds arrives", 1)[0].text
    assert all(passage.document != "shipping.md" for passage in memory.search("parcels warehouse", 9))


def test_other_chunk_settings_split_documents_again(open_memory: OpenKnowledge, folder: Path) -> None:
    open_memory().add_folder(folder)
    assert open_memory(chunk_tokens=5).add_folder(folder).changed == (
        "returns.md",
        "shipping.md",
        "stoves.txt",
    )


def test_an_unreadable_file_keeps_its_old_text_and_an_empty_one_does_not(
    open_memory: OpenKnowledge, folder: Path
) -> None:
    memory = open_memory()
    memory.add_folder(folder)
    (folder / "returns.md").write_bytes(b"\xff\x00")
    (folder / "stoves.txt").write_text("")
    report = memory.add_folder(folder)
    assert [entry.name for entry in report.skipped] == ["returns.md", "stoves.txt"]
    assert report.removed == ("stoves.txt",)
    assert [document.name for document in memory.documents()] == ["returns.md", "shipping.md"]


def test_a_second_folder_neither_removes_nor_overwrites_the_first(
    open_memory: OpenKnowledge, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "returns.md").write_text("Something else.")
    (other / "knots.md").write_text("Tie a bowline.")
    memory = open_memory()
    memory.add_folder(folder)
    report = memory.add_folder(other)
    assert report.added == ("knots.md",)
    assert report.removed == ()
    assert report.skipped[0].reason.startswith("a document of this name was added from")
    moved = folder.rename(tmp_path / "moved")
    assert memory.add_folder(moved).unchanged == ("returns.md", "shipping.md", "stoves.txt")
    assert len(memory.documents()) == 4


def test_a_removed_document_is_not_found(open_memory: OpenKnowledge, folder: Path) -> None:
    memory = open_memory()
    memory.add_folder(folder)
    memory.remove("stoves.txt")
    assert all(passage.document != "stoves.txt" for passage in memory.search("gas stoves", 9))
    with pytest.raises(MemoryIndexError, match=r"no document is named 'stoves\.txt' among 2"):
        memory.remove("stoves.txt")


@pytest.mark.parametrize("damage", ["missing", "no database", "cut database", "no vectors", "cut vectors", "noise"])
def test_a_damaged_index_is_rebuilt_from_the_document_store(
    open_memory: OpenKnowledge, folder: Path, tmp_path: Path, damage: str
) -> None:
    for number in range(40):
        (folder / f"n{number}.md").write_text(f"# N{number}\n\nword{number} other{number}")
    first = open_memory()
    first.add_folder(folder)
    first.close()
    chroma = tmp_path / "home" / "index" / "chroma"
    (database,) = chroma.glob("*/chroma.sqlite3")
    (data,) = chroma.glob("*/*/data_level0.bin")
    if damage == "missing":
        shutil.rmtree(chroma)
    elif damage == "no database":
        database.unlink()
    elif damage == "cut database":
        database.write_bytes(database.read_bytes()[:5000])
    elif damage == "noise":
        database.write_bytes(b"noise" * 5000)
    elif damage == "no vectors":
        shutil.rmtree(data.parent)
    else:
        data.write_bytes(data.read_bytes()[:100])
    memory = open_memory()
    assert places(memory, "word7 other7") == ["n7.md > N7"]
    assert len(memory.search("word7", 100)) == 44
    index = ChromaIndex(chroma)
    memory.close()
    try:
        assert index.open() == Stamp(memory_generation(open_memory()), 44, "hash-256")
    finally:
        index.close()


def memory_generation(memory: Knowledge) -> int:
    return memory.store.state().generation


def test_an_index_of_another_generation_is_rebuilt(open_memory: OpenKnowledge, folder: Path, tmp_path: Path) -> None:
    first = open_memory()
    first.add_folder(folder)
    first.close()
    home = tmp_path / "home"
    shutil.copytree(home / "index" / "chroma", tmp_path / "old")
    second = open_memory()
    second.remove("stoves.txt")
    second.close()
    shutil.rmtree(home / "index" / "chroma")
    shutil.copytree(tmp_path / "old", home / "index" / "chroma")
    assert len(open_memory().search("gas stoves", 9)) == 3


def test_an_interrupted_change_invalidates_the_index(tmp_path: Path) -> None:
    index = ChromaIndex(tmp_path / "chroma")
    index.rebuild([(["a"], HashEncoder().encode(["a"]))], Stamp(1, 1, "hash-256"))
    assert index.open() == Stamp(1, 1, "hash-256")
    with pytest.raises(MemoryIndexError, match="cannot be changed"):
        index.apply((["b"], np.zeros((1, 7), dtype=np.float32)), [], Stamp(2, 2, "hash-256"))
    assert index.open() is None
    index.close()


def test_another_encoder_is_an_error_until_all_documents_are_embedded_with_it(
    open_memory: OpenKnowledge, folder: Path
) -> None:
    open_memory().add_folder(folder)
    memory = open_memory(HashEncoder(32))
    with pytest.raises(MemoryIndexError, match="embedded with hash-256, and the encoder is now hash-32"):
        memory.search("tent", 1)
    assert memory.rebuild() == 4
    assert places(memory, "parcels leave the warehouse") == ["shipping.md > Shipping"]
    back = open_memory()
    assert back.add_folder(folder).chunks_embedded == 4
    assert places(back, "parcels leave the warehouse") == ["shipping.md > Shipping"]


def test_the_encoder_that_all_vectors_come_from_is_loaded(open_memory: OpenKnowledge, folder: Path) -> None:
    open_memory().add_folder(folder)
    known = {"hash-256": HashEncoder(), "hash-32": HashEncoder(32)}
    memory = open_memory(HashEncoder(32), load_encoder=known.get)
    assert places(memory, "parcels leave the warehouse") == ["shipping.md > Shipping"]
    (folder / "boots.txt").write_text("Boots are waxed twice a year.")
    adding = open_memory(HashEncoder(32), load_encoder=known.get)
    assert adding.add_folder(folder).chunks_embedded == 1
    # Had it embedded with its own, vectors of two encoders would lie beside each other.
    assert places(open_memory(), "boots are waxed twice") == ["boots.txt > "]
    fresh = open_memory(HashEncoder(32), load_encoder=known.get)
    assert fresh.rebuild() == 5, "asked for, its own encoder takes the place of the other"
    assert places(memory, "boots are waxed twice") == ["boots.txt > "]
    with pytest.raises(MemoryIndexError, match="embedded with hash-32, and the encoder is now hash-256"):
        open_memory().search("tent", 1)


def test_searches_are_answered_during_and_after_a_change_of_encoder(open_memory: OpenKnowledge, folder: Path) -> None:
    class Asking(HashEncoder):
        """Searches with another `Knowledge` each time it embeds."""

        def encode(self, texts: Sequence[str]) -> Vectors:
            seen.append(places(reader, "parcels leave the warehouse"))
            return super().encode(texts)

    seen: list[list[str]] = []
    new = HashEncoder(32)
    reader = open_memory(load_encoder={"hash-32": new}.get)
    reader.add_folder(folder)
    writer = open_memory()
    assert writer.rebuild(Asking(32)) == 4
    assert seen == [["shipping.md > Shipping"]]
    for filtered in (None, {"document": "shipping.md"}):
        passages = reader.search("parcels leave the warehouse", 1, where=filtered)
        assert [one.document for one in passages] == ["shipping.md"]
        assert passages[0].score == pytest.approx(
            float(
                new.encode([f"{passages[0].heading}\n{passages[0].text}"])[0]
                @ new.encode(["parcels leave the warehouse"])[0]
            )
        ), "query and passages are compared in the vectors of one encoder"


def test_a_search_starts_again_if_the_vectors_are_replaced_meanwhile(open_memory: OpenKnowledge, folder: Path) -> None:
    class Switching(HashEncoder):
        """After its first query another `Knowledge` embeds everything with another encoder."""

        def encode(self, texts: Sequence[str]) -> Vectors:
            vectors = super().encode(texts)
            if texts == ["gas stoves"] and not done:
                done.append(True)
                writer.rebuild(new)
            return vectors

    class Opposite(HashEncoder):
        """The same vectors negated: confused with the original's, the best results become the worst."""

        @property
        def name(self) -> str:
            return "opposite"

        def encode(self, texts: Sequence[str]) -> Vectors:
            return -super().encode(texts)

    done: list[bool] = []
    new = Opposite()
    writer = open_memory()
    writer.add_folder(folder)
    reader = open_memory(Switching(), load_encoder={"opposite": new}.get)
    best, *_ = reader.search("gas stoves", 1, where={"trust": "own"})
    assert done == [True]
    assert best.document == "stoves.txt"
    assert best.score > 0


HOLDER = """
import sys, time
from pathlib import Path
from agent.knowledge.vector_index import IndexLock
with IndexLock(Path(sys.argv[1])).hold():
    print("held", flush=True)
    time.sleep(60)
"""


def test_while_one_process_writes_a_second_writer_fails_and_searches_are_answered(
    open_memory: OpenKnowledge, folder: Path, tmp_path: Path
) -> None:
    memory = open_memory()
    memory.add_folder(folder)
    lock = tmp_path / "home" / "index" / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            started = time.monotonic()
            with pytest.raises(MemoryIndexError, match=f"locked by PID {holder.pid}, which"):
                memory.add_folder(folder)
            assert time.monotonic() - started < 1
            assert places(memory, "parcels leave the warehouse") == ["shipping.md > Shipping"]
        finally:
            holder.kill()
    # The lock of a killed process is free.
    assert memory.add_folder(folder).chunks_embedded == 0


def test_the_lock_excludes_threads_of_the_same_process(tmp_path: Path) -> None:
    lock = IndexLock(tmp_path / "lock")
    with lock.try_hold(seconds=0) as first, lock.try_hold(seconds=0) as second:
        assert (first, second) == (True, False)


def test_documents_added_by_one_instance_are_results_of_another(open_memory: OpenKnowledge, folder: Path) -> None:
    reader, writer = open_memory(), open_memory()
    writer.add_folder(folder)
    assert places(reader, "gas stoves are filled outside") == ["stoves.txt > "]
    (folder / "boots.txt").write_text("Boots are waxed twice a year.")
    writer.add_folder(folder)
    assert places(reader, "boots are waxed twice") == ["boots.txt > "]
    writer.rebuild()
    assert places(reader, "boots are waxed twice") == ["boots.txt > "]


WRITER = """
import sys
from pathlib import Path
from agent.encoders.encoder import HashEncoder, Vectors
from agent.knowledge.knowledge import Knowledge
memory = Knowledge.open(Path(sys.argv[1]) / "ratchet.db", Path(sys.argv[1]) / "index", HashEncoder())
print(memory.add_folder(Path(sys.argv[2])).chunks_embedded)
memory.close()
"""


@pytest.mark.slow
def test_an_open_reader_survives_a_large_addition_by_another_process(
    open_memory: OpenKnowledge, folder: Path, tmp_path: Path
) -> None:
    """Chroma writes its vectors out every 1,000 entries; a stale reader must neither miss nor undo that."""
    reader = open_memory()
    reader.add_folder(folder)
    assert places(reader, "gas stoves are filled outside") == ["stoves.txt > "]
    sections = "\n\n".join(f"# H{number}\n\nword{number} other{number} third{number}" for number in range(2500))
    (folder / "large.md").write_text(sections)
    command = [sys.executable, "-c", WRITER, str(tmp_path / "home"), str(folder)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "2500\n"
    assert reader.search("H2400 word2400 other2400 third2400", 1)[0].score > 0.999
    reader.close()
    index = ChromaIndex(tmp_path / "home" / "index" / "chroma")
    stamp = index.open()
    index.close()
    assert stamp is not None
    assert stamp.chunks == 2504


def test_searching_in_threads_while_documents_are_added(open_memory: OpenKnowledge, folder: Path) -> None:
    memory = open_memory()
    memory.add_folder(folder)
    for number in range(300):
        (folder / f"n{number}.md").write_text(f"# N{number}\n\nword{number}")
    with ThreadPoolExecutor(5) as pool:
        added = pool.submit(memory.add_folder, folder)
        queries = ["parcels leave the warehouse every morning shipping"] * 60
        answers = list(pool.map(lambda query: places(memory, query), queries))
        assert len(added.result().added) == 300
    assert answers == [["shipping.md > Shipping"]] * 60
    assert memory.search("N299 word299", 1)[0].score > 0.999


def test_a_rare_word_retrieves_what_vectors_miss(open_memory: OpenKnowledge, folder: Path) -> None:
    class Blind(HashEncoder):
        """Every text is the same to it."""

        def encode(self, texts: Sequence[str]) -> Vectors:
            return super().encode(["same"] * len(texts))

    memory = open_memory(Blind())
    memory.add_folder(folder)
    assert places(memory, "what of stoves") == ["stoves.txt > "]
    assert places(memory, "Parcel") == ["shipping.md > Shipping"]


def test_chinese_words_are_searchable(open_memory: OpenKnowledge, folder: Path) -> None:
    (folder / "zh.md").write_text("# 退货\n\n帐篷可以在三十天内退回。\n\n# 配送\n\n包裹每天早上发出。")
    memory = open_memory()
    memory.add_folder(folder)
    assert places(memory, "包裹什么时候发出") == ["zh.md > 配送"]
    assert places(memory, "帐") == ["zh.md > 退货"]


def test_consecutive_chunks_become_one_passage(open_memory: OpenKnowledge, folder: Path) -> None:
    text = "\n\n".join(f"Step {number}: turn the valve {number} times." for number in range(6))
    (folder / "valve.md").write_text(f"# Valve\n\n{text}\n\n# Other\n\nNo valve here.")
    memory = open_memory(chunk_tokens=10)
    memory.add_folder(folder)
    passages = memory.search("valve step 2 3 turn times", 3)
    (joined,) = [passage for passage in passages if "Step 2" in passage.text]
    assert "Step 2: turn the valve 2 times.\n\nStep 3: turn the valve 3 times." in joined.text
    assert joined.id.count("+") >= 1
    assert sum(passage.id.count("+") + 1 for passage in passages) == 3
    assert all("+" not in passage.id for passage in memory.search("valve step 2 3 turn times", 3, join=False))


def test_neighbours_of_a_result_are_added_to_its_passage(open_memory: OpenKnowledge, folder: Path) -> None:
    (folder / "valve.md").write_text("# Valve\n\nBefore it.\n\nTurn the valve.\n\nBehind it.\n\n# Other\n\nNothing.")
    memory = open_memory(chunk_tokens=5, neighbours=1)
    memory.add_folder(folder)
    assert memory.search("turn the valve", 1)[0].text == "Before it.\n\nTurn the valve.\n\nBehind it."


def test_a_near_duplicate_is_left_out(open_memory: OpenKnowledge, folder: Path) -> None:
    (folder / "copy.md").write_text((folder / "returns.md").read_text().replace("thirty days.", "thirty days!"))
    memory = open_memory()
    memory.add_folder(folder)
    texts = [passage.text for passage in memory.search("send a tent back within thirty days", 5)]
    assert sum("thirty days" in text for text in texts) == 1


def test_a_search_can_filter_by_metadata_and_trust(open_memory: OpenKnowledge, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "mails"
    outside.mkdir()
    (outside / "mail.md").write_text("---\nfrom: a customer\n---\nTents come back within ninety days!")
    memory = open_memory()
    memory.add_folder(folder)
    memory.add_folder(outside, trust="outside")
    assert {passage.document for passage in memory.search("tents back days", 9)} > {"mail.md", "returns.md"}
    assert "mail.md" not in {passage.document for passage in memory.search("tents", 9, where={"trust": "own"})}
    assert [passage.document for passage in memory.search("x", 9, where={"from": "a customer"})] == ["mail.md"]
    assert memory.search("tents", 9, where={"from": "nobody"}) == []
    assert memory.add_folder(outside).unchanged == ("mail.md",)
    assert memory.add_folder(outside, trust="own").changed == ("mail.md",)


def test_removing_for_good_empties_the_index_and_the_next_search_rebuilds_it(
    open_memory: OpenKnowledge, folder: Path, tmp_path: Path
) -> None:
    memory = open_memory()
    memory.add_folder(folder)
    memory.remove_all(["returns.md"], for_good=True)
    index = ChromaIndex(next(tmp_path.rglob("chroma.sqlite3")).parent.parent)
    empty = index.open()
    assert empty is not None
    assert empty.chunks == 0
    index.close()
    hits = memory.search("tent stove parcel", 10)
    assert {passage.document for passage in hits} == {"shipping.md", "stoves.txt"}
    made = index.open()
    assert made is not None
    assert made.chunks == 2
    index.close()
