"""What the request log costs: a server that writes one beside a server that does not.

    .venv/bin/python -m benchmarks.request_log --save     # and keeps it under benchmarks/results/
    .venv/bin/python -m benchmarks.request_log --instant  # workers that answer at once: the front is all that counts

32 clients with one short text each, in turns: the two servers run at once, and one is loaded at a time. The figure is
the median of the rounds' ratios, and the lines that were written are counted.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from embellama_server.workers.worker import HOOK

from benchmarks import load, texts
from benchmarks.compare import ROOT, machine, result_base, write
from tests.conftest import running_server, wait_until


def main() -> None:
    parser = argparse.ArgumentParser(description="What the request log costs.")
    parser.add_argument("--model-path", default=str(ROOT / "models" / "minilm.gguf"))
    parser.add_argument("--seconds", type=float, default=5, help="length of one load (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--instant", action="store_true", help="have workers answer at once")
    parser.add_argument("--log-texts", action="store_true", help="write texts, too")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/DATE-request-log-CPU.json")
    options = parser.parse_args()
    if options.instant:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "server")])  # workers import that file
        os.environ[HOOK] = "benchmarks.front:instant"
    ratios, rates = measured(options)
    print(f"median {statistics.median(ratios):.3f}")
    if options.save:
        where = machine(options.model_path)
        result = {
            "machine": where,
            "options": {name: getattr(options, name) for name in ("seconds", "rounds", "instant", "log_texts")},
            "texts_per_s": {"plain": rates[0], "logging": rates[1]},
            "ratios": ratios,
            "median": statistics.median(ratios),
        }
        name = "request-log-instant" if options.instant else "request-log"
        path = result_base(name, where["cpu"]).with_suffix(".json")
        write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def measured(options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Load both servers in turns; return each round's ratio, and the median rates without and with a log."""
    requests = [[text] for text in texts.sentences()[:600]]
    flags = ("--model-path", options.model_path, "--model-name", "minilm", "--workers", "2", "--cache-bytes", "0")
    ratios, rates, n_requests = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines"
        extra = ("--request-log", str(lines), *(("--log-texts",) if options.log_texts else ()))
        with (
            running_server(Path(folder) / "plain.log", *flags) as plain,
            running_server(Path(folder) / "logging.log", *flags, *extra) as logging,
        ):
            for i in range(options.rounds + 1):
                order = [plain, logging] if i % 2 else [logging, plain]
                seconds = options.seconds if i else 1  # the first round warms up
                found = {server.url: load.run(server.url, "minilm", requests, 32, seconds) for server in order}
                assert not any(each.failed for each in found.values())
                n_requests += found[logging.url].requests
                rates.append([found[server.url].texts_per_s for server in (plain, logging)])
                if i:
                    ratios.append(rates[-1][1] / rates[-1][0])
                    print(f"plain {rates[-1][0]:8.1f}/s   logging {rates[-1][1]:8.1f}/s   {ratios[-1]:.3f}")

            def written() -> bool:
                return sum(path.read_bytes().count(b"\n") for path in lines.glob("*.jsonl")) == n_requests

            wait_until(written, "every request has its line")
    return ratios, [statistics.median(each) for each in zip(*rates[1:], strict=True)]


if __name__ == "__main__":
    main()
