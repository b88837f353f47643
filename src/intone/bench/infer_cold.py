"""A cold start: from the launch of a process to the first token, nothing kept from earlier ones.

`python -m intone.bench.infer_cold FOLDER DTYPE WEIGHTS DEVICE` prints {"seconds", "parts"}; INTONE_BENCH_BEGIN is the
launch on the monotonic clock.
"""

import json
import os
import sys
import time
from pathlib import Path


def main(words: list[str]) -> int:
    begin_s = float(os.environ["INTONE_BENCH_BEGIN"])
    parts = {"python": time.monotonic() - begin_s}

    def note(name: str) -> None:
        parts[name] = time.monotonic() - begin_s - sum(parts.values())

    from intone.model.native.build import build_to_generate

    build_to_generate(words[3])  # first, as intone chat does

    import torch

    from intone.data.tokenizer import Tokenizer
    from intone.engine.engine import Engine
    from intone.engine.load import load_newest
    from intone.engine.requests import Request, Token

    note("import")
    folder = Path(words[0])
    model, _ = load_newest(folder, dtype=words[1], device=torch.device(words[3]))
    tokenizer = Tokenizer.load(folder / "tokenizer")
    note("load")
    with Engine(model, tokenizer, weights=words[2]) as engine:  # type: ignore[arg-type]
        note("pack")
        handle = engine.submit(Request(list(range(1, 33)), max_tokens=1, temperature=0.0, tools=False))
        first = next(event for event in handle if isinstance(event, Token))
        note("first token")
        print(json.dumps({"seconds": sum(parts.values()), "parts": parts, "id": first.id}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
