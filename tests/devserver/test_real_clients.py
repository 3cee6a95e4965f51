"""Clients that others wrote, as their users use them; and wrong ones, refused by code and EC."""

from __future__ import annotations

from pathlib import Path

import pytest

from .real_clients import CLIENTS, Client, documented, run

QUICK = [client for client in CLIENTS if not client.slow]
SLOW = [client for client in CLIENTS if client.slow]


def check(client: Client, folder: Path) -> None:
    world = run(client, folder)
    if client.upload is not None and "UploadPart" in world.performed:
        assert "ServiceUnavailable" in world.codes
        assert "SecurityTokenExpired" in world.codes
        assert world.errors, "nothing came in between"
    assert world.performed == documented()[client.name], (
        "run `python -m tests.devserver.real_clients --update`"
    )


@pytest.mark.parametrize("client", QUICK, ids=lambda client: client.name)
def test_a_client_gets_its_film_there(client: Client, tmp_path: Path) -> None:
    check(client, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("client", SLOW, ids=lambda client: client.name)
def test_a_client_of_another_world_gets_its_film_there(client: Client, tmp_path: Path) -> None:
    if missing := client.why_not():
        pytest.skip(f"it needs {missing}")
    check(client, tmp_path)


def test_the_table_has_every_client() -> None:
    assert list(documented()) == [client.name for client in CLIENTS]
