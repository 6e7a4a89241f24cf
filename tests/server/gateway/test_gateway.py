"""Keys and limits as clients meet them: real servers, real clients, a real Redis."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import Server, StartServer, running_server, wait_until
from tests.programs import RedisServer
from tests.server.gateway.conftest import Keys

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # some clients have no way to close them
]

# One request a minute, of a token: what comes next is refused.
GRANTS: dict[str, dict[str, Any]] = {
    "free": {},
    "operator": {"admin": True},
    "elsewhere": {"models": ("other",)},
    "poor": {"tokens_per_day": 1},
    "slow": {"requests_per_minute": 1},
    "counted": {"requests_per_minute": 10_000, "tokens_per_minute": 10_000, "models": ("tiny",)},
    "narrow": {"max_concurrent": 1},
    "sharing": {"share_cache": True},
    "sharing-too": {"share_cache": True},
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"model": "tiny", "input": "red"},
    "/v1/rerank": {"model": "tiny", "query": "red", "documents": ["blue"]},
    "/v2/embed": {"model": "tiny", "texts": ["red"], "input_type": "search_query", "embedding_types": ["float"]},
    "/v2/rerank": {"model": "tiny", "query": "red", "documents": ["blue"]},
    "/embed": {"inputs": "red"},
    "/api/embed": {"model": "tiny", "input": "red"},
    "/api/embeddings": {"model": "tiny", "prompt": "red"},
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"), **GRANTS)


@pytest.fixture(scope="module")
def guarded(tiny_path: str, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--model-path", tiny_path, "--workers", "1", "--keys-file", str(keys.path), "--access-log")
    log = tmp_path_factory.mktemp("guarded") / "log"
    with running_server(log, *flags) as server:
        yield server
        written = log.read_text()
        assert not any(keys[name] in written for name in GRANTS)


def ask(server: Server, key: str, path: str = "/v1/embeddings", **fields: Any) -> httpx.Response:
    return httpx.post(server.url + path, json={**BODIES[path], **fields}, headers={"authorization": f"Bearer {key}"})


def told(answer: httpx.Response) -> str:
    """Return the message of an error, wherever its dialect has it."""
    body = answer.json()
    error = body.get("error", body)
    return str(error if isinstance(error, str) else error["message"])


def test_known_tokens_cost_their_price_and_others_a_whole_one(
    start_server: StartServer, tiny_path: str, keys: Keys
) -> None:
    flags = ("--model-path", tiny_path, "--keys-file", str(keys.path), "--cached-token-price", "0.5")
    known, new = "red " * 9, "blue " * 20
    with start_server(*flags) as server:
        answers = [ask(server, keys["counted"], input=texts) for texts in (known, known, [known, new], new)]
    left = [int(answer.headers["x-ratelimit-remaining-tokens"]) for answer in answers]
    n_known, n_both, n_new = (answers[i].json()["usage"]["prompt_tokens"] for i in (0, 2, 3))
    spent = [before - after for before, after in zip([10_000, *left], left, strict=False)]
    assert spent == [n_known, n_known // 2, n_both // 2 + n_new - n_new // 2, n_new // 2]


def test_rows_are_shared_only_by_callers_who_both_share(guarded: Server, keys: Keys) -> None:
    known = [
        int(ask(guarded, keys[name], input="only once").headers["x-embellama-cached-tokens"]) > 0
        for name in ("sharing", "sharing-too", "free", "free", "operator")
    ]
    assert known == [False, True, False, True, False]


@pytest.mark.parametrize("path", BODIES)
def test_each_dialect_refuses_in_its_shape(guarded: Server, keys: Keys, path: str) -> None:
    answers = [ask(guarded, key, path) for key in ("wrong", keys["elsewhere"], keys["poor"])]
    assert [answer.status_code for answer in answers] == [401, 403, 429]
    assert answers[0].headers["www-authenticate"] == "Bearer"
    assert ["API key" in told(answer) for answer in answers[:2]] == [True, True]
    assert "'poor' may use 1 tokens a day" in told(answers[2])
    shapes = [answer.json().keys() for answer in answers]
    bad = httpx.post(guarded.url + path, json={}, headers={"x-api-key": keys["free"]})
    assert bad.status_code == 400
    assert shapes == [bad.json().keys()] * 3


CODES = {"wrong": "AuthenticationError", "elsewhere": "PermissionDeniedError", "poor": "RateLimitError"}


@pytest.mark.parametrize("name", CODES)
def test_openais_client_raises_the_right_error(guarded: Server, keys: Keys, name: str) -> None:
    key = "wrong" if name == "wrong" else keys[name]
    with (
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key) as client,
        pytest.raises(openai.APIStatusError) as raised,
    ):
        client.embeddings.create(model="tiny", input="red")
    assert type(raised.value).__name__ == CODES[name]
    assert raised.value.code == {"wrong": "invalid_api_key", "elsewhere": "not_allowed"}.get(
        name, "rate_limit_exceeded"
    )


@pytest.mark.parametrize(
    ("name", "error"),
    [("wrong", "UnauthorizedError"), ("elsewhere", "ForbiddenError"), ("poor", "TooManyRequestsError")],
)
def test_coheres_client_raises_the_right_error(guarded: Server, keys: Keys, name: str, error: str) -> None:
    import cohere
    from cohere.core.api_error import ApiError

    with httpx.Client() as http, pytest.raises(ApiError) as raised:
        cohere.ClientV2(
            api_key="wrong" if name == "wrong" else keys[name], base_url=guarded.url, httpx_client=http
        ).embed(
            model="tiny",
            texts=["red"],
            input_type="search_query",
            embedding_types=["float"],
            request_options={"max_retries": 0},
        )
    assert type(raised.value).__name__ == error


@pytest.mark.parametrize(("name", "status"), [("wrong", 401), ("elsewhere", 403), ("poor", 429)])
def test_ollamas_client_raises_with_the_status(guarded: Server, keys: Keys, name: str, status: int) -> None:
    import ollama

    key = "wrong" if name == "wrong" else keys[name]
    client = ollama.Client(host=guarded.url, headers={"authorization": f"Bearer {key}"})
    with client._client, pytest.raises(ollama.ResponseError) as raised:
        client.embed(model="tiny", input="red")
    assert raised.value.status_code == status


@pytest.mark.parametrize(("name", "error"), [("wrong", "AuthenticationError"), ("poor", "RateLimitError")])
def test_voyages_client_raises_the_right_error(guarded: Server, keys: Keys, name: str, error: str) -> None:
    import voyageai
    from voyageai.error import VoyageError

    key = "wrong" if name == "wrong" else keys[name]
    client = voyageai.Client(api_key=key, base_url=f"{guarded.url}/v1")  # type: ignore[attr-defined]
    with pytest.raises(VoyageError) as raised:
        client.embed(["red"], model="tiny", truncation=False)
    assert type(raised.value).__name__ == error


@pytest.mark.parametrize(("name", "status"), [("wrong", 401), ("elsewhere", 403), ("poor", 429)])
def test_hugging_faces_client_raises_with_the_status(guarded: Server, keys: Keys, name: str, status: int) -> None:
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    client = InferenceClient(model=guarded.url, token="wrong" if name == "wrong" else keys[name])
    with pytest.raises(HfHubHTTPError) as raised:
        client.feature_extraction("red")
    assert raised.value.response.status_code == status


@pytest.mark.parametrize("header", ["api-key", "x-api-key", "authorization"])
def test_a_key_goes_into_any_of_three_headers(guarded: Server, keys: Keys, header: str) -> None:
    key = keys["free"] if header != "authorization" else f"bearer {keys['free']}"
    answer = httpx.get(f"{guarded.url}/v1/models", headers={header: key})
    assert answer.status_code == 200
    both = httpx.get(f"{guarded.url}/v1/models", headers={header: key, "x-api-key": key[:-1], "api-key": key})
    assert (both.status_code, "different API keys" in told(both)) == (401, True)


@pytest.mark.parametrize(
    ("path", "statuses"),  # without a key, with one, with an admin's
    [
        ("/livez", (200, 200, 200)),
        ("/readyz", (200, 200, 200)),
        ("/health", (200, 200, 200)),
        ("/v1/models", (401, 200, 200)),
        ("/metrics", (401, 403, 200)),
        ("/docs", (401, 403, 200)),
        ("/openapi.json", (401, 403, 200)),
        ("/admin/models/x", (401, 403, 405)),
        ("/nothing", (401, 404, 404)),
    ],
)
def test_who_may_read_what(guarded: Server, keys: Keys, path: str, statuses: tuple[int, ...]) -> None:
    headers: list[dict[str, str]] = [{}, {"x-api-key": keys["free"]}, {"x-api-key": keys["operator"]}]
    answers = [httpx.get(guarded.url + path, headers=each) for each in headers]
    assert tuple(answer.status_code for answer in answers) == statuses
    if path == "/health":
        assert [answer.json().keys() == {"status"} for answer in answers] == [True, True, False]


@pytest.mark.parametrize(("path", "field"), [("/v1/models", "data"), ("/api/tags", "models"), ("/api/ps", "models")])
def test_lists_have_only_what_the_key_may_use(guarded: Server, keys: Keys, path: str, field: str) -> None:
    def listed(name: str) -> int:
        return len(httpx.get(guarded.url + path, headers={"x-api-key": keys[name]}).json()[field])

    assert (listed("free"), listed("counted"), listed("elsewhere")) == (1, 1, 0)


def test_tokens_are_charged_as_usage_counts_them(guarded: Server, keys: Keys) -> None:
    left, n_tokens = [], []
    for texts in ("red", ["red blue", "green"], "blue"):
        answer = ask(guarded, keys["counted"], input=texts)
        left.append(int(answer.headers["x-ratelimit-remaining-tokens"]))
        n_tokens.append(answer.json()["usage"]["total_tokens"])
    assert [left[0] - left[1], left[1] - left[2]] == n_tokens[1:]
    assert answer.headers["x-ratelimit-limit-tokens"] == answer.headers["x-ratelimit-limit-requests"] == "10000"


def test_a_request_beyond_the_limit_is_told_when_to_come_again(guarded: Server, keys: Keys) -> None:
    answers = [ask(guarded, keys["slow"]) for _ in range(2)]
    if answers[1].status_code == 200:  # a minute began between them
        answers.append(ask(guarded, keys["slow"]))
    assert answers[-1].status_code == 429
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 120
    assert answers[-1].headers["x-ratelimit-remaining-requests"] == "0"


def test_a_place_is_free_again_whatever_became_of_the_request(guarded: Server, keys: Keys) -> None:
    texts = ("red", "", "red", "red " * 99, "red")
    statuses = [ask(guarded, keys["narrow"], input=text).status_code for text in texts]
    assert statuses == [200, 400, 200, 400, 200]


def test_a_request_is_open_until_its_client_has_left(guarded: Server, keys: Keys) -> None:
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nx-api-key: {keys['narrow']}\r\nContent-Length: 99\r\n\r\n"
    host, port = guarded.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode())
        wait_until(lambda: ask(guarded, keys["narrow"]).status_code == 429, "its place is taken")
        refused = ask(guarded, keys["narrow"])
        assert "may have 1 requests open at once" in told(refused)
        assert refused.headers["retry-after"] == "1"
    wait_until(lambda: ask(guarded, keys["narrow"]).status_code == 200, "its place is free")


def test_the_access_log_names_the_key(guarded: Server, keys: Keys) -> None:
    ask(guarded, keys["free"])
    wait_until(lambda: "key=free path=/v1/embeddings status=200" in guarded.log.read_text(), "it is logged")


def test_the_file_is_read_again_and_a_wrong_one_changes_nothing(
    tiny_path: str, tmp_path: Path, start_server: StartServer
) -> None:
    keys = Keys(tmp_path, first={"tokens_per_day": 5})
    flags = ("--model-path", tiny_path, "--workers", "1", "--keys-file", str(keys.path), "--cached-token-price", "1")
    with start_server(*flags) as server:
        assert [ask(server, keys["first"]).status_code for _ in range(2)] == [200, 429]  # three tokens each
        keys.add("second")
        os.kill(server.process.pid, signal.SIGHUP)
        wait_until(lambda: ask(server, keys["second"]).status_code == 200, "it is known")
        assert ask(server, keys["first"]).status_code == 429  # what was spent stays spent
        keys.path.write_text("[[keys]]\nname = 5\n")
        os.kill(server.process.pid, signal.SIGHUP)
        wait_until(lambda: "stay valid" in server.log.read_text(), "it is refused")
        assert ask(server, keys["second"]).status_code == 200
        assert server.log.read_text().count("stay valid") == 1
        wait_until(lambda: server.log.read_text().count("are started again") >= 2, "workers are replaced, too")


def test_two_servers_share_a_limit_until_redis_is_gone(
    tiny_path: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    keys = Keys(tmp_path, shared={"tokens_per_day": 900})
    flags = (
        "--model-path",
        tiny_path,
        "--workers",
        "1",
        "--keys-file",
        str(keys.path),
        "--redis-url",
        redis_server.url,
        "--cached-token-price",
        "1",
    )
    with (
        running_server(tmp_path / "open.log", *flags) as first,
        running_server(tmp_path / "closed.log", *flags, "--limits-without-redis", "closed", "--open-metrics") as second,
    ):
        with ThreadPoolExecutor(8) as clients:  # all at once, on both
            answers = list(clients.map(lambda i: ask((first, second)[i % 2], keys["shared"]), range(320)))
        assert sum(answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200) == 900
        assert {answer.status_code for answer in answers} == {200, 429}
        assert [httpx.get(f"{server.url}/metrics").status_code for server in (first, second)] == [401, 200]
        redis_server.stop()
        started = time.monotonic()
        assert {ask(first, keys["shared"]).status_code for _ in range(20)} == {200}
        assert time.monotonic() - started < 10  # it is not waited for each time
        assert ask(second, keys["shared"]).status_code == 503
        redis_server.go_on()
        wait_until(lambda: ask(first, keys["shared"]).status_code == 429, "it is asked again")
        redis_server.kill()
        assert {ask(first, keys["shared"]).status_code for _ in range(5)} == {200}
        refused = ask(second, keys["shared"])
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        redis_server.start()
        wait_until(lambda: ask(second, keys["shared"]).status_code == 200, "limits hold again")
