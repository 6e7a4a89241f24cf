"""Real clients, unchanged, against running servers.

docs/clients.md ──► run_program ──► a client ── HTTP ──► a server ──► /metrics: what was sent, and how often

The document's programs are what is run here; mistakes and failures have programs of their own.
"""

import asyncio
import gc
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from embellama.outputs import Dtype, quantize
from tests.conftest import ROOT, Reference, Server, running_server, wait_until
from tests.faults.conftest import faulty_server

pytestmark = [
    pytest.mark.server,
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # most clients have no way to close them
]

N_TEXTS = 16  # of the reference: enough to see an order, and quickly computed
ADDRESS = "http://127.0.0.1:8000"
SECTIONS = dict(
    section.split("\n", 1) for section in (ROOT / "docs" / "clients.md").read_text().split("\n## ")[1:]
)  # by title
CLIENTS = [
    "OpenAI",
    "Azure OpenAI",
    "LangChain",
    "LlamaIndex",
    "Cohere",
    "Ollama",
    "Hugging Face",
    "Voyage",
]  # installed here


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a client that asks for another machine's address, as for telemetry or a tokenizer."""
    resolve = socket.getaddrinfo

    def only_here(host: Any, *arguments: Any, **options: Any) -> Any:
        assert host in ("127.0.0.1", b"127.0.0.1"), f"a client asks for the address of {host}"
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")


@pytest.fixture(autouse=True, scope="module")
def hung_up() -> Iterator[None]:
    """Close the connections that clients keep for later, so that no other test finds them."""
    yield
    for thing in gc.get_objects():
        if type(thing) is socket.socket and thing.family == socket.AF_INET:
            thing.close()


def run_program(client: str, server: Server, texts: list[str]) -> dict[str, Any]:
    """Run the program of a client's section against a server; return its variables."""
    [program] = re.findall(r"```python\n(.*?)```", SECTIONS[client], re.DOTALL)
    assert ADDRESS in program
    variables: dict[str, Any] = {"texts": texts}
    exec(compile(program.replace(ADDRESS, server.url), f"docs/clients.md, {client}", "exec"), variables)
    return variables


def assert_right(vectors: Any, reference: Reference) -> None:
    expected = reference.vectors[: len(vectors)]
    assert np.shape(vectors) == expected.shape
    assert np.sum(np.array(vectors) * expected, axis=1).min() > 0.999


def sent(server: Server) -> Counter[int]:
    """Count the requests that a server has answered, by status."""
    counts: Counter[int] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        for sample in family.samples:
            if sample.name == "embellama_requests_total":
                counts[int(sample.labels["status"])] += int(sample.value)
    return counts


def test_every_client_has_a_program_and_a_version() -> None:
    programs = {title for title, section in SECTIONS.items() if "```python" in section}
    assert programs == {*CLIENTS, "LiteLLM"}
    table = (ROOT / "docs" / "clients.md").read_text().split("\n## ")[0]
    for name in programs:
        assert re.search(rf"^\| \[{name}\].*\| \d+\.\d+\.\d+", table, re.MULTILINE), name


@pytest.mark.parametrize("client", CLIENTS)
def test_the_documents_program_gets_the_right_vectors(server: Server, reference: Reference, client: str) -> None:
    vectors = run_program(client, server, reference.texts[:N_TEXTS])["vectors"]
    assert len(vectors) == N_TEXTS
    assert_right(vectors, reference)


async def test_openais_async_client_gets_the_right_vectors(server: Server, reference: Reference) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        answers = await asyncio.gather(
            *(client.embeddings.create(model="minilm", input=text) for text in reference.texts[:N_TEXTS])
        )
        assert [model.id async for model in client.models.list()] == ["minilm"]
    assert_right([answer.data[0].embedding for answer in answers], reference)


# LangChain


def test_langchain_asks_for_one_text_too_and_without_blocking(server: Server, reference: Reference) -> None:
    embeddings = run_program("LangChain", server, reference.texts[:1])["embeddings"]
    assert_right([embeddings.embed_query(reference.texts[0])], reference)
    assert_right(asyncio.run(embeddings.aembed_documents(reference.texts[:N_TEXTS])), reference)


