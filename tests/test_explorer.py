"""The explorer, in a real browser, on real servers of a real run."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import polars as pl
import pytest

from musketeers import config as configuration
from musketeers import runs
from musketeers.data.synthetic import frames, planted
from musketeers.seeding import Seed

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no Chromium at {CHROMIUM}"),
]

NAMES = ("series", "films", "podcasts")
SETTINGS = {
    "seed": 1,
    "dim": 8,
    "pretrain": {"max_epochs": 5, "tries": 1},
    "cat": {"max_epochs": 3},
    "art": {"max_epochs": 3},
}
USER = "user-017"
HOSTILE_USER = "<img src=x onerror=alert(1)>"
HOSTILE_ITEM = "</script><script>alert(2)</script>"
QUOTED_ITEM = '"No. 1152921504606846977", \\"1152921504606846979\\'
LONG_ITEM = "w" * 256
BIG = 2**60 + 1
KEY = "0123456789abcdef0123456789abcdef"


def tables():
    data = planted(NAMES, Seed(3), n_users=120, n_items=30, known=0.8, common=1.0)
    return frames(data.domains)


def fit(folder, found):
    for name, frame in found.items():
        frame.write_parquet(folder / f"{name}.parquet")
    domains = {name: f"{name}.parquet" for name in NAMES}
    data = {"min_user": 2, "min_item": 2, "domains": domains}
    config = configuration.parse({**SETTINGS, "data": data}, "test")
    return runs.fit_run(config, folder, folder / "autumn", threads=1).path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """With ids that would like to be markup."""
    items = {"series-03": HOSTILE_ITEM, "series-04": QUOTED_ITEM, "series-05": LONG_ITEM}
    found = {
        name: frame.with_columns(
            pl.col("item_id").replace(items), pl.col("user_id").replace({"user-001": HOSTILE_USER})
        )
        for name, frame in tables().items()
    }
    return fit(tmp_path_factory.mktemp("named"), found)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """With ids that are integers, most beyond what a double holds."""

    def number(column):
        return pl.col(column).str.extract(r"(\d+)$").cast(pl.Int64)

    found = {
        name: frame.with_columns(
            number("user_id") + BIG, number("item_id") + (0 if name == "films" else BIG)
        )
        for name, frame in tables().items()
    }
    return fit(tmp_path_factory.mktemp("numbered"), found)


@contextmanager
def serving(run, *options, **environment):
    """The address of a server."""
    command = [sys.executable, "-m", "musketeers", "serve", str(run), "--port", "0"]
    # a busy machine is no reason to fail
    command += ["--deadline", "10", *options]
    child = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        told = {}
        for line in child.stderr:
            event = json.loads(line)
            told[event["event"]] = event
            # what the stages made is read last
            if {"ready", "stages"} <= told.keys():
                break
        assert {"ready", "stages"} <= told.keys(), told
        yield told["ready"]["url"]
    finally:
        child.terminate()
        child.communicate(timeout=30)


@pytest.fixture(scope="module")
def url(run, tmp_path_factory):
    store = tmp_path_factory.mktemp("fresh") / "store.db"
    with serving(run, "--explain", "--fresh", str(store)) as found:
        yield found


@pytest.fixture(scope="module")
def plain(run):
    """Of a server that explains nothing."""
    with serving(run) as found:
        yield found


@pytest.fixture(scope="module")
def locked(numbered):
    """Of a server that wants a key."""
    with serving(numbered, "--explain", MUSKETEERS_KEY=KEY) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser):
    """A page at an address; in the end nothing may have gone wrong in it or out of it."""
    opened, wrong, asked = [], [], []

    def go(address, **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: said.type in ("error", "warning") and complain(said.text))
        page.on("dialog", lambda dialog: (wrong.append("alert"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        opened.append((context, address))
        page.goto(address)
        return page

    def complain(text):
        # that an answer was an error is said by the browser itself
        if not text.startswith("Failed to load resource"):
            wrong.append(text)

    yield go
    for context, _ in opened:
        context.close()
    assert wrong == []
    homes = tuple(address.partition("#")[0] for _, address in opened)
    assert all(one.startswith((*homes, "blob:", "data:")) for one in asked), asked


def shown(page, side="left"):
    """The ids of a list."""
    return page.locator(f"#{side} .item").all_inner_texts()


def ready(page, text):
    page.get_by_role("status").filter(has_text=text).wait_for()


def ask(url, path, body=None, key=None):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    method = "GET" if body is None else "POST"
    while True:
        answer = httpx.request(method, f"{url}{path}", json=body, headers=headers, timeout=30)
        # what the stages made is read after the start, and the machine may be busy
        if answer.status_code not in (503, 504):
            return answer
        time.sleep(0.1)


def ids(items):
    return [str(item["id"]) for item in items]


def focused(page):
    return page.evaluate("document.activeElement.textContent || document.activeElement.id")


# --- what is seen


@pytest.mark.parametrize("domain", NAMES)
def test_both_lists_and_their_reasons_are_those_of_the_service(url, visit, domain):
    page = visit(f"{url}/#domain={domain}&user={USER}&k=10")
    ready(page, f"{domain} for {USER}: 10 items, from this domain")
    told = ask(url, f"/v1/domains/{domain}/explain", {"user_id": USER, "k": 10}).json()
    served, alone = ids(told["items"]), ids(told["without_transfer"]["items"])
    assert (shown(page), shown(page, "right")) == (served, alone)
    for side, these, others in (("left", served, alone), ("right", alone, served)):
        marked = page.locator(f"#{side} li:has(.only) .item").all_inner_texts()
        assert marked == [item for item in these if item not in others]
    assert "only here" in page.locator("#view").inner_text() or served == alone
    causes = page.locator("#own .cause")
    assert causes.count() == len(told["own"])
    for n, one in enumerate(told["own"][:3]):
        causes.nth(n).locator("summary").click()
        name = causes.nth(n).locator("b").inner_text()
        assert name == str(one["id"])
        assert causes.nth(n).locator(".item").all_inner_texts() == [*one["leaves"], *one["enters"]]
    if told["sources"]:
        sources = {row["domain"]: row for row in told["sources"]}
        for row in page.locator("#sources .cause").all():
            one = sources.pop(row.locator("b").inner_text())
            assert row.locator(".count").inner_text().startswith(f"{len(one['leaves'])} of 10")
            row.locator("summary").click()
            out = page.locator("#left li.out .item").all_inner_texts()
            assert out == [item for item in served if item in one["leaves"]]
        assert not sources
    else:
        assert "keeps its own model" in page.locator("#sources").inner_text()
    known = ask(url, f"/v1/users/{USER}/history").json()["domains"]
    for n, name in enumerate(NAMES):
        assert page.locator(f"#had-{n} .item").all_inner_texts() == known.get(name, [])


def test_where_a_list_comes_from_is_said_in_words(url, visit):
    domains = {name: set(frame["user_id"]) for name, frame in tables().items()}
    cold = min(domains["films"] - domains["series"])
    page = visit(f"{url}/#domain=series&user={cold}")
    ready(page, "from other domains.")
    assert page.locator("#left-kind").inner_text() == "from other domains"
    assert "popular" in page.locator("#right-kind").inner_text()
    page.goto(f"{url}/#domain=series&user=somebody+new")
    ready(page, "Nothing that is known of this user")
    assert "popular" in page.locator("#left-kind").inner_text()
    assert "Nobody here knows this user." in page.locator("#sources").inner_text()


def test_what_is_served(url, visit):
    page = visit(url)
    told = ask(url, "/v1/models").json()
    page.locator("#served summary").click()
    text = page.locator("#served").inner_text()
    for part in ("autumn", told["model_version"], told["domains"]["films"]["model"]):
        assert part in text
    assert page.get_by_role("radio", name="films").is_visible()
    assert f"30 items, {told['domains']['films']['users']} users" in page.inner_text("#domains")


def test_the_report_is_framed_and_runs_no_script(url, visit):
    page = visit(url)
    page.get_by_role("button", name="Report of the run").click()
    frame = page.frame_locator("iframe")
    frame.get_by_role("heading", name="Run autumn").wait_for()
    # its own look has not been taken from it
    assert frame.locator(".lead").evaluate("one => getComputedStyle(one).fontSize") != "16px"
    assert page.locator("iframe").get_attribute("sandbox") == "allow-same-origin"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "IFRAME"
    page.keyboard.press("Escape")
    page.locator("iframe").wait_for(state="detached")


def test_what_somebody_did_since_the_fit_is_told_apart(url, visit):
    user, view = "user-042", {"user_id": "user-042", "k": 10}
    fitted = ids(ask(url, "/v1/domains/films/explain", view).json()["items"])
    met = {"domain": "films", "item_ids": fitted[:2]}
    assert ask(url, f"/v1/users/{user}/interactions", met).status_code == 201
    page = visit(f"{url}/#domain=films&user={user}")
    ready(page, "Items since the fit change")
    served = ids(ask(url, "/v1/domains/films/recommend", view).json()["items"])
    assert (shown(page), shown(page, "right")) == (served, fitted)
    assert not {*fitted[:2]} & {*served}
    assert page.locator("#right-name").inner_text() == "As fitted"


# --- by keyboard alone


def test_everything_is_done_by_keyboard(url, visit):
    page = visit(url)
    page.get_by_role("radio", name="series").wait_for()
    press = page.keyboard.press

    def tab_to(name, most=120):
        for _ in range(most):
            press("Tab")
            now = page.evaluate(
                "(one => one.ariaLabel || one.labels?.[0]?.textContent || one.textContent)"
                "(document.activeElement)"
            )
            if now.startswith(name):
                return
        raise AssertionError(f"{name} is not reached")

    tab_to("series")
    press("ArrowRight")
    tab_to("User")
    page.keyboard.type(USER)
    press("Enter")
    ready(page, f"films for {USER}")
    before = shown(page)

    tab_to(before[0])
    press("ArrowDown")
    press("ArrowDown")
    assert focused(page) == before[2]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press("Enter")
    page.locator("#similar .item").first.wait_for()
    alike = ask(url, f"/v1/domains/films/items/{before[2]}/similar").json()
    assert shown(page, "similar") == ids(alike["items"])
    press("Escape")
    assert focused(page) == before[2]

    press("Enter")
    tab_to("What if")
    press("Enter")
    ready(page, "The items that were added change")
    body = {"user_id": USER, "k": 10, "recent": {"films": [before[2]]}}
    after = ids(ask(url, "/v1/domains/films/recommend", body).json()["items"])
    assert shown(page) == after != before
    assert shown(page, "right") == before
    assert focused(page) == "With what they have just done"

    tab_to("What if they had just done this, too: an item of series")
    page.keyboard.type("series-07")
    press("Enter")
    page.get_by_role("button", name="Without series-07").wait_for()
    body["recent"]["series"] = ["series-07"]
    twice = ids(ask(url, "/v1/domains/films/recommend", body).json()["items"])
    assert shown(page) == twice
    page.keyboard.type("no such item")
    press("Enter")
    page.get_by_role("alert").filter(has_text="no such item").wait_for()
    press("Shift+Tab")
    assert focused(page) == "\N{MULTIPLICATION SIGN}"
    press("Enter")
    page.get_by_role("button", name="Without series-07").wait_for(state="detached")
    assert focused(page) == "add-0"
    assert shown(page) == after

    page.goto(f"{url}/#domain=films&user={USER}")
    ready(page, f"films for {USER}")
    page.locator("#left-name").focus()
    told = ask(url, "/v1/domains/films/explain", {"user_id": USER}).json()
    most = str(told["own"][0]["id"])
    while page.evaluate("!document.activeElement.closest('#own')"):
        press("Tab")
    press("Enter")
    opened = page.locator("#own .cause[open]")
    opened.wait_for()
    assert opened.locator("b").inner_text() == most


def test_somebody_is_picked(url, visit):
    page = visit(f"{url}/#domain=films")
    page.get_by_label("also known in").select_option("podcasts")
    page.get_by_role("button", name="Pick somebody").click()
    ready(page, "films for ")
    user = page.get_by_label("User", exact=True).input_value()
    known = ask(url, f"/v1/users/{user}/history").json()["domains"]
    assert known["films"]
    assert known["podcasts"]


def test_an_address_is_a_view(url, visit):
    page = visit(f"{url}/#domain=films&user={USER}&k=5&did.series=series-07&did.films=films-01")
    ready(page, "5 items")
    body = {"user_id": USER, "k": 5, "recent": {"series": ["series-07"], "films": ["films-01"]}}
    assert shown(page) == ids(ask(url, "/v1/domains/films/recommend", body).json()["items"])
    page.get_by_label("Length").select_option("10")
    ready(page, "10 items")
    page.get_by_role("radio", name="podcasts").check()
    ready(page, f"podcasts for {USER}")
    found = parse_qs(page.url.partition("#")[2])
    assert found == {"domain": ["podcasts"], "user": [USER], "k": ["10"],
                     "did.series": ["series-07"], "did.films": ["films-01"]}  # fmt: skip
    page.go_back()
    page.go_back()
    ready(page, f"films for {USER}: 5 items")
    page.goto(f"{url}/#domain=cars&user={USER}")
    page.get_by_role("alert").filter(has_text="no such domain").wait_for()


# --- ids and keys


def test_ids_are_text_whatever_they_look_like(url, visit):
    page = visit(f"{url}/#domain=series&k=50&did.series=%3Cb%3E")
    page.get_by_label("User", exact=True).fill(HOSTILE_USER)
    page.keyboard.press("Enter")
    ready(page, f"series for {HOSTILE_USER}")
    told = ask(url, "/v1/domains/series/explain", {"user_id": HOSTILE_USER, "k": 50}).json()
    assert shown(page) == ids(told["items"])
    there = {*shown(page), *page.locator("#had-0 .item").all_inner_texts()}
    assert there > {HOSTILE_ITEM, QUOTED_ITEM, LONG_ITEM}
    for item in (HOSTILE_ITEM, QUOTED_ITEM):
        page.locator("#view, #past").get_by_role("button", name=item, exact=True).first.click()
        page.locator("#similar .item").first.wait_for()
        assert page.locator("#item-name").inner_text() == item
        page.get_by_role("button", name="What if they had just done this?").click()
        page.get_by_role("button", name=f"Without {item}").wait_for()
    assert page.locator("main img, main script, main b b").count() == 0
    assert page.title().startswith(HOSTILE_USER)


def test_no_text_becomes_markup(url, browser):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        with pytest.raises(playwright.Error, match="TrustedHTML"):
            page.evaluate("document.body.innerHTML = '<p>'")
    policy = httpx.get(url).headers["content-security-policy"]
    (scripts,) = [one for one in policy.split("; ") if one.startswith("script-src")]
    assert re.fullmatch(r"script-src 'sha256-[\w+/]{43}='", scripts)


def test_a_key_is_asked_for_and_large_integers_stay_exact(locked, visit):
    page = visit(f"{locked}/#domain=series")
    field = page.get_by_label("Key", exact=True)
    field.wait_for()
    assert "No key was given" in page.get_by_role("alert").inner_text()
    page.keyboard.type("not a key")
    page.keyboard.press("Enter")
    playwright.expect(field).to_have_value("")
    field.fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_label("User", exact=True).fill(str(BIG + 17))
    page.keyboard.press("Enter")
    ready(page, f"series for {BIG + 17}: 10 items, from this domain")
    body = {"user_id": BIG + 17, "k": 10}
    told = ask(locked, "/v1/domains/series/explain", body, KEY).json()
    assert shown(page) == ids(told["items"])
    assert all(int(one) >= BIG for one in shown(page))
    assert page.locator("#own b").all_inner_texts() == ids(told["own"])
    first = shown(page)[0]
    page.locator("#left .item").first.click()
    page.locator("#similar .item").first.wait_for()
    alike = ask(locked, f"/v1/domains/series/items/{first}/similar", key=KEY).json()
    assert shown(page, "similar") == ids(alike["items"])
    page.get_by_role("button", name="What if they had just done this?").click()
    ready(page, "The items that were added")
    assert first not in shown(page)
    # those that are small stay numbers
    chip = page.locator("#had-1 .item").first
    small = chip.inner_text()
    assert int(small) < 30
    chip.click()
    page.locator("#similar .item").first.wait_for()
    page.get_by_role("button", name="What if they had just done this?").click()
    page.get_by_role("button", name=f"Without {small}", exact=True).click()
    page.get_by_role("button", name=f"Without {small}", exact=True).wait_for(state="detached")
    with page.expect_response("**/somebody") as picked:
        page.get_by_role("button", name="Pick somebody").click()
    somebody = str(picked.value.json()["user_id"])
    assert int(somebody) >= BIG
    playwright.expect(page.get_by_label("User", exact=True)).to_have_value(somebody)
    # it stays in the tab, and in no address
    assert KEY not in page.url
    assert page.evaluate("localStorage.length") == 0
    page.reload()
    ready(page, "series for ")
    page.get_by_role("button", name="Forget the key").click()
    field.wait_for()


def test_a_server_that_explains_nothing_recommends(plain, visit):
    page = visit(f"{plain}/#domain=films&user={USER}")
    ready(page, f"films for {USER}: 10 items, from this domain")
    body = {"user_id": USER, "k": 10}
    before = ids(ask(plain, "/v1/domains/films/recommend", body).json()["items"])
    assert shown(page) == before
    assert "--explain" in page.locator("#sources").inner_text()
    assert "--explain" in page.locator("#past-note").inner_text()
    assert page.get_by_role("button", name="Pick somebody").count() == 0
    page.get_by_label("an item of films").fill(before[0])
    page.keyboard.press("Enter")
    ready(page, "The items that were added change")
    assert before[0] not in shown(page)
    assert shown(page, "right") == before


# --- when it does not go well


def test_a_slow_or_unready_server_is_waited_for(url, visit):
    page = visit(url)
    seen = []
    problem = {"status": 503, "code": "reading", "detail": "What the stages made is being read."}

    def unready(route):
        seen.append(route.request.url)
        if len(seen) > 2:
            route.continue_()
            return
        route.fulfill(status=503, json=problem, headers={"Retry-After": "1"})

    page.route("**/explain", unready)
    page.get_by_label("User", exact=True).fill(USER)
    page.keyboard.press("Enter")
    page.get_by_role("alert").filter(has_text="is being read. Trying again").wait_for()
    assert len(shown(page)) == 10
    page.locator("#own .cause").first.wait_for()
    assert page.get_by_role("alert").count() == 0
    assert len(seen) == 3

    held = []
    page.unroute("**/explain")
    page.route("**/explain", lambda route: held.append(route))
    page.get_by_role("radio", name="films").check()
    page.get_by_text("Loading …").wait_for()
    held.pop().continue_()
    ready(page, "films for ")
    page.get_by_text("Loading …").wait_for(state="hidden")


def test_a_server_that_is_gone_is_told_of(url, visit):
    page = visit(f"{url}/#user={USER}")
    ready(page, USER)
    page.context.set_offline(True)
    page.get_by_role("radio", name="films").check()
    page.get_by_role("alert").filter(has_text="The server does not answer").wait_for()
    # and no list stands there as if it were the answer
    assert not page.locator("#view").is_visible()


# --- for every eye and screen

CONTRAST = """() => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(one => one / 255).map(one =>
    one <= .03928 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4)
    .reduce((sum, one, n) => sum + one * [.2126, .7152, .0722][n], 0);
  const behind = one => {
    for (; one; one = one.parentElement) {
      const found = parts(getComputedStyle(one).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    throw 'no background';
  };
  const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const one = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !one.checkVisibility()) continue;
    const both = [light(parts(getComputedStyle(one).color)), light(behind(one))].sort();
    found.push([(Math.max(...both) + .05) / (Math.min(...both) + .05), one.textContent]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out(url, visit, scheme):
    page = visit(f"{url}/#domain=series&user={USER}&did.films=films-01", color_scheme=scheme)
    ready(page, "series for")
    page.locator("#served summary").click()
    page.locator("#own summary").first.click()
    page.get_by_label("an item of films").fill("nothing")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    found = page.evaluate(CONTRAST)
    assert len(found) > 80
    assert min(found)[0] >= 4.5, min(found)
    page.locator("#left .item").first.click()
    page.locator("#similar .item").first.wait_for()
    assert min(page.evaluate(CONTRAST))[0] >= 4.5


def test_a_narrow_screen_is_never_scrolled_sideways(url, visit):
    page = visit(url, viewport={"width": 360, "height": 740})

    def fits():
        return page.evaluate("document.documentElement.scrollWidth") == 360

    page.get_by_role("radio", name="series").wait_for()
    assert fits()
    page.goto(f"{url}/#domain=series&user={'u' * 200}&k=50&did.series=series-07")
    ready(page, "series for")
    assert LONG_ITEM in shown(page)
    assert fits()
    page.locator("#served summary").click()
    assert fits()
    page.get_by_role("button", name=LONG_ITEM).first.click()
    page.locator("#similar .item").first.wait_for()
    box = page.locator("#item").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360


def test_whatever_can_be_used_has_a_name(url, visit):
    page = visit(f"{url}/#domain=series&user={USER}&did.films=films-01")
    ready(page, "series for")
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    used = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", ()))
    ]
    assert len(used) > 30
    assert [role for role, name in used if not name] == []
    assert page.locator("main [role=status]").get_attribute("id") == "said"
    assert {role for role, _ in used} >= {"radio", "textbox", "button", "combobox"}


# --- the endpoint behind the button


def test_somebody_is_known_where_it_was_asked(url):
    picked = set()
    for _ in range(20):
        told = ask(url, "/v1/domains/series/somebody?also=podcasts").json()
        assert told["domain"] == "series"
        picked.add(told["user_id"])
    assert len(picked) > 5
    for user in picked - {HOSTILE_USER}:
        known = ask(url, f"/v1/users/{user}/history").json()["domains"]
        assert known["series"]
        assert known["podcasts"]


def problem(answer, status, code):
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_nobody_is_picked_where_that_is_not_offered(url, plain, locked):
    problem(ask(plain, "/v1/domains/series/somebody"), 404, "not_offered")
    problem(ask(locked, "/v1/domains/series/somebody"), 401, "unauthenticated")
    problem(ask(url, "/v1/domains/cars/somebody"), 404, "unknown_domain")
    problem(ask(url, "/v1/domains/series/somebody?also=cars"), 404, "unknown_domain")


def test_pseudonyms_and_other_domains_are_not_given_out(run, tmp_path):
    secret, keys = tmp_path / "secret", tmp_path / "keys.toml"
    secret.write_text(os.urandom(32).hex())
    keys.write_text(
        f'[keys.one]\nsha256 = "{sha256(KEY.encode()).hexdigest()}"\n'
        'scopes = ["read", "explain"]\ndomains = ["series"]\n'
    )
    with serving(run, "--explain", "--secret", str(secret), "--keys", str(keys)) as found:
        problem(ask(found, "/v1/domains/series/somebody", key=KEY), 404, "not_offered")
        problem(ask(found, "/v1/domains/films/somebody", key=KEY), 403, "domain_forbidden")
        path = "/v1/domains/series/somebody?also=films"
        problem(ask(found, path, key=KEY), 403, "domain_forbidden")
