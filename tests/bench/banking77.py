"""`make bench-banking77`: examples/routing.py on the messages of BANKING77, accuracy against reviewed runs."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from tests.bench.results import write_result

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "banking77"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with train.csv and test.csv")
    args = parser.parse_args()
    if not (args.data / "train.csv").is_file():
        print(f"bench-banking77: {args.data} has no train.csv; name the folder with --data", file=sys.stderr)
        return 1
    out = ROOT / ".ratchet" / "routing" / "results.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "examples" / "routing.py")]
    command += ["--train", str(args.data / "train.csv"), "--test", str(args.data / "test.csv")]
    command += ["--home", str(out.parent), "--out", str(out)]
    subprocess.run(command, check=True, cwd=ROOT)
    rows = json.loads(out.read_text("utf-8"))
    metrics = {
        f"accuracy_{count}": statistics.mean(row["accuracy"] for row in rows if row["corrections"] == count)
        for count in sorted({row["corrections"] for row in rows})
    }
    print(write_result("banking77", "make bench-banking77", metrics, rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
