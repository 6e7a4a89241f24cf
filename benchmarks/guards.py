"""What keys and limits cost: a server that checks and charges everything beside one that asks for no key.

    .venv/bin/python -m benchmarks.guards --save     # and keeps it under benchmarks/results/
    .venv/bin/python -m benchmarks.guards --redis-url redis://127.0.0.1:6379/0

32 clients with one short text each, in turns: the two servers run at once, and one is loaded at a time. The figure is
the median of the rounds' ratios.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks import load, texts
from benchmarks.compare import ROOT, machine, result_base, write
from embellama.keys import KeyGrant, new_key, toml_entry
from tests.conftest import running_server

# Every limit is there, and none is reached.
GRANT = KeyGrant(
    models=("minilm",),
    requests_per_minute=10**9,
    tokens_per_minute=10**9,
    tokens_per_day=10**9,
    max_concurrent=10**6,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="What keys and limits cost.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--seconds", type=float, default=5, help="length of one load (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--redis-url", default="", help="keep what was spent there")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-guards-CPU.json")
    options = parser.parse_args()
    key, entry = new_key("bench", GRANT)
    requests = [[text] for text in texts.sentences()[:600]]
    flags = ("--model-path", options.model_path, "--model-name", "minilm", "--workers", "2", "--cache-bytes", "0")
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.toml"
        keys.write_text(toml_entry(entry))
        guards = ("--keys-file", str(keys), *(("--redis-url", options.redis_url) if options.redis_url else ()))
        with (
            running_server(Path(folder) / "plain.log", *flags) as plain,
            running_server(Path(folder) / "guarded.log", *flags, *guards) as guarded,
        ):
            ratios = []
            for i in range(options.rounds + 1):
                order = [plain, guarded] if i % 2 else [guarded, plain]
                seconds = options.seconds if i else 1  # the first round warms up
                found = {server.url: load.run(server.url, "minilm", requests, 32, seconds, key) for server in order}
                assert not any(each.failed for each in found.values())
                rates = [found[server.url].texts_per_s for server in (plain, guarded)]
                if i:
                    ratios.append(rates[1] / rates[0])
                    print(f"plain {rates[0]:8.1f}/s   guarded {rates[1]:8.1f}/s   {ratios[-1]:.3f}")
    print(f"median {statistics.median(ratios):.3f}")
    if options.save:
        where = machine(options.model_path)
        result = {"machine": where, "seconds": options.seconds, "ratios": ratios, "median": statistics.median(ratios)}
        path = result_base("guards", where["cpu"]).with_suffix(".json")
        write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
