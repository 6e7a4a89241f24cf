"""What a reranker's query costs that is read with each document."""

from typing import Any

import httpx
import pytest
from embellama_server.app import build_app
from embellama_server.application import build
from embellama_server.config import ServerConfig
from embellama_server.state import ServerState

from embellama import EmbeddingEngine, EngineConfig, InputError
from embellama.text.tokenizer import Tokenizer
from tests.tiny import pre_norm

TEMPLATE = "<query>{query}</query><document>{document}</document>"
N_DOCUMENTS = 400


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pairs") / "reranker.gguf"
    pre_norm.write_qwen3_reranker(path, template=TEMPLATE)
    return str(path)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_a_query_too_long_for_so_many_documents_is_read_once(
    reranker: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    config = ServerConfig(model_path=reranker, num_workers=1, max_batch_tokens=192, max_request_tokens=2000)
    state: ServerState = build(config.checked())
    n_read = 0
    bare = Tokenizer.bare

    def counted(self: Tokenizer, texts: Any) -> Any:
        nonlocal n_read
        n_read += sum(map(len, texts))
        return bare(self, texts)

    monkeypatch.setattr(Tokenizer, "bare", counted)
    monkeypatch.setattr("embellama_server.state.ServerState.check_room", lambda *_: None)
    query = "red blue red blue red blue"
    field = "texts" if path == "/rerank" else "documents"
    body = {"model": state.model(None).info.name, "query": query, field: ["red"] * N_DOCUMENTS}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(state)), base_url="http://test") as client:
        answer = await client.post(path, json=body)
    assert (answer.status_code, "query has" in answer.text, str(N_DOCUMENTS) in answer.text) == (400, True, True)
    assert n_read == len(query)


def test_a_query_that_leaves_no_room_is_read_once(reranker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddingEngine(EngineConfig(model_path=reranker, model_name="tiny", num_workers=1)) as engine:
        read: list[str] = []
        bare = Tokenizer.bare

        def noted(self: Tokenizer, texts: Any) -> Any:
            read.extend(texts)
            return bare(self, texts)

        monkeypatch.setattr(Tokenizer, "bare", noted)
        with pytest.raises(InputError, match=r"the query .*none is left for a document") as caught:
            engine.rerank("tiny", "red " * 10_000, ["red"] * N_DOCUMENTS, truncate="end")
    assert caught.value.option == "query"
    assert len(read) == 1
