"""What lies in front of the server: sub-paths, slashes at the end, proxies, pages of other origins; Azure's clients."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import openai
import pytest
from embellama_server.app import build_app
from embellama_server.config import ServerConfig
from embellama_server.dialects import DIALECTS
from embellama_server.state import ServerState
from embellama_server.web import live, openapi

from embellama.errors import ConfigError
from tests.conftest import Server, running_server, wait_until

ORIGIN = "https://example.com"
PREFLIGHT = {"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "api-key"}
# Paths that tell nothing without a folder of models, or of files.
OFF = ("/admin/models", "/v1/files", "/v1/batches")
POSTS = [(dialect, path.replace("{model}", "tiny")) for dialect in DIALECTS for path in dialect.paths]


def client_of(state: ServerState, address: str = "127.0.0.1", **settings: Any) -> httpx.AsyncClient:
    """Return a client, at an address, of an app with these settings."""
    state.config = msgspec.structs.replace(state.config, **settings).checked()
    transport = httpx.ASGITransport(build_app(state), client=(address, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.mark.parametrize("root_path", ["", "/a/b"])
async def test_every_path_is_the_same_with_a_slash_and_below_the_root_path(state: ServerState, root_path: str) -> None:
    posts = [("POST", path, {"model": "tiny", **dialect.example}) for dialect, path in POSTS]
    described = openapi.description("tiny")["paths"].items()
    ending = [path for path, operations in described if "get" in operations and path != live.EVENTS]
    gets = [("GET", path.replace("{id}", "tiny"), None) for path in ending]
    async with client_of(state, root_path=root_path) as http:
        for method, path, body in (*posts, *gets):
            wanted = await http.request(method, path, json=body)
            assert wanted.status_code == (404 if path.startswith(OFF) else 200), (path, wanted.text)
            for other in (f"{path}/", f"{root_path}{path}", f"{root_path}{path}/"):
                found = await http.request(method, other, json=body)
                assert found.status_code == wanted.status_code, other
                assert found.content[:5] == wanted.content[:5], other


async def test_paths_in_metrics_are_those_of_routes(state: ServerState) -> None:
    async with client_of(state, root_path="/a") as http:
        for path in ("/v1/embeddings/", "/a/v1/embeddings", "/openai/deployments/x/embeddings", "/nothing/", "/a"):
            await http.post(path, json={"model": "tiny", "input": "red"})
        page = (await http.get("/metrics")).text
    labels = set(re.findall(r'^embellama_requests_total\{.*path="(.*?)"', page, re.MULTILINE))
    assert labels == {"/v1/embeddings", "/openai/deployments/{model}/embeddings", "/"}


async def test_links_lead_below_the_root_path(state: ServerState) -> None:
    async with client_of(state, root_path="/a/b") as http:
        description = (await http.get("/openapi.json")).json()
        assert description["servers"] == [{"url": "/a/b"}]
        links = re.findall(r"href=['\"](/.*?)['\"]", (await http.get("/a/b/docs")).text)
        assert "/a/b/openapi.json" in links
        for link in links:
            assert link.startswith("/a/b/")
            for sent in (link, link.removeprefix("/a/b")):  # by proxies of both kinds
                is_off = link.removeprefix("/a/b").startswith(OFF)
                assert (await http.get(sent)).status_code == (404 if is_off else 200)


def test_a_root_path_that_hides_paths_of_the_server_is_refused(state: ServerState) -> None:
    with pytest.raises(ConfigError, match="root_path is '/v1': so begins /v1/models"):
        client_of(state, root_path="/v1")


@pytest.mark.parametrize(
    ("address", "forwarded", "client"),
    [
        ("10.1.2.3", "1.2.3.4", "1.2.3.4"),
        ("::ffff:10.1.2.3", "1.2.3.4", "1.2.3.4"),  # as a socket of both families has it
        ("::1", "2001:db8::7", "2001:db8::7"),
        ("10.1.2.3", "6.6.6.6, 1.2.3.4, 10.9.9.9", "1.2.3.4"),  # what stands before the last stranger is his word
        ("192.168.0.1", "1.2.3.4", "192.168.0.1"),
    ],
)
async def test_the_access_log_has_the_client_that_a_trusted_proxy_forwards_for(
    state: ServerState, caplog: pytest.LogCaptureFixture, address: str, forwarded: str, client: str
) -> None:
    trusted = {"trusted_proxies": ("10.0.0.0/8", "::1"), "access_log": True}
    with caplog.at_level("INFO", "embellama.access"):
        async with client_of(state, address, **trusted) as http:
            await http.get("/livez", headers={"x-forwarded-for": forwarded})
    assert f"client={client} " in caplog.text


async def test_nobodys_forwarded_headers_are_believed_by_default(
    state: ServerState, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "embellama.access"):
        async with client_of(state, access_log=True) as http:
            await http.get("/livez", headers={"x-forwarded-for": "1.2.3.4"})
    assert "client=127.0.0.1 " in caplog.text


@pytest.mark.parametrize("origins", ["*", ORIGIN])
@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/embeddings", {"model": "tiny", "input": "red"}, 200),
        ("POST", "/v1/embeddings", {"model": "tiny", "input": ""}, 400),
        ("POST", "/api/embed", {"model": "no", "input": "red"}, 404),
        ("GET", "/v1/models", None, 200),
        ("GET", "/nothing", None, 404),
        ("GET", "/v1/embeddings", None, 405),
    ],
)
async def test_a_page_of_a_known_origin_may_read_every_answer(
    state: ServerState, origins: str, method: str, path: str, body: Any, status: int
) -> None:
    async with client_of(state, cors_origins=(origins,)) as http:
        answer = await http.request(method, path, json=body, headers={"origin": ORIGIN})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == origins
    assert answer.headers["access-control-expose-headers"] == "*"


async def test_a_preflight_is_answered_for_known_origins_and_what_pages_may_do(state: ServerState) -> None:
    async with client_of(state, cors_origins=(ORIGIN,)) as http:
        good = await http.options("/v1/embeddings", headers=PREFLIGHT)
        assert good.status_code == 200
        assert good.headers["access-control-allow-headers"] == "api-key"
        for refused in ({"origin": "https://other.com"}, {"access-control-request-method": "PUT"}):
            answer = await http.options("/admin/models/tiny", headers={**PREFLIGHT, **refused})
            assert answer.status_code == 400
        plain = await http.get("/livez", headers={"origin": "https://other.com"})
        assert "access-control-allow-origin" not in plain.headers


async def test_no_page_of_another_origin_may_ask_by_default(state: ServerState) -> None:
    async with client_of(state) as http:
        for answer in (await http.options("/v1/embeddings", headers=PREFLIGHT), await http.get("/", headers=PREFLIGHT)):
            assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"cors_origins": ("https://example.com/",)}, "cors_origins has 'https://example.com/'"),
        ({"cors_origins": ("example.com",)}, "cors_origins has 'example.com'"),
        ({"trusted_proxies": ("proxy",)}, "trusted_proxies has 'proxy'"),
        ({"trusted_proxies": ("10.0.0.1/8",)}, "trusted_proxies has '10.0.0.1/8': 10.0.0.1/8 has host bits set"),
        ({"root_path": "a"}, "root_path is 'a'"),
        ({"root_path": "/a/"}, "root_path is '/a/'"),
        ({"tls_cert": "c.pem"}, "tls_cert is 'c.pem', but there is no tls_key"),
        ({"tls_key": "k.pem"}, "tls_key is 'k.pem', but there is no tls_cert"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ServerConfig(model_path="m.gguf", **settings).checked()
    assert str(raised.value).startswith(told)


@pytest.fixture(scope="module")
def behind(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as it stands behind a proxy that does not cut its sub-path off."""
    flags = ("--workers", "1", "--root-path", "/below", "--trusted-proxies", "127.0.0.0/8", "--access-log")
    log = tmp_path_factory.mktemp("edges") / "log"
    with running_server(log, "--model-path", tiny_path, "--keep-alive-s", "1", *flags) as server:
        yield server


