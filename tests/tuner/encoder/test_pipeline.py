"""The encoder is tuned, gated, promoted and rolled back, and the documents are searched all the while."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from agent.cli.main import main
from agent.config.project import Project, find_project
from agent.encoders.encoder import HashEncoder
from agent.errors import AdapterError, DatasetError, MemoryIndexError, NotBetterError
from agent.records.feedback import Rating
from agent.records.run import Outcome, Provenance, Step, Task, ToolCall, Trajectory
from agent.registry.artifact import seal, verify
from agent.registry.registry import Registry, State
from agent.runtime import Runtime
from tuner.encoder.gate import EncoderPolicy
from tuner.encoder.pipeline import promote_encoder, rollback_encoder, tune_encoder
from tuner.encoder.ranking import ndcg
from tuner.encoder.settings import EncoderSettings

ADJECTIVES = ("Silver", "Amber", "Quiet", "Northern", "Velvet", "Copper", "Hollow", "Bright")
NOUNS = ("Heron", "Finch", "Otter", "Badger", "Lynx")
CARE = ("how do I clean the {}", "my {} is dirty, what now?", "what removes stains from the {}")
WARRANTY = ("my {} broke after a year", "is there a guarantee on the {}", "who repairs a {}")


def nicknames(count: int) -> list[str]:
    """Names that no encoder knows."""
    chance = random.Random(7)
    parts = ("zor", "bik", "qua", "mep", "tul", "vax", "nim", "dro", "gli", "fup", "kes", "wob")
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault("".join(chance.sample(parts, 2)))
    return list(found)


PRODUCTS = dict(zip((f"{one} {noun}" for one in ADJECTIVES for noun in NOUNS), nicknames(40), strict=True))
"""Proper name to nickname. The documents know the first alone, and people ask by the second."""


def care(name: str) -> str:
    return f"The {name} is washed by hand in warm water. Let the {name} dry for one whole day."


def warranty(name: str) -> str:
    return f"For two years we mend a {name} without charge. Send the {name} to the workshop."


def write_help(folder: Path) -> None:
    folder.mkdir()
    for name in PRODUCTS:
        text = f"# {name}\n\n## Care\n\n{care(name)}\n\n## Warranty\n\n{warranty(name)}\n"
        (folder / f"{name.lower().replace(' ', '-')}.md").write_text(text)


def write_pairs(path: Path) -> None:
    rows = [
        {"query": asked.format(nickname), "positive": passage(name)}
        for name, nickname in PRODUCTS.items()
        for questions, passage in ((CARE, care), (WARRANTY, warranty))
        for asked in questions
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "ratchet.toml").write_text("")
    write_help(tmp_path / "help")
    write_pairs(tmp_path / "pairs.jsonl")
    return find_project(tmp_path, {})


ALONE = {f"{nickname}?": f"{name.lower().replace(' ', '-')}.md" for name, nickname in PRODUCTS.items()}
"""Queries in which the nickname stands alone, with the document that is meant. None was trained on."""


def quality(runtime: Runtime) -> float:
    """nDCG@10 of the documents that the whole search finds."""
    scores = []
    for query, meant in ALONE.items():
        found = runtime.memory.search(query, 20, join=False)
        scores.append(ndcg(list(dict.fromkeys(one.document for one in found)), [meant]))
    return sum(scores) / len(scores)


def test_without_feedback_the_command_says_so(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    with Runtime(project, encoder=HashEncoder()) as runtime, pytest.raises(DatasetError, match="no feedback to tune"):
        tune_encoder(runtime)
    assert main(["--project", str(project.folder), "encoder", "list"]) == 0
    assert capsys.readouterr().out == "served: the base\n"
    assert main(["--project", str(project.folder), "encoder", "promote", "x"]) == 1
    assert "`ratchet encoder list` lists those there are" in capsys.readouterr().err
    assert main(["--project", str(project.folder), "encoder", "rollback"]) == 1
    assert "nothing to roll back" in capsys.readouterr().err


def test_all_tenants_documents_are_embedded_anew(project: Project, tmp_path: Path) -> None:
    with Runtime(project, encoder=HashEncoder(32)) as runtime:
        runtime.memory.add_folder(tmp_path / "help")
        other = runtime.open_memory("other")
        other.add_folder(tmp_path / "help")
        other.close()
    with Runtime(project, encoder=HashEncoder()) as runtime:
        assert runtime.embed_documents(None) == 4 * len(PRODUCTS)
        assert runtime.memory.search("warranty", 1)
        other = runtime.open_memory("other")
        assert other.search("warranty", 1)
        other.close()


def test_a_stand_in_takes_no_adapter_and_one_of_another_base_is_refused(project: Project) -> None:
    made = project.home.encoders / "e1"
    made.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"], "auto_mapping": None}
    (made / "adapter_config.json").write_text(json.dumps(config))
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (made / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"12345678")
    seal(
        made,
        id="e1",
        base="all-minilm-l6-v2",
        base_revision="another",
        dataset_hash="d",
        parent=None,
        tuning="t",
        created_at="2026-01-01T00:00:00Z",
        code_version="0",
    )
    entry = Registry(project.home.encoders).add(made)
    with Runtime(project) as runtime, pytest.raises(AdapterError, match=r"e1 was trained on .* \(another\), this is"):
        runtime.served_encoder.open(entry)
    stand_in = Runtime(project, encoder=HashEncoder())
    with stand_in as runtime, pytest.raises(AdapterError, match="project's encoder; this runtime has hash-256"):
        runtime.served_encoder.open(entry)


@pytest.mark.slow
def test_the_encoder_learns_names_is_promoted_and_rolled_back(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Runtime(project) as runtime:
        runtime.memory.add_folder(tmp_path / "help")
        bare = runtime.encoder
        before = quality(runtime)
        assert before < 0.3
        heard: list[str] = []
        made = tune_encoder(
            runtime, pairs=tmp_path / "pairs.jsonl", settings=EncoderSettings(epochs=10), say=heard.append
        )
        assert heard[0].startswith(f"dataset encoder-{made.dataset.hash[:16]}: queries ")
        assert made.trained.validation_loss < made.trained.first_validation_loss
        assert made.adapter.state is State.TRAINED
        assert verify(made.adapter.folder).dataset_hash == made.dataset.hash
        assert not list(runtime.home.tunings.glob("encoder-*"))
        assert quality(runtime) == before, "a candidate changes nothing"

    with Runtime(project) as searching, Runtime(project) as runtime:
        # Opened before the promotion, as a service is.
        assert quality(searching) == before
        gated = promote_encoder(runtime, made.adapter.id)
        assert gated.decision.ship, gated.decision.reasons
        assert gated.embedded == 2 * len(PRODUCTS)
        assert gated.decision.whole.low > 0
        assert {"report/gate.json", "report/gate.md"} <= set(verify(made.adapter.folder).files)
        after = quality(runtime)
        assert after > before + 0.4
        assert quality(searching) == pytest.approx(after)
        serving = runtime.served_encoder.active_adapter()
        assert serving is not None
        assert serving.id == made.adapter.id
        with pytest.raises(AdapterError, match="is active; only a trained, gated or retired one"):
            promote_encoder(runtime, made.adapter.id)

    with Runtime(project) as runtime:
        assert runtime.encoder.name == f"{bare.name}+{made.adapter.id}"
        assert quality(runtime) == pytest.approx(after), "what is loaded anew is what was gated"
        tuned = runtime.encoder.encode(list(ALONE))
        assert rollback_encoder(runtime, "for the test") == (None, 2 * len(PRODUCTS))
        assert runtime.encoder.name == bare.name
        assert quality(runtime) == pytest.approx(before)
        assert not np.allclose(runtime.encoder.encode(list(ALONE)), tuned, atol=0.01)

    command = ["--project", str(project.folder), "encoder"]
    assert main([*command, "promote", made.adapter.id, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["promoted"] is True
    assert list(told["figures"]) == ["whole", "dense", "general"]
    assert main([*command, "list"]) == 0
    assert capsys.readouterr().out.startswith(f"* {made.adapter.id}  active  of all-minilm-l6-v2")
    weights = made.adapter.folder / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 0xFF]))
    with Runtime(project) as runtime:
        assert runtime.encoder.name == bare.name
        assert "the base is served instead" in runtime.warnings[0]
        with pytest.raises(MemoryIndexError, match="run `ratchet docs rebuild`"):
            quality(runtime)
        assert runtime.memory.rebuild() == 2 * len(PRODUCTS)
        assert quality(runtime) == pytest.approx(before)


@pytest.mark.slow
def test_a_training_that_lowers_no_loss_and_a_candidate_that_the_gate_refuses_change_nothing(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    with Runtime(project) as runtime:
        runtime.memory.add_folder(tmp_path / "help")
        with pytest.raises(NotBetterError, match="never fell below"):
            tune_encoder(runtime, pairs=pairs, settings=EncoderSettings(learning_rate=0.0, epochs=1))
        assert runtime.served_encoder.registry.list() == ()
        made = tune_encoder(runtime, pairs=pairs, settings=EncoderSettings(epochs=1))
        again = tune_encoder(runtime, pairs=pairs, settings=EncoderSettings(epochs=1))
        assert again.adapter == made.adapter, "the same dataset and settings give the same tensors"
        gated = promote_encoder(runtime, made.adapter.id, policy=EncoderPolicy(min_queries=10_000))
        assert (gated.decision.ship, gated.embedded) == (False, 0)
        assert runtime.served_encoder.registry.get(made.adapter.id).state is State.REJECTED
        assert runtime.served_encoder.active_adapter() is None
        assert runtime.memory.search("warranty", 1)
    assert main(["--project", str(project.folder), "encoder", "promote", made.adapter.id]) == 1
    assert "is rejected; only a trained, gated or retired one" in capsys.readouterr().err


AT = "2026-01-01T00:00:00Z"

CITIES = (
    "Paris",
    "Lima",
    "Oslo",
    "Cairo",
    "Delhi",
    "Quito",
    "Tokyo",
    "Dublin",
    "Nairobi",
    "Boston",
    "Sofia",
    "Hanoi",
    "Madrid",
    "Perth",
    "Berlin",
    "Havana",
    "Vienna",
    "Seoul",
    "Dakar",
    "Prague",
    "Lagos",
    "Milan",
    "Denver",
    "Riga",
)
CREWS = ("blue", "red", "green")
"""Each has its own desk for each matter, and no encoder knows whose a city is."""
MATTERS = {
    "berths": ("is a place free for my boat in {}", "I want to moor in {} tonight"),
    "fees": ("what do I pay for a night in {}", "your bill for {} is too high"),
    "repairs": ("my mast broke near {}", "the hull leaks, I am in {}"),
    "weather": ("will it storm off {} tomorrow", "how high are the waves at {}"),
}

ROUTE = """
from typing import Literal

