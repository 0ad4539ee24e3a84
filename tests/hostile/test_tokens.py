"""Tokens stay with whom they belong to: no plain text on a network, no file that others may read."""

import pytest

from qdmr_ray.data.realab import _Hub

PLAIN_TEXT = [
    "http://hub.example",
    "http://10.0.0.1:80",
    "http://127.0.0.1.evil.example",
    "http://localhost.evil.example",
    "http://127.0.0.1@evil.example",
    "http://localhost:x@evil.example:80",
    "http://0.0.0.0:80",
    "http://2130706433",
]
SAFE = ["https://hub.example", "http://127.0.0.1:9", "http://127.8.8.8", "http://localhost:9"]


@pytest.mark.parametrize("address", PLAIN_TEXT)
def test_no_token_goes_over_a_network_as_plain_text(address: str) -> None:
    assert _Hub(address, "main").token is False


@pytest.mark.parametrize("address", SAFE)
def test_a_token_goes_over_https_and_to_this_machine(address: str) -> None:
    # The library then sends HF_TOKEN, or the token of its own login.
    assert _Hub(address, "main").token is None
