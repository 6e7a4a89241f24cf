"""The fleet of several models: what kustomize makes of it is what Kubernetes takes, and its parts fit each other."""

import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest

from tests.conftest import ROOT, run, tracked

FLEET = ROOT / "deploy" / "kubernetes-fleet"
MODELS = {path.parent.name for path in tracked("deploy/kubernetes-fleet") if path.parent != FLEET} - {"model"}

Manifest = dict[str, Any]


def documents(text: str) -> list[Manifest]:
    return [msgspec.yaml.decode(each) for each in f"\n{text}".split("\n---\n")]


@pytest.fixture(scope="module")
def rendered() -> list[Manifest]:
    # Debian's is older than what is used here, so scripts/setup does not install it.
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("kubectl 1.27 or later is missing, which renders deploy/kubernetes-fleet")
    done = run(kubectl, "kustomize", FLEET)
    assert (done.returncode, done.stderr) == (0, "")
    return documents(done.stdout)


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def model_of(deployment: Manifest) -> str:
    """Return the name that a Deployment's server gives its model."""
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment["EMBELLAMA_REDIS_URL"] == "redis://redis:6379/0"
    return Path(environment["EMBELLAMA_MODEL_PATH"]).stem


def test_the_cache_is_what_kubernetes_takes() -> None:
    for manifest in documents((FLEET / "redis.yaml").read_text()):
        for version in ("1.30", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_what_is_rendered_is_what_kubernetes_takes(rendered: list[Manifest]) -> None:
    for manifest in rendered:
        if not manifest["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(manifest, "1.30", strict=True)


def test_each_model_has_a_deployment_and_is_scaled_by_its_own_wait(rendered: list[Manifest]) -> None:
    deployments, scaled = of_kind(rendered, "Deployment"), of_kind(rendered, "ScaledObject")
    servers = {name: each for name, each in deployments.items() if name != "redis"}
    assert {model_of(each) for each in servers.values()} == MODELS
    assert {each["spec"]["scaleTargetRef"]["name"] for each in scaled.values()} == {*servers}
    for each in scaled.values():
        [trigger] = each["spec"]["triggers"]
        model = model_of(servers[each["spec"]["scaleTargetRef"]["name"]])
        assert trigger["metadata"]["query"] == f'sum(embellama_wait_seconds{{model="{model}"}})'
    assert all("replicas" not in each["spec"] for each in servers.values()), "KEDA decides"


def test_services_and_budgets_are_of_one_model_each(rendered: list[Manifest]) -> None:
    pods = {
        name: each["spec"]["template"]["metadata"]["labels"] for name, each in of_kind(rendered, "Deployment").items()
    }
    selectors = {name: each["spec"]["selector"] for name, each in of_kind(rendered, "Service").items()}
    budgets = of_kind(rendered, "PodDisruptionBudget").items()
    for found in (selectors, {name: each["spec"]["selector"]["matchLabels"] for name, each in budgets}):
        for name, selector in found.items():
            assert [pod for pod, labels in pods.items() if selector.items() <= labels.items()] == [name]


def test_servers_reach_the_cache_and_clients_the_servers(rendered: list[Manifest]) -> None:
    for name, policy in of_kind(rendered, "NetworkPolicy").items():
        if name != "redis":
            asking = policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
            asked = policy["spec"]["egress"][0]["to"][0]["podSelector"]["matchLabels"]
            assert asking == {"embellama-client": "true"}
            assert asked.items() <= of_kind(rendered, "Service")["redis"]["spec"]["selector"].items()


def test_a_new_server_comes_before_an_old_one_goes(rendered: list[Manifest]) -> None:
    for name, each in of_kind(rendered, "Deployment").items():
        if name == "redis":
            continue
        spec = each["spec"]["template"]["spec"]
        [container] = spec["containers"]
        waits_s = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
        assert each["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert spec["terminationGracePeriodSeconds"] >= waits_s + 30, "preStop, and the default of --drain-timeout-ms"
