"""The server as its clients meet it: a real process, a real socket, the real OpenAI client."""

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from embellama_server.config import ServerConfig

from embellama.cli.flags import flags
from tests.conftest import BIN, Reference, Server, StartServer, run, wait_until
from tests.test_engine import worst_cosine

pytestmark = [pytest.mark.server, pytest.mark.model]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def post(server: Server, **fields: object) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/embeddings", json={"model": "minilm", **fields})


def test_openai_client_embeds_a_string_and_a_list(client: openai.OpenAI, reference: Reference) -> None:
    one = client.embeddings.create(model="minilm", input=reference.texts[0])
    many = client.embeddings.create(model="minilm", input=reference.texts)
    assert one.usage.prompt_tokens == one.usage.total_tokens == len(reference.ids[0])
    assert many.usage.prompt_tokens == sum(map(len, reference.ids))
    assert [item.index for item in many.data] == list(range(60))
    assert np.array(one.data[0].embedding) @ reference.vectors[0] > 0.9999


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_vectors_are_those_of_sentence_transformers(
    client: openai.OpenAI, reference: Reference, model_path: str, encoding: str
) -> None:
    def embed(texts: list[str]) -> np.ndarray:
        if encoding == "base64":  # the client's default
            answer = client.embeddings.create(model="minilm", input=texts)
        else:
            answer = client.embeddings.create(model="minilm", input=texts, encoding_format="float")
        return np.array([item.embedding for item in answer.data])

    together = embed(reference.texts)
    alone = np.concatenate([embed([text]) for text in reference.texts])
    for rows in (together, alone):
        cosines = np.sum(rows * reference.vectors, axis=1)
        assert cosines.min() >= worst_cosine(model_path), reference.texts[int(cosines.argmin())]
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_token_ids_give_the_vector_of_their_text(client: openai.OpenAI, reference: Reference) -> None:
    text = client.embeddings.create(model="minilm", input=reference.texts[:2])
    lists = client.embeddings.create(model="minilm", input=reference.ids[:2])
    flat = client.embeddings.create(model="minilm", input=reference.ids[0])
    assert lists.usage == text.usage
    np.testing.assert_allclose(lists.data[1].embedding, text.data[1].embedding, atol=1e-3)
    np.testing.assert_allclose(flat.data[0].embedding, text.data[0].embedding, atol=1e-3)


def test_dimensions_cut_and_renormalise(client: openai.OpenAI, reference: Reference) -> None:
    row = client.embeddings.create(model="minilm", input=reference.texts[0], dimensions=64).data[0].embedding
    expected = reference.vectors[0, :64] / np.linalg.norm(reference.vectors[0, :64])
    assert len(row) == 64
    assert np.array(row) @ expected > 0.9999
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)


def test_2048_inputs_are_answered_and_2049_refused(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="minilm", input=["a"] * 2048)
    assert len(answer.data) == 2048
    assert answer.usage.prompt_tokens == 3 * 2048
    with pytest.raises(openai.BadRequestError, match="the limit is 2048"):
        client.embeddings.create(model="minilm", input=["a"] * 2049)


