"""Pairs of texts train the sentence encoder: by scores, by what belongs together, and by what does not."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.stats import pearsonr, spearmanr  # type: ignore[import-untyped]

from agent.cli.main import main
from agent.errors import DatasetError
from agent.registry.artifact import WEIGHTS, verify
from tests.tuner.tasks.head.test_classify import COLOURS, THINGS, VERBS, WORDS
from tests.tuner.tasks.tiny_encoder import save_encoder, write_lines
from tuner.tasks.api import load, train
from tuner.tasks.data.columns import Columns
from tuner.tasks.data.readers import read_file
from tuner.tasks.data.records import EmbedExample
from tuner.tasks.head.embed import EmbedTask
from tuner.tasks.head.similarity import measure_correlation, measure_ranking
from tuner.tasks.head.windows import Window, batch_windows, pad_windows
from tuner.tasks.predictions import SimilarityPrediction

QUICK: dict[str, Any] = {"epochs": 5, "learning_rate": 5e-3, "batch": 16, "precision": "float32"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With the mean of its states for a vector: the first one of random weights says next to nothing of the others."""
    folder = save_encoder(tmp_path_factory.mktemp("encoder") / "tiny", WORDS)
    (folder / "modules.json").write_text("[]")
    return str(folder)


def scored() -> list[dict[str, Any]]:
    """The verb is what counts."""
    texts = [f"i {verb} my {colour} {thing}" for verb in VERBS[:2] for colour in COLOURS for thing in THINGS[:2]]
    return [
        {"sentence1": one, "sentence2": other, "score": float(one.split()[1] == other.split()[1])}
        for one, other in itertools.combinations(texts, 2)
    ]


def together() -> list[dict[str, str]]:
    """Each verb goes with a colour, which no word says."""
    return [
        {"anchor": f"i {verb} my {thing} {number}", "positive": f"the {colour}"}
        for verb, colour in zip(VERBS, COLOURS, strict=True)
        for thing in THINGS
        for number in range(4)
    ]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_scores_are_learnt_and_a_saved_folder_says_the_same(method: str, encoder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "pairs.jsonl", scored())
    made = train("embed", data, model=encoder, out=tmp_path / "out", method=method, **{**QUICK, "epochs": 2})
    assert made.scores.main == "spearman"
    assert made.scores.value > max(0.85, made.before.value + 0.1)
    assert made.scores.figures["pearson"].mean > 0.5
    asked = [("i lost my red coat", "i lost my blue tent"), ("i lost my red coat", "i found my red coat")]
    said = load(made.folder).predict(asked)
    assert said == made.predictor.predict(asked)
    assert said[0].score > said[1].score
    assert said[0].to_dict().keys() == {"cosine"}


def test_what_belongs_together_is_found_among_all_others(encoder: str, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "pairs.jsonl", together())
    made = train("embed", data, model=encoder, out=tmp_path / "out", **QUICK)
    assert set(made.scores.figures) == {"mrr", "recall@1", "recall@5", "recall@10"}
    assert made.scores.value > made.before.value
    assert made.scores.value > 0.8


def test_the_folder_is_an_adapter_of_the_encoder_with_a_page_and_goes_on(encoder: str, tmp_path: Path) -> None:
    rows = [{**row, "negative": f"the {THINGS[at % 4]}"} for at, row in enumerate(together())]
    data = write_lines(tmp_path / "triplets.jsonl", rows)
    made = train("embed", data, model=encoder, out=tmp_path / "out", **{**QUICK, "epochs": 1})
    tensors = load_file(made.folder / WEIGHTS)
    assert all("lora_" in name for name in tensors)
    assert {"report/report.html", "task.json"} <= verify(made.folder).files.keys()
    assert "Vectors for the task `embed` on" in (made.folder / "README.md").read_text("utf-8")
    still = {**QUICK, "epochs": 1, "learning_rate": 0.0}
    again = train("embed", data, start=made.folder, out=tmp_path / "again", **still)
    assert all(tensor.equal(load_file(again.folder / WEIGHTS)[name]) for name, tensor in tensors.items())
    labels = write_lines(tmp_path / "texts.jsonl", [{"text": row["anchor"], "label": row["anchor"][2]} for row in rows])
    other = train("classify", labels, start=made.folder, out=tmp_path / "other", **{**still, "head_rate": 0.0})
    assert all(tensor.equal(load_file(other.folder / WEIGHTS)[name]) for name, tensor in tensors.items())


