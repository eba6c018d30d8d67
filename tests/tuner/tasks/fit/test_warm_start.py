"""What goes on from an earlier training begins with its tensors, keeps what the head knew, and learns old again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from agent.cli.main import main
from agent.config.project import find_project
from agent.errors import AdapterError, DatasetError
from agent.registry.artifact import WEIGHTS, verify
from tests.tuner.tasks.head.test_classify import COLOURS, QUICK, THINGS, VERBS, WORDS
from tests.tuner.tasks.tiny_encoder import save_encoder, write_lines
from tuner.tasks.api import load, train
from tuner.tasks.artifact import read_task
from tuner.tasks.data.records import ClassifyExample
from tuner.tasks.data.splits import Splits
from tuner.tasks.fit.warm_start import add_replay

STILL: dict[str, Any] = {**QUICK, "epochs": 1, "learning_rate": 0.0, "head_rate": 0.0}
"""A training whose steps change nothing, so that what it saves is what it began with."""


def rows(verbs: tuple[str, ...], *, label: str = "verb") -> list[dict[str, str]]:
    return [
        {"text": f"i {verb} my {colour} {thing}", "label": verb if label == "verb" else thing}
        for verb in verbs
        for colour in COLOURS
        for thing in THINGS
    ]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_encoder(tmp_path_factory.mktemp("encoder") / "tiny", WORDS))


@pytest.fixture(scope="module")
def earlier(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tells three verbs apart, trained whole."""
    folder = tmp_path_factory.mktemp("earlier")
    data = write_lines(folder / "texts.jsonl", rows(VERBS[:3]))
    return train("classify", data, model=encoder, out=folder / "verbs", **QUICK).folder


def test_a_continued_training_starts_from_the_earlier_tensors_and_new_labels_get_new_outputs(
    earlier: Path, tmp_path: Path
) -> None:
    data = write_lines(tmp_path / "more.jsonl", rows(VERBS[2:]))
    made = train("classify", data, start=earlier, out=tmp_path / "out", **STILL)
    before, now = load_file(earlier / WEIGHTS), load_file(made.folder / WEIGHTS)
    assert made.predictor.labels == (*read_task(earlier)["labels"], VERBS[3])
    for name, tensor in before.items():
        assert tensor.equal(now[name][:3] if name.startswith("head.") else now[name]), name
    assert now["head.weight"].shape[0] == 4
    assert verify(made.folder).parent == verify(earlier).id
    assert made.before.figures == made.scores.figures


def test_the_earlier_figures_stand_before_the_new_ones_and_not_those_of_chance(earlier: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "same.jsonl", rows(VERBS[:3]))
    assert train("classify", data, start=earlier, out=tmp_path / "out", **STILL).before.value == 1.0


def test_another_task_takes_the_encoder_and_no_head(earlier: Path, tmp_path: Path) -> None:
    data = write_lines(
        tmp_path / "tags.jsonl",
        [{"tokens": row["text"].split(), "tags": ["O", "O", "O", "O", "B-THING"]} for row in rows(VERBS)],
    )
    made = train("tag", data, start=earlier, out=tmp_path / "out", **STILL)
    before, now = load_file(earlier / WEIGHTS), load_file(made.folder / WEIGHTS)
    assert all(tensor.equal(now[name]) for name, tensor in before.items() if not name.startswith("head."))
    assert now["head.weight"].shape == (3, 32)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_other_labels_start_from_the_interpolation_that_classifies_best(
    method: str, encoder: str, tmp_path: Path
) -> None:
    """What was learnt of verbs is all that is needed for two kinds of verbs, and nothing worth for things."""
    quick = {**QUICK, "method": method, "learning_rate": 1e-2 if method == "lora" else 5e-3}
    data = write_lines(tmp_path / "texts.jsonl", rows(VERBS))
    first = train("classify", data, model=encoder, out=tmp_path / "one", **quick)
    assert first.scores.value == 1.0
    kinds = [{"text": row["text"], "label": "gone" if row["label"] in VERBS[:2] else "here"} for row in rows(VERBS)]
    told: list[str] = []
    still = {**STILL, "method": method}
    made = train(
        "classify",
        write_lines(tmp_path / "kinds.jsonl", kinds),
        start=first.folder,
        out=tmp_path / "two",
        say=told.append,
        **still,
    )
    share = next(float(found[1]) / 100 for one in told if (found := re.search(r", (\d+)% of the way", one)))
    assert share > 0
    assert made.predictor.labels == ("gone", "here")
    before, now = load_file(first.folder / WEIGHTS), load_file(made.folder / WEIGHTS)
    if method == "lora":
        for name in before.keys() - {"head.weight", "head.bias"}:
            assert now[name].allclose((share if "lora_B" in name else 1.0) * before[name], atol=1e-7), name
        return
    fresh = train("classify", data, model=encoder, out=tmp_path / "fresh", **still)
    base = load_file(fresh.folder / WEIGHTS)
    for name in before.keys() - {"head.weight", "head.bias"}:
        assert now[name].allclose(base[name] + share * (before[name] - base[name]), atol=1e-6), name


