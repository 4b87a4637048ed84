"""What a service must not do: let the wrong ones in, tell of users, lose what it has begun."""

import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from serving import begun, by_command, in_thread, made, path_of, problem, until

from musketeers.serving.fresh import open_store
from musketeers.serving.keys import SCOPES, Key, Keys

USER, ITEM = "canary-user-5be1", "canary-item-90ac"
DOMAIN = "tv"
ROUTES = [
    # what it needs (None: nothing), whether it is of a domain, method, address, body
    (None, False, "GET", "/livez", None),
    (None, False, "GET", "/readyz", None),
    (None, False, "GET", "/v2/health/live", None),
    (None, False, "GET", "/v2/health/ready", None),
    (None, False, "GET", "/", None),
    (None, False, "GET", "/openapi.json", None),
    ("read", False, "GET", "/metrics", None),
    ("read", False, "GET", "/v1/models", None),
    ("read", False, "GET", "/v1/models/versions", None),
    ("read", True, "POST", "/v1/domains/tv/recommend", {"user_id": "user-020"}),
    ("read", True, "POST", "/v1/domains/tv/recommend:batch", {"user_ids": ["user-020"]}),
    ("read", True, "GET", "/v1/domains/tv/users/user-020/recommend", None),
    ("read", True, "GET", "/v1/domains/tv/items/tv-01/similar", None),
    ("explain", True, "POST", "/v1/domains/tv/explain", {"user_id": "user-020"}),
    ("explain", True, "GET", "/v1/domains/tv/somebody", None),
    ("explain", False, "GET", "/v1/users/user-020/history", None),
    ("explain", False, "GET", "/report", None),
    ("write", True, "POST", "/v1/users/u/interactions", {"domain": "tv", "item_ids": ["tv-01"]}),
    ("write", False, "GET", "/v1/users/u/interactions", None),
    ("write", False, "DELETE", "/v1/users/u/interactions", None),
    ("admin", False, "POST", "/v1/admin/reload", None),
    ("admin", False, "POST", "/v1/admin/rollback", None),
]


def secret_of(name):
    return f"canary-key-of-{name}-{'0123456789' * 3}"


def key(name, scopes, domains=None):
    digest = sha256(secret_of(name).encode()).digest()
    return Key(name, frozenset(scopes), domains and frozenset(domains), digest)


KEYS = Keys(
    (
        *(key(scope, [scope]) for scope in SCOPES),
        key("all", SCOPES),
        key("other", SCOPES, ["movie"]),
    )
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    made(4).save(folder)
    return folder


@pytest.fixture(scope="module")
def server(model):
    with (
        closing(open_store(str(model.with_name("fresh.db")))) as store,
        in_thread(model, keys=KEYS, fresh=store) as found,
    ):
        yield found


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route[2]} {route[3]}")
def test_every_route_by_every_key(server, route):
    """A key of another scope, or another domain, is as good as it says and no better."""
    scope, of_domain, method, path, body = route

    def ask(secret):
        with server.client(secret) as client:
            return client.request(method, path, json=body)

    for wrong in ("x" * 43, secret_of("all")[:-1], secret_of("all") + "x"):
        # everywhere, since whoever sends one is mistaken
        problem(ask(wrong), 401, "unauthenticated")
    if scope is None:
        assert ask(None).status_code == ask(secret_of("write")).status_code == 200
        return
    assert ask(None).headers["www-authenticate"] == "Bearer"
    problem(ask(None), 401, "unauthenticated")
    for name in {*SCOPES} - {scope}:
        problem(ask(secret_of(name)), 403, "scope_forbidden")
    for name in (scope, "all"):
        assert ask(secret_of(name)).status_code not in (401, 403)
    if of_domain:
        problem(ask(secret_of("other")), 403, "domain_forbidden")
    else:
        assert ask(secret_of("other")).status_code not in (401, 403)


