"""Prometheus and Grafana: rules are right, alerts fire when they should, each query finds data in a loaded server."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.conftest import ROOT, Server, run, running_server, wait_until
from tests.deploy.balancers import filled
from tests.programs import free_port, listens, program, running

PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS: list[dict[str, Any]] = msgspec.yaml.decode((PROMETHEUS / "alerts.yml").read_bytes())["groups"][0]["rules"]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "embellama.json").read_text())
numbers = itertools.count(2)

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@pytest.fixture(scope="module")
def prometheus(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A Prometheus that has scraped a server under load, as deploy/ configures it but more often."""
    folder = tmp_path_factory.mktemp("prometheus")
    flags = ("--model-path", tiny_path, "--workers", "2", "--queue-bytes", "1")
    with running_server(folder / "server.log", *flags) as server:
        config = (PROMETHEUS / "prometheus.yml").read_text().replace("server:8000", server.url.removeprefix("http://"))
        config = config.replace("_interval: 5s", "_interval: 1s").replace("alerts.yml", str(PROMETHEUS / "alerts.yml"))
        (folder / "prometheus.yml").write_text(config)
        port = free_port()
        command = [program("prometheus"), f"--config.file={folder / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        with (
            running(folder / "prometheus.log", *command, ready=lambda: listens(port)),
            httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
        ):

            def has_seen_load() -> bool:
                ask(server)
                grows = "rate(embellama_requests_total{status='%s'}[1m]) > 0"
                return all(values(client, grows % status) for status in (200, 500, 503))

            wait_until(has_seen_load, "Prometheus has seen counters grow")
            yield client


def ask(server: Server) -> None:
    """Ask for what is answered 200, from the cache and by a worker, 404, 500 and 503."""
    new = " ".join(("red", "blue")[int(bit)] for bit in f"{next(numbers):b}")
    for status, model, text in (
        (200, "tiny", "red"),
        (200, "tiny", new),
        (404, "none", "red"),
        (500, "tiny", "poison"),
    ):
        assert httpx.post(f"{server.url}/v1/embeddings", json={"model": model, "input": text}).status_code == status
    with filled(server):
        pass


def values(client: httpx.Client, query: str) -> list[Any]:
    answer = client.get("/api/v1/query", params={"query": query})
    assert answer.status_code == 200, f"{query}: {answer.text}"
    return [series["value"] for series in answer.json()["data"]["result"]]


def test_configuration_and_rules_are_right() -> None:
    for arguments in (("config", PROMETHEUS / "prometheus.yml"), ("rules", PROMETHEUS / "alerts.yml")):
        done = run(program("promtool"), "check", *arguments)
        assert done.returncode == 0, done.stderr


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    done = run(program("promtool"), "test", "rules", Path(__file__).with_name("alerts_test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    tested = Path(__file__).with_name("alerts_test.yml").read_text()
    assert {alert["alert"] for alert in ALERTS} == {*re.findall(r'alertname="(\w+)"', tested)}


@pytest.mark.server
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_watches_what_the_server_tells(prometheus: httpx.Client, alert: dict[str, Any]) -> None:
    watched, _, limit = re.split(r" ([<>]) (?=[\d.]+\s*$)", alert["expr"])
    assert float(limit) >= 0
    assert values(prometheus, watched)


@pytest.mark.server
@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_panel_shows_what_the_server_tells(prometheus: httpx.Client, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", "1m")
        query = re.sub(r"\$\w+", ".*", query)
        assert any(value != "NaN" for _, value in values(prometheus, query)), query


@pytest.mark.server
def test_what_keda_scales_by_is_told(prometheus: httpx.Client) -> None:
    scaled = msgspec.yaml.decode((ROOT / "deploy" / "kubernetes" / "scale-keda.yaml").read_bytes())
    assert values(prometheus, scaled["spec"]["triggers"][0]["metadata"]["query"])


@pytest.mark.server
def test_the_dashboards_choices_are_filled(prometheus: httpx.Client) -> None:
    for variable in DASHBOARD["templating"]["list"][1:]:
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
        selector = re.sub(r"\$\w+", ".*", selector)
        answer = prometheus.get(f"/api/v1/label/{label}/values", params={"match[]": selector})
        assert answer.json()["data"], variable["query"]


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
