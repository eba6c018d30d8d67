"""`make bench-retrieval`: does the search find the right documents, and how does it grow.

Quality: the same chunks, vectors and questions for all; a set's gain is nDCG@10 over the better of vectors alone and
words alone on that very set. Growth: real chunks repeated with noise, up to a million. Kills: writers that are killed
again and again. Encoder: what tuning it on half of the questions of two sets gains on the other half. Nothing of the
search is fitted to these sets.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.encoders.encoder import Encoder, SentenceEncoder
from agent.llm.weights.load import resolve_encoder
from tests.bench import retrieval_growth, retrieval_kills
from tests.bench.encoder_gain import encoder_gain
from tests.bench.results import ROOT, beside_peers, commit, machine, replaced, rows_of, write_result
from tests.bench.retrieval_sets import Question, RetrievalSet, retrieval_sets
from tests.bench.retrieval_sides import SIDES, corpus
from tuner.encoder.ranking import ndcg
from tuner.evaluation.statistics import bootstrap_mean

DATA = ROOT.parent / "shared" / "data"
ENCODER = "all-minilm-l6-v2"
ALONE = ("chroma", "bm25s", "words")
"""Those that rank by vectors alone or by words alone."""
SIZES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000}

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("quality", *(f"growth_{size}" for size in SIZES), "kills", "encoder")
    parser.add_argument("--parts", nargs="*", choices=parts, default=parts)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--measure", choices=parts, help="do one thing in this process and print what came of it")
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args.measure, args.data)))
        return 0
    if not args.data.is_dir():
        print(f"{args.data} is missing; the benchmark needs the public data there", file=sys.stderr)
        return 1
    rows = rows_of("retrieval")
    for part in args.parts:
        made = [{"commit": commit(), "cpu": machine()["cpu"], "part": part, **row} for row in child(part, args.data)]
        for row in made:
            print("  " + json.dumps(row), flush=True)
        rows = replaced(rows, made, lambda row: row["part"])
        print(write_result("retrieval", "make bench-retrieval", metrics_of(rows), rows), flush=True)
    return 0


def child(part: str, data: Path) -> list[Row]:
    """What a part measures, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.retrieval", "--measure", part, "--data", str(data)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=beside_peers())
    found: list[Row] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(part: str, data: Path) -> list[Row]:
    if part == "quality":
        return quality(data)
    if part == "kills":
        return [retrieval_kills.kills(50)]
    if part == "encoder":
        return [{"set": name, **figures} for name, figures in encoder_gain(data).items()]
    return [retrieval_growth.growth(SIZES[part.removeprefix("growth_")], data, packaged_encoder())]


def packaged_encoder() -> Encoder:
    home = ROOT / ".ratchet" / "models"
    home.mkdir(parents=True, exist_ok=True)
    return SentenceEncoder(resolve_encoder(ENCODER, home), name=ENCODER)


def quality(data: Path) -> list[Row]:
    """A row for each set and side; the people of one set are taken together."""
    encoder = packaged_encoder()
    found: dict[str, dict[str, list[Row]]] = {}
    for one in retrieval_sets(data):
        print(one.name, len(one.documents), len(one.questions), file=sys.stderr, flush=True)
        started = time.perf_counter()
        with corpus(one.documents, encoder) as over:
            ingest = len(one.documents) / (time.perf_counter() - started)
            for side, make in SIDES.items():
                answered = answers(make(over), one)
                for row in answered:
                    row["ingest_docs_per_s"] = ingest
                found.setdefault(one.name.split("_")[0] if one.name.startswith("bfcl") else one.name, {}).setdefault(
                    side, []
                ).extend(answered)
    return [summary(name, side, sides) for name, sides in found.items() for side in sides]


def answers(search: Callable[[str], list[str]], one: RetrievalSet) -> list[Row]:
    search(one.questions[0].text)
    rows = []
    for question in one.questions:
        started = time.perf_counter()
        ranked = search(question.text)
        seconds = time.perf_counter() - started
        rows.append({**scores(ranked, question), "seconds": seconds})
    return rows


def scores(ranked: Sequence[str], question: Question) -> dict[str, float]:
    """nDCG@10 with each answer counting the same, and the share of the answers among the first 5 and 10."""
    recall = {n: len(question.answers & set(ranked[:n])) / len(question.answers) for n in (5, 10)}
    return {"ndcg": ndcg(ranked, question.answers), "recall5": recall[5], "recall10": recall[10]}


def summary(name: str, side: str, sides: Mapping[str, Sequence[Row]]) -> Row:
    rows = sides[side]
    milliseconds = sorted(row["seconds"] * 1000 for row in rows)
    made = {
        "set": name,
        "side": side,
        "questions": len(rows),
        **{f"{key}_mean": statistics.fmean(row[key] for row in rows) for key in ("ndcg", "recall5", "recall10")},
        "p50_ms": statistics.median(milliseconds),
        "p95_ms": milliseconds[int(0.95 * (len(milliseconds) - 1))],
        "ingest_docs_per_s": statistics.fmean(row["ingest_docs_per_s"] for row in rows),
    }
    better = max(ALONE, key=lambda one: statistics.fmean(row["ndcg"] for row in sides[one]))
    gain = bootstrap_mean(
        [100 * (mine["ndcg"] - other["ndcg"]) for mine, other in zip(rows, sides[better], strict=True)]
    )
    return {**made, "better_alone": better, "gain": gain.mean, "low": gain.low, "high": gain.high}


def metrics_of(rows: Sequence[Row]) -> dict[str, float | None]:
    ours = [row for row in rows if row["part"] == "quality" and row["side"] == "ratchet"]
    gains = [row["gain"] for row in ours]
    tuned = [row["whole"]["gain"] for row in rows if row["part"] == "encoder"]
    by_part = {row["part"]: row for row in rows}
    largest = max(ours, key=lambda row: row["set"] == "tau2_banking_kb", default=None)
    return {
        "mean_ndcg_gain_points": statistics.fmean(gains) if gains else None,
        "min_ndcg_gain_points": min(gains, default=None),
        **{f"p50_ms_{size}": by_part.get(f"growth_{size}", {}).get("p50_ms") for size in SIZES},
        "ingest_docs_per_s": None if largest is None else largest["ingest_docs_per_s"],
        "encoder_tuning_gain_points": statistics.fmean(tuned) if tuned else None,
        "kills_survived": by_part.get("kills", {}).get("survived"),
    }


if __name__ == "__main__":
    sys.exit(main())
