"""A model that a server computes: the same expressions, and its vectors' length asked for once."""

import os
from collections.abc import Iterator
from typing import Literal

import numpy as np
import polars as pl
import pytest

from embellama import ConfigError, EmbeddingEngine, InputError, ServiceError, Unavailable
from embellama.frames import embed
from embellama.frames.models import clients
from embellama.polars import remote
from tests.conftest import Server, TinyModel, running_server
from tests.programs import free_port

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def tiny_server(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    flags = ("--model-path", tiny_path, "--model-name", "tiny", "--workers", "1", "--compute", "llama")
    with running_server(log, *flags) as server:
        yield server


def expr(server: Server, **options: object) -> pl.Expr:
    made: pl.Expr = pl.col("text").embellama.embed(remote(server.url, "tiny"), **options)  # type: ignore[attr-defined]
    return made


def test_a_servers_vectors_are_those_of_its_model(tiny_server: Server, tiny_engine: EmbeddingEngine) -> None:
    frame = pl.LazyFrame({"text": ["red", None, "green", "red"]})
    schema = frame.select(expr(tiny_server, dimensions=8)).collect_schema()
    assert schema["text"] == pl.Array(pl.Float32, 8)
    engines: tuple[Literal["in-memory", "streaming"], ...] = ("in-memory", "streaming")
    for engine in engines:
        found = frame.select(expr(tiny_server, dimensions=8)).collect(engine=engine)["text"].to_list()
        rows = tiny_engine.embed_batch(None, ["red", "green"], dimensions=8)
        assert found[1] is None
        np.testing.assert_allclose([found[i] for i in (0, 2, 3)], rows[[0, 1, 0]], atol=1e-3)


def test_a_server_is_asked_once_for_its_description(tiny_server: Server) -> None:
    first = expr(tiny_server, prompt="query")
    before = len(clients._things)
    assert pl.DataFrame({"text": ["red"]}).select(first, again=expr(tiny_server, prompt="query")).shape == (1, 2)
    assert len(clients._things) == before


def test_a_text_at_fault_is_null_or_an_error_that_names_the_row(tiny_server: Server) -> None:
    frame = pl.DataFrame({"text": ["red", "", "one " * 70]})
    found = frame.select(expr(tiny_server, on_error="null", as_struct=True))["text"].to_list()
    assert [each["embedding"] is None for each in found] == [False, True, True]
    assert [each["n_tokens"] for each in found] == [3, None, None]
    assert "72 tokens" in found[2]["error"]
    with pytest.raises((InputError, ServiceError), match="column 'text', row 1 of 3 given together"):
        frame.select(expr(tiny_server))
    nothing = frame.select(pl.lit("").alias("text")).select(expr(tiny_server, on_error="null"))
    assert nothing["text"].to_list() == [None]


def test_what_servers_cannot_do_is_refused(tiny_server: Server) -> None:
    with pytest.raises(InputError, match="window_overlap is 3"):
        expr(tiny_server, window_overlap=3)
    with pytest.raises(InputError, match="servers do not tell token ids"):
        pl.DataFrame({"text": ["red"]}).select(pl.col("text").embellama.tokens(remote(tiny_server.url, "tiny")))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"remote has no setting 'key'; it has url, model_name, .*api_key"):
        remote(tiny_server.url, "tiny", key="secret")
    with pytest.raises(ConfigError, match=r"url is 'nowhere'; it must be as http"):
        remote("nowhere")


def test_with_the_models_file_here_servers_compute_token_ids(
    tiny_server: Server, tiny_engine: EmbeddingEngine, tiny_path: str
) -> None:
    model = remote(tiny_server.url, "tiny", tokenizer_path=tiny_path)
    texts = ["red", None, "one " * 70, "", "red"]
    column = pl.col("text").embellama  # type: ignore[attr-defined]
    made = column.embed(model, on_error="null", as_struct=True, window_overlap=3)  # which servers do not have
    found = pl.DataFrame({"text": texts}).select(made)["text"].to_list()
    rows = tiny_engine.embed_batch(None, ["red", texts[2] or ""], window_overlap=3)
    assert [each and each["error"] for each in found] == [None, None, None, "the text is empty", None]
    vectors = [found[i]["embedding"] for i in (0, 2, 4)]
    np.testing.assert_allclose(vectors, rows[[0, 1, 0]], atol=1e-3)
    tokens = pl.DataFrame({"text": ["red"]}).select(column.tokens(model))["text"].to_list()
    assert tokens == [tiny_engine.tokenize(None, ["red"]).tokens[0].tolist()]


def test_a_file_of_other_weights_is_refused(tiny_server: Server, tiny: TinyModel) -> None:
    with pytest.raises(ConfigError, match="whose weights have the hash"):
        pl.col("text").embellama.embed(remote(tiny_server.url, "tiny", tokenizer_path=str(tiny("nomic-bert"))))  # type: ignore[attr-defined]


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        embed(pl.Series(["red"]), remote(f"http://127.0.0.1:{free_port()}", "tiny", retry_s=0))


def test_a_fork_has_a_client_of_its_own(tiny_server: Server) -> None:
    column = pl.Series(["red"]).to_arrow()
    before = embed(column, remote(tiny_server.url, "tiny"))
    pid = os.fork()
    if pid == 0:
        same = embed(column, remote(tiny_server.url, "tiny")).equals(before)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