@pytest.fixture
def openais_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's own tokenizer without the internet: llama-index brings its file along."""
    spec = find_spec("llama_index.core")
    assert spec
    assert spec.origin
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(Path(spec.origin).parent / "_static" / "tiktoken_cache"))


@pytest.mark.usefixtures("openais_tokenizer")
def test_ids_of_another_tokenizer_are_named_as_such(server: Server) -> None:
    from langchain_openai import OpenAIEmbeddings

    embeddings = OpenAIEmbeddings(model="minilm", base_url=f"{server.url}/v1", api_key="unused")  # type: ignore[arg-type]
    before = sent(server)
    with pytest.raises(openai.BadRequestError, match=r"not in this model's vocabulary .* another model's tokenizer"):
        embeddings.embed_documents(["polysyllabic idiosyncrasies"])
    assert sent(server) - before == {400: 1}


# Cohere


def test_cohere_gets_each_type_that_it_asks_for(server: Server, reference: Reference) -> None:
    found = run_program("Cohere", server, reference.texts[:N_TEXTS])["answer"].embeddings
    rows = np.array(found.float_, np.float32)
    np.testing.assert_array_equal(found.int8, quantize(rows, "int8"))
    np.testing.assert_array_equal(found.ubinary, quantize(rows, "ubinary"))
    assert found.binary is None


async def test_coheres_async_client_embeds_and_ranks(server: Server, reference: Reference) -> None:
    import cohere

    async with cohere.AsyncClientV2(api_key="unused", base_url=server.url) as client:
        answer = await client.embed(
            model="minilm",
            texts=reference.texts[:N_TEXTS],
            input_type="search_query",
            embedding_types=["float", "binary"],
        )
        ranking = await client.rerank(model="minilm", query=reference.texts[0], documents=reference.texts[1:N_TEXTS])
    assert_right(answer.embeddings.float_, reference)
    assert answer.meta
    assert answer.meta.billed_units
    assert answer.meta.billed_units.input_tokens == sum(map(len, reference.ids[:N_TEXTS]))
    assert_ranked([(each.index, each.relevance_score) for each in ranking.results], reference, first=1)


def assert_ranked(results: list[tuple[int, float]], reference: Reference, first: int = 0) -> None:
    """Compare a ranking of the reference's texts from `first` to `N_TEXTS` by its first text with their cosines."""
    cosines = reference.vectors[first:N_TEXTS] @ reference.vectors[0]
    indices, scores = zip(*results, strict=True)
    assert list(scores) == sorted(scores, reverse=True)
    np.testing.assert_allclose(scores, cosines[list(indices)], atol=2e-3)
    assert scores[0] == pytest.approx(cosines.max(), abs=2e-3)


@pytest.mark.parametrize("client", ["Cohere", "Voyage"])
def test_rankings_are_by_cosine(server: Server, reference: Reference, client: str) -> None:
    results = run_program(client, server, reference.texts[:N_TEXTS])["ranking"].results
    assert len(results) == 3
    assert_ranked([(each.index, each.relevance_score) for each in results], reference)


# Ollama, Hugging Face, Voyage


def test_ollama_lists_what_is_served(server: Server, reference: Reference) -> None:
    assert run_program("Ollama", server, reference.texts[:1])["names"] == ["minilm:latest"]


def test_ollama_may_write_the_tag_and_ask_the_older_way(server: Server, reference: Reference) -> None:
    client = run_program("Ollama", server, reference.texts[:1])["client"]
    assert_right(client.embed(model="minilm:latest", input=reference.texts[:N_TEXTS]).embeddings, reference)
    assert_right([client.embeddings(model="minilm", prompt=reference.texts[0]).embedding], reference)


def test_hugging_faces_similarities_are_cosines(server: Server, reference: Reference) -> None:
    found = run_program("Hugging Face", server, reference.texts[:N_TEXTS])["similarities"]
    np.testing.assert_allclose(found, reference.vectors[1:N_TEXTS] @ reference.vectors[0], atol=2e-3)


