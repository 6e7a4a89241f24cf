"""A model whose file is here and whose rows other servers compute."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from embellama import EmbeddingEngine, EngineConfig
from embellama.backend import Times
from embellama.batch import RowKind
from embellama.bulk.backend import Embedded
from embellama.bulk.backends import backend_of
from embellama.bulk.job import BulkJob
from embellama.bulk.progress import Log
from embellama.bulk.run import run
from embellama.errors import ConfigError, DeadlineExceeded, EmbeddingFailed, InputError, ModelLoadError, Unavailable
from embellama.options import EmbedOptions
from embellama.remote.answers import rows_of
from embellama.remote.config import RemoteConfig
from embellama.remote.faults import Transient
from embellama.remote.model import RemoteModel
from tests.conftest import BIN, ROOT, Reference, Server, running_server
from tests.conftest import run as run_command
from tests.remote.conftest import StartFaulty
from tests.tiny import write_bert

TEXTS = ["red green", "blue", "one two three red", "a b c d e f g", "three"]


@pytest.fixture(scope="module")
def tiny_server(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("tiny") / "log"
    with running_server(log, "--model-path", tiny_path, "--workers", "1", "--cache-bytes", "0") as server:
        yield server


@pytest.fixture(scope="module")
def config(tiny_server: Server, tiny_path: str) -> RemoteConfig:
    made = RemoteConfig(url=(tiny_server.url,), tokenizer_path=tiny_path, max_batch_size=2, retry_s=5, timeout_s=5)
    return made.checked()


@pytest.fixture(scope="module")
def model(config: RemoteConfig) -> Iterator[RemoteModel]:
    with contextlib.closing(RemoteModel(config)) as model:
        yield model


@pytest.fixture(scope="module")
def local(tiny_path: str) -> Iterator[EmbeddingEngine]:
    with EmbeddingEngine(EngineConfig(model_path=tiny_path, num_workers=1)) as engine:
        yield engine


@pytest.mark.parametrize(
    "options",
    [{}, {"normalize": False}, {"window_overlap": 3}, {"truncate": "start"}, {"dimensions": 4, "dtype": "int8"}],
    ids=str,
)
def test_vectors_are_those_of_the_model_here(
    config: RemoteConfig, local: EmbeddingEngine, options: dict[str, Any]
) -> None:
    texts = TEXTS + (["red blue " * 100] if "window_overlap" in options or "truncate" in options else [])
    expected = local.encode(None, texts, **options)
    with contextlib.closing(backend_of(config, EmbedOptions(**options), {})) as backend:
        found = [each for each in backend.submit(texts).result() if isinstance(each, Embedded)]
    assert [each.n_tokens for each in found] == expected.n_tokens.tolist()
    assert [each.n_cut for each in found] == expected.n_cut.tolist()
    rows = np.array([each.vector for each in found], float)
    np.testing.assert_allclose(rows, expected.vectors.astype(float), atol=1.01 if "dtype" in options else 1e-3)


@pytest.mark.model
def test_the_default_model_gives_the_references_vectors(server: Server, model_path: str, reference: Reference) -> None:
    config = RemoteConfig(url=(server.url,), tokenizer_path=model_path).checked()
    with contextlib.closing(backend_of(config, EmbedOptions(), {})) as backend:
        found = backend.submit(reference.texts).result()
    rows = np.array([each.vector for each in found if isinstance(each, Embedded)])
    assert (rows * reference.vectors).sum(axis=1).min() > 0.999


def test_documents_are_cut_as_with_the_model_here(config: RemoteConfig, tiny_path: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("red green blue one two three " * 20)
    job = BulkJob(inputs=(str(tmp_path / "in"),), output="", chunk_tokens=10, chunk_overlap=3)
    rows = []
    for name, which in (("here", EngineConfig(model_path=tiny_path)), ("there", config)):
        output = tmp_path / f"{name}.jsonl"
        run(msgspec.structs.replace(job, output=str(output)), which, Log())
        rows.append([msgspec.json.decode(line) for line in output.read_text().splitlines()])
    assert len(rows[0]) > 10
    assert [each["id"] for each in rows[0]] == [each["id"] for each in rows[1]]
    np.testing.assert_allclose(
        [each["embedding"] for each in rows[0]], [each["embedding"] for each in rows[1]], atol=1e-3
    )


def test_a_text_that_fails_fails_alone(config: RemoteConfig) -> None:
    with contextlib.closing(backend_of(config, EmbedOptions(), {})) as backend:
        outcomes = backend.submit(["red", "poison", "blue", "red " * 100]).result()
    codes = [None if isinstance(each, Embedded) else each.code for each in outcomes]
    assert codes == [None, "model_error", None, "context_length_exceeded"]


def test_a_back_end_is_all_or_nothing_and_names_the_text(model: RemoteModel) -> None:
    job = model.jobs.encode(["red", "green", "blue", "one", "poison"])
    with pytest.raises(EmbeddingFailed, match="text 4") as caught:
        model.backend.submit(job.tokens).result()
    assert caught.value.index == 4
    assert model.backend.state.n_open == 0


def test_progress_and_times_are_told(model: RemoteModel) -> None:
    told: list[tuple[int, int]] = []
    times, before = Times(), time.monotonic()
    rows = model.backend.submit(
        model.jobs.encode(TEXTS).tokens, times=times, progress=lambda *counts: told.append(counts)
    ).result()
    assert rows.shape == (len(TEXTS), model.info.dim)
    assert told == sorted(told)
    assert (len(told), told[-1]) == (3, (5, 5))
    assert before <= times.started <= time.monotonic()


def test_nothing_is_waited_for_beyond_a_deadline(model: RemoteModel) -> None:
    future = model.backend.submit(model.jobs.encode(TEXTS).tokens, deadline=time.monotonic())
    with pytest.raises(DeadlineExceeded):
        future.result(timeout=10)


def test_vectors_of_tokens_are_refused(model: RemoteModel) -> None:
    with pytest.raises(InputError, match="vectors of tokens are wanted; servers give none"):
        model.backend.submit(model.jobs.encode(["red"]).tokens, kind=RowKind.TOKEN)


def test_what_is_open_ends_when_it_is_closed(config: RemoteConfig) -> None:
    model = RemoteModel(config)
    future = model.backend.submit(model.jobs.encode(TEXTS * 200).tokens)
    closing = threading.Thread(target=model.close)
    closing.start()
    closing.join(10)
    assert future.done()
    assert not closing.is_alive()
    assert model.backend.state.status == "unavailable"
    with pytest.raises(Unavailable):
        model.backend.submit(model.jobs.encode(["red"]).tokens)


def test_a_server_that_is_killed_costs_no_row(
    config: RemoteConfig, local: EmbeddingEngine, tiny_path: str, tmp_path: Path
) -> None:
    flags = ("--model-path", tiny_path, "--workers", "1", "--cache-bytes", "0")
    with running_server(tmp_path / "log", *flags) as other:
        both = msgspec.structs.replace(config, url=(*config.url, other.url), retry_s=30).checked()
        with contextlib.closing(RemoteModel(both)) as model:
            texts = [f"red {'blue ' * (i % 9)}green {'one ' * (i % 7)}" for i in range(400)]

            def killed(n_done: int, n_all: int) -> None:
                if n_done >= n_all // 4 and other.process.is_running():
                    other.process.kill()

            job = model.jobs.encode(texts)
            rows = job.finish(model.backend.submit(job.tokens, progress=killed).result(timeout=60)).vectors
        assert other.process.wait() < 0
    np.testing.assert_allclose(rows, local.embed_batch(None, texts), atol=1e-3)


def test_other_weights_are_refused_and_named(config: RemoteConfig, tmp_path: Path) -> None:
    other = str(write_bert(tmp_path / "other.gguf", gain=0.2))
    with pytest.raises(ConfigError, match=r"other.gguf', whose weights have the hash \w{12}…; those of 'tiny' at http"):
        RemoteModel(msgspec.structs.replace(config, tokenizer_path=other))


def test_other_servers_than_embellamas_are_refused(faulty: StartFaulty, tiny_path: str) -> None:
    config = RemoteConfig(url=(faulty().url,), tokenizer_path=tiny_path).checked()
    with pytest.raises(ConfigError, match="but not all servers are embellama's"):
        RemoteModel(config)


def test_a_file_that_is_missing_is_named(config: RemoteConfig) -> None:
    with pytest.raises(ModelLoadError, match=r"cannot load nothing\.gguf: No such file"):
        RemoteModel(msgspec.structs.replace(config, tokenizer_path="nothing.gguf"))


def test_late_chunks_are_refused_before_any_work(config: RemoteConfig, tmp_path: Path) -> None:
    job = BulkJob(inputs=(str(tmp_path),), output=str(tmp_path / "o"), chunk_tokens=10, late_chunking=True)
    with pytest.raises(ConfigError, match="late_chunking needs vectors of tokens"):
        run(job, config, Log())


@pytest.mark.model
def test_the_documented_command_runs(server: Server, model_path: str, tmp_path: Path) -> None:
    (command,) = re.findall(r"^embellama (bulk .* --tokenizer-path .*)$", (ROOT / "docs" / "bulk.md").read_text(), re.M)
    command = command.replace("http://127.0.0.1:8001/v1", server.url).replace("models/minilm.gguf", model_path)
    (tmp_path / "notes.csv").write_text("title,body\nThe cat,It sits on the mat.\n")
    done = run_command(BIN / "embellama", *command.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "notes.npy").shape == (1, 384)


@pytest.mark.parametrize(("body", "shape"), [(b"", "2,3"), (b"1" * 24, "3,2"), (b"1" * 24, ""), (b"1" * 25, "2,3")])
def test_bytes_that_are_no_rows_are_an_answer_to_be_asked_for_again(body: bytes, shape: str) -> None:
    with pytest.raises(Transient, match="not 2,3"):
        rows_of(body, shape, 2, 3)
