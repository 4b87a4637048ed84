"""What stands around the endpoints: a small app behind the gate, in a real server."""

import asyncio
import gc
import io
import json
import socket
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Annotated

import httpx
import pytest
import uvicorn
import uvloop
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from musketeers.errors import ArtifactError, ConfigError, DataError, UnknownNameError
from musketeers.serving import metrics
from musketeers.serving.gate import Gate
from musketeers.serving.keys import Key, Keys, check_bind, new_key, requires
from musketeers.serving.limits import Limits
from musketeers.serving.logs import Log
from musketeers.serving.metrics import Metrics
from musketeers.serving.problems import RESPONSES, Problem, install
from musketeers.serving.protocol import protocol
from musketeers.serving.slots import Slots

USER = "canary-user-7f3a"
SECRET = "canary-key-0123456789abcdefghijklmnop"
ADMIN = "canary-admin-0123456789abcdefghijklmn"


class Question(BaseModel):
    model_config = ConfigDict(extra="forbid")

    user_id: str | None = None
    k: Annotated[int, Field(ge=1, le=500)] = 10
    recent: dict[str, list[int]] = {}


def small_app(keys, limits, log):
    """Routes that do what endpoints may do, with the gate that is theirs."""
    app = FastAPI(docs_url=None, redoc_url=None, responses=RESPONSES)
    counts = Metrics()
    gate = Gate(keys, limits, counts, log)
    app.add_middleware(gate.around)
    install(app)

    @app.get("/livez")
    async def livez():
        return {}

    @app.get("/metrics")
    async def scrape():
        return Response(counts.render(), media_type=metrics.MEDIA_TYPE)

    add_endpoints(app)
    add_troubles(app)
    return app, gate


def add_endpoints(app):
    @app.post("/v1/domains/{domain}/recommend", dependencies=[requires("read")])
    async def recommend(domain: str, question: Question):
        return {"user_id": question.user_id}

    @app.get("/v1/domains/{domain}/users/{user_id}/recommend", dependencies=[requires("read")])
    async def recommend_one(domain: str, user_id: str, request: Request):
        return {"request_id": request.state.request_id}

    @app.post("/v1/domains/{domain}/explain", dependencies=[requires("explain")])
    async def explain(domain: str):
        return {}

    @app.get("/v1/users/{user_id}/interactions", dependencies=[requires("write")])
    async def kept(user_id: str):
        return {}

    @app.delete("/v1/users/{user_id}/interactions", dependencies=[requires("write")])
    async def forget(user_id: str):
        return {}

    @app.post("/v1/admin/reload")
    async def reload(key: Annotated[Key, requires("admin")], seconds: float = 0.0):
        await asyncio.sleep(seconds)
        return {"by": key.name}


def add_troubles(app):
    @app.get("/fail/{user_id}/{kind}")
    async def fail(user_id: str, kind: str):
        raise {
            "unknown": UnknownNameError(f"user {user_id!r} is not known"),
            "data": DataError(f"{user_id} is of another type"),
            "bug": KeyError(user_id),
            "damage": ArtifactError(f"{user_id}: is damaged"),
            "own": Problem(409, "reloading", "A model is being loaded."),
        }[kind]

    @app.get("/wait/{seconds}")
    async def wait(seconds: float):
        await asyncio.sleep(seconds)
        return {}

    @app.get("/block/{seconds}")
    async def block(seconds: float):
        time.sleep(seconds)
        return {}


