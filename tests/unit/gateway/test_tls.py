"""TLS of its own, with a certificate of an authority that only this test knows."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from tests.unit.gateway.conftest import gateway_of

from orchestrate.errors import SetupError
from orchestrate.gateway import launch as service
from orchestrate.sandbox.server import Sandbox


def test_a_client_that_knows_the_authority_comes_in_and_no_other(sandbox: Sandbox, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "gateway.example")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(key)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with gateway_of(tmp_path, sandbox.env, certificate=(chain, key), names=("gateway.example",)) as gateway:
        given, _ = service.add_key(gateway.ft, "ann")
        headers = {"authorization": f"Bearer {given}"}
        assert gateway.url.startswith("https://127.0.0.1:")
        with httpx.Client(verify=trusting, headers=headers, timeout=240) as client:
            assert client.get(f"{gateway.url}/models").status_code == 200
            named = client.get(f"{gateway.url}/models", headers={"host": "gateway.example"})
            assert named.status_code == 200
        with httpx.Client(headers=headers, timeout=240) as client, pytest.raises(httpx.ConnectError):
            client.get(f"{gateway.url}/models")  # its authority is nobody to the others
        with httpx.Client(timeout=240) as client, pytest.raises(httpx.RemoteProtocolError):
            client.get(gateway.url.replace("https", "http"))
        port = httpx.URL(gateway.url).port
        assert port is not None
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(old)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            old.wrap_socket(plain, server_hostname="gateway.example") as spoken,
        ):
            assert spoken.version() == "TLSv1.2" and spoken.getpeercert()


def test_a_certificate_that_cannot_be_used_is_told_at_the_start(sandbox: Sandbox, tmp_path: Path) -> None:
    one, other = trustme.CA().issue_cert("127.0.0.1"), trustme.CA().issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    one.cert_chain_pems[0].write_to_path(chain)
    other.private_key_pem.write_to_path(key)
    with (
        pytest.raises(SetupError, match=r"chain\.pem"),
        gateway_of(tmp_path, sandbox.env, certificate=(chain, key)),
    ):
        pass
