"""The OpenAPI document: complete, true, and with examples that work."""

import re
import sys
from functools import partial
from pathlib import Path

import pytest
from serving import in_thread, made, problem, until, version

from musketeers.serving.fresh import open_store
from musketeers.serving.keys import ADMIN_VARIABLE, Keys

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from serve_fuzz import KEY, fuzzed

KEYS = Keys.collect(None, {ADMIN_VARIABLE: KEY})


@pytest.fixture(scope="module")
def server(finished, tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    store = open_store(str(place / "fresh.db"))
    load = partial(version, stages=True)
    (place / "CURRENT").write_text("run")
    (place / "run").symlink_to(finished.path)
    made(1).save(place / "other")
    with in_thread(place, load=load, keys=KEYS, fresh=store) as found:
        until(lambda: found.service.versions.current.stages.done())
        yield found
    store.close()


@pytest.fixture(scope="module")
def document(server):
    with server.client(KEY) as client:
        return client.get("/openapi.json").json()


def operations(document):
    return {
        (method, path): one
        for path, methods in document["paths"].items()
        for method, one in methods.items()
    }


def resolved(document, schema):
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema


def bodies(document, operation):
    """Its examples; None alone where it takes no body."""
    if "requestBody" not in operation:
        return [None]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    return resolved(document, schema)["examples"]


def test_every_operation_is_described(document):
    for (method, path), one in operations(document).items():
        assert one["summary"], path
        assert one["description"].endswith("."), path
        assert len(one["tags"]) == 1, path
        for parameter in one.get("parameters", []):
            assert parameter["description"].endswith("."), (path, parameter["name"])
            assert (
                parameter["in"] == "query"
                or parameter["examples" if "examples" in parameter else "schema"]
            )
        assert bool(one.get("security")) == (path not in ("/livez", "/readyz")), path
        assert method in ("get", "post", "delete")
        good = [status for status in one["responses"] if status < "300"]
        assert good == ["201" if (method, path[-13:]) == ("post", "/interactions") else "200"]


def test_every_field_that_may_be_sent_or_comes_back_is_closed(document):
    for name, schema in document["components"]["schemas"].items():
        if "properties" in schema:
            assert schema["additionalProperties"] is False, name
            assert schema["description"], name


def addresses(path, operation):
    """With the examples of its parameters."""
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            schema = parameter["schema"]
            example = (schema.get("examples") or [parameter.get("example")])[0]
            path = path.replace(f"{{{parameter['name']}}}", example)
    assert "{" not in path
    return path


def test_every_example_works(server, document):
    with server.client(KEY) as client:
        sent = 0
        for (method, path), one in operations(document).items():
            if path == "/v1/admin/rollback":
                (server.service.versions.place / "CURRENT").write_text("other")
                assert client.post("/v1/admin/reload").status_code == 200
            for body in bodies(document, one):
                answer = client.request(method, addresses(path, one), json=body)
                assert answer.status_code in (200, 201), (path, answer.text)
                sent += 1
        assert sent >= 18
        (server.service.versions.place / "CURRENT").write_text("run")
        assert client.get("/v1/models").json()["run"] == "run"


@pytest.mark.slow
def test_whatever_is_sent_the_answer_is_as_the_document_says(server, tmp_path):
    """Right and wrong requests by schemathesis; `benchmarks/serve_fuzz.py` sends many more."""
    cases, faults = fuzzed(server.url, tmp_path, cases_of_each=8, seed=7)
    assert not faults, faults
    assert cases > 400
    statuses = {event["status"] for event in server.events() if event["event"] == "request"}
    assert statuses >= {200, 201, 400, 401, 404, 405, 415, 422}
    assert max(statuses) < 500


def test_a_path_that_is_not_there_is_a_problem_too(server):
    with server.client(KEY) as client:
        for path in ("/docs", "/redoc", "/v1", "/v1/domains/tv/recommend/", "//livez", "/%00"):
            problem(client.get(server.url + path), 404, "not_found")
        allowed = client.options("/v1/users/a/interactions")
        problem(allowed, 405, "method_not_allowed")
        assert set(re.split(", ", allowed.headers["allow"])) == {"GET", "POST", "DELETE"}
