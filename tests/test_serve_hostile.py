"""What nobody should send: requests made of the server's own description, and images that are broken on purpose."""

import asyncio
import json
import re
import sys
import tempfile
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.mutated import mutated
from vitcls.bench.serving import served

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 12  # of each route
IMAGES = 200
PLACES = "|".join(re.escape(str(place)) for place in (Path(__file__).parents[1], sys.prefix, tempfile.gettempdir()))
LEAKS = re.compile(rf"Traceback|0x[0-9a-f]{{6}}|{PLACES}|site-packages|\.py\b")
WORDS = ["--max_pixels=20000000", "--max_bytes=5000000"]


@pytest.fixture(scope="module")
def server(trained_run, tmp_path_factory):
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with served([str(trained_run), *WORDS], log) as (address, process):
        yield address, process
    assert '"failure"' not in log.read_text()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_the_server_keeps_to_its_own_description(server, mode):
    address, process = server
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    routes = [found.ok() for found in schema.get_all_operations()]
    assert len(routes) == 7
    for route in routes:
        if mode == schemathesis.GenerationMode.POSITIVE or route.body:  # the others take nothing that could be wrong
            check(address, route.as_strategy(generation_mode=mode))
    assert process.poll() is None


def check(address, cases):
    """Send some of the cases, always the same."""

    @seed(0)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def keeps(case):
        response = case.call(base_url=address)
        if "json" in response.headers["content-type"]:
            assert not LEAKS.search(response.text)
        case.validate_response(response, checks=CHECKS)

    keeps()


async def send(address, numbers, route="/predict/batch"):
    """The answers to mutated images, eight at a time."""
    room = asyncio.Semaphore(8)

    async def one(client, number):
        async with room:
            return await client.post(route, files={"image": (f"{number}.jpg", mutated(number))})

    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        return await asyncio.gather(*(one(client, number) for number in numbers))


def test_broken_images_do_no_harm(server):
    address, process = server
    replies = asyncio.run(send(address, range(IMAGES)))
    assert {reply.status_code for reply in replies} == {200}
    outcomes = [reply.json()["images"][0] for reply in replies]
    assert {one["error"]["status"] for one in outcomes if "error" in one} == {413, 415, 422}
    assert any("answer" in one for one in outcomes)
    assert [one["image"] for one in outcomes] == [f"{number}.jpg" for number in range(IMAGES)]
    for reply in replies:
        assert not LEAKS.search(reply.text), reply.text
    assert process.poll() is None
    assert json.loads(httpx.get(f"{address}/ready").text)["status"] == "ready"
