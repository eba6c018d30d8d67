"""What tuning the encoder gains on public sets of questions: nDCG@10 in points on the half that is held out.

Questions are split in two by a hash of their text, so that none is on both sides; a document may be. Of the training
half each question with the best chunk of each document that answers it is a pair, with hard negatives from other
documents that the search found below it. The settings were chosen on a validation part of the training half alone.

    python -m tests.bench.encoder_gain DATA
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.encoders.encoder import Encoder, SentenceEncoder, Vectors
from agent.knowledge.chunking import Chunk, split
from agent.knowledge.document_store import DocumentStore
from agent.knowledge.folders import Document
from agent.knowledge.fusion import is_near_duplicate
from agent.knowledge.knowledge import CANDIDATES
from agent.llm.weights.catalog import DEFAULT_ENCODER
from agent.llm.weights.load import ModelFolder, encoder_weights
from tests.bench.retrieval_sets import Question, RetrievalSet, retrieval_sets
from tuner.encoder.dataset import EncoderDataset, RelevanceJudgement
from tuner.encoder.pipeline import check_adapter_changes_output, train_in_team
from tuner.encoder.ranking import ndcg, nearest, pseudo_queries, whole_search, word_index
from tuner.encoder.settings import EncoderSettings
from tuner.evaluation.statistics import bootstrap_mean

SETS = ("covidqa", "tau2_banking_kb")
VALIDATION = 0.2
"""Share of the training half that training is watched with."""
MOST_ANSWERS = 4
"""Documents of a question that are trained on."""
SETTINGS = EncoderSettings()


def encoder_gain(data_folder: Path, *, settings: EncoderSettings = SETTINGS, held_out: bool = True) -> dict[str, Any]:
    """By set: gains in nDCG@10 points with their 95 % intervals, of the vectors alone and of the whole search.

    Without `held_out` the validation part of the training half is measured, for choosing settings. Sets that are not
    in the folder are left out.
    """
    base = encoder_weights(DEFAULT_ENCODER, data_folder)
    wanted = [one for one in retrieval_sets(data_folder) if one.name in SETS]
    return {one.name: _gain(one, base, settings, held_out) for one in wanted}


def half_of(text: str) -> str:
    """The half, `train` or `test`, that a question is in."""
    return "train" if hashlib.sha256(f"half {text.strip()}".encode()).digest()[0] % 2 else "test"


def _gain(one: RetrievalSet, base: ModelFolder, settings: EncoderSettings, held_out: bool) -> dict[str, Any]:
    started = time.monotonic()
    bare = SentenceEncoder(base.folder, name=DEFAULT_ENCODER)
    passages = _passages(one)
    ids = sorted(passages)
    matrix = bare.encode([passages[id].embedded_text for id in ids])
    questions = [question for question in _distinct(one.questions) if half_of(question.text) == "train"]
    with word_index(passages, matrix, bare.name) as words, tempfile.TemporaryDirectory(prefix="ratchet-") as scratch:
        dataset = _lessons(questions, passages, ids, matrix, bare, words)
        folder = Path(scratch) / "adapter"
        trained = train_in_team(base, dataset, folder, settings, documents=passages, on_progress=_tell)
        tuned = check_adapter_changes_output(base, folder, dataset)
        if held_out:
            asked = [question for question in _distinct(one.questions) if half_of(question.text) == "test"]
        else:
            watched = {judged.query for judged in dataset.judgements_in("validation")}
            asked = [question for question in questions if question.text in watched]
        before = _scores(asked, passages, ids, matrix, bare, words)
        after = _scores(asked, passages, ids, tuned.encode([passages[id].embedded_text for id in ids]), tuned, words)
    return {
        "trained_on": len(dataset.judgements_in("train")),
        "measured": len(asked),
        "chunks": len(ids),
        "steps": trained.steps,
        "validation_loss": [round(trained.first_validation_loss, 4), round(trained.validation_loss, 4)],
        **{name: _figures(before[name], after[name]) for name in ("dense", "whole", "general")},
        "seconds": round(time.monotonic() - started),
    }


def _passages(one: RetrievalSet) -> dict[str, Chunk]:
    found: dict[str, Chunk] = {}
    for name, text in one.documents.items():
        content = hashlib.sha256(text.encode()).hexdigest()
        for chunk in split(Document(name, text, content, markdown=name.endswith(".md"), metadata={})):
            found[chunk.id] = chunk
    return found


def _distinct(questions: Sequence[Question]) -> list[Question]:
    """Each text once, with all the documents that answer it."""
    found: dict[str, frozenset[str]] = {}
    for one in questions:
        found[one.text.strip()] = found.get(one.text.strip(), frozenset()) | one.answers
    return [Question(text, answers) for text, answers in found.items()]


def _lessons(
    questions: Sequence[Question],
    passages: Mapping[str, Chunk],
    ids: Sequence[str],
    matrix: Vectors,
    encoder: Encoder,
    words: DocumentStore,
) -> EncoderDataset:
    judged = []
    for question, vector in zip(questions, encoder.encode_queries([one.text for one in questions]), strict=True):
        best: dict[str, str] = {}
        for id in nearest(ids, matrix, vector, len(ids)):
            if passages[id].document in question.answers:
                best.setdefault(passages[id].document, id)
        ranked = whole_search(ids, matrix, vector, words, question.text, coverage=encoder.coverage(question.text))
        places = [place for place, id in enumerate(ranked) if id in best.values()]
        others = [
            id
            for id in ranked[(min(places) + 1 if places else 0) :]
            if passages[id].document not in question.answers
            and not any(is_near_duplicate(passages[id].text, passages[right].text) for right in best.values())
        ]
        share = hashlib.sha256(f"validation {question.text}".encode()).digest()[0] / 256
        rights = tuple(best.values())[:MOST_ANSWERS]
        judged.append(
            RelevanceJudgement(
                question.text, rights, tuple(others[:8]), "validation" if share < VALIDATION else "train"
            )
        )
    return EncoderDataset(tuple(judged), passages, "")


def _scores(
    questions: Sequence[Question],
    passages: Mapping[str, Chunk],
    ids: Sequence[str],
    matrix: Vectors,
    encoder: Encoder,
    words: DocumentStore,
) -> dict[str, list[float]]:
    """nDCG@10 of documents, each ranked by its best chunk; of pseudo-queries, of chunks."""
    scores: dict[str, list[float]] = {"dense": [], "whole": [], "general": []}
    for question, vector in zip(questions, encoder.encode_queries([one.text for one in questions]), strict=True):
        near = nearest(ids, matrix, vector, CANDIDATES)
        whole = whole_search(ids, matrix, vector, words, question.text, coverage=encoder.coverage(question.text))
        for name, ranked in (("dense", near), ("whole", whole)):
            documents = list(dict.fromkeys(passages[id].document for id in ranked))
            scores[name].append(ndcg(documents, question.answers))
    taken = pseudo_queries(passages)
    for id, vector in zip(taken, encoder.encode(list(taken.values())), strict=True):
        scores["general"].append(ndcg(nearest(ids, matrix, vector, 10), [id]))
    return scores


def _figures(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    gain = bootstrap_mean([new - old for old, new in zip(before, after, strict=True)])
    count = max(1, len(before))
    return {
        "before": round(100 * sum(before) / count, 2),
        "after": round(100 * sum(after) / count, 2),
        "gain": round(100 * gain.mean, 2),
        "interval": [round(100 * gain.low, 2), round(100 * gain.high, 2)],
    }


def _tell(progress: Any) -> None:
    if progress.validation_loss is not None:
        print(
            f"step {progress.step}/{progress.steps}: loss {progress.loss:.3f}, "
            f"validation {progress.validation_loss:.3f}",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    print(json.dumps(encoder_gain(Path(sys.argv[1]), held_out="--validation" not in sys.argv), indent=1))