def test_the_commands_train_measure_and_compare(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "pairs.jsonl", scored())
    options = ["--model", encoder, "--epochs", "1", "--json"]
    assert main(["task", "train", "embed", "--data", "pairs.jsonl", "--out", "made", *options]) == 0
    assert set(json.loads(capsys.readouterr().out)["figures"]) == {"spearman", "pearson"}
    assert main(["task", "eval", "made", "--data", "pairs.jsonl"]) == 0
    assert "| spearman |" in capsys.readouterr().out
    assert main(["task", "predict", "made", "i lost it", "--pair", "i lost my coat"]) == 0
    assert -1 <= json.loads(capsys.readouterr().out)["cosine"] <= 1
    assert main(["task", "predict", "made", "i lost it"]) == 1
    assert "how alike is asked of two texts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("sentence1,sentence2,score", "a b,c d,0.5", EmbedExample("a b", "c d", 0.5)),
        ("id,question_1,question_2,is_duplicate", "7,a b,c d,1", EmbedExample("a b", "c d", 1.0)),
        ("score,Sentence_A,Sentence_B", "3,a b,c d", EmbedExample("a b", "c d", 3.0)),
        ("anchor,positive,negative", "a b,c d,e f", EmbedExample("a b", "c d", None, "e f")),
        ("query,passage", "a b,c d", EmbedExample("a b", "c d")),
        ("left side,right side,rated", "a b,c d,2.5", EmbedExample("a b", "c d", 2.5)),
        ("sentence1,sentence2,genre", "a b,c d,news", EmbedExample("a b", "c d")),
    ],
)
def test_columns_are_guessed_and_reported(header: str, row: str, expected: EmbedExample, tmp_path: Path) -> None:
    other = {"0.5": "0.7", "1": "0", "3": "4", "2.5": "1"}
    second = ",".join(other.get(cell, "8" if cell == "7" else f"{cell} x") for cell in row.split(","))
    (tmp_path / "pairs.csv").write_text(f"{header}\n{row}\n{second}\n", encoding="utf-8")
    said: list[str] = []
    first = read_file("embed", tmp_path / "pairs.csv", say=said.append)[0]
    assert isinstance(first, EmbedExample)
    assert (first.text, first.other, first.score, first.negative) == (
        *(expected.text, expected.other),
        *(expected.score, expected.negative),
    )
    assert "texts are columns" in said[0]


def test_named_columns_go_before_guesses_and_faults_have_their_line(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2,mine,score\na,b,1,x\nc,d,2,y\n", encoding="utf-8")
    found = read_file("embed", tmp_path / "pairs.csv", Columns(label="mine"))
    assert [one.score for one in found if isinstance(one, EmbedExample)] == [1.0, 2.0]
    with pytest.raises(DatasetError, match=r"pairs\.csv:2: 'x' in column 'score' is no number"):
        read_file("embed", tmp_path / "pairs.csv", Columns(label="score"))
    (tmp_path / "one.csv").write_text("sentence1\na\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="expected two with texts: name them with --text and --pair"):
        read_file("embed", tmp_path / "one.csv")


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"method": "head"}, "embed has no head"), ({"class_weights": True}, "no classes to weigh")],
)
def test_what_pairs_cannot_be_trained_with_is_refused(
    settings: dict[str, Any], why: str, encoder: str, tmp_path: Path
) -> None:
    data = write_lines(tmp_path / "pairs.jsonl", together())
    with pytest.raises(DatasetError, match=why):
        train("embed", data, model=encoder, out=tmp_path / "out", **settings)


