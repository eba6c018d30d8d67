"""Public sets as folders of documents and questions, each with the documents that answer it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Question:
    """A query, and the names of the documents that answer it; each counts the same."""

    text: str
    answers: frozenset[str]


@dataclass(frozen=True)
class RetrievalSet:
    """Documents by name, in Markdown, and questions about them."""

    name: str
    documents: Mapping[str, str]
    questions: tuple[Question, ...]


def retrieval_sets(data: Path) -> Iterator[RetrievalSet]:
    """All sets whose folders are there. What was asked in earlier conversations is searched in those of one person."""
    for folder, read in _READERS.items():
        if (data / folder).is_dir():
            yield from read(data / folder)


def _covidqa(folder: Path) -> Iterator[RetrievalSet]:
    """A FAQ; the queries are other wordings of its questions."""
    documents: dict[str, str] = {}
    names: dict[str, str] = {}
    for number, row in enumerate(_table(folder / "faq_covidbert.csv")):
        name = f"faq{number:04}.md"
        documents[name] = f"# {' '.join(row['question'].split())}\n\n{row['answer']}"
        names.setdefault(row["question"].strip(), name)
    questions = [
        Question(row["question_2"], frozenset([names[row["question_1"].strip()]]))
        for row in _table(folder / "eval_question_similarity_en.csv")
        if row["similar"] == "1" and row["question_1"].strip() in names
    ]
    yield RetrievalSet("covidqa", documents, tuple(questions))


def _xquad(folder: Path) -> Iterator[RetrievalSet]:
    for language in ("en", "zh"):
        documents: dict[str, str] = {}
        questions: list[Question] = []
        for article in _json(folder / f"xquad.{language}.json")["data"]:
            for paragraph in article["paragraphs"]:
                name = f"p{len(documents):04}.txt"
                documents[name] = paragraph["context"]
                questions += [Question(one["question"], frozenset([name])) for one in paragraph["qas"]]
        yield RetrievalSet(f"xquad_{language}", documents, tuple(questions))


def _tau2(folder: Path) -> Iterator[RetrievalSet]:
    """Help articles; the queries are what the customer wants, in full, which needs several of them."""
    home = folder / "data" / "tau2" / "domains" / "banking_knowledge"
    documents: dict[str, str] = {}
    for path in sorted((home / "documents").glob("*.json")):
        article = _json(path)
        documents[f"{path.stem}.md"] = f"# {article['title']}\n\n{article['content']}"
    questions = []
    for path in sorted((home / "tasks").glob("*.json")):
        task = _json(path)
        answers = frozenset(f"{name}.md" for name in task["required_documents"]) & documents.keys()
        if answers:
            questions.append(Question(str(task["user_scenario"]["instructions"]), answers))
    yield RetrievalSet("tau2_banking_kb", documents, tuple(questions))


def _bfcl(folder: Path) -> Iterator[RetrievalSet]:
    """What people said earlier, and questions about it; one set for each person."""
    sources = {one["id"]: one["source"] for one in _lines(folder / "possible_answer" / "BFCL_v4_memory.json")}
    asked = _lines(folder / "BFCL_v4_memory.json")
    for path in sorted((folder / "memory_prereq_conversation").glob("*.json")):
        scenario = path.stem.removeprefix("memory_")
        messages = [turn["content"] for talk in _lines(path) for turns in talk["question"] for turn in turns]
        documents = {f"m{number:04}.txt": message for number, message in enumerate(messages)}
        questions = []
        for one in asked:
            if one["scenario"] == scenario:
                answers = frozenset(_said(str(sources[one["id"]]), documents))
                if answers:
                    questions.append(Question(one["question"][0][0]["content"], answers))
        yield RetrievalSet(f"bfcl_{scenario}", documents, tuple(questions))


def _said(source: str, documents: Mapping[str, str]) -> Iterator[str]:
    """Documents that hold every part of a quotation with gaps."""
    parts = [_plain(part) for part in re.split(r"\.\.\.|\u2026", source)]
    parts = [part for part in parts if len(part) > 8]
    for name, text in documents.items():
        if parts and all(part in _plain(text) for part in parts):
            yield name


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


_READERS: dict[str, Callable[[Path], Iterator[RetrievalSet]]] = {
    "covidqa": _covidqa,
    "xquad": _xquad,
    "tau2_banking_kb": _tau2,
    "bfcl": _bfcl,
}
