"""The image, the composition and the manifests: tools find nothing wrong, and what they name exists."""

import re
import tomllib
from pathlib import Path

import kubernetes_validate
import msgspec
import pytest
from embellama_server.config import ServerConfig

from embellama.cli.flags import flags, variable
from tests.conftest import BIN, ROOT, run, tracked

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
MANIFESTS = tracked("deploy/kubernetes")


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = run(BIN / "hadolint", ROOT / "deploy" / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_built_of_all_that_a_wheel_is_built_of() -> None:
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert copied == {
        "LICENSE",
        "MANIFEST.in",
        "README.md",
        "pyproject.toml",
        "setup.py",
        "native",
        "embellama",
        "server",
    }
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied


def test_the_images_extras_exist() -> None:
    [extras] = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.MULTILINE)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*extras.split(",")} <= {*known}


def test_compose_reads_its_file() -> None:
    done = run(BIN / "docker-compose", "--file", ROOT / "deploy" / "compose.yaml", "config", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_what_kubernetes_takes(path: Path) -> None:
    manifest = msgspec.yaml.decode(path.read_bytes())
    if manifest["apiVersion"].startswith(("kustomize.", "keda.sh/")):  # no kinds of Kubernetes' own
        return
    for version in ("1.30", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_kustomize_lists_manifests_that_are_there_and_one_way_to_scale_at_most() -> None:
    text = (ROOT / "deploy" / "kubernetes" / "kustomization.yaml").read_text()
    assert {*re.findall(r"- (\S+\.yaml)", text)} == {path.name for path in MANIFESTS} - {"kustomization.yaml"}
    assert sum("scale-" in name for name in msgspec.yaml.decode(text)["resources"]) <= 1


@pytest.mark.parametrize("path", tracked("deploy", "docs/deploy"), ids=lambda path: path.name)
def test_settings_that_are_named_exist(path: Path) -> None:
    known = {variable(flag) for flag in flags(ServerConfig).values()} | {"EMBELLAMA_CONFIG"}
    assert {*re.findall(r"\bEMBELLAMA_[A-Z_]+\b", path.read_text())} <= known
