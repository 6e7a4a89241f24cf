"""Two servers, and HAProxy or nginx before them as deploy/ configures it, with the tests' ports in place of its own."""

import contextlib
import functools
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.conftest import ROOT, Server, running_server, wait_until
from tests.programs import free_port, listens, program, running


class Pair:
    """Two servers, each on a port that it keeps when it is started again."""

    def __init__(self, folder: Path, model_path: str):
        self.ports = (free_port(), free_port())
        self.model_path, self._folder = model_path, folder
        self._stacks = [contextlib.ExitStack(), contextlib.ExitStack()]
        self.servers = [self._start(0), self._start(1)]

    def _start(self, i: int) -> Server:
        flags = ("--model-path", self.model_path, "--workers", "1", "--port", str(self.ports[i]))
        return self._stacks[i].enter_context(running_server(self._folder / f"{i}.log", *flags))

    def kill(self, i: int) -> None:
        """End a server as a crash would."""
        self.servers[i].process.kill()
        self._stacks[i].close()

    def stop(self, i: int) -> None:
        """Ask a server to end, and wait until it has."""
        self._stacks[i].close()

    def start(self, i: int) -> None:
        """Start a server again, and wait until it is ready."""
        self.servers[i] = self._start(i)

    def close(self) -> None:
        """Stop both."""
        for stack in self._stacks:
            stack.close()


class Balancer(Server):
    """A balancer, which answers on `url` and, with TLS, on `https`."""

    https: str


@contextlib.contextmanager
def filled(server: Server) -> Iterator[None]:
    """Have a server that has ``--queue-bytes 1`` refuse all: a request that does not end takes the room."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port)) as client:
        client.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        body = {"model": "none", "input": "red"}
        wait_until(lambda: httpx.post(f"{server.url}/v1/embeddings", json=body).status_code == 503, "it is full")
        yield


@functools.cache
def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1, and its key."""
    crt, key = folder / "embellama.crt", folder / "embellama.key"
    command = [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-out",
        str(crt),
        "-keyout",
        str(key),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return crt, key


def written(source: str, target: Path, changes: dict[str, str]) -> Path:
    """Copy a file of deploy/ with other addresses and paths in it."""
    text = (ROOT / "deploy" / source).read_text()
    for old, new in changes.items():
        assert old in text, f"{source} has no {old!r}"
        text = text.replace(old, new)
    target.write_text(text)
    return target


def configured(name: str, folder: Path, listening: tuple[int, int], upstream: tuple[int, int]) -> list[str | Path]:
    """Write a balancer's configuration; return the command that reads it."""
    return (_haproxy if name == "haproxy" else _nginx)(folder, listening, upstream)


def _haproxy(folder: Path, listening: tuple[int, int], upstream: tuple[int, int]) -> list[str | Path]:
    pem = folder / "embellama.pem"
    pem.write_text("".join(path.read_text() for path in certificate(folder)))
    changes = {
        "bind :8080": f"bind 127.0.0.1:{listening[0]}",
        "bind :8443": f"bind 127.0.0.1:{listening[1]}",
        "/etc/haproxy/embellama.pem": str(pem),
    }
    path = written("haproxy/haproxy.cfg", folder / "haproxy.cfg", changes | _addresses(upstream))
    return [program("haproxy"), "-f", path]


def _nginx(folder: Path, listening: tuple[int, int], upstream: tuple[int, int]) -> list[str | Path]:
    certificate(folder)
    # By default only root may write there.
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder / kind}; " for kind in kinds)
    changes = {
        "listen 8080": f"listen 127.0.0.1:{listening[0]}",
        "listen 8443": f"listen 127.0.0.1:{listening[1]}",
        "/etc/nginx/": f"{folder}/",
        "/var/log/nginx/": f"{folder}/",
        "/run/": f"{folder}/",
        "http {": f"http {{ {temporary}",
    }
    path = written("nginx/nginx.conf", folder / "nginx.conf", changes | _addresses(upstream))
    return [program("nginx"), "-g", "daemon off;", "-p", folder, "-c", path]


def _addresses(upstream: tuple[int, int]) -> dict[str, str]:
    return {f"10.0.0.1{i}:8000": f"127.0.0.1:{port}" for i, port in enumerate(upstream, 1)}


@contextlib.contextmanager
def running_balancer(name: str, folder: Path, upstream: tuple[int, int]) -> Iterator[Balancer]:
    """Run HAProxy or nginx before the servers on two ports."""
    ports = (free_port(), free_port())
    log = folder / f"{name}.log"
    command = configured(name, folder, ports, upstream)
    with running(log, *command, ready=lambda: all(map(listens, ports))) as process:
        balancer = Balancer(process, log)
        balancer.url, balancer.https = f"http://127.0.0.1:{ports[0]}", f"https://127.0.0.1:{ports[1]}"
        yield balancer
