"""`embellama search`, `dedupe`, `classify` and `compare`, on outputs of the real `embellama bulk`."""

import json
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tests.conftest import Server
from tests.tiny import write_bert
from tests.vectors.conftest import run_command, write_jsonl

Output = Callable[[str], Path]

FLAGS: dict[str, tuple[str, ...]] = {
    "out.jsonl": (),
    "out.arrow": (),
    "out.npy": ("--dimensions", "8"),
    "int8.npy": ("--dtype", "int8"),
    "bits.parquet": ("--dtype", "ubinary"),
}

TEXTS = ["red green", "blue", "one two three", "", "red green", "a b c d"]


def lines(result: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def write_table(path: Path, rows: NDArray[np.float32]) -> None:
    """Write rows as an output in Arrow, 4096 to a batch, or in Parquet, all in a row group."""
    n_rows, dim = rows.shape
    columns = {
        "index": pa.array(np.arange(n_rows)),
        "id": pa.nulls(n_rows, pa.string()),
        "status": pa.array(["ok"] * n_rows),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), dim),
    }
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, use_dictionary=False, compression="none")
        return
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=4096)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model whose vectors depend on all words."""
    return str(write_bert(tmp_path_factory.mktemp("tiny") / "tiny.gguf", gain=1))


@pytest.fixture(scope="module")
def output(model: str, tmp_path_factory: pytest.TempPathFactory) -> Output:
    """Embed `TEXTS` into an output of a name, with its `FLAGS`; once for all tests."""
    folder = tmp_path_factory.mktemp("outputs")
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text, "id": f"#{i}"}) + "\n" for i, text in enumerate(TEXTS)))

    def write(name: str) -> Path:
        path = folder / name
        if not path.exists():
            flags = ("--id-column", "id", "--keep-columns", "--allowed-failure-rate", "1", *FLAGS[name])
            assert not run_command("bulk", source, "-o", path, *flags, *with_model(model)).returncode
        return path

    return write


def with_model(path: str) -> tuple[str, ...]:
    return "--model-path", path, "--workers", "1"


@pytest.mark.parametrize("name", ["out.jsonl", "int8.npy", "bits.parquet"])
def test_the_text_itself_is_found_first(output: Output, model: str, name: str) -> None:
    out = output(name)
    found = lines(run_command("search", out, "blue", "red green", "--top-k", "2", *with_model(model)))
    assert [(each["query"], each["rank"]) for each in found] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert found[0]["columns"] == {"text": "blue", "id": "#1"}
    assert [(each["index"], each["id"]) for each in found[2:]] == [(0, "#0"), (4, "#4")]
    assert found[2]["score"] == found[3]["score"]
    if name == "out.jsonl":
        assert found[0]["score"] == pytest.approx(1, abs=1e-5)


def test_near_duplicates_name_the_row_that_is_kept(output: Output) -> None:
    for name in ("out.arrow", "out.npy"):
        result = run_command("dedupe", output(name), "--threshold", "0.9999")
        assert lines(result) == [{"index": 4, "id": "#4", "duplicate_of": 0, "score": 1.0}]
        assert f"{name}: 5 rows, 1 near-duplicates, 4 kept" in result.stderr
        assert ("MB were held in" in result.stderr) == (name == "out.arrow")


def test_rows_are_classified_by_labels_of_a_list_or_a_file(output: Output, model: str, tmp_path: Path) -> None:
    out, file = output("out.npy"), tmp_path / "labels.txt"
    file.write_text("blue\nred green\n")
    found = lines(run_command("classify", out, "--labels", "blue, red green", *with_model(model)))
    assert [each["label"] for each in found if each["index"] in (0, 1, 4)] == ["red green", "blue", "red green"]
    assert all(each["margin"] >= 0 for each in found)
    assert lines(run_command("classify", out, "--labels-file", file, *with_model(model))) == found
    other = lines(run_command("classify", out, "--labels-file", file, "--template", "one {label}", *with_model(model)))
    assert [each["score"] for each in other] != [each["score"] for each in found]


def test_outputs_of_two_dtypes_are_compared(output: Output) -> None:
    a, b = output("out.jsonl"), output("int8.npy")
    (found,) = lines(run_command("compare", a, b, "--worst", "2", "--json"))
    assert (found["rows"], found["only_in_a"], found["only_in_b"], len(found["worst"])) == (5, 0, 0, 2)
    assert 0.99 < found["least"] <= found["mean"] < 1
    assert found["worst"][0]["cosine"] == found["least"]
    told = run_command("compare", a, b).stdout
    assert "least cosine" in told
    assert "row 0, #0" in told


def test_another_model_is_refused_by_its_weights_or_its_dimensions(
    output: Output, model: str, tiny_path: str, tmp_path: Path
) -> None:
    out = output("out.jsonl")
    result = run_command("search", out, "blue", *with_model(tiny_path))
    assert result.returncode == 1
    assert "was made with another model: 'tiny', whose weights are " in result.stderr
    result = run_command("search", out, "blue", *with_model(model), "--pooling", "cls")
    assert "pooling is 'cls'; that of" in result.stderr
    alone = write_jsonl(tmp_path / "alone.jsonl", np.ones((2, 4), np.float32))
    result = run_command("search", alone, "blue", *with_model(tiny_path))
    assert "alone.jsonl has 4 dimensions and" in result.stderr
    assert "gives 32" in result.stderr


@pytest.mark.model
@pytest.mark.server
def test_servers_of_the_same_model_embed_queries_too(server: Server, model_path: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a cat\na dog\nthe weather\n")
    ways = {"here": ("--model-path", model_path), "there": ("--url", server.url)}
    found = []
    for maker, flags in ways.items():
        out = tmp_path / f"{maker}.npy"
        assert run_command("bulk", tmp_path / "in.txt", "-o", out, *flags).returncode == 0
        for asker in ways.values():
            rows = lines(run_command("search", out, "a kitten", "a kitten", *asker))
            assert [row["index"] for row in rows] == [0, 1, 2] * 2
            found.append([row["score"] for row in rows])
    np.testing.assert_allclose(found, found[:1] * 4, atol=0.005)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("search", "OUT", "red", "--top-k", "0"), "Error: top_k is 0; it must be at least 1"),
        (("search", "OUT", "red", " "), "Error: query 1 is empty"),
        (("dedupe", "OUT", "--threshold", "1.5"), "Error: threshold is 1.5; it must be above 0 and at most 1"),
        (("dedupe", "NONE", "--threshold", "0.9"), "cannot be read: No such file or directory"),
        (("classify", "OUT", "--labels", "red"), "Error: labels has 1: 'red'; there must be at least 2"),
        (("classify", "OUT"), "Error: give either --labels or --labels-file"),
        (("classify", "OUT", "--labels-file", "NONE"), "NONE: No such file or directory"),
        (("compare", "OUT", "OTHER"), "vectors of 32 dimensions cannot be compared with vectors of 4"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    model: str, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    names = {"OUT": write_jsonl(tmp_path / "out.jsonl", np.ones((2, 32), np.float32))}
    names["OTHER"] = write_jsonl(tmp_path / "other.jsonl", np.ones((2, 4), np.float32))
    flags = with_model(model) if arguments[0] in ("search", "classify") else ()
    result = run_command(*(names.get(each, each) for each in arguments), *flags)
    assert result.returncode in (1, 2)
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_full_disk_is_told_by_the_folder_of_temporary_files(tmp_path: Path) -> None:
    out = write_jsonl(tmp_path / "out.jsonl", np.random.default_rng(0).random((500, 32), np.float32))

    def no_more() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    result = run_command("dedupe", out, "--threshold", "1", preexec_fn=no_more)
    assert (result.returncode, result.stderr) == (1, f"Error: {tempfile.gettempdir()}: File too large\n")


# Prints by how many KiB the peak of this process's memory is higher after searching a large output than a small one.
GROWTH = """
import sys
from pathlib import Path
import numpy as np
from embellama.vectors.search import top_k
from embellama.vectors.stored import StoredVectors

def peak(path):
    top_k(np.ones((1, 384)), StoredVectors(path).blocks(), 10)
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

small, large = map(peak, sys.argv[1:])
print(large - small)
"""


@pytest.mark.parametrize("suffix", ["npy", "arrow", "parquet"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"small.{suffix}", tmp_path / f"large.{suffix}"]
    for path, n_rows in zip(paths, (20_000, 120_000), strict=True):
        rows = np.random.default_rng(0).random((n_rows, 384), np.float32)
        if suffix == "npy":
            np.save(path, rows)
        else:
            write_table(path, rows)
    grown = int(subprocess.check_output([sys.executable, "-c", GROWTH, *map(str, paths)], text=True))
    assert grown < 70_000  # the files differ by 150,000
