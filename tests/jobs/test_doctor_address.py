"""`qdmr doctor --address`: is a cluster's dashboard open to strangers?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qdmr_ray import doctor

Serve = Callable[[int], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server on loopback that answers everything with one status."""
    servers = []

    def started(status: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield started
    for server in servers:
        server.shutdown()


def findings(address: str) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor._dashboard(address)}


@pytest.mark.parametrize("status", [401, 403])
def test_a_dashboard_that_asks_for_a_token_is_fine(serve: Serve, status: int) -> None:
    found = findings(serve(status))
    assert found["dashboard's token"].ok
    assert found["dashboard's address"].ok


def test_one_that_does_not_is_a_warning(serve: Serve) -> None:
    found = findings(serve(200))
    assert not found["dashboard's token"].ok
    assert "anybody who reaches it can run code" in found["dashboard's token"].found
    assert "RAY_AUTH_MODE=token" in found["dashboard's token"].remedy


def test_a_public_address_is_a_warning(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    address = serve(401)
    monkeypatch.setattr(
        doctor.socket, "getaddrinfo", lambda host, port: [(0, 0, 0, "", ("93.184.216.34", 0))]
    )
    assert doctor._is_public("cluster.example")
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "_is_public", lambda host: True)
    found = findings(address)
    assert not found["dashboard's address"].ok
    assert "tunnel" in found["dashboard's address"].remedy


@pytest.mark.parametrize(
    ("address", "public"),
    [("127.0.0.1", False), ("10.0.3.4", False), ("::1", False), ("8.8.8.8", True)],
)
def test_private_addresses_are_not_public(address: str, public: bool) -> None:
    assert doctor._is_public(address) is public


def test_what_is_no_dashboard_is_named(serve: Serve) -> None:
    (finding,) = doctor._dashboard(serve(404))
    assert not finding.ok
    assert "no jobs API of a Ray cluster" in finding.remedy
    (silent,) = doctor._dashboard("http://127.0.0.1:9")
    assert "does not answer" in silent.remedy
