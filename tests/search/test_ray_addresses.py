"""A cluster that isn't there: said within seconds, before Ray tries for minutes."""

import re
import socket
import time
from pathlib import Path
from typing import Any, cast

import pytest

from search import ray_evaluators
from search.config import RayConfig
from search.errors import StudyError
from search.ray_evaluators import on_ray


class Reached(Exception):  # noqa: N818
    """Ray itself was asked."""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch):
    """Ray, as far as it is installed, isn't started."""

    def reach(_: str) -> Any:
        raise Reached

    monkeypatch.setattr(ray_evaluators, "import_module", reach)
    monkeypatch.setattr(ray_evaluators, "find_spec", lambda _: object())


def join(address: str) -> None:
    with on_ray(Path("study.yaml"), RayConfig(address=address), "cpu", cast("Any", None)):
        pass


@pytest.fixture
def closed() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_answers(scheme: str, closed: int):
    place = f"127.0.0.1:{closed}"
    expected = (
        f"study.yaml: ray.address: nobody answers at {place} ([Errno 111] Connection refused); "
        "start Ray there, or give the address of a cluster that runs"
    )
    with pytest.raises(StudyError, match=f"^{re.escape(expected)}$"):
        join(scheme + place)


def test_an_address_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray_evaluators, "_ANSWER", 0.2)
    start = time.monotonic()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        place = silent.getsockname()
        queued = [socket.socket() for _ in range(4)]
        for one in queued:  # no room for another call
            one.setblocking(False)
            one.connect_ex(place)
        with pytest.raises(StudyError, match=r"nobody answers at .* \(timed out\)"):
            join(f"127.0.0.1:{place[1]}")
        for one in queued:
            one.close()
    assert time.monotonic() - start < 10


def test_a_port_that_is_none():
    with pytest.raises(StudyError, match=r"nobody answers at 127.0.0.1:99999 \(Port out of range"):
        join("127.0.0.1:99999")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_somebody_answers_is_left_to_ray(scheme: str):
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(Reached):
        join(f"{scheme}127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["auto", "local", "ray://head", "anyscale://cluster"])
def test_other_addresses_are_left_to_ray(address: str):
    with pytest.raises(Reached):
        join(address)