@dataclass
class Served:
    """A running server and how to talk to it."""

    port: int
    gate: Gate
    loop: asyncio.AbstractEventLoop
    said: io.StringIO = field(default_factory=io.StringIO)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def client(self, key=None, **options):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **options)

    def lines(self):
        return [json.loads(line) for line in self.said.getvalue().splitlines()]

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@contextmanager
def serving(keys=None, form="json", **limits):
    """The small app in uvicorn, in a thread of its own, on a port that the system chooses."""
    said = io.StringIO()
    log = Log(form, said)
    log.adopt()
    bounds = Limits(**{"deadline": 20.0, **limits})
    app, gate = small_app(keys or Keys(), bounds, log)
    config = uvicorn.Config(
        app, http=protocol(gate), loop="uvloop", ws="none", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as place:
        port = place.getsockname()[1]
        found = {}

        async def run():
            found["loop"] = asyncio.get_running_loop()
            await server.serve([place])

        thread = threading.Thread(target=lambda: uvloop.run(run()))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            yield Served(port, gate, found["loop"], said)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def opened():
    with serving() as served:
        yield served


def problem(answer, status, code):
    """The document of an answer that must be this problem."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found.keys() == {"type", "title", "status", "detail", "code", "request_id", "errors"}
    assert (found["type"], found["status"], found["code"]) == ("about:blank", status, code)
    assert found["request_id"] == answer.headers["x-request-id"]
    return found


def test_every_kind_of_error_is_a_problem_document(opened):
    with opened.client() as client:
        path = "/v1/domains/tv/recommend"
        problem(client.get("/nothing/here"), 404, "not_found")
        problem(client.get("/livez/"), 404, "not_found")
        assert problem(client.post("/livez"), 405, "method_not_allowed")["title"] == (
            "Method Not Allowed"
        )
        text = {"content-type": "text/plain"}
        json_type = {"content-type": "application/json; charset=utf-8"}
        problem(client.post(path, content="{}", headers=text), 415, "unsupported_media_type")
        problem(client.post(path, content='{"k": ', headers=json_type), 400, "malformed")
        problem(client.post(path, content=b"\xff\xfe", headers=json_type), 400, "malformed")
        problem(client.post(path, content="[" * 100_000, headers=json_type), 400, "malformed")
        problem(client.post(path, content=" " * 262_145, headers=json_type), 413, "body_too_large")
        assert client.post(path, json={}).status_code == 200
        problem(client.get("/livez", headers={"x-a": "a" * 16_384}), 431, "headers_too_large")
        problem(client.get(f"/fail/{USER}/unknown"), 404, "unknown_name")
        problem(client.get(f"/fail/{USER}/data"), 422, "invalid")
        problem(client.get(f"/fail/{USER}/own"), 409, "reloading")
        for kind in ("bug", "damage"):
            problem(client.get(f"/fail/{USER}/{kind}"), 500, "internal")
            failed = [line for line in opened.lines() if line["event"] == "failure"][-1]
            assert failed["error"] == {"bug": "KeyError", "damage": "ArtifactError"}[kind]
            assert " fail" in failed["at"][-1]


def test_405_names_the_methods_of_all_routes_at_the_path(opened):
    with opened.client() as client:
        answer = client.put(f"/v1/users/{USER}/interactions")
        problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, DELETE"


def test_broken_rules_are_pointed_to_without_what_was_sent(opened):
    with opened.client() as client:
        body = {"k": 501, "recent": {USER: ["x"]}, USER: 1}
        answer = client.post("/v1/domains/tv/recommend", json=body)
        assert problem(answer, 422, "invalid")["errors"] == [
            {"pointer": "/body/k", "detail": "Input should be less than or equal to 500"},
            {
                "pointer": "/body/recent",
                "detail": "Input should be a valid integer, unable to parse string as an integer",
            },
            {"pointer": "/body", "detail": "There is a field here that is not known"},
        ]
        assert USER not in answer.text
        many = client.post("/v1/domains/tv/recommend", json={f"{USER}{n}": n for n in range(1000)})
        assert USER not in many.text
        assert len(many.json()["errors"]) == 1


def test_the_openapi_document_declares_problems_for_every_route(opened):
    with opened.client() as client:
        document = client.get("/openapi.json").json()
    assert document["components"]["schemas"]["Problem"]["additionalProperties"] is False
    for path in document["paths"].values():
        for operation in path.values():
            declared = {s for s, r in operation["responses"].items() if int(s) >= 400}
            assert declared == {str(status) for status in RESPONSES}
            for status in declared:
                content = operation["responses"][status]["content"]
                assert content == {
                    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
                }
    security = document["paths"]["/v1/admin/reload"]["post"]["security"]
    assert security == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_a_request_id_is_taken_if_sane_and_made_otherwise(opened):
    path = f"/v1/domains/tv/users/{USER}/recommend"
    with opened.client() as client:
        taken = client.get(path, headers={"x-request-id": "order-7.b"})
        assert taken.headers["x-request-id"] == taken.json()["request_id"] == "order-7.b"
        for bad in ("", "a b", "x" * 65, '"};{'):
            made = client.get(path, headers={"x-request-id": bad}).headers["x-request-id"]
            assert len(made) == 32
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        client.get(path, headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    line = opened.lines()[-1]
    assert line["trace_id"] == trace
    assert line["route"] == "/v1/domains/{domain}/users/{user_id}/recommend"
    assert line.keys() == {
        "time", "level", "event", "request_id", "trace_id", "method", "route", "status", "ms", "key"
    }  # fmt: skip


# --- keys -----------------------------------------------------------------------------


def key_file(tmp_path, text):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    return path


def test_a_new_key_is_let_in_by_the_lines_that_come_with_it(tmp_path):
    secret, lines = new_key("shop", ["read", "write"])
    path = key_file(tmp_path, lines)
    path.chmod(0o644)
    keys = Keys.collect(path, {})
    (key,) = keys.keys
    assert (key.name, key.scopes, key.domains) == ("shop", {"read", "write"}, None)
    assert keys.identify(f"Bearer {secret}".encode(), b"", b"") is key
    assert secret not in repr(keys) + lines
    assert len(secret) == 43
    assert new_key("shop")[0] != secret


HASH = sha256(b"x").hexdigest()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"keys.toml: holds no key; each is a table \[keys.NAME\]"),
        ("[keys]", "holds no key"),
        ("keys = 3", "holds no key"),
        ("x = 1", r"'x' is not known; each key is a table"),
        ("[keys.a", r"is no TOML file in UTF-8: line 1, column 8|end of document"),
        ("[keys]\na = 1", "keys.a: must be a table with sha256 and scopes"),
        ('[keys.a]\nscopes = ["read"]', "keys.a: sha256 must be the key's SHA-256 hash"),
        (f'[keys.a]\nsha256 = "{SECRET}"', "sha256 must be .* never the key$"),
        (f'[keys.a]\nsha256 = "{HASH}"', "keys.a: scopes must be a list of at least one name"),
        (f'[keys.a]\nsha256 = "{HASH}"\nscopes = []', "scopes must be a list"),
        (f'[keys.a]\nsha256 = "{HASH}"\nscopes = "read"', "scopes must be a list"),
        (
            f'[keys.a]\nsha256 = "{HASH}"\nscopes = ["red"]',
            "no scope is called 'red'; there are read, explain, write, admin",
        ),
        (f'[keys.a]\nsha256 = "{HASH}"\nscopes = ["read"]\ndomains = []', "domains must be a list"),
        (f'[keys.a]\nsha256 = "{HASH}"\nscopes = ["read"]\nrate = 3', "'rate' is not known"),
        (f'[keys."a b"]\nsha256 = "{HASH}"\nscopes = ["read"]', "keys.'a b': a name has 1 to 64"),
        (f'[keys.open]\nsha256 = "{HASH}"\nscopes = ["read"]', "none of ours"),
        (
            "".join(f'[keys.{n}]\nsha256 = "{HASH}"\nscopes = ["read"]\n' for n in "ab"),
            "keys a and b are the same",
        ),
    ],
)
def test_a_file_of_keys_with_a_fault_is_refused_in_one_line(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Keys.collect(key_file(tmp_path, text), {})
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_file_that_others_may_write_or_that_is_not_there_is_refused(tmp_path):
    path = key_file(tmp_path, new_key("a")[1])
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="anyone may write it and so add keys; chmod o-w it"):
        Keys.collect(path, {})
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        Keys.collect(tmp_path / "none.toml", {})


def test_keys_of_the_environment():
    keys = Keys.collect(None, {"MUSKETEERS_KEY": SECRET, "MUSKETEERS_ADMIN_KEY": ADMIN})
    assert [(k.name, sorted(k.scopes)) for k in keys.keys] == [
        ("MUSKETEERS_KEY", ["explain", "read", "write"]),
        ("MUSKETEERS_ADMIN_KEY", ["admin", "explain", "read", "write"]),
    ]
    assert Keys.collect(None, {}).open
    for bad in ("", "x" * 31, "x" * 40 + " ", "é" * 40):
        with pytest.raises(ConfigError, match="MUSKETEERS_KEY must be at least 32 characters"):
            Keys.collect(None, {"MUSKETEERS_KEY": bad})
    with pytest.raises(ConfigError, match="are the same"):
        Keys.collect(None, {"MUSKETEERS_KEY": SECRET, "MUSKETEERS_ADMIN_KEY": SECRET})


def test_an_open_service_is_for_this_machine_alone():
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        check_bind(host, Keys())
    keys = Keys.collect(None, {"MUSKETEERS_KEY": SECRET})
    for host in ("0.0.0.0", "::", "", "10.0.0.1", "example.org"):
        check_bind(host, keys)
        with pytest.raises(ConfigError, match="can be reached from elsewhere and no key is set"):
            check_bind(host, Keys())


ROUTES = {
    "read": ("POST", "/v1/domains/{}/recommend"),
    "explain": ("POST", "/v1/domains/{}/explain"),
    "write": ("DELETE", "/v1/users/u/interactions"),
    "admin": ("POST", "/v1/admin/reload"),
}


def test_keys_by_scopes_by_routes():
    sets = [(), ("read",), ("explain",), ("write",), ("admin",), ("read", "admin"), tuple(ROUTES)]
    secrets = {scopes: f"{'-'.join(scopes)}-{'x' * 40}" for scopes in sets}
    keys = Keys(
        tuple(
            Key(f"k{n}", frozenset(s), frozenset({"tv"}), sha256(secrets[s].encode()).digest())
            for n, s in enumerate(sets)
        )
    )
    with serving(keys) as served, served.client() as client:
        for scope, (method, path) in ROUTES.items():

            def ask(domain, authorization, method=method, path=path):
                headers = {"authorization": authorization} if authorization else {}
                content = {"json": {}} if method == "POST" else {}
                return client.request(method, path.format(domain), headers=headers, **content)

            nobody = ask("tv", None)
            problem(nobody, 401, "unauthenticated")
            assert nobody.headers["www-authenticate"] == "Bearer"
            for wrong in ("Bearer " + "y" * 43, "Basic " + secrets[("read",)], "Bearer"):
                answer = ask("tv", wrong)
                problem(answer, 401, "unauthenticated")
                assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
            for scopes in sets:
                answer = ask("tv", f"bearer {secrets[scopes]}")
                if scope in scopes:
                    assert answer.status_code == 200
                else:
                    problem(answer, 403, "scope_forbidden")
                if scope in scopes and "{}" in path:
                    elsewhere = ask("books", f"Bearer {secrets[scopes]}")
                    problem(elsewhere, 403, "domain_forbidden")
        assert client.get("/livez").status_code == 200
        # a key is enough, whatever name the service has
        named = client.get("/livez", headers={"host": "recommend.example.org"})
        assert named.status_code == 200


def test_an_open_service_refuses_administration_and_pages_from_elsewhere(opened):
    with opened.client() as client:
        for scope, (method, path) in ROUTES.items():
            answer = client.request(
                method, path.format("tv"), **({"json": {}} if method == "POST" else {})
            )
            if scope == "admin":
                assert "MUSKETEERS_ADMIN_KEY" in problem(answer, 403, "no_admin_key")["detail"]
            else:
                assert answer.status_code == 200
        for host in ("localhost", "LOCALHOST:80", "127.0.0.1:8000", "127.3.4.5", "[::1]:9"):
            assert client.get("/livez", headers={"host": host}).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]", "::1", "a:b:c"):
            problem(client.get("/livez", headers={"host": host}), 421, "misdirected")
        mine = f"http://127.0.0.1:{opened.port}"
        assert client.get("/livez", headers={"origin": mine}).status_code == 200
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://localhost"):
            problem(client.get("/livez", headers={"origin": origin}), 403, "foreign_origin")


# --- limits ---------------------------------------------------------------------------


def test_limits_that_make_no_sense_are_refused():
    for bad, said in [
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"queue": -1}, "queue must be at least 0"),
        ({"deadline": 0.0}, "deadline must be at least 0.001"),
        ({"deadline": float("nan")}, "found nan"),
        ({"rate": 0.0}, "rate must be at least"),
        ({"body": True}, "found True"),
    ]:
        with pytest.raises(ConfigError, match=said):
            Limits(**bad)


def read_all(connection):
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def test_a_chunked_body_is_stopped_when_it_is_too_large():
    with serving(body=1000) as served, served.client() as client:

        def parts(n):
            for _ in range(n):
                yield b" " * 100

        headers = {"content-type": "application/json"}
        path = "/v1/domains/tv/recommend"
        problem(client.post(path, content=parts(11), headers=headers), 413, "body_too_large")
        problem(client.post(path, content=parts(1000), headers=headers), 413, "body_too_large")
        problem(client.post(path, content=parts(10), headers=headers), 400, "malformed")


def test_slow_bodies_take_no_place_and_end_at_the_deadline():
    head = (
        b"POST /v1/domains/tv/recommend HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\ncontent-length: 100000\r\n\r\n"
    )
    with (
        serving(deadline=0.5, concurrency=1, queue=0) as served,
        served.client() as client,
        ExitStack() as open_ones,
    ):
        slow = [open_ones.enter_context(served.connect()) for _ in range(20)]
        begun = time.monotonic()
        for n, connection in enumerate(slow, start=1):
            connection.sendall(head + b"{")
            while served.gate._unplaced < n:  # at once they would be a crowd
                time.sleep(0.001)
        while time.monotonic() - begun < 0.3:
            assert client.get("/wait/0").status_code == 200
            for connection in slow:
                connection.sendall(b" ")
        for connection in slow:
            raw_problem(read_all(connection), 408, "body_too_slow")
        assert 0.5 < time.monotonic() - begun < 5
        assert served.gate._unplaced == 0


def test_memory_for_bodies_that_are_not_complete_is_bounded():
    with serving(deadline=5, concurrency=1, queue=0, body=1000) as served:
        head = (
            b"POST /v1/domains/tv/recommend HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n"
        )
        with served.connect() as first, served.connect() as second, served.client() as client:
            first.sendall(head + b" " * 900)
            while served.gate._unplaced < 900:
                time.sleep(0.005)
            second.sendall(head + b" " * 900)
            assert second.recv(65_536).startswith(b"HTTP/1.1 503 ")
            assert client.post("/v1/domains/tv/recommend", json={}).status_code == 200


def ask_many(served, path, n):
    """The answers to `n` requests that are sent at once, each with its seconds."""

    async def one(client):
        begun = time.monotonic()
        answer = await client.get(path)
        return answer, time.monotonic() - begun

    async def all_of_them():
        limits = httpx.Limits(max_connections=n)
        async with httpx.AsyncClient(base_url=served.url, limits=limits, timeout=30) as client:
            return await asyncio.gather(*(one(client) for _ in range(n)))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("path", ["/wait/0.2", "/block/0.02"])
def test_what_is_too_much_is_refused_at_once(path):
    sent = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
    with serving(concurrency=2, queue=3) as served, ExitStack() as open_ones:
        crowd = [open_ones.enter_context(served.connect()) for _ in range(20)]
        for connection in crowd:
            connection.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
            while not connection.recv(65_536).endswith(b"{}"):
                pass
        for connection in crowd:
            connection.sendall(sent)
        answers = [read_all(connection) for connection in crowd]
        refused = [answer for answer in answers if not answer.startswith(b"HTTP/1.1 200 ")]
        # those whose bytes come a little later may find a place that was left meanwhile
        assert 5 <= len(answers) - len(refused) <= 12
        for answer in refused:
            raw_problem(answer, 503, "busy")
            assert b"retry-after: 1" in answer
        with served.client() as client:
            assert client.get(path).status_code == 200
            text = client.get("/metrics").text
    assert f'musketeers_rejected_total{{reason="busy"}} {len(refused)}.0' in text
    assert "musketeers_inflight_requests 0.0" in text


def test_the_deadline_holds_at_work_and_in_the_queue():
    with serving(deadline=0.3, concurrency=1, queue=5) as served, served.client() as client:
        begun = time.monotonic()
        found = ask_many(served, "/wait/10", 4)
        assert time.monotonic() - begun < 5
        for answer, _ in found:
            problem(answer, 504, "deadline")
        # the place of the one at work and the turns of those that waited are free again
        assert client.get("/wait/0").status_code == 200
        assert (served.gate._slots.running, served.gate._slots.waiting) == (0, 0)


def test_a_place_that_comes_together_with_a_cancellation_is_passed_on():
    async def story():
        slots = Slots(1, 3)
        await slots.enter()
        first, second, third = (asyncio.create_task(slots.enter()) for _ in range(3))
        while slots.waiting < 3:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert slots.full
        second.cancel()
        slots.leave()
        first.cancel()
        await asyncio.wait([first, second, third], timeout=5)
        assert first.cancelled()
        assert second.cancelled()
        assert third.done()
        assert not third.cancelled()
        assert (slots.running, slots.waiting) == (1, 0)
        slots.leave()
        assert (slots.running, slots.waiting) == (0, 0)

    asyncio.run(story())


def test_health_and_metrics_answer_while_everything_is_taken():
    with serving(concurrency=1, queue=0) as served, served.client() as client:
        worker = threading.Thread(target=ask_many, args=(served, "/wait/0.5", 1))
        worker.start()
        while not served.gate._slots.running:
            time.sleep(0.005)
        problem(client.get("/wait/0"), 503, "busy")
        assert client.get("/livez").status_code == 200
        assert "musketeers_inflight_requests 1.0" in client.get("/metrics").text
        worker.join()


def test_administration_takes_its_time_and_no_place():
    keys = Keys.collect(None, {"MUSKETEERS_ADMIN_KEY": ADMIN})
    with serving(keys, deadline=0.2, concurrency=1, queue=0) as served, served.client(ADMIN) as one:
        worker = threading.Thread(
            target=lambda: one.post("/v1/admin/reload?seconds=0.6").raise_for_status()
        )
        worker.start()
        with served.client(ADMIN) as other:
            while worker.is_alive():
                assert other.get("/wait/0").status_code == 200
        assert served.lines()[-1]["status"] == 200


def test_each_key_has_its_rate():
    keys = Keys.collect(None, {"MUSKETEERS_KEY": SECRET, "MUSKETEERS_ADMIN_KEY": ADMIN})
    with serving(keys, rate=2.0) as served, served.client(SECRET) as client:
        path = "/v1/users/u/interactions"
        codes = [client.get(path).status_code for _ in range(4)]
        assert codes[:2] == [200, 200]
        assert codes[2:] == [429, 429]
        answer = client.get(path)
        problem(answer, 429, "rate_limited")
        assert answer.headers["retry-after"] == "1"
        assert client.get("/livez").status_code == 200
        with served.client(ADMIN) as other:
            assert other.get(path).status_code == 200
        time.sleep(0.6)
        assert client.get(path).status_code == 200


def test_draining_lets_those_inside_finish_and_nobody_in():
    with serving() as served, served.client() as client:
        client.get("/livez")
        found = []
        worker = threading.Thread(target=lambda: found.extend(ask_many(served, "/wait/0.5", 5)))
        worker.start()
        while served.gate._slots.running < 5:
            time.sleep(0.005)
        drained = asyncio.run_coroutine_threadsafe(served.gate.drain(), served.loop)
        while not served.gate.draining:
            time.sleep(0.005)
        answer = client.get("/wait/0")
        problem(answer, 503, "draining")
        assert answer.headers["connection"] == "close"
        assert not drained.done()
        worker.join()
        assert [answer.status_code for answer, _ in found] == [200] * 5
        assert drained.result(5) is True


def test_draining_ends_in_time_whatever_is_inside():
    with serving(deadline=2.0, drain=0.1) as served:
        worker = threading.Thread(target=ask_many, args=(served, "/wait/1", 1))
        worker.start()
        while not served.gate._slots.running:
            time.sleep(0.005)
        drained = asyncio.run_coroutine_threadsafe(served.gate.drain(), served.loop)
        assert drained.result(0.8) is False
        worker.join()


# --- what is told ---------------------------------------------------------------------


def test_metrics_have_only_labels_of_ours(opened):
    with opened.client() as client:
        client.get(f"/{USER}")
        client.request("PROPFIND", "/livez")
        client.get(f"/v1/domains/tv/users/{USER}/recommend")
        text = client.get("/metrics").text
    name = "http_server_request_duration_seconds_bucket"
    assert (
        f'{name}{{http_request_method="GET",http_response_status_code="404",'
        f'http_route="unmatched",le="0.005"}}' in text
    )
    assert USER not in text
    assert "PROPFIND" not in text
    assert 'http_request_method="other"' in text


def test_the_models_metrics():
    counts = Metrics()
    counts.serves("a", time.time() - 100)
    counts.serves("b", time.time() - 50)
    counts.recommended("tv", "popular", 3)
    counts.reloaded("refused")
    counts.batch(200)
    text = counts.render().decode()
    assert 'musketeers_model_info{model_version="b"} 1.0' in text
    assert 'model_version="a"' not in text
    assert "musketeers_model_age_seconds 50." in text
    assert 'musketeers_recommend_total{domain="tv",strategy="popular"} 3.0' in text
    assert 'musketeers_reload_total{result="refused"} 1.0' in text
    assert 'musketeers_batch_size_bucket{le="256.0"} 1.0' in text


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_user_and_no_key_is_told_anywhere(form):
    keys = Keys.collect(None, {"MUSKETEERS_KEY": SECRET, "MUSKETEERS_ADMIN_KEY": ADMIN})
    with serving(keys, form, rate=40.0) as served, served.client(SECRET) as client:
        kinds = ("unknown", "data", "bug", "damage", "own", "other")
        told = [client.get(f"/fail/{USER}/{kind}") for kind in kinds]
        path = f"/v1/domains/tv/users/{USER}/recommend"
        told += [
            client.get(f"/{USER}/{SECRET}?key={SECRET}"),
            client.put(path),
            client.get(path, headers={"authorization": f"Basic {SECRET}"}),
            client.get(f"/v1/domains/{USER}/users/x"),
            client.post("/v1/domains/tv/recommend", json={"user_id": [USER], USER: 1, "k": USER}),
            client.post("/v1/domains/tv/recommend", content=f'{{"user_id": "{USER}"'),
            client.post("/v1/admin/reload", headers={"x-request-id": f"{USER} {SECRET}"}),
        ]
        told += [client.get("/livez") for _ in range(50)]
        texts = [str(answer.headers) + answer.text for answer in told]
        texts.append(client.get("/metrics").text)
        with served.connect() as connection:
            connection.sendall(f"GET /{USER} {SECRET}\r\n\r\n".encode())
            texts.append(read_all(connection).decode())
        texts.append(served.said.getvalue())
    for text in texts:
        for canary in (USER, SECRET, ADMIN):
            assert canary not in text
    assert "MUSKETEERS_KEY" in texts[-1]
    assert "KeyError" in texts[-1]
    assert "test_serving_shell.py" in texts[-1]
    assert texts[-1].count("failure") == 3


def test_events_are_lines_of_the_same_form(capsys):
    said = io.StringIO()
    Log("json", said).event("swap", model_version="abc", seconds=1.5, fault=None)
    line = json.loads(said.getvalue())
    assert (line["event"], line["level"], line["model_version"]) == ("swap", "info", "abc")
    assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)
    Log("text", said).event("swap", model_version="abc", fault=None)
    assert said.getvalue().splitlines()[1].endswith("+00:00 info swap model_version=abc")
    Log().event("swap")
    assert json.loads(capsys.readouterr().err)["event"] == "swap"
    said.close()
    Log("json", said).event("a log that cannot be written ends nothing")


def test_lines_of_others_are_adopted_without_the_text_of_an_exception():
    said = io.StringIO()
    Log("json", said).adopt()

    async def forgotten():
        raise KeyError(USER)

    async def forget_it():
        task = asyncio.create_task(forgotten())
        await asyncio.sleep(0)
        del task
        gc.collect()

    asyncio.run(forget_it())
    (line,) = map(json.loads, said.getvalue().splitlines())
    assert (line["logger"], line["error"]) == ("asyncio", "KeyError")
    assert line["message"] == "Task exception was never retrieved"
    assert USER not in said.getvalue()


# --- before a request is one ----------------------------------------------------------


def raw_problem(answer, status, code):
    """The document in the bytes of an answer that ends its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in head
    assert b"content-type: application/problem+json" in head
    found = json.loads(body)
    assert (found["status"], found["code"]) == (status, code)
    assert f"x-request-id: {found['request_id']}".encode() in head


def test_headers_without_end_are_stopped_while_they_come(opened):
    for endless in (b"a" * 1000, b"x: y\r\n" * 200):
        with opened.connect() as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: ")
            for _ in range(40):
                try:
                    connection.sendall(endless)
                except OSError:
                    break
            raw_problem(connection.recv(65_536), 431, "headers_too_large")


def test_what_is_no_http_is_a_problem_too(opened):
    for sent in (b"hello\r\n\r\n", b"GET / HTTP/1.1\r\na b: c\r\n\r\n", b"\x16\x03\x01\x02\x00"):
        with opened.connect() as connection:
            connection.sendall(sent)
            raw_problem(read_all(connection), 400, "not_http")
