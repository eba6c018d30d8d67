"""vLLM in a process of its own: requests come in as lines of JSON, replies go out as they are done.

Run as a file by `vllm_side`, under vLLM's own packages; so nothing of ours is imported. A request is
`{"id": str, "ids": [int], "max_tokens": int, "grammar": str | null}`, a reply `{"id": str, "ids": [int], "end": str,
"cached": int}`; what fails is answered with `{"id": str, "error": str}`. The first line out is `{"ready": true}`.
What is asked while others are being answered joins their batch.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from queue import Empty, SimpleQueue
from typing import Any


def main() -> int:
    options: dict[str, Any] = json.loads(sys.argv[1])
    # vLLM prints as it pleases; replies have what was the standard output to themselves.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(**said: Any) -> None:
        replies.write(json.dumps(said) + "\n")
        replies.flush()

    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
    from vllm.sampling_params import StructuredOutputsParams  # type: ignore[import-not-found]

    engine = LLM(**options).llm_engine
    asked: SimpleQueue[str | None] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            asked.put(line)
        asked.put(None)

    def add(line: str) -> None:
        request = json.loads(line)
        grammar = request["grammar"]
        held = None if grammar is None else StructuredOutputsParams(grammar=grammar)
        params = SamplingParams(
            temperature=0.0, max_tokens=request["max_tokens"], structured_outputs=held, detokenize=False
        )
        try:
            engine.add_request(request["id"], {"prompt_token_ids": request["ids"]}, params)
        except ValueError as fault:
            reply(id=request["id"], error=str(fault))

    threading.Thread(target=listen, daemon=True).start()
    reply(ready=True)
    while True:
        try:
            line = asked.get(block=not engine.has_unfinished_requests())
        except Empty:
            for done in engine.step():
                if done.finished:
                    made = done.outputs[0]
                    reply(
                        id=done.request_id,
                        ids=list(made.token_ids),
                        end=made.finish_reason,
                        cached=done.num_cached_tokens or 0,
                    )
            continue
        if line is None:
            return 0
        add(line)


if __name__ == "__main__":
    raise SystemExit(main())