def test_hugging_faces_options_are_taken(server: Server) -> None:
    from huggingface_hub import InferenceClient

    client = InferenceClient(model=server.url)
    rows = client.feature_extraction(
        "word " * 600, normalize=True, truncate=True, truncation_direction="left", prompt_name="query", dimensions=64
    )
    assert rows.shape == (1, 64)


def test_haystacks_components_get_the_vectors_they_ask_for(server: Server, reference: Reference) -> None:
    from huggingface_hub import InferenceClient

    # What HuggingFaceAPITextEmbedder and HuggingFaceAPIDocumentEmbedder call by default: one text, or several.
    client, texts = InferenceClient(model=server.url), reference.texts[:N_TEXTS]
    one = client.feature_extraction(text=texts[0], truncate=True, normalize=False)
    rows = client.feature_extraction(text=texts, truncate=True, normalize=False)
    assert one.shape == (1, 384)
    assert np.linalg.norm(rows, axis=1).min() > 1.5
    assert_right(one / np.linalg.norm(one), reference)
    assert_right(rows / np.linalg.norm(rows, axis=1, keepdims=True), reference)
    assert_right(client.feature_extraction(text=texts[0], truncate=True, normalize=True), reference)


def test_voyage_reads_every_dtype(server: Server, reference: Reference) -> None:
    client = run_program("Voyage", server, reference.texts[:3])["client"]
    texts = reference.texts[:N_TEXTS]
    rows = np.array(client.embed(texts, model="minilm").embeddings, np.float32)
    dtypes: tuple[Dtype, ...] = ("int8", "uint8", "binary", "ubinary")
    for dtype in dtypes:
        answer = client.embed(texts, model="minilm", input_type="query", output_dtype=dtype)
        np.testing.assert_array_equal(answer.embeddings, quantize(rows, dtype), dtype)
        assert answer.total_tokens == sum(map(len, reference.ids[:N_TEXTS]))


# What clients raise, and how often they send it


