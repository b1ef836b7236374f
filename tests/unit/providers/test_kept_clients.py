"""A client that several threads share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait

import httpx

from orchestrate.providers.calls.clients import CachedClient


def test_threads_that_ask_at_once_get_one_client_and_a_closed_one_is_made_again() -> None:
    with ThreadPoolExecutor() as pool:
        others = []

        def made() -> httpx.Client:
            if not others:
                others.append(pool.submit(kept))
                done, _ = wait(others, timeout=0.1)
                assert not done, "it made its own"
            return httpx.Client()

        kept = CachedClient(made)
        client = kept()
        assert others[0].result(120) is client and kept() is client
        kept.close()
        assert client.is_closed
        assert kept() is not client and not kept().is_closed
        kept.close()
