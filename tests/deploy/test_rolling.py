"""A rolling update as Kubernetes does it, step by step with real processes: nobody repeats a request, and none fails.

Kubernetes                                                   here
a new pod is started, and gets connections once it is ready  a third server, and HAProxy by TCP in the Service's place
the old pod is taken out of the Service, and preStop sleeps  HAProxy's `drain`: connections that are there stay
SIGTERM: the server answers what it has accepted             the same
"""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import Reference, Server, running_server
from tests.faults.conftest import Crowd
from tests.programs import free_port, listens, program, running

pytestmark = [pytest.mark.server, pytest.mark.model]

CONFIGURATION = """
global
    stats socket {control} level admin
defaults
    mode tcp
    timeout client 60s
    timeout server 60s
    timeout connect 1s
    retries 0
listen service
    bind 127.0.0.1:{port}
    balance roundrobin
    server a 127.0.0.1:{port} disabled
    server b 127.0.0.1:{port} disabled
"""


class Service(Server):
    """A balancer of connections that knows no HTTP, such as a Service of Kubernetes."""

    def tell(self, command: str) -> None:
        """Give a command to HAProxy."""
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.log.with_name("control")))
            control.sendall(f"{command}\n".encode())
            answer = control.makefile().read().strip()
            assert not answer or "changed" in answer, answer

    def take_in(self, name: str, server: Server) -> None:
        """Let new connections come to a server, in the place of this name."""
        self.tell(f"set server service/{name} addr 127.0.0.1 port {httpx.URL(server.url).port}")
        self.tell(f"set server service/{name} state ready")

    def take_out(self, name: str) -> None:
        """Let no new ones come there."""
        self.tell(f"set server service/{name} state drain")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    port, path = free_port(), tmp_path / "haproxy.cfg"
    path.write_text(CONFIGURATION.format(control=tmp_path / "control", port=port))
    log = tmp_path / "haproxy.log"
    with running(log, program("haproxy"), "-f", path, ready=lambda: listens(port)) as process:
        service = Service(process, log)
        service.url = f"http://127.0.0.1:{port}"
        yield service


def test_every_server_is_replaced_and_no_request_fails(
    service: Service, model_path: str, reference: Reference, tmp_path: Path
) -> None:
    flags = ("--model-path", model_path, "--workers", "1", "--cache-bytes", "0")
    with contextlib.ExitStack() as left:

        def started(number: int) -> tuple[Server, contextlib.ExitStack]:
            life = left.enter_context(contextlib.ExitStack())
            return life.enter_context(running_server(tmp_path / f"{number}.log", *flags)), life

        old = dict(zip("ab", map(started, (0, 1)), strict=True))
        for name, (server, _) in old.items():
            service.take_in(name, server)
        crowd = Crowd(service, reference, 16)
        crowd.wait_answers(64)
        for number, (name, (_, life)) in enumerate(old.items(), 2):
            successor, _ = started(number)  # before the old one goes: maxUnavailable 0
            service.take_out(name)
            crowd.wait_answers(32)  # preStop
            life.close()  # SIGTERM, and its end
            service.take_in(name, successor)
            crowd.wait_answers(64)
        crowd.assert_all_right()
