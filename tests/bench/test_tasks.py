"""The pure parts of the benchmark of classic tasks: its rows, differences, noise and tables."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.bench.tasks import merged, metrics_of
from tests.bench.tasks_sets import drawn, misstruck, noisy, unpacked
from tests.bench.tasks_tables import tasks
from tests.bench.tasks_written import lead, sides_of
from tuner.tasks.data.readers import read_file
from tuner.tasks.data.records import AnswerExample, ClassifyExample, ConverseExample, WriteExample


def row(method: str, accuracy: float, *, part: str = "banking77", seed: int = 0, **more: Any) -> dict[str, Any]:
    made = {
        "part": part,
        "method": method,
        "seed": seed,
        "main": "accuracy",
        "figures": {"accuracy": [accuracy, accuracy - 0.02, accuracy + 0.02]},
        "noisy": {},
        "train": 900,
        "test": 1000,
        "seconds": 12.0,
        "peak_gib": 1.25,
        "parameters": 29_645,
        "checkpoint_bytes": 118_000,
    }
    return {**made, **more}


def test_a_row_takes_the_place_of_the_one_measured_before() -> None:
    rows = [row("head", 0.8), row("setfit", 0.7), row("head", 0.9, seed=1), row("head", 0.6, part="bitext_8k")]
    made = merged(rows, row("head", 0.85))
    assert [(one["part"], one["method"], one["seed"]) for one in made] == [
        ("banking77", "head", 0),
        ("banking77", "head", 1),
        ("banking77", "setfit", 0),
        ("bitext_8k", "head", 0),
    ]
    assert made[0]["figures"]["accuracy"][0] == 0.85


def test_the_gap_is_that_of_what_is_chosen_to_the_best_of_the_others_where_it_is_worst() -> None:
    rows = [
        row("head", 0.99),
        row("lora", 0.85, default=True),
        row("logistic_words", 0.66),
        row("setfit", 0.84),
        row("lora", 0.50, part="wnut17", default=True),
        row("trainer", 0.53, part="wnut17"),
    ]
    assert metrics_of(rows)["worst_gap_to_baseline_points"] == pytest.approx(-3.0)


def test_a_task_that_writes_is_held_against_the_model_as_it_is_and_what_needs_none() -> None:
    rows = [row(name, value, part="dialogsum") for name, value in (("shots_0", 0.1), ("shots_8", 0.2), ("lead", 0.3))]
    made = metrics_of([*rows, row("lora", 0.25, part="dialogsum", default=True)])
    assert made["worst_gap_to_baseline_points"] == pytest.approx(-5.0)
    assert made["few_shot_gain_points"] == pytest.approx(10.0)
    assert sides_of("dialogsum") == ["lora", "shots_0", "shots_8", "lead"]


def test_the_lead_is_as_many_sentences_as_summaries_have() -> None:
    learnt = [WriteExample("", "One."), WriteExample("", "One. Two."), WriteExample("", "One. Two. Three.")]
    assert lead(learnt)([WriteExample("#A#: Hello! Who is it?\nMe.")])[0].text == "#A#: Hello! Who is it?"


def test_chats_of_crosswoz_are_unpacked_to_turns(tmp_path: Path) -> None:
    chats = {"7": {"messages": [{"role": "usr", "content": "hi"}, {"role": "sys", "content": "yes"}]}}
    with zipfile.ZipFile(tmp_path / "val.json.zip", "w") as packed:
        packed.writestr("val.json", json.dumps(chats))
    made = read_file("converse", unpacked(tmp_path / "val.json.zip", tmp_path))
    assert [(one.turns[0].text, one.answer) for one in made if isinstance(one, ConverseExample)] == [("hi", "yes")]


def test_only_rows_of_the_same_seed_and_examples_are_held_against_each_other() -> None:
    rows = [row("lora", 0.80), row("full", 0.90, seed=1), row("full", 0.90, train=5000)]
    assert metrics_of(rows)["lora_gap_to_full_points"] is None
    assert metrics_of([*rows, row("full", 0.81)])["lora_gap_to_full_points"] == pytest.approx(-1.0)


def test_what_hardening_gains_on_noise_and_costs_on_clean_inputs_is_told_apart() -> None:
    rows = [
        row("lora", 0.86, noisy={"typos": [0.70, 0.6, 0.8], "keys": [0.60, 0.5, 0.7]}),
        row("lora+typos", 0.85, noisy={"typos": [0.78, 0.7, 0.8], "keys": [0.65, 0.6, 0.7]}),
    ]
    metrics = metrics_of(rows)
    assert metrics["adversarial_gain_points"] == pytest.approx(8.0)
    assert metrics["adversarial_unseen_gain_points"] == pytest.approx(5.0)
    assert metrics["adversarial_clean_points"] == pytest.approx(-1.0)
    assert metrics["fgm_gain_points"] is None


def test_what_was_not_measured_is_none() -> None:
    assert set(metrics_of([]).values()) == {None}


def test_a_limit_draws_the_same_examples_for_the_same_seed() -> None:
    assert drawn(range(100), 10, 1) == drawn(range(100), 10, 1) != drawn(range(100), 10, 2)
    assert drawn(range(5), 10, 0) == [0, 1, 2, 3, 4]


def test_noise_of_neighbouring_keys_changes_one_letter_of_some_longer_words() -> None:
    text = "where is the parcel that was promised " * 20
    changed = misstruck(text, random.Random(0))
    pairs = [(old, new) for old, new in zip(text.split(), changed.split(), strict=True) if old != new]
    assert 10 < len(pairs) < 40
    assert all(len(old) >= 4 and sum(a != b for a, b in zip(old, new, strict=True)) == 1 for old, new in pairs)


def test_inputs_are_noisy_in_the_same_way_each_time() -> None:
    examples = [ClassifyExample("where is the parcel that was promised", ("track",))] * 5
    assert noisy(examples) == noisy(examples)
    assert set(noisy(examples)) == {"typos", "keys"}
    assert set(noisy([AnswerExample("where is it", "It is here.")])) == {"typos"}


def test_the_table_has_a_line_for_each_method_over_its_seeds() -> None:
    rows = [row("lora", 0.80, default=True), row("lora", 0.90, seed=1, default=True), row("setfit", 0.7)]
    text = tasks({"rows": rows})
    assert "| `lora` (chosen) | 85.0 % (83.0-87.0) | 2 |" in text
    assert "| SetFit | 70.0 %" in text


def test_shots_and_transfers_are_held_against_the_same_without() -> None:
    rows = [
        row("shots_0", 0.02, train=0),
        row("shots_8", 0.62, train=0),
        row("tenth", 0.70),
        row("transfer", 0.72),
        row("tenth", 0.70, seed=1),
        row("transfer", 0.76, seed=1),
        row("transfer", 0.99, seed=2),
    ]
    metrics = metrics_of(rows)
    assert metrics["few_shot_gain_points"] == pytest.approx(60.0)
    assert metrics["transfer_gain_points"] == pytest.approx(4.0)
    assert "language model, shown 8 examples" in tasks({"rows": rows})