def test_the_routes_above_are_all_there_are(server):
    app_routes = set()
    with server.client() as client:
        for path, operations in client.get("/openapi.json").json()["paths"].items():
            app_routes |= {(method.upper(), path) for method in operations}
    ours = {(method, _template(path)) for _, _, method, path, _ in ROUTES}
    hidden = {"/", "/openapi.json", "/v2/health/live", "/v2/health/ready"}
    assert app_routes == {(method, path) for method, path in ours if path not in hidden}


def _template(path):
    path = path.replace("/domains/tv", "/domains/{domain}").replace("tv-01", "{item_id}")
    return re.sub("/users/[^/]+/", "/users/{user_id}/", path)


def test_a_key_of_one_domain_is_told_of_no_other(server):
    with server.client(secret_of("other")) as client, server.client(secret_of("all")) as whole:
        history = client.get("/v1/users/user-025/history").json()["domains"]
        assert (
            set(history)
            == {"movie"}
            < set(whole.get("/v1/users/user-025/history").json()["domains"])
        )
        for domain in ("tv", "movie"):
            body = {"domain": domain, "item_ids": [f"{domain}-01"]}
            assert whole.post("/v1/users/both/interactions", json=body).status_code == 201
        assert set(client.get("/v1/users/both/interactions").json()["domains"]) == {"movie"}


def everything_wrong(server, client):
    """Requests of all kinds, right and wrong ones, full of canaries; all that came back."""
    for domain in ("tv", USER):
        for body in (
            {"user_id": USER},
            {"user_id": USER, "exclude_ids": [ITEM], "allow_ids": [ITEM], "recent": {"tv": [ITEM]}},
            {"user_id": USER, "recent": {USER: [ITEM]}},
            {"user_id": [USER], USER: ITEM},
            {"user_id": USER, "k": USER},
            {"user_id": USER, "fallback": "none"},
            {"user_id": USER * 40},
        ):
            yield client.post(f"/v1/domains/{domain}/recommend", json=body)
            yield client.post(f"/v1/domains/{domain}/explain", json=body)
        batch = {"user_ids": [USER, USER], "fallback": "none"}
        yield client.post(f"/v1/domains/{domain}/recommend:batch", json=batch)
        yield client.get(f"/v1/domains/{domain}/users/{USER}/recommend?k={ITEM}")
        yield client.get(f"/v1/domains/{domain}/users/{USER}/recommend")
        yield client.get(f"/v1/domains/{domain}/items/{ITEM}/similar")
        yield client.post(
            f"/v1/users/{USER}/interactions", json={"domain": domain, "item_ids": [ITEM]}
        )
    yield client.post(
        f"/v1/users/{USER}/interactions", json={"domain": "tv", "item_ids": [{ITEM: ITEM}]}
    )
    yield client.post(f"/v1/users/{'%20'}/interactions", json={"domain": "tv", "item_ids": [ITEM]})
    for path in (f"/v1/users/{USER}/history", f"/{USER}", f"/v1/{USER}?{ITEM}={USER}", "/report"):
        yield client.get(path)
        yield client.put(path)
    yield client.delete(f"/v1/users/{USER}/interactions")
    yield client.get(
        f"/v1/domains/tv/users/{USER}/recommend", headers={"authorization": f"Bearer {USER}"}
    )
    yield client.get("/livez", headers={"x-request-id": f"{USER} {ITEM}", "traceparent": USER})
    yield client.post(
        "/v1/domains/tv/recommend",
        content=f'{{"user_id": "{USER}"'.encode(),
        headers={"content-type": "application/json"},
    )
    yield client.post("/v1/admin/reload", headers={"referer": USER})
    with socket.create_connection(httpx.URL(server.url).netloc.decode().split(":")) as wire:
        wire.sendall(f"GET /{USER} {ITEM}\r\n{secret_of('all')}\r\n\r\n".encode())
        while wire.recv(65536):
            pass