def test_scores_in_some_rows_only_are_refused() -> None:
    with pytest.raises(DatasetError, match="some pairs have a score and others not"):
        EmbedTask.learn([EmbedExample("a", "b", 1.0), EmbedExample("c", "d")])
    with pytest.raises(DatasetError, match=r"all 2 pairs have the score 1\.0"):
        EmbedTask.learn([EmbedExample("a", "b", 1.0), EmbedExample("c", "d", 1.0)])


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-1, 1, width=32)), min_size=3, max_size=40))
def test_correlations_are_those_of_scipy(pairs: list[tuple[int, float]]) -> None:
    gold, said = [float(one) for one, _ in pairs], [other for _, other in pairs]
    made = measure_correlation(gold, said, resamples=0)
    if len(set(gold)) < 2 or np.ptp(said) < 1e-6:
        return
    assert made.figures["spearman"].mean == pytest.approx(spearmanr(gold, said).statistic, abs=1e-9)
    assert made.figures["pearson"].mean == pytest.approx(pearsonr(gold, said).statistic, abs=1e-6)
    assert all(0 <= one <= 1 for one in made.right)


def test_ranks_leave_out_what_fits_as_well_and_count_a_text_once() -> None:
    task = EmbedTask()
    examples = [
        EmbedExample("q", "near"),
        EmbedExample("q", "far"),
        EmbedExample("p", "near"),
        EmbedExample("r", "other"),
    ]
    at = {"q": (1.0, 0.0), "near": (0.9, 0.1), "far": (0.5, 0.5), "p": (0.0, 1.0), "r": (0.6, 0.4), "other": (0.8, 0.2)}
    vectors = [np.array(at[text], np.float32) for one in examples for text in (one.text, one.other)]
    said = task.predict(examples, [], vectors)
    # Before "far" stands "other" alone, for "near" is right as well; "p" finds "far" and "other" before "near".
    assert [one.rank for one in said] == [1, 2, 3, 2]
    assert measure_ranking([one.rank for one in said], resamples=0).figures["mrr"].mean == pytest.approx(
        (1 + 1 / 2 + 1 / 3 + 1 / 2) / 4
    )
    assert task.measure(examples, said, resamples=0).figures["recall@1"].mean == 0.25
    assert task.predict([EmbedExample("q", "near", 1.0)], [], vectors[:2]) == [
        SimilarityPrediction(pytest.approx(0.9), 0)
    ]


def window(example: int, id: int, role: int, score: float | None = None) -> Window:
    return Window(example, (id,), 1, () if score is None else (score,), marks=(role,))


def test_the_loss_of_an_order_falls_as_the_order_comes_right_and_knows_no_scale() -> None:
    def loss(near: float, far: float, scores: tuple[float, float]) -> float:
        windows = [window(at // 2, at, at % 2, scores[at // 2]) for at in range(4)]
        vectors = torch.tensor([[1.0, 0.0], [near, 0.0], [1.0, 0.0], [far, 0.0]])
        return float(EmbedTask().loss(vectors, pad_windows(windows, 0), None))

    assert loss(0.9, 0.1, (5.0, 1.0)) < loss(0.5, 0.5, (5.0, 1.0)) < loss(0.1, 0.9, (5.0, 1.0))
    assert loss(0.1, 0.9, (5.0, 1.0)) == loss(0.1, 0.9, (0.5, 0.1))
    assert loss(0.1, 0.9, (1.0, 1.0)) == 0


def test_what_fits_a_text_is_never_taken_for_wrong() -> None:
    def loss(fourth: int) -> float:
        windows = [window(0, 1, 0), window(0, 2, 1), window(1, fourth, 0), window(1, 3, 1)]
        vectors = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.9, 0.1]])
        return float(EmbedTask().loss(vectors, pad_windows(windows, 0), None))

    # The first text is near the other of the second; where both are the same text, that is no fault.
    assert loss(fourth=1) < loss(fourth=4)


def test_windows_of_an_example_share_a_step() -> None:
    windows = [Window(at // 3, (at,) * (at % 5 + 1), 1) for at in range(30)]

    made = list(batch_windows(windows, 8, 0, chance=random.Random(0), group_size=3))
    assert sorted(number for one in made for number in one.numbers) == list(range(30))
    assert all(len(one.windows) <= 6 for one in made)
    for one in made:
        assert [number % 3 for number in one.numbers] == [0, 1, 2] * (len(one.numbers) // 3)
