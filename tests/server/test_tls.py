"""TLS: a certificate that is renewed while connections are open, clients that are slow, and files that are wrong."""

import signal
import socket
import ssl
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import trustme
from embellama_server.tls import Certificate

from embellama.errors import ConfigError
from tests.conftest import Server, StartServer, running_server, wait_until

pytestmark = pytest.mark.server


class Files(NamedTuple):
    """An authority, and the files of a certificate that it made."""

    authority: trustme.CA
    cert: Path
    key: Path

    def write(self) -> None:
        """Write a new certificate."""
        made = self.authority.issue_cert("127.0.0.1", "localhost")
        made.private_key_pem.write_to_path(self.key)
        self.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))

    def trusting(self) -> ssl.SSLContext:
        """Return what a client checks certificates with that knows the authority."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    files = Files(trustme.CA(), folder / "cert.pem", folder / "key.pem")
    files.write()
    return files


@pytest.fixture(scope="module")
def target(files: Files, tiny_path: str) -> Iterator[Server]:
    flags = ("--model-path", tiny_path, "--workers", "1", *files.flags)
    with running_server(files.cert.parent / "log", *flags, verify=files.trusting()) as server:
        yield server


def serial_of(server: Server) -> str:
    """Return the serial number of the certificate that a new connection is shown."""
    url = httpx.URL(server.url)
    assert isinstance(server.verify, ssl.SSLContext)
    with (
        socket.create_connection((url.host, url.port), timeout=30) as plain,
        server.verify.wrap_socket(plain, server_hostname=url.host) as connection,
    ):
        return str((connection.getpeercert() or {})["serialNumber"])


def test_answers_of_any_size_come_over_tls(target: Server) -> None:
    with httpx.Client(verify=target.verify, timeout=60) as http:
        for n_texts in (1, 2000):
            body = {"model": "tiny", "input": ["red"] * n_texts}
            for accept in ("application/json", "application/x-ndjson"):
                answer = http.post(f"{target.url}/v1/embeddings", json=body, headers={"accept": accept})
                assert answer.status_code == 200
                assert answer.text.count('"embedding":') == n_texts
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{target.url}/livez")


def test_a_certificate_is_renewed_while_a_connection_is_open(target: Server, files: Files) -> None:
    def hang_up_and_wait(told: str) -> None:
        n_before = target.log.read_text().count(told)
        target.process.send_signal(signal.SIGHUP)
        wait_until(lambda: target.log.read_text().count(told) == n_before + 1, "the files are read again")

    url = httpx.URL(target.url)
    assert isinstance(target.verify, ssl.SSLContext)
    connection = HTTPSConnection(url.host, url.port, timeout=30, context=target.verify)

    def ask() -> int:
        connection.request("POST", "/v1/embeddings", b'{"model": "tiny", "input": "red"}')
        answer = connection.getresponse()
        assert answer.read()
        return answer.status

    assert ask() == 200
    used, old = connection.sock, serial_of(target)
    files.write()
    hang_up_and_wait("the certificate was read again")
    new = serial_of(target)
    assert new != old
    for cert in (b"no certificate", b""):
        files.cert.write_bytes(cert)
        hang_up_and_wait(f"the certificate was not renewed, the old one goes on: tls_cert is '{files.cert}'")
        assert serial_of(target) == new
    assert ask() == 200
    assert connection.sock is used
    connection.close()
    files.write()


def test_clients_that_do_not_finish_a_handshake_or_a_head_hold_up_nobody(
    start_server: StartServer, files: Files, tiny_path: str
) -> None:
    flags = ("--model-path", tiny_path, "--workers", "1", "--drain-timeout-ms", "600000", *files.flags)
    with start_server(*flags, verify=files.trusting()) as server, httpx.Client(verify=server.verify) as idle:
        url = httpx.URL(server.url)
        assert isinstance(server.verify, ssl.SSLContext)
        with (
            socket.create_connection((url.host, url.port)) as silent,
            socket.create_connection((url.host, url.port)) as half,
            server.verify.wrap_socket(socket.create_connection((url.host, url.port)), server_hostname=url.host) as head,
        ):
            half.sendall(b"\x16\x03\x01\x02\x00\x01")  # of a ClientHello
            head.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost")
            assert idle.get(f"{server.url}/livez").status_code == 200
            server.process.terminate()
            assert server.process.wait(timeout=20) == 0
            assert silent.recv(100) == b""
        assert "Traceback" not in server.log.read_text()


def test_files_that_are_wrong_are_named(files: Files, tmp_path: Path) -> None:
    other = Files(files.authority, tmp_path / "cert.pem", tmp_path / "key.pem")
    other.write()
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no PEM")
    missing = tmp_path / "missing.pem"
    for cert, key, told in (
        (missing, files.key, f"tls_cert is '{missing}': No such file"),
        (files.cert, tmp_path, f"tls_key is '{tmp_path}': Is a directory"),
        (wrong, files.key, f"tls_cert is '{wrong}': there is no certificate"),
        (files.cert, wrong, f"tls_key is '{wrong}': it is not the key of {files.cert}"),
        (files.cert, other.key, f"tls_key is '{other.key}': it is not the key of {files.cert}"),
    ):
        with pytest.raises(ConfigError) as raised:
            Certificate(str(cert), str(key))
        assert str(raised.value).startswith(told)
