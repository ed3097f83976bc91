"""The engine alone, without HTTP and bus, in a process of its own: JSON lines in, JSON lines out.

``python -m tests.bench.engine_child SLOTS CONTEXT THREADS``. In: a list of ``{"messages", "max_tokens"}``, run
together. Out: a list of answers with times of ``time.perf_counter``, which all processes of a machine share.
"""

from __future__ import annotations

import json
import sys
import time

from llmlb.node.engine.llama_cpp import LlamaCppEngine
from tests.support.engine import Driver, chat, smollm2_options


def main() -> None:
    slots, context, threads = (int(one) for one in sys.argv[1:])
    driver = Driver(LlamaCppEngine(smollm2_options(slots=slots, context=context, threads=threads)))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        sent_at = time.perf_counter()
        requests = []
        for one in asked:
            system, *turns = (message["content"] for message in one["messages"])
            requests.append(chat(*turns, system=system, max_tokens=one["max_tokens"]))
        offset = time.perf_counter() - time.monotonic()
        out = []
        for heard in driver.run(requests):
            assert heard.usage is not None, heard.error
            out.append(
                {
                    "sent_at": sent_at,
                    "times": [at + offset for at in heard.times],
                    "text": heard.text,
                    "finish_reason": heard.reason,
                    "prompt_tokens": heard.usage.prompt_tokens,
                    "cached_tokens": heard.usage.cached_tokens,
                    "tokens": heard.usage.completion_tokens,
                }
            )
        print(json.dumps(out), flush=True)


if __name__ == "__main__":
    main()