def test_a_head_of_other_labels_is_fitted_first_and_last_as_a_fresh_one_is(earlier: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "things.jsonl", rows(VERBS, label="thing"))
    quick = {name: value for name, value in STILL.items() if name not in ("head_first", "head_last")}
    other = train("classify", data, start=earlier, out=tmp_path / "other", **quick)
    same = train(
        "classify", write_lines(tmp_path / "same.jsonl", rows(VERBS)), start=earlier, out=tmp_path / "same", **quick
    )
    told = [read_task(made.folder)["settings"] for made in (other, same)]
    assert [(one["head_first"], one["head_last"]) for one in told] == [(True, True), (False, False)]


@pytest.mark.parametrize("method", ["lora", "head"])
def test_adapters_and_heads_are_continued_with_their_own_method(method: str, encoder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "texts.jsonl", rows(VERBS[:2]))
    first = train("classify", data, model=encoder, out=tmp_path / "one", method=method, r=4, epochs=2)
    more = write_lines(tmp_path / "more.jsonl", rows(VERBS))
    still = {**STILL, "method": "full" if method == "head" else None}
    made = train("classify", more, start=first.folder, out=tmp_path / "two", **still)
    before, now = load_file(first.folder / WEIGHTS), load_file(made.folder / WEIGHTS)
    same = [name for name in before if before[name].equal(now[name][: len(before[name])])]
    assert same == list(before)
    assert read_task(made.folder)["settings"]["r"] == (4 if method == "lora" else 16)


def test_a_method_that_has_no_place_for_the_earlier_tensors_is_refused(earlier: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "texts.jsonl", rows(VERBS))
    with pytest.raises(
        AdapterError, match=r"trained by method full, and .* of its tensors do not fit method lora; leave out"
    ):
        train("classify", data, start=earlier, out=tmp_path / "out", method="lora")
    with pytest.raises(AdapterError, match="do not fit"):
        train("classify", data, start=earlier, out=tmp_path / "out", **{**QUICK, "frozen_layers": 1})


def test_another_encoder_than_it_was_trained_on_is_refused(earlier: Path, tmp_path: Path) -> None:
    other = save_encoder(tmp_path / "other", [*WORDS, "more"])
    data = write_lines(tmp_path / "texts.jsonl", rows(VERBS))
    with pytest.raises(AdapterError, match="leave out --model, or train without --from"):
        train("classify", data, start=earlier, model=str(other), out=tmp_path / "out", **QUICK)


def test_labels_of_two_kinds_do_not_go_together(earlier: Path, tmp_path: Path) -> None:
    several = [{"text": row["text"], "label": [row["label"], "x"]} for row in rows(VERBS)]
    data = write_lines(tmp_path / "texts.jsonl", several)
    with pytest.raises(DatasetError, match="gives a text one label; train without --from"):
        train("classify", data, start=earlier, out=tmp_path / "out", **QUICK)


def test_what_was_replayed_is_not_forgotten(earlier: Path, tmp_path: Path) -> None:
    older = write_lines(tmp_path / "older.jsonl", rows(VERBS[:3]))
    data = write_lines(tmp_path / "new.jsonl", rows(VERBS[3:]) + rows(VERBS[2:3])[:4])
    made = train("classify", data, start=earlier, out=tmp_path / "out", replay=older, replay_share=0.5, **QUICK)
    assert any("of 48 older examples are learnt again" in note for note in made.notes)
    assert load(made.folder).evaluate_file(older).value > 0.9


def test_a_share_of_the_older_is_drawn_by_class_and_nothing_of_the_test() -> None:
    older = [ClassifyExample(f"{label} {number}", (label,)) for label in "ab" for number in range(50)]
    new = [ClassifyExample(f"c {number}", ("c",)) for number in range(10)]
    splits = Splits(new[:8], new[8:9], [*new[9:], older[0]], ())
    made = add_replay(splits, older, 0.2, 0)
    drawn = made.train[8:]
    assert [one.labels[0] for one in drawn].count("a") == 10
    assert len(drawn) == 20
    assert older[0] not in drawn
    assert add_replay(splits, older, 0.2, 0) == made
    assert len(add_replay(splits, older, 1.0, 0).train) == 8 + 99
    with pytest.raises(DatasetError, match="expected more than 0 and at most 1"):
        add_replay(splits, older, 0.0, 0)


def test_the_command_continues_from_a_folder(
    earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    older = write_lines(tmp_path / "older.jsonl", rows(VERBS[:3]))
    data = write_lines(tmp_path / "new.jsonl", rows(VERBS[2:]))
    options = [
        "--from",
        str(earlier),
        "--replay",
        str(older),
        "--replay-share",
        "0.5",
        "--epochs",
        "1",
        "--out",
        "made",
    ]
    assert main(["task", "train", "classify", "--data", str(data), "--json", *options]) == 0
    shown = capsys.readouterr()
    assert f"continues {verify(earlier).id}, with 3 of 4 outputs of its head" in shown.err
    assert json.loads(shown.out)["folder"] == "made"
    told = read_task(tmp_path / "made")
    assert told["origin"]["data"] == "new.jsonl"
    assert load("made", project=find_project(tmp_path, {})).labels == (*read_task(earlier)["labels"], "sold")
