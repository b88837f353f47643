"""The same texts without HTTP: an engine that generates them on command. `python -m intone.bench.serve_offline`

Reads {"run", "arguments", "requests"} as the first line of stdin; then every further line is one round.
"""

import json
import sys
import time

from intone.engine.collector import spare_loaded
from intone.engine.requests import Request
from intone.serve.loading import open_run


def main() -> int:
    """Answers {"ready": true}, then {"tokens", "seconds"} per round."""
    asked = json.loads(sys.stdin.readline())
    opened = open_run(asked["run"], **asked["arguments"])
    spare_loaded()  # as the server's process does
    requests = []
    for request in asked["requests"]:
        bias = {int(token): value for token, value in request.pop("logit_bias", {}).items()}  # JSON knows no other keys
        requests.append(Request(**request, logit_bias=bias))
    with opened.engine as engine:
        print(json.dumps({"ready": True}), flush=True)
        for _ in sys.stdin:
            begin_s = time.perf_counter()
            answers = engine.generate(requests)
            seconds = time.perf_counter() - begin_s
            tokens = sum(completion.usage.completion_tokens for samples in answers for completion in samples)
            print(json.dumps({"tokens": tokens, "seconds": seconds}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