def test_no_canary_comes_out_anywhere(model):
    """Neither in lines of the log, in metrics, nor in bodies and headers of errors."""
    with (
        closing(open_store(str(model.with_name("canary.db")))) as store,
        in_thread(model, keys=KEYS, fresh=store) as server,
        server.client(secret_of("all")) as client,
    ):
        told = list(everything_wrong(server, client))
        store.close()  # the store fails from now on
        told += list(everything_wrong(server, client))
        texts = [client.get("/metrics").text, server.said.getvalue()]
    errors = [answer for answer in told if answer.status_code >= 400]
    assert {answer.status_code for answer in errors} >= {400, 401, 404, 405, 422, 503}
    texts += [f"{answer.headers} {answer.text}" for answer in errors]
    for text in texts:
        for canary in (USER, ITEM, "canary-key"):
            assert canary not in text
    assert "/v1/domains/{domain}/recommend" in texts[0]
    assert '"key":"all"' in texts[1]
    assert any(USER in answer.text for answer in told)


ODD = {
    "no number": (b'{"user_id": "a", "k": NaN}', 422),
    "no end": (b'{"user_id": "a", "k": Infinity}', 422),
    "a long number": (b'{"user_id": ' + b"9" * 5000 + b"}", 400),
    "a large number": (b'{"user_id": 1e400}', 422),
    "half a character": (b'{"user_id": "\\ud800"}', 422),
    "half a character in a name": (b'{"user_id": "a", "recent": {"\\ud800": ["b"]}}', 404),
    "half a character in a field": (b'{"user_id": "a", "\\ud800": 1}', 422),
    "deep": (b'{"user_id": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
    "deep, without an end": (b'{"a":' * 20_000, 400),
    "two documents": (b'{"user_id": "a"}{}', 400),
    "nothing": (b"", 422),
    "blanks": (b"   ", 400),
    "no object": (b'["a"]', 422),
    "null": (b"null", 422),
    "other bytes": ('{"user_id": "ü"}'.encode("latin-1"), 400),
    "a mark of the bytes' order": (b"\xef\xbb\xbf" + b'{"user_id": "a"}', 200),
    "UTF-16": ('{"user_id": "a"}'.encode("utf-16"), 200),
    "a name twice": (b'{"user_id": 1, "user_id": "b"}', 200),
    "zeros": (b"\0" * 100, 400),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("chunked", [False, True])
def test_odd_bodies_are_answered_like_others(server, odd, chunked):
    """None is a failure of the server, whatever its reader of JSON thinks of it."""
    content, status = ODD[odd]
    sent = iter([content[:7], content[7:]]) if chunked and content else content
    headers = {"content-type": "application/json"}
    with server.client(secret_of("all")) as client:
        answer = client.post("/v1/domains/tv/recommend", content=sent, headers=headers)
    assert answer.status_code == status, answer.text
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"


# --- fresh users


def post(client, user, items, domain="tv"):
    path = path_of("/v1/users/{}/interactions", user)
    return client.post(path, json={"domain": domain, "item_ids": items})


def kept(client, user):
    return client.get(path_of("/v1/users/{}/interactions", user)).json()["domains"]


def wanted(client, user, **wish):
    body = {"user_id": user, **wish}
    return client.post("/v1/domains/tv/recommend", json=body).json()


def without_request(answer):
    return {**answer, "request_id": None}


def test_what_is_posted_counts_from_the_next_answer_on(server):
    user, items = "new/user 1", ["tv-03", "tv-07"]
    with server.client(secret_of("all")) as client:
        before = wanted(client, user)
        assert before["strategy"] == "popular"
        posted = post(client, user, items)
        assert (posted.status_code, posted.json()["stored"]) == (201, 2)
        after = wanted(client, user)
        assert after["strategy"] == "personalised"
        told = wanted(client, "nobody at all", recent={"tv": items})
        assert after["items"] == told["items"]
        address = path_of("/v1/domains/tv/users/{}/recommend", user)
        assert client.get(address).json()["items"] == after["items"]
        batch = client.post("/v1/domains/tv/recommend:batch", json={"user_ids": [user, "x"]})
        assert batch.json()["results"][0]["items"] == after["items"]
        more = wanted(client, user, recent={"tv": ["tv-11"]})
        both = wanted(client, "nobody at all", recent={"tv": [*items, "tv-11"]})
        assert more["items"] == both["items"]
        assert {*kept(client, user)["tv"]} == {*items}
        assert post(client, user, items).status_code == 201
        assert len(kept(client, user)["tv"]) == 2
        client.delete(path_of("/v1/users/{}/interactions", user))
        assert kept(client, user) == {}
        assert without_request(wanted(client, user)) == without_request(before)


def test_items_that_the_domain_does_not_have_are_kept_for_the_next_fit(server):
    with server.client(secret_of("all")) as client:
        assert post(client, "later", ["quite new"]).status_code == 201
        assert kept(client, "later") == {"tv": ["quite new"]}
        assert wanted(client, "later")["strategy"] == "popular"
        problem(post(client, "later", ["x"], domain="no domain"), 404, "unknown_domain")
        problem(post(client, "later", [" "]), 422, "invalid")
        problem(post(client, "later", []), 422, "invalid")
        assert kept(client, "later") == {"tv": ["quite new"]}


def test_a_list_is_made_without_the_store_when_that_fails(model, tmp_path):
    store = open_store(str(tmp_path / "fresh.db"))
    with in_thread(model, fresh=store) as server, server.client() as client:
        post(client, "u", ["tv-03"])
        assert not wanted(client, "u")["degraded"]
        store.close()
        (tmp_path / "fresh.db").write_bytes(b"no database any more" * 500)
        for file in tmp_path.glob("fresh.db-*"):
            file.unlink()
        found = wanted(client, "u")
        assert (found["degraded"], found["strategy"]) == (True, "popular")
        problem(post(client, "u", ["tv-03"]), 503, "store_unavailable")
        batch = client.post("/v1/domains/tv/recommend:batch", json={"user_ids": ["u"]}).json()
        assert batch["degraded"] is True
        assert client.get("/readyz").status_code == 200


# --- the command: its beginning and its end


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_killed_server(model, tmp_path):
    options = ("--fresh", tmp_path / "fresh.db")
    with by_command(model, *options) as server, server.client() as client:
        acknowledged = [f"tv-{n:02}" for n in range(20)]
        for item in acknowledged:
            assert post(client, "u", [item]).status_code == 201
        list_of = wanted(client, "u")["items"]
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    with by_command(model, *options) as server, server.client() as client:
        assert {*kept(client, "u")["tv"]} == {*acknowledged}
        assert wanted(client, "u")["items"] == list_of
        assert server.stop() == 0


@pytest.mark.slow
def test_what_was_let_in_is_answered_before_the_end(model):
    """SIGTERM while many ask: each gets an answer, or was never let in."""
    with by_command(model, "--threads", 1) as server:
        begun_asking, answers = threading.Barrier(9), []

        def ask():
            begun_asking.wait(60)
            with server.client() as client:
                try:
                    while True:
                        body = {"user_ids": [f"user-{n:03}" for n in range(30)], "k": 20}
                        answers.append(client.post("/v1/domains/tv/recommend:batch", json=body))
                except httpx.TransportError as error:
                    answers.append(error)

        with ThreadPoolExecutor(8) as threads:
            for _ in range(8):
                threads.submit(ask)
            begun_asking.wait(60)
            until(lambda: len(answers) > 50)
            begun_ending = time.monotonic()
            assert server.stop() == 0
            seconds = time.monotonic() - begun_ending
        assert server.events()[-1]["event"] == "ended"
        ends = [one for one in answers if isinstance(one, Exception)]
        assert len(ends) == 8
        found = [one for one in answers if not isinstance(one, Exception)]
        assert {one.status_code for one in found} <= {200, 503}
        assert {one.json()["code"] for one in found if one.status_code == 503} <= {"draining"}
        # what was not answered came to a closed door
        logged = [e for e in server.events() if e["event"] == "request"]
        assert len(logged) == len(found)
        assert 499 not in {one["status"] for one in logged}
        assert seconds < 10


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(model):
    with by_command(model) as server:
        host, port = httpx.URL(server.url).netloc.decode().split(":")
        with socket.create_connection((host, port)) as wire:
            # a body that never comes keeps its request, and so the first signal, waiting
            wire.sendall(
                b"POST /v1/domains/tv/recommend HTTP/1.1\r\nhost: localhost\r\n"
                b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{"
            )
            time.sleep(0.3)
            begun_ending = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            server.process.send_signal(signal.SIGINT)
            server.process.wait(30)
            assert time.monotonic() - begun_ending < 10


@pytest.mark.slow
def test_what_cannot_begin_says_why_in_one_line(model, tmp_path):
    bad_keys = tmp_path / "keys.toml"
    bad_keys.write_text("[keys]\n")
    no_store = tmp_path / "store"
    no_store.write_bytes(b"no database" * 1000)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = {
            "a port in use": (model, ("--port", port), f"cannot serve on 127.0.0.1 port {port}"),
            "no run": (tmp_path / "none", (), "is no finished run and no saved model"),
            "bad keys": (model, ("--keys", bad_keys), "holds no key"),
            "open to others": (model, ("--host", "0.0.0.0"), "no key is set"),
            "bad limit": (model, ("--deadline", "-1"), "deadline must be at least"),
            "bad store": (model, ("--fresh", no_store), "is damaged, or no store of interactions"),
            "no secret": (model, ("--secret", tmp_path / "none"), "none"),
        }
        processes = {name: begun(place, *options) for name, (place, options, _) in wrong.items()}
        for name, process in processes.items():
            _, said = process.communicate(timeout=120)
            last = said.splitlines()[-1]
            assert process.returncode == 1, (name, said)
            assert last.startswith("musketeers: "), (name, said)
            assert wrong[name][2] in last, (name, said)
            assert "Traceback" not in said
            others = said.splitlines()[:-1]
            assert all('"event":"loading"' in line for line in others), (name, said)


@pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server")
def test_a_store_that_stops_and_comes_back(model, tmp_path):
    """A server of Redis: lists go on without it, and with it again."""
    folder = Path(tempfile.mkdtemp(prefix="r"))  # a socket's name must be short
    redis = [
        "redis-server", "--port", "0", "--unixsocket", f"{folder}/socket", "--dir", str(folder),
        "--save", "", "--appendonly", "yes", "--appendfsync", "always",
    ]  # fmt: skip

    @contextmanager
    def running():
        process = subprocess.Popen(redis, stdout=subprocess.DEVNULL)
        until((folder / "socket").exists)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)

    with ExitStack() as ends:
        ends.callback(shutil.rmtree, folder)
        with running():
            store = ends.enter_context(closing(open_store(f"unix://{folder}/socket")))
            server = ends.enter_context(in_thread(model, fresh=store))
            client = ends.enter_context(server.client())
            assert post(client, "u", ["tv-03"]).status_code == 201
            with_store = wanted(client, "u")
            assert (with_store["strategy"], with_store["degraded"]) == ("personalised", False)
        without = wanted(client, "u")
        assert (without["strategy"], without["degraded"]) == ("popular", True)
        problem(post(client, "u", ["tv-04"]), 503, "store_unavailable")
        problem(client.get(path_of("/v1/users/{}/interactions", "u")), 503, "store_unavailable")
        with running():
            until(lambda: not wanted(client, "u")["degraded"])
            assert wanted(client, "u")["items"] == with_store["items"]
