"""The routing example: any labelled CSV becomes a task, and a fault in it is told with its place."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from agent.errors import TaskError

ROOT = Path(__file__).parents[2]


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by its name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


routing = load("examples_routing", ROOT / "examples" / "routing.py")


def csv_file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_are_found_by_their_names_and_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    rows = "B,stop it,ORDER,cancel_order\nB,hi,X,greet\n"
    path = csv_file(tmp_path / "a.csv", f"\ufeffflags,Utterance,category,intent\n{rows}")
    messages = routing.read_messages(path, None, None)
    assert [(one.text, one.desk) for one in messages] == [("stop it", "cancel order"), ("hi", "greet")]
    assert routing.read_messages(path, "Utterance", "category")[0].desk == "ORDER"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "say with --text-column"),
        ("text,label\nhello,\n", ":2: no text or no label"),
        ("text,label\nhello,one\nyou,one\n", "fewer than two labels"),
        ("", "columns \\(none\\)"),
    ],
)
def test_a_file_that_is_no_labelled_csv_is_refused_with_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        routing.read_messages(csv_file(tmp_path / "a.csv", text), None, None)


def test_a_named_column_must_be_there(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "a.csv", "text,label\nhello,one\nbye,two\n")
    with pytest.raises(TaskError, match="no column 'topic'; it has text, label"):
        routing.read_messages(path, None, "topic")


def test_a_sample_is_spread_over_the_desks_and_drawn_by_its_seed() -> None:
    messages = [routing.Message(f"m{number}", f"desk {number % 4}") for number in range(100)]
    chosen = routing.spread(messages, 10, 1)
    counts = [sum(one.desk == f"desk {desk}" for one in chosen) for desk in range(4)]
    assert sorted(counts) == [2, 2, 3, 3]
    assert chosen == routing.spread(messages, 10, 1) != routing.spread(messages, 10, 2)
    assert len(routing.spread(messages, 500, 1)) == 100


def test_test_messages_that_are_training_messages_are_left_out() -> None:
    train = [routing.Message("Hello there", "a"), routing.Message("bye", "b")]
    test = [routing.Message("hello THERE", "a"), routing.Message("good day", "a"), routing.Message("hm", "c")]
    assert routing._check_apart(train, test) == [test[1]]
    with pytest.raises(TaskError, match="no test message is left"):
        routing._check_apart(train, test[:1])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_example_turns_on_a_file_it_has_not_met(tmp_path: Path, models_folder: Path) -> None:
    things = ["kettle", "lamp", "desk", "chair", "stove", "bench", "clock", "radio", "fan", "rug"]
    lines = ["text,topic_label"]
    lines += [f"My {thing} is broken,repairs" for thing in things]
    lines += [f"What does the {thing} cost?,sales" for thing in things]
    path = csv_file(tmp_path / "train.csv", "\n".join(lines) + "\n")
    (tmp_path / "models").symlink_to(models_folder, target_is_directory=True)
    models_folder.mkdir(parents=True, exist_ok=True)
    out = tmp_path / "results.json"
    words = ["--train", str(path), "--label-column", "topic_label", "--reviewed", "0", "8", "--seeds", "0"]
    words += ["--epochs", "1", "--home", str(tmp_path / "routing"), "--out", str(out)]
    words += ["--by", "memory", "weights", "both"]
    assert routing.main(words) == 0
    rows = json.loads(out.read_text("utf-8"))
    assert [row["corrections"] for row in rows] == [0, 8, 8, 8]
    assert [row["by"] for row in rows] == ["weights", "memory", "weights", "both"]
    assert all(row["tasks"] == 4 and 0 <= row["accuracy"] <= 1 for row in rows)
    assert rows[2]["accuracy"] >= rows[0]["accuracy"]
    assert [row["tuning_seconds"] > 0 for row in rows] == [False, False, True, True]


def test_the_arguments_have_the_numbers_of_the_benchmark() -> None:
    args: argparse.Namespace = routing._arguments(["--train", "t.csv"])
    assert args.reviewed == [0, 100, 200, 500]
    assert args.seeds == [0, 1, 2]