@pytest.mark.parametrize(
    ("fields", "status", "code", "param", "index", "message"),
    [
        ({"input": ["a", ""]}, 400, None, "input", 1, "input[1] is empty"),
        ({"input": []}, 400, None, "input", None, "input is empty"),
        ({"input": ["a", "b " * 600]}, 400, "context_length_exceeded", "input", 1, "602 tokens; the limit is 512"),
        ({"input": [101, 30522, 102]}, 400, None, "input", 0, "token id 30522"),
        ({"input": ["a", 1]}, 400, None, "input", None, "mixes"),
        ({"input": "a", "dimensions": 385}, 400, None, "dimensions", None, "dimensions is 385; this model gives 1 to"),
        ({"input": "a", "dimensions": 0}, 400, None, "dimensions", None, "dimensions is 0"),
        ({"input": "a", "encoding_format": "int8"}, 400, None, "encoding_format", None, "int8"),
        ({"input": "a", "model": "ada"}, 404, "model_not_found", "model", None, "'ada' is not loaded"),
        ({}, 400, None, "input", None, "missing required field"),
    ],
)
def test_a_clients_mistake_is_a_4xx_that_names_it(
    server: Server, fields: dict[str, object], status: int, code: str, param: str, index: int | None, message: str
) -> None:
    answer = post(server, **fields)
    error = answer.json()["error"]
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert error.get("index") == index
    assert message in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nothing", 404, "not_found"), ("GET", "/v1/embeddings", 405, "method_not_allowed")],
)
def test_unknown_paths_and_methods_get_openai_errors(
    server: Server, method: str, path: str, status: int, code: str
) -> None:
    answer = httpx.request(method, server.url + path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert status != 405 or answer.headers["allow"] == "POST"


def test_models_and_health_tell_what_is_served(server: Server, client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("minilm", "model", "embellama")
    health = httpx.get(f"{server.url}/health")
    picture = health.json()
    assert (health.status_code, picture["status"]) == (200, "ok")
    assert picture["workers"] == {"ready": 2, "total": 2, "restarts": 0}
    assert picture["waiting"] == {"requests": 0, "tokens": 0}


def test_the_environment_of_a_kubernetes_service_does_not_keep_it_from_starting(
    start_server: StartServer, tiny_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBELLAMA_PORT", "tcp://10.96.0.12:8000")
    with start_server("--model-path", tiny_path, "--workers", "1") as server:
        assert "EMBELLAMA_PORT=tcp://10.96.0.12:8000 is left out" in server.log.read_text()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_root_answers_those_who_ask_whether_it_is_there(server: Server, method: str) -> None:
    answer = httpx.request(method, server.url + "/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert answer.text == ("embellama is running" if method == "GET" else "")
    assert int(answer.headers["content-length"]) == len("embellama is running")
    assert set(httpx.put(server.url + "/").headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
    assert httpx.post(server.url + "/", json={"inputs": "a"}).status_code == 200


both_families = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")


@both_families
@pytest.mark.parametrize(
    ("host", "hosts", "others"),
    [
        ("::", ["127.0.0.1", "[::1]"], []),
        ("[::]", ["127.0.0.1", "[::1]"], []),
        ("localhost", ["127.0.0.1", "[::1]"], []),
        ("LocalHost", ["127.0.0.1", "[::1]"], []),
        ("[::1]", ["[::1]"], ["127.0.0.1"]),
        ("::1", ["[::1]"], ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"], ["[::1]"]),
    ],
)
def test_every_address_of_a_host_is_listened_on(
    start_server: StartServer, tiny_path: str, host: str, hosts: list[str], others: list[str]
) -> None:
    with start_server("--model-path", tiny_path, "--workers", "1", "--host", host, ready=False) as server:
        port = httpx.URL(server.url).port
        for each in hosts:
            assert httpx.get(f"http://{each}:{port}/livez").status_code == 200
        for each in others:
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"http://{each}:{port}/livez")


@both_families
def test_a_port_must_be_free_on_every_address(tiny_path: str) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = str(taken.getsockname()[1])
        flags = ("--model-path", tiny_path, "--host", "localhost", "--port", port)
        result = run(BIN / "embellama-server", *flags)
    assert (result.returncode, f"cannot listen on localhost port {port}" in result.stderr) == (1, True), result.stderr


def test_a_body_over_the_limit_is_413(start_server: StartServer, tiny_path: str) -> None:
    with start_server("--model-path", tiny_path, "--workers", "1", "--max-body-bytes", "1000") as server:
        told = httpx.post(f"{server.url}/v1/embeddings", content=b"x" * 1001)
        untold = httpx.post(f"{server.url}/v1/embeddings", content=iter([b"x" * 600, b"x" * 600]))
        for answer in (told, untold):
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": "red"})
        assert answer.status_code == 200


def test_an_answers_head_comes_with_its_body(server: Server) -> None:
    url = httpx.URL(server.url)
    body = b'{"model": "minilm", "input": "red"}'
    with socket.create_connection((url.host, url.port)) as client:
        for _ in range(100):
            client.sendall(
                b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
            answer = client.recv(100_000)
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b"}}")


def test_a_body_that_does_not_come_is_408(start_server: StartServer, tiny_path: str) -> None:
    with start_server("--model-path", tiny_path, "--workers", "1", "--timeout-ms", "300") as server:
        url = httpx.URL(server.url)
        with socket.create_connection((url.host, url.port)) as half:
            half.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            answer = b""
            while b'ms"}' not in answer:
                piece = half.recv(1000)
                assert piece, answer
                answer += piece
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"request_timeout" in answer


def test_n_ctx_may_be_shorter_than_the_canary(start_server: StartServer, tiny_path: str) -> None:
    with start_server("--model-path", tiny_path, "--workers", "1", "--n-ctx", "8") as server:
        answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": "red blue"})
        assert answer.status_code == 200


def test_a_vector_that_is_no_number_is_a_500_for_its_request_alone(start_server: StartServer, tiny_path: str) -> None:
    with start_server("--model-path", tiny_path, "--workers", "1") as server:
        mixed = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": ["red", "poison", "blue"]})
        assert mixed.status_code == 500
        assert (mixed.json()["error"]["code"], mixed.json()["error"]["index"]) == ("model_error", 1)
        clean = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": ["red", "blue"]})
        assert clean.status_code == 200


def test_a_request_that_takes_too_long_is_504(start_server: StartServer, model_path: str) -> None:
    with start_server(
        "--model-path", model_path, "--workers", "1", "--timeout-ms", "300", "--cache-bytes", "0"
    ) as server:
        answer = post(server, input=["word " * 400] * 500)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        wait_until(lambda: post(server, input="a").status_code == 200, "the next request is answered")


def test_health_is_503_until_every_worker_is_ready(start_server: StartServer, model_path: str) -> None:
    with start_server("--model-path", model_path, "--workers", "2", ready=False) as server:
        first = httpx.get(f"{server.url}/health")
        assert (first.status_code, first.json()["status"]) == (503, "starting")
        early = post(server, input="a")
        if early.status_code != 200:
            assert (early.status_code, early.json()["error"]["code"]) == (503, "unavailable")
            assert early.headers["retry-after"]
        server.wait_ready()


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--model-path", "/nowhere/m.gguf"], 1, "Error: cannot load /nowhere/m.gguf: No such file or directory"),
        (["--model-path", __file__], 1, "not a GGUF file"),
        ([], 2, "no model to serve: give --model-path"),
        (["--model-path", "m", "--workers", "-2"], 2, "--workers: num_workers is -2"),
    ],
)
def test_a_start_that_cannot_work_says_why(flags: list[str], status: int, message: str) -> None:
    result = run(BIN / "embellama-server", *flags)
    assert result.returncode == status
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_that_loads_its_vocabulary_only_ends_the_server(tiny_path: str, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(Path(tiny_path).read_bytes()[:-5000])
    result = run(BIN / "embellama-server", "--model-path", str(cut), "--workers", "2", "--port", "0")
    assert result.returncode == 1
    assert f"cannot load {cut}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_taken_port_is_named(tiny_path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run(BIN / "embellama-server", "--model-path", tiny_path, "--port", port)
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in result.stderr


def test_embed_command_prints_rows_as_json(tiny_path: str) -> None:
    command = [str(BIN / "embellama"), "embed", "--model-path", tiny_path]
    given = run(*command, "red", "blue")
    piped = subprocess.run(command, input="red\nblue\n", capture_output=True, text=True, timeout=60)
    assert given.returncode == piped.returncode == 0
    assert given.stdout == piped.stdout
    assert len(given.stdout.splitlines()) == 2


def test_embed_command_scales_as_its_flag_says(tiny_path: str) -> None:
    command = [str(BIN / "embellama"), "embed", "red", "--model-path", tiny_path]
    calls = ("", "--no-normalize", "--normalize --normalization none", "--normalization none")
    rows = [json.loads(run(*command, *flags.split()).stdout) for flags in calls]
    lengths = [float(np.linalg.norm(row)) for row in rows]
    assert lengths[0] == pytest.approx(1)
    assert lengths[2] == pytest.approx(1)
    assert abs(lengths[1] - 1) > 0.01
    assert rows[1] == rows[3]


def test_workers_share_the_weights_in_memory(server: Server, model_path: str) -> None:
    file = str(Path(model_path).resolve())
    workers = server.workers()
    assert len(workers) == 2
    for worker in workers:
        maps = [region for region in worker.memory_maps(grouped=False) if region.path == file]
        resident, own_share = sum(region.rss for region in maps), sum(region.pss for region in maps)
        assert resident > 0.9 * Path(file).stat().st_size
        assert own_share < 0.6 * resident, "what two processes share counts half for each"


def test_help_lists_every_setting_once_in_its_section() -> None:
    shown = run(BIN / "embellama-server", "--help").stdout
    titles = re.findall(r"^(\w+):$", shown, re.MULTILINE)
    assert titles == ["Model", "Cache", "Address", "Limits", "Batches", "Keys", "Workers", "Log", "Traces", "Options"]
    for flag in flags(ServerConfig).values():
        assert len(re.findall(rf"^  --{flag}(?![\w-])", shown, re.MULTILINE)) == 1, flag
    assert "--config" in shown.partition("Address:")[0]
    assert {*re.findall(r"--\w+", shown.partition("\nOptions:")[2])} == {"--version", "--help", "--schema", "--config"}
