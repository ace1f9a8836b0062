"""The status page in a real browser, over a real box: what it shows, what its buttons do, who can use it."""

import datetime
import re
import shutil
import time

import pytest
from admin_kit import ADMIN, PATIENCE_S, QUERIES, READ, service
from prometheus_client.parser import text_string_to_metric_families

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright, for tests in a browser")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on PATH; apt-get install chromium")

PATIENCE_MS = PATIENCE_S * 1e3
WIDTHS, SCHEMES = (360, 1280), ("light", "dark")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A box that has answered a few frames, one of them late, one dropped."""
    with service(tmp_path_factory.mktemp("page")) as running:
        for seed in range(3):
            running.send("north_cars", seed)
        running.send("north_cars", 3, "?slo_ms=0.0001")
        yield running


@pytest.fixture
def own(tmp_path):
    """A box of the test's own, to change."""
    with service(tmp_path) as running:
        running.send("north_cars")
        yield running


@pytest.fixture
def open_page(browser):
    """Open a service's page with a token, or with none; complaints of the browser fail the test."""
    contexts, complaints = [], []

    def opened(running, token=READ, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(running.url)
        if token is not None:
            page.get_by_label("This service asks for a token").fill(token)
            page.keyboard.press("Enter")
            page.locator("[data-query]").first.wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    # The browser itself notes each answer that is an error; those that a test asks for are no complaint.
    assert [said for said in complaints if "Failed to load resource" not in said] == []


def field(page, query, name):
    return page.locator(f'[data-query="{query}"] [data-field="{name}"]').inner_text()


def metrics(running):
    families = text_string_to_metric_families(running.ask("/metrics", token=READ).text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def shown_bytes(text):
    amount, unit = re.search(r"([\d.]+) (B|[KMG]iB)", text).groups()
    return float(amount), 1024 ** ["B", "KiB", "MiB", "GiB"].index(unit)


def test_values_on_the_page_are_those_of_the_status_and_of_the_metrics(running, open_page):
    page = open_page(running)
    status, told = running.status(), metrics(running)
    query = next(found for found in status["queries"] if found["name"] == "north_cars")
    here = (("node", "local"), ("query", "north_cars"))
    assert (
        int(field(page, "north_cars", "arrived")) == query["arrived"] == told["gemel_frames_arrived_total", here] == 4
    )
    assert int(field(page, "north_cars", "answered")) == told["gemel_frames_answered_total", here] == 3
    assert int(field(page, "north_cars", "late")) == told["gemel_frames_late_total", (("query", "north_cars"),)]
    dropped = sum(
        told["gemel_frames_dropped_total", (*here[1:], ("reason", r))] for r in ("late", "replaced", "failed")
    )
    assert int(field(page, "north_cars", "dropped")) == sum(query["dropped"].values()) == dropped == 1
    assert "1 too late" in field(page, "north_cars", "loss")
    shown_ms = float(re.search(r"([\d.]+) ms at 95 %", field(page, "north_cars", "latency"))[1])
    assert shown_ms == pytest.approx(query["p95_latency_ms"], abs=0.51)
    assert field(page, "north_cars", "label") == query["last_answer"]["label"]
    assert field(page, "north_cars", "fresh") == "stale", "the last frame was too late"
    assert field(page, "north_cars", "reason") == "too late"
    assert field(page, "north_cars", "release").startswith(f"release {query['release']}")
    assert "97.0 % agreement with the original, at least 95.0 %; target 95.0 %" in field(
        page, "north_cars", "agreement"
    )
    assert field(page, "south_cars", "label") == "no frame yet"
    (node,) = status["nodes"]
    memory, legend = node["memory"], page.locator('[data-node="local"]')
    assert memory["resident_bytes"] == told["gemel_node_resident_bytes", here[:1]]
    for name, wanted in (
        ("shared", memory["shared_bytes"]),
        ("private", memory["resident_bytes"] - memory["shared_bytes"]),
        ("workspace", memory["workspace_bytes"]),
        ("before", node["original_bytes"]),
    ):
        amount, unit = shown_bytes(legend.locator(f'[data-field="{name}"]').inner_text())
        assert wanted > 0 or name == "workspace"
        assert amount == pytest.approx(wanted / unit, abs=0.051)
    assert f"{node['loads']} loads" in legend.inner_text()


def test_the_page_follows_without_being_loaded_anew_and_shows_the_newest_frame(own, open_page):
    page = open_page(own)
    picture = page.get_by_alt_text("newest frame of north_cars")
    picture.wait_for()
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [80, 60]
    page.evaluate("document.body.dataset.seen = 'yes'")
    own.send("south_cars")
    page.get_by_alt_text("newest frame of south_cars").wait_for()
    assert field(page, "south_cars", "fresh") == "fresh"
    assert page.evaluate("document.body.dataset.seen") == "yes"


def test_better_plans_that_were_gone_over_to_are_counted_once_there_are_any(own, open_page):
    page = open_page(own)
    node = page.locator('[data-node="local"]')
    assert "new plan" not in node.inner_text()
    own.box._engine._running().replans = 2
    node.get_by_text("2 new plans").wait_for()


def test_what_happened_on_another_day_is_shown_with_its_date(running, open_page):
    times = ["2026-01-02T12:00:00+00:00", datetime.datetime.now(datetime.UTC).isoformat()]

    def with_events(route):
        reply = route.fetch()
        told = [{"at": at, "kind": "lost", "text": "gone", "node": None} for at in times]
        route.fulfill(response=reply, json=reply.json() | {"events": told})

    page = open_page(running)
    page.route("**/v1/status", with_events)
    page.locator("#events li").nth(1).wait_for()
    today, another_day = page.locator("#events time").all_inner_texts()
    assert ("2026" in another_day, str(datetime.date.today().year) in today) == (True, False)
    assert len(another_day) > len(today)


def test_a_revert_by_button_takes_an_admins_token_and_changes_head_and_the_page(own, open_page):
    page = open_page(own)
    page.get_by_role("button", name="Revert north_cars to its original").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Admin token").fill("wrong-" + "w" * 32)
    dialog.get_by_role("button", name="Revert").click()
    dialog.get_by_role("alert").get_by_text("not known here").wait_for()
    dialog.get_by_label("Admin token").fill(READ)
    page.keyboard.press("Enter")
    dialog.get_by_role("alert").get_by_text("a token for 'read' may not do this").wait_for()
    assert own.store.head() == 2
    dialog.get_by_label("Admin token").fill(ADMIN)
    page.keyboard.press("Enter")
    dialog.wait_for(state="hidden")
    assert own.store.head() == 3
    assert "north_cars runs its original again" in page.locator("#told").inner_text()
    page.locator("#release").get_by_text("release 3").wait_for()
    assert field(page, "north_cars", "agreement") == "Runs its original, or was never measured"
    assert page.evaluate("Object.values(sessionStorage)") == [READ], "an admin's token is kept nowhere"
    # The token is known now, and what cannot be done is told.
    page.get_by_role("button", name="Revert north_cars to its original").click()
    dialog.get_by_role("button", name="Revert").click()
    dialog.get_by_role("alert").get_by_text("runs its original in release 3 already").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Pin…").click()
    dialog.get_by_role("button", name="Pin").click()
    page.get_by_role("button", name="Unpin…").wait_for()
    assert own.store.pinned() == 3
    assert page.locator("#pinned").inner_text() == "pinned"


def test_an_unknown_token_is_refused_with_the_reason(running, open_page):
    page = open_page(running, token=None)
    page.locator("#token").fill("wrong-" + "w" * 32)
    page.keyboard.press("Enter")
    page.get_by_text("The bearer token is not known here").or_(
        page.get_by_text("the bearer token is not known")
    ).wait_for()
    assert page.locator("[data-query]").count() == 0
    assert page.evaluate("sessionStorage.length") == 0


def test_everything_is_reached_by_keyboard_alone_and_the_focus_is_seen(running, open_page):
    page = open_page(running)
    wanted = {"pin", "revert-all", *(f"Revert {query} to its original" for query in QUERIES)}
    reached = set()
    for _ in range(len(wanted) + 2):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))
        if page.evaluate("document.activeElement !== document.body"):
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert wanted <= reached
    button = page.get_by_role("button", name="Revert north_cars to its original")
    button.focus()
    for _ in range(3):
        with page.expect_response("**/v1/status"):
            pass
    assert button.evaluate("button => button === document.activeElement"), "new values leave the focus where it is"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "admin"
    page.keyboard.press("Escape")
    assert button.evaluate("button => button === document.activeElement")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_and_every_word_can_be_read(running, open_page, width, scheme):
    page = open_page(running, width=width, scheme=scheme)
    page.get_by_alt_text("newest frame of north_cars").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(FAINT) == []
    page.get_by_role("button", name="Revert all…").click()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert page.evaluate(FAINT) == []


# Words whose contrast with what is behind them is below WCAG's 4.5 to 1.
FAINT = """() => {
  const linear = c => { c /= 255; return c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; };
  const parts = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const found = parts(getComputedStyle(node).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = walker.nextNode());) {
    const holder = text.parentElement;
    if (!text.data.trim() || !holder.checkVisibility() || /SCRIPT|STYLE|NOSCRIPT/.test(holder.tagName)) continue;
    const pair = [light(parts(getComputedStyle(holder).color)), light(behind(holder))].sort((a, b) => b - a);
    const contrast = (pair[0] + .05) / (pair[1] + .05);
    if (contrast < 4.5) faint.push([text.data, contrast]);
  }
  return faint;
}"""


def test_a_service_that_is_gone_is_said_to_be_gone(browser, open_page, tmp_path):
    with service(tmp_path) as running:
        page = open_page(running)
        page.locator("#state").get_by_text("serving").wait_for()
    page.get_by_text("the service cannot be reached; what is shown is old").wait_for()
    deadline = time.monotonic() + PATIENCE_S
    while "old" not in page.evaluate("document.body.className"):
        assert time.monotonic() < deadline
    assert page.locator("[data-query]").count() == len(QUERIES)
