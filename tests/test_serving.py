"""A real run behind every endpoint: the answers are the library's."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import polars as pl
import pytest
from serving import NAMES, in_thread, made, pairs, path_of, problem, version

from musketeers import run_files
from musketeers.baselines.linear import shape
from musketeers.own_items import OwnItems
from musketeers.sources import Explainer

STRANGER = "somebody else"


@pytest.fixture(scope="module")
def server(finished):
    with in_thread(finished.path, load=partial(version, stages=True)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with server.client() as found:
        yield found


@pytest.fixture(scope="module")
def recommender(finished):
    return finished.recommender


def rows(frame):
    return list(zip(frame["item_id"].to_list(), frame["score"].to_list(), strict=True))


def wanted(client, domain, **wish):
    answer = client.post(f"/v1/domains/{domain}/recommend", json=wish)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("domain", NAMES)
@pytest.mark.parametrize("options", [{"k": 5}, {"k": 500, "exclude_seen": False}])
def test_every_user_gets_what_the_library_gives(client, recommender, domain, options):
    users = [*recommender.users.values.to_list(), STRANGER]
    frame = recommender.recommend(domain, users, **options, n_threads=1)
    of_each = {user: part for (user,), part in frame.group_by("user_id")}
    path = f"/v1/domains/{domain}/recommend:batch"
    answer = client.post(path, json={"user_ids": users, **options}).json()
    assert (answer["domain"], answer["degraded"]) == (domain, False)
    assert [one["user_id"] for one in answer["results"]] == users
    for user, one in zip(users, answer["results"], strict=True):
        assert pairs(one) == rows(of_each[user])
        assert {one["strategy"]} == set(of_each[user]["strategy"].to_list())
        assert one["status"] == 200
    assert {one["strategy"] for one in answer["results"]} == {
        "personalised", "cross_domain", "popular",
    }  # fmt: skip
    if options["k"] > 5:
        assert {len(one["items"]) for one in answer["results"]} == {40}


def test_the_address_and_the_document_ask_for_the_same(client, recommender):
    users = [*recommender.users.values.to_list()[:12], STRANGER]
    for user in users:
        frame = recommender.recommend("movie", [user], 7, n_threads=1)
        answer = wanted(client, "movie", user_id=user, k=7)
        assert pairs(answer) == rows(frame)
        assert (answer["user_id"], answer["domain"]) == (user, "movie")
        path = path_of("/v1/domains/movie/users/{}/recommend?k=7", user)
        other = client.get(path).json()
        assert {**other, "request_id": None} == {**answer, "request_id": None}
        all_of_them = client.get(f"{path}&exclude_seen=false").json()
        frame = recommender.recommend("movie", [user], 7, exclude_seen=False, n_threads=1)
        assert pairs(all_of_them) == rows(frame)


def test_without_fallback_a_stranger_gets_nothing(client, recommender):
    path, user = "/v1/domains/tv/recommend", recommender.users.values[0]
    answer = client.post(path, json={"user_id": STRANGER, "fallback": "none"})
    assert STRANGER not in str(problem(answer, 404, "unknown_user"))
    assert wanted(client, "tv", user_id=user, fallback="none")["strategy"] != "popular"
    some = client.post(
        f"{path}:batch", json={"user_ids": [STRANGER, user], "k": 2, "fallback": "none"}
    )
    first, second = some.json()["results"]
    assert first == {"user_id": STRANGER, "status": 404, "items": [], "strategy": None}
    assert (second["status"], len(second["items"])) == (200, 2)


def test_what_is_done_here_is_folded_in_as_the_library_does(client, recommender):
    known = recommender.users.values.filter(pl.Series(recommender.domains["tv"].known))[0]
    done = ["tv-03", "tv-09", "tv-30"]
    for user in (known, STRANGER):
        for hides in (True, False):
            frame = recommender.fold_in("tv", [user] * 3, done, 6, exclude_seen=hides, n_threads=1)
            told = {"tv": [*done, "no item"], "movie": ["no item"]}
            answer = wanted(client, "tv", user_id=user, k=6, recent=told, exclude_seen=hides)
            assert pairs(answer) == rows(frame)
            assert (answer["strategy"], answer["degraded"]) == ("personalised", False)
            if hides:
                assert not {*done} & {item for item, _ in pairs(answer)}


def test_what_is_done_elsewhere_tells_of_a_stranger(client):
    popular = wanted(client, "tv", user_id=STRANGER)
    told = [
        wanted(client, "tv", user_id=STRANGER, recent={"movie": [f"movie-{n:02}" for n in items]})
        for items in ((1, 2, 3), (30, 31, 32))
    ]
    assert [one["strategy"] for one in (popular, *told)] == ["popular", *["cross_domain"] * 2]
    lists = [pairs(one) for one in (popular, *told)]
    assert lists[0] != lists[1] != lists[2] != lists[0]
    assert not any(one["degraded"] for one in told)
    nothing = wanted(client, "tv", user_id=STRANGER, recent={"movie": ["no item"]})
    assert (pairs(nothing), nothing["strategy"]) == (lists[0], "popular")


def test_without_stages_a_list_says_that_something_was_not_used(finished, recommender):
    with in_thread(finished.path, explains=True) as server, server.client() as client:
        elsewhere = wanted(client, "tv", user_id=STRANGER, recent={"movie": ["movie-01"]})
        assert (elsewhere["strategy"], elsewhere["degraded"]) == ("popular", True)
        here = wanted(client, "tv", user_id=STRANGER, recent={"tv": ["tv-03"]})
        assert (here["strategy"], here["degraded"]) == ("personalised", False)
        assert pairs(here) == rows(recommender.fold_in("tv", [STRANGER], ["tv-03"], n_threads=1))
        assert client.get("/v1/models").json()["features"]["across"] is False
        question = {"user_id": recommender.users.values[0]}
        problem(client.post("/v1/domains/tv/explain", json=question), 404, "no_stages")


def test_similar_items_of_a_linear_model_are_those_of_the_largest_weight(client, recommender):
    for domain in NAMES:
        scorer, items = recommender.domains[domain].scorer, recommender.domains[domain].items
        n_inputs = shape(scorer.inputs)[1]
        for place in (0, 7, 39):
            weights = scorer.weights
            row = weights[[place]].toarray()[0] if hasattr(weights, "toarray") else weights[place]
            assert n_inputs == shape(weights)[0]
            others = np.delete(np.arange(len(items)), place)
            order = others[np.lexsort((others, -row[others].astype(np.float64)))][:6]
            path = f"/v1/domains/{domain}/items/{items.values[place]}/similar?k=6"
            answer = client.get(path).json()
            assert (answer["item_id"], answer["by"]) == (items.values[place], "weight")
            assert [item for item, _ in pairs(answer)] == items.ids(order).to_list()
            np.testing.assert_allclose([s for _, s in pairs(answer)], row[order], rtol=1e-6)
    everything = client.get("/v1/domains/tv/items/tv-00/similar?k=500").json()
    assert len(everything["items"]) == 39
    problem(client.get("/v1/domains/tv/items/movie-00/similar"), 404, "unknown_item")


def moved(frame, by):
    return [
        (row[by], row["kept"], row["leaves"], row["enters"])
        for row in frame.filter(pl.col(by).is_not_null()).to_dicts()
    ]


@pytest.mark.parametrize("domain", NAMES)
def test_an_explanation_is_what_the_library_says(client, finished, domain):
    run = run_files.open_run(finished.path, finished.recommender)
    own, sources = OwnItems.of(run, domain), Explainer.of(run, domain)
    strategies = set()
    for user in finished.recommender.users.values.to_list()[:25]:
        question = {"user_id": user, "k": 5}
        answer = client.post(f"/v1/domains/{domain}/explain", json=question).json()
        strategies.add(answer["strategy"])
        listed = wanted(client, domain, **question)
        for name in ("user_id", "domain", "strategy", "items", "model_version"):
            assert answer[name] == listed[name]
        found = [(o["id"], o["kept"], o["leaves"], o["enters"]) for o in answer["own"]]
        assert found == moved(own.explain([user], 5, n_threads=1), "item_id")
        frame = sources.explain([user], 5, n_threads=1)
        found = [(o["domain"], o["kept"], o["leaves"], o["enters"]) for o in answer["sources"]]
        assert found == moved(frame, "source")
        weights = frame.filter(pl.col("source").is_not_null())["attention"].to_list()
        assert [one["attention"] for one in answer["sources"]] == weights
        untold = answer["without_transfer"]
        if answer["strategy"] == "cross_domain":
            assert untold["strategy"] == "popular"
            assert [one["id"] for one in untold["items"]] == [
                one["id"] for one in wanted(client, domain, user_id=STRANGER, k=5)["items"]
            ]
        elif not answer["sources"]:
            assert untold["items"] == answer["items"]
    assert {"personalised", "cross_domain"} <= strategies
    unknown = client.post(f"/v1/domains/{domain}/explain", json={"user_id": STRANGER})
    problem(unknown, 404, "unknown_user")


def test_the_history_is_what_the_model_has_seen(client, recommender):
    for row, user in enumerate(recommender.users.values.to_list()[:20]):
        answer = client.get(path_of("/v1/users/{}/history", user)).json()
        assert answer["user_id"] == user
        assert answer["domains"] == {
            name: model.items.ids(model.seen.of(row)).to_list()
            for name, model in recommender.domains.items()
        }
    problem(client.get(path_of("/v1/users/{}/history", STRANGER)), 404, "unknown_user")


@pytest.mark.slow
def test_requests_side_by_side_get_what_they_get_alone(server, client, recommender):
    stream = np.random.default_rng(5)
    users = [*recommender.users.values.to_list(), STRANGER]

    def wish():
        domain = str(stream.choice(NAMES))
        items = [[f"{name}-{n:02}" for n in stream.integers(40, size=3)] for name in NAMES]
        recent = {n: of for n, of in zip(NAMES, items, strict=True) if stream.random() < 0.3}
        return domain, {
            "user_id": str(stream.choice(users)),
            "k": int(stream.integers(1, 45)),
            "exclude_seen": bool(stream.integers(2)),
            "exclude_ids": [f"{domain}-{n:02}" for n in stream.integers(40, size=4)],
            "allow_ids": [f"{domain}-{n:02}" for n in range(20)] if stream.random() < 0.3 else None,
            "recent": recent,
        }

    def ask(one):
        return {**wanted(client, one[0], **one[1]), "request_id": None}

    wishes = [wish() for _ in range(300)]
    with ThreadPoolExecutor(16) as many:
        together = list(many.map(ask, wishes))
    assert together == [ask(one) for one in wishes]
    sizes = server.service.metrics.render().decode()
    alone, all_of_them = (
        float(line.rpartition(" ")[2])
        for line in sizes.splitlines()
        if line.startswith(
            ('musketeers_batch_size_bucket{le="1.0"}', "musketeers_batch_size_count")
        )
    )
    assert alone < all_of_them


def test_a_model_of_vectors_alone_is_served_too(tmp_path):
    made(1).save(tmp_path / "model")
    with in_thread(tmp_path / "model") as server, server.client() as client:
        answer = client.get("/v1/domains/tv/items/tv-00/similar?k=3").json()
        assert (answer["by"], len(answer["items"])) == ("cosine", 3)
        told = wanted(client, "tv", user_id="x", recent={"tv": ["tv-01"], "movie": ["movie-01"]})
        assert (told["strategy"], told["degraded"]) == ("personalised", True)
        problem(
            client.post("/v1/domains/tv/explain", json={"user_id": "user-020"}), 404, "no_stages"
        )
        problem(client.get("/report"), 404, "no_report")
