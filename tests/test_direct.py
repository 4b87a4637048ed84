"""The endpoint that is asked most answers the same by its shorter way as by FastAPI's own."""

import json

import pytest
import serving
from starlette.routing import Route

from musketeers.serving.recommending import RECOMMEND


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Clients of two servers: as it is, and without the shorter way."""
    place = tmp_path_factory.mktemp("direct") / "model"
    serving.made(5).save(place)
    with serving.in_thread(place) as short, serving.in_thread(place) as long:
        routes = long.app.router.routes
        (direct,) = [r for r in routes if type(r) is Route and r.path == RECOMMEND]
        routes.remove(direct)
        with short.client() as one, long.client() as other:
            yield one, other


BODIES = [
    {"user_id": "user-003"},
    {"user_id": "user-003", "k": 4, "exclude_seen": False, "exclude_ids": ["tv-01"]},
    {"user_id": "user-004", "allow_ids": ["tv-01", "tv-02", "nothing"]},
    {"user_id": "nobody", "recent": {"tv": ["tv-03"], "movie": ["movie-01"]}},
    {"user_id": "nobody", "fallback": "none"},
    {"user_id": 7},
    {"user_id": "user-003", "recent": {"nowhere": ["x"]}},
    {"user_id": True},
    {"user_id": None},
    {"user_id": "x" * 300},
    {"user_id": "user-003", "k": 0},
    {"user_id": "user-003", "k": "3"},
    {"user_id": "user-003", "k": 3.5},
    {"user_id": "user-003", "kk": 3},
    {"k": 3},
    {"user_id": "user-003", "exclude_ids": ["a", 1.5, None]},
    [],
    "text",
    None,
]


@pytest.mark.parametrize(
    "content", [*map(json.dumps, BODIES), "", "{", b"\xff", '{"user_id": NaN}']
)
@pytest.mark.parametrize("domain", ["tv", "nowhere"])
def test_both_ways_answer_the_same(both, domain, content):
    found = [
        client.post(
            f"/v1/domains/{domain}/recommend", content=content,
            headers={"Content-Type": "application/json", "X-Request-ID": "the-same"},
        )
        for client in both
    ]  # fmt: skip
    assert found[0].status_code == found[1].status_code
    short, long = (answer.json() for answer in found)
    if not content.startswith("{" if isinstance(content, str) else b"{"):
        # that a body is no object is said in other words
        for fault in (*short.get("errors", ()), *long.get("errors", ())):
            fault.pop("detail")
    assert short == long
    for name in found[0].headers.keys() - {"date", "content-length"}:
        assert found[0].headers[name] == found[1].headers[name]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_both_ways_take_the_same_methods(both, method):
    found = [client.request(method, "/v1/domains/tv/recommend") for client in both]
    assert found[0].status_code == found[1].status_code == 405
    assert found[0].headers["allow"] == found[1].headers["allow"] == "POST"


def test_both_ways_are_counted_under_the_same_route(both):
    for client in both:
        client.post("/v1/domains/tv/recommend", json={"user_id": "user-003"})
        assert f'http_route="{RECOMMEND}"' in client.get("/metrics").text