from langchain_core.tools import StructuredTool

DESKS = tuple({desks})


def load_tools(context):
    def route(desk: Literal[DESKS]) -> str:
        return desk

    return [StructuredTool.from_function(route, description="Send it to a desk.", metadata={{"ends": "answered"}})]
"""


def routed() -> list[tuple[str, str]]:
    """Messages and their desks."""
    return [
        (said.format(city), f"{CREWS[place % len(CREWS)]}_{matter}")
        for place, city in enumerate(CITIES)
        for matter, sayings in MATTERS.items()
        for said in sayings
    ]


@pytest.fixture
def routing(tmp_path: Path) -> Project:
    """A project without documents, whose messages people routed."""
    messages = routed()
    (tmp_path / "route.py").write_text(ROUTE.format(desks=sorted({desk for _, desk in messages})))
    (tmp_path / "ratchet.toml").write_text('[tools]\nfiles = ["route.py"]\nenabled = ["route"]\n')
    project = find_project(tmp_path, {})
    with Runtime(project, encoder=HashEncoder()) as runtime:
        for number, (text, desk) in enumerate(messages):
            steps = (Step(ToolCall("route", {"desk": desk}), desk),)
            task = Task(f"t{number}", text)
            runtime.store.begin(Trajectory(f"m{number}", task, Provenance(), AT, steps, Outcome.ANSWERED, None, AT))
            runtime.store.feedback.add_rating(Rating(f"r{number}", f"m{number}", "up", "ann", "", AT))
    return project


@pytest.mark.slow
def test_the_encoder_learns_to_tell_tasks_apart_from_how_their_runs_began(
    routing: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    with Runtime(routing) as runtime:
        heard: list[str] = []
        made = tune_encoder(runtime, say=heard.append)
        parts = {part: len(made.dataset.tasks_in(part)) for part in ("train", "validation", "held_out")}
        counts = ", ".join(f"{count} {part}" for part, count in parts.items())
        assert heard[0] == f"dataset encoder-{made.dataset.hash[:16]}: tasks {counts}"
        assert made.dataset.judgements == ()
        gated = promote_encoder(runtime, made.adapter.id)
        assert gated.decision.ship, gated.decision.reasons
        assert gated.embedded == 0
        assert [comparison.examples for comparison in gated.decision.measured] == [parts["held_out"]]
        assert gated.decision.tasks.gain > 0.1
        assert f"tasks {counts}" in (made.adapter.folder / "README.md").read_text()
        assert runtime.encoder.name.endswith(made.adapter.id)
    assert main(["--project", str(routing.folder), "encoder", "list"]) == 0
    assert capsys.readouterr().out.startswith(f"* {made.adapter.id}  active")