def ask_openai(url: str, model: str, text: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        client.embeddings.create(model=model, input=text)


def ask_openai_async(url: str, model: str, text: str) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused") as client:
            await client.embeddings.create(model=model, input=text)

    asyncio.run(ask())


def ask_langchain(url: str, model: str, text: str) -> None:
    from langchain_openai import OpenAIEmbeddings

    OpenAIEmbeddings(
        model=model,
        base_url=f"{url}/v1",
        api_key="unused",  # type: ignore[arg-type]
        check_embedding_ctx_length=False,
    ).embed_query(text)


def ask_llama_index(url: str, model: str, text: str) -> None:
    from llama_index.embeddings.openai import OpenAIEmbedding

    OpenAIEmbedding(model_name=model, api_base=f"{url}/v1", api_key="unused", max_retries=1).get_text_embedding(text)


def ask_cohere(url: str, model: str, text: str) -> None:
    import cohere

    cohere.ClientV2(api_key="unused", base_url=url).embed(
        model=model, texts=[text], input_type="search_query", embedding_types=["float"], truncate="NONE"
    )


def ask_ollama(url: str, model: str, text: str) -> None:
    import ollama

    ollama.Client(host=url).embed(model=model, input=text, truncate=False)


def ask_hugging_face(url: str, _: str, text: str) -> None:
    from huggingface_hub import InferenceClient

    InferenceClient(model=url).feature_extraction(text)


def ask_voyage(url: str, model: str, text: str) -> None:
    import voyageai

    client = voyageai.Client(api_key="unused", base_url=f"{url}/v1")  # type: ignore[attr-defined]
    client.embed([text], model=model, truncation=False)


Ask = Callable[[str, str, str], None]

# What each raises for a 400, a 404 and a 500, and how often it sends what is answered 500.
ERRORS: list[tuple[Ask, str, str, str, int]] = [
    (ask_openai, "BadRequestError", "NotFoundError", "InternalServerError", 3),
    (ask_openai_async, "BadRequestError", "NotFoundError", "InternalServerError", 3),
    (ask_langchain, "BadRequestError", "NotFoundError", "InternalServerError", 3),
    (ask_llama_index, "BadRequestError", "NotFoundError", "InternalServerError", 2),
    (ask_cohere, "BadRequestError", "NotFoundError", "InternalServerError", 3),
    (ask_ollama, "ResponseError", "ResponseError", "ResponseError", 1),
    (ask_hugging_face, "BadRequestError", "", "HfHubHTTPError", 1),
    (ask_voyage, "InvalidRequestError", "APIError", "ServerError", 1),
]


def name(ask: Ask) -> str:
    return ask.__name__.removeprefix("ask_")


MISTAKES = {
    "empty": ("minilm", "", "empty", 400),
    "too-long": ("minilm", "word " * 600, "602 tokens; the limit is 512", 400),
    "unknown-model": ("no", "a", "no", 404),
}


@pytest.mark.parametrize(
    ("ask", "expected", "model", "text", "says", "status"),
    [
        pytest.param(ask, missing if mistake[-1] == 404 else bad, *mistake, id=f"{name(ask)}-{which}")
        for ask, bad, missing, *_ in ERRORS
        for which, mistake in MISTAKES.items()
        if missing or mistake[-1] != 404  # one client names no model
        if (ask, which) != (ask_ollama, "empty")  # Ollama loads the model and answers with no vectors
    ],
)
def test_a_mistake_is_raised_with_the_servers_words_and_sent_once(
    server: Server, ask: Ask, expected: str, model: str, text: str, says: str, status: int
) -> None:
    before = sent(server)
    with pytest.raises(Exception, match=says) as raised:
        ask(server.url, model, text)
    assert type(raised.value).__name__ == expected
    assert sent(server) - before == {status: 1}


@pytest.mark.parametrize("ask", [ask_openai, ask_openai_async], ids=name)
def test_a_body_that_is_too_large_is_sent_once(server: Server, ask: Ask) -> None:
    before = sent(server)
    with pytest.raises(openai.APIStatusError, match="the limit is 8388608") as raised:
        ask(server.url, "minilm", "word " * 2_000_000)
    assert raised.value.status_code == 413
    assert sent(server) - before == {413: 1}


@pytest.fixture(scope="module")
def failing(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model fails on "poison"."""
    log = tmp_path_factory.mktemp("failing") / "log"
    with running_server(log, "--model-path", tiny_path, "--workers", "1") as server:
        yield server


@pytest.mark.parametrize(
    ("ask", "error", "n_sent"), [pytest.param(each[0], *each[3:], id=name(each[0])) for each in ERRORS]
)
def test_a_model_that_fails_is_asked_as_often_as_the_client_likes(
    failing: Server, ask: Ask, error: str, n_sent: int
) -> None:
    before = sent(failing)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        ask(failing.url, "tiny", "poison")
    assert type(raised.value).__name__ == error
    assert sent(failing) - before == {500: n_sent}


def test_openai_asks_three_times_for_what_is_too_late(tiny_path: str, tmp_path: Path) -> None:
    flags = ("--model-path", tiny_path, "--workers", "1", "--timeout-ms", "300", "--drain-timeout-ms", "0")
    with faulty_server(tmp_path, *flags, hook="hangs") as server:
        for ask, n_sent in ((ask_openai, 3), (ask_openai_async, 6)):
            with pytest.raises(openai.InternalServerError) as raised:
                ask(server.url, "tiny", "poison")
            assert raised.value.status_code == 504
            assert sent(server) == {504: n_sent}


def test_clients_wait_as_long_as_a_full_server_says_and_are_answered(
    model_path: str, reference: Reference, tmp_path: Path
) -> None:
    # One place to wait, and a text takes a fifth of a second.
    flags = ("--model-path", model_path, "--workers", "1", "--max-batch-tokens", "1", "--queue-size", "1")
    with faulty_server(tmp_path, *flags, hook="slow") as server:
        server.post(["a text"] * 5)  # so that it is known how long a text takes
        for client in ("OpenAI", "Cohere"):
            with ThreadPoolExecutor(1) as crowd:
                crowd.submit(server.post, ["a text"] * 12)
                wait_until(lambda: httpx.get(f"{server.url}/health").json()["waiting"]["requests"] == 1, "it is full")
                before = sent(server)
                assert_right(run_program(client, server, reference.texts[:1])["vectors"], reference)
                refused = (sent(server) - before)[503]
                assert 1 <= refused <= 2, "it came again when it was told to, not at once and often"
