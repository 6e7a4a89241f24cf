"""Servers behind HAProxy and nginx: clients do not notice that one is killed, restarted or full."""

import contextlib
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Reference, StartServer, run, wait_until
from tests.deploy.balancers import Balancer, Pair, certificate, configured, filled, running_balancer
from tests.faults.conftest import Crowd, are_vectors_of

pytestmark = [pytest.mark.server, pytest.mark.model]

BALANCERS = ("haproxy", "nginx")


@pytest.fixture(scope="module")
def pair(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with contextlib.closing(Pair(tmp_path_factory.mktemp("pair"), model_path)) as pair:
        yield pair


@pytest.fixture(scope="module")
def balancers(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Balancer]]:
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(running_balancer(name, tmp_path_factory.mktemp(name), pair.ports))
            for name in BALANCERS
        }


@pytest.fixture(params=BALANCERS)
def balancer(balancers: dict[str, Balancer], request: pytest.FixtureRequest) -> Balancer:
    return balancers[request.param]


@pytest.mark.parametrize("name", BALANCERS)
def test_its_configuration_is_right(name: str, tmp_path: Path) -> None:
    command = configured(name, tmp_path, listening=(8080, 8443), upstream=(8001, 8002))
    checked = run(*command, "-c" if name == "haproxy" else "-t")
    assert checked.returncode == 0, checked.stderr
    assert not re.search(r"WARNING|\[warn\]", checked.stderr), checked.stderr


def test_32_clients_do_not_notice_that_servers_are_killed_and_restarted(
    balancers: dict[str, Balancer], pair: Pair, reference: Reference
) -> None:
    crowds = [Crowd(balancer, reference) for balancer in balancers.values()]

    def wait_answers() -> None:
        for crowd in crowds:
            crowd.wait_answers(32)

    def haproxy_uses_both() -> bool:
        told = balancers["haproxy"].log.read_text()
        return told.count(" is DOWN") == told.count(" is UP")

    for end, i in ((pair.kill, 0), (pair.stop, 1), (pair.stop, 0)):
        wait_answers()
        end(i)
        wait_answers()
        pair.start(i)
        wait_until(haproxy_uses_both, "HAProxy has asked the server whether it is ready")
    wait_answers()
    for crowd in crowds:
        crowd.assert_all_right()


def test_what_a_full_server_refuses_another_one_answers(
    pair: Pair, start_server: StartServer, reference: Reference, tmp_path: Path
) -> None:
    body = {"model": "minilm", "input": reference.texts[:2]}
    with start_server("--model-path", pair.model_path, "--workers", "1", "--queue-bytes", "1") as full, filled(full):
        upstream = (httpx.URL(full.url).port or 0, pair.ports[0])
        for name in BALANCERS:
            with running_balancer(name, tmp_path, upstream) as balancer, httpx.Client() as client:
                for _ in range(8):
                    answer = client.post(f"{balancer.url}/v1/embeddings", json=body)
                    assert answer.status_code == 200
                    assert are_vectors_of(answer, reference, [0, 1])


def test_a_sub_path_and_tls_lead_to_the_same_vectors(balancer: Balancer, reference: Reference) -> None:
    body = {"model": "minilm", "input": reference.texts[:2]}
    trusted = ssl.create_default_context(cafile=certificate(balancer.log.parent)[0])
    for address in (balancer.url, balancer.https):
        for path in ("/v1/embeddings", "/embed/v1/embeddings"):
            assert are_vectors_of(httpx.post(f"{address}{path}", json=body, verify=trusted), reference, [0, 1])


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics/", "/%6detrics", "/embed/metrics", "/admin/models", "/x/../metrics"]
)
def test_what_is_for_operators_is_not_served(balancer: Balancer, path: str) -> None:
    answer = httpx.get(httpx.URL(balancer.url, raw_path=path.encode()))
    assert answer.status_code == 404
    assert "embellama" not in answer.text


def test_a_request_too_large_is_named_by_the_server_or_refused(balancer: Balancer) -> None:
    answer = httpx.post(f"{balancer.url}/v1/embeddings", content=b" " * (9 << 20))
    assert answer.status_code == 413