@pytest.mark.server
def test_azures_client_gets_what_openais_gets(behind: Server) -> None:
    azure: dict[str, Any] = {"api_version": "2024-10-21", "api_key": "none", "azure_endpoint": f"{behind.url}/below"}
    with (
        openai.OpenAI(base_url=f"{behind.url}/v1", api_key="none") as plain,
        openai.OpenAI(base_url=f"{behind.url}/openai/v1/", api_key="none") as newer,
        openai.AzureOpenAI(**azure) as by_model,
        openai.AzureOpenAI(**azure, azure_deployment="tiny") as by_deployment,
    ):
        [wanted] = plain.embeddings.create(model="tiny", input="red").data
        for client, model in ((newer, "tiny"), (by_model, "tiny"), (by_deployment, "text-embedding-3-small")):
            answer = client.embeddings.create(model=model, input="red")
            assert (answer.model, answer.data) == ("tiny", [wanted])
            assert [each.id for each in client.models.list()] == ["tiny"]
        with pytest.raises(openai.NotFoundError, match="model 'no' is not loaded"):
            by_model.embeddings.create(model="no", input="red")
        with pytest.raises(openai.BadRequestError, match="input"):
            by_deployment.embeddings.create(model="tiny", input="")


@pytest.mark.server
def test_a_real_servers_log_has_the_forwarded_client(behind: Server) -> None:
    httpx.get(f"{behind.url}/below/livez/", headers={"x-forwarded-for": "1.2.3.4"})
    wait_until(lambda: "client=1.2.3.4 path=/below/livez/ status=200" in behind.log.read_text(), "it is logged")


@pytest.mark.server
def test_an_idle_connection_is_closed_after_keep_alive_s(behind: Server) -> None:
    with httpx.Client() as http:
        http.get(f"{behind.url}/livez")
        [connection] = http._transport._pool.connections  # type: ignore[attr-defined]
        wait_until(connection.has_expired, "the server closes it")
