"""The report on real stores: its numbers are the store's, hostile names are harmless, damage is told."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest
from report_kit import HOSTILE, SEARCH, publish_report_store, queries, trials

from gemel_ray.policy.grouping import group_layers, group_slices_in_sets
from gemel_ray.report import sections, writing
from gemel_ray.report.facts import OperatingPoint, pareto
from gemel_ray.report.gathering import gather, without_secrets
from gemel_ray.report.inks import DARK, LIGHT
from gemel_ray.report.layers import inventories_of, told_by_release
from gemel_ray.report.tables import percent
from gemel_ray.spec.errors import GemelError, InputError, MissingReleaseError, StoreError
from gemel_ray.spec.units import format_bytes
from gemel_ray.weights.store import open_store


class Reader(HTMLParser):
    """The page's words, its elements and the facts it carries."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.words, self.stack, self.facts = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.stack.append(tag)

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "script":
            self.facts += data
        elif not {"style", "svg"} & set(self.stack):
            self.words.append(data)

    def ids(self):
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with a search, its report's document, and the page."""
    folder = tmp_path_factory.mktemp("report")
    store, manifest = publish_report_store(folder / "store")
    document = writing.write_report(folder / "store", folder / "report.html", png=folder / "png")
    return store, manifest, document, (folder / "report.html").read_text()


def test_the_numbers_on_the_page_are_the_stores(made):
    _, manifest, document, html = made
    page = Reader(html)
    words = " ".join(page.words)
    saved = manifest.bytes_before - manifest.bytes_after
    for told in (format_bytes(manifest.bytes_before), format_bytes(saved), percent(saved / manifest.bytes_before)):
        assert told in words
    for name, released in manifest.queries.items():
        row = words[words.index(name, words.index("gate frames")) :]
        found = re.findall(r"[\d.]+ %", row)[:3]
        accuracy = released.accuracy
        assert found == [percent(value) for value in (accuracy.agreement, accuracy.lower_bound, accuracy.target)]
    assert json.loads(page.facts) == {
        key: value for key, value in document.items() if key not in ("report", "pictures")
    }
    assert document["bytes_after"] == manifest.bytes_after


def test_bounds_and_savings_follow_from_the_layers(made):
    _, manifest, document, _ = made
    inventories, unknown = inventories_of(manifest)
    assert not unknown
    across = sum(group.saved_bytes for group in group_layers(inventories))
    assert document["bounds"] == {
        "across_bytes": across, "widest_bytes": sum(group.saved_bytes for group in group_slices_in_sets(inventories)),
    }  # fmt: skip
    assert [saving["saved_bytes"] for saving in document["savings"]] == [0, across]
    assert [saving["after_s"] for saving in document["savings"]] == [0, 90]


def test_the_page_asks_nobody_for_anything(made):
    page = Reader(made[3])
    loads = [value for _, attributes in page.elements for key, value in attributes.items()
             if key in ("src", "href", "xlink:href") and not value.startswith("#")]  # fmt: skip
    assert not loads
    assert not re.findall(r"url\((?!#)", made[3])
    assert "@import" not in made[3]
    assert [attributes for tag, attributes in page.elements if tag == "script"] == [
        {"type": "application/json", "id": "facts"}
    ]


def test_every_plot_is_there_for_page_and_phone_with_words_and_ids_of_its_own(made):
    page = Reader(made[3])
    plots = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(plots) == 2 * sum(section.plot is not None for section in sections.present(gather_of(made)))
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    assert len(page.ids()) == len(set(page.ids()))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', made[3]))
    assert used <= set(page.ids())


def gather_of(made):
    return gather(made[2]["store"])


def test_colours_follow_the_page(made):
    svg = made[3][made[3].index("<svg") :]
    assert "var(--blue)" in svg
    for ground in (LIGHT, DARK):
        colours = [getattr(ground, name) for name in ground.__slots__]
        assert len(set(colours)) == len(colours)
        assert not [colour for colour in colours if colour in svg]


def contrast(one, other):
    """WCAG 2's ratio of two colours."""

    def light(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("ground", [LIGHT, DARK])
def test_words_and_marks_stand_out_from_their_ground(ground):
    assert contrast(ground.ink, ground.paper) > 7
    assert contrast(ground.soft, ground.paper) > 4.5
    assert all(contrast(hue, ground.paper) > 3 for hue in (*ground.hues, ground.plain))
    assert all(contrast(hue, ground.on_colour) > 4 for hue in ground.hues)


def test_every_plot_becomes_two_pictures(made):
    names = {path.rsplit("/", 1)[1] for path in made[2]["pictures"]}
    assert {"shared_light.png", "shared_dark.png", "trials_light.png", "prediction_dark.png"} <= names


def test_hostile_words_stay_words(tmp_path):
    store, _ = publish_report_store(tmp_path / "store", note=HOSTILE)
    store.write_state(SEARCH, store.read_state(SEARCH) | {"history": trials(HOSTILE, timed=True)})
    writing.write_report(tmp_path / "store", tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    page = Reader(html)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "<script>alert" not in html
    assert HOSTILE in "".join(page.words)
    assert json.loads(page.facts)["trials"][1]["label"] == HOSTILE


def test_a_hostile_class_or_model_name_is_refused_or_escaped(tmp_path):
    asked = queries(2)
    hostile = asked["query_0"].model.model_copy(update={"architecture": HOSTILE})
    store, manifest = publish_report_store(tmp_path / "store", 2)
    released = manifest.queries["query_0"]
    changed = released.model_copy(update={"query": released.query.model_copy(update={"model": hostile})})
    store.publish(manifest.model_copy(update={"queries": manifest.queries | {"query_0": changed}}))
    document = writing.write_report(tmp_path / "store", tmp_path / "r.html")
    assert "query_0 could not be built" in document["notes"][0]
    assert [tag for tag, _ in Reader((tmp_path / "r.html").read_text()).elements].count("script") == 1


def test_a_model_that_cannot_be_built_is_drawn_from_the_release_alone(made):
    manifest = made[1]
    told, whole = told_by_release(manifest, "query_0"), inventories_of(manifest)[0][0]
    assert told.total_bytes == whole.total_bytes
    shared = {member.layer for layer in manifest.merge_configuration.shared for member in layer.members}
    assert {layer.path for layer in told.layers} == shared


def test_a_store_without_searches_is_told_without_them(tmp_path):
    publish_report_store(tmp_path / "store", history=False)
    document = writing.write_report(tmp_path / "store", tmp_path / "r.html")
    assert (document["search"], document["trials"], document["prediction"]) == ("", [], None)
    assert document["bounds"] is not None
    assert 'id="trials"' not in (tmp_path / "r.html").read_text()


def test_the_originals_have_a_report_too(tmp_path):
    publish_report_store(tmp_path / "store")
    document = writing.write_report(tmp_path / "store", tmp_path / "r.html", release=1)
    assert (document["saved_fraction"], document["accuracies"], document["shared"]) == (0, {}, [])
    assert document["search"] == SEARCH


def test_an_empty_folder_and_an_unknown_release_are_errors(tmp_path):
    with pytest.raises(StoreError, match="holds no releases"):
        writing.write_report(tmp_path, tmp_path / "r.html")
    publish_report_store(tmp_path / "store", 2)
    with pytest.raises(MissingReleaseError, match="no release 9"):
        writing.write_report(tmp_path / "store", tmp_path / "r.html", release=9)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("damage", [b"{", b'{"history": [{"label": 3}], "states": 7}', b'["not a mapping"]'])
def test_a_damaged_search_becomes_a_note(tmp_path, damage):
    publish_report_store(tmp_path / "store")
    (tmp_path / "store" / "searches" / f"{SEARCH}.json").write_bytes(damage)
    document = writing.write_report(tmp_path / "store", tmp_path / "r.html")
    assert document["trials"] == []
    assert SEARCH in document["notes"][0]
    assert document["notes"][0] in " ".join(Reader((tmp_path / "r.html").read_text()).words)


def test_a_damaged_manifest_fails_for_itself_and_is_a_note_for_others(tmp_path):
    publish_report_store(tmp_path / "store")
    (tmp_path / "store" / "releases" / "000001.json").write_bytes(b"{}")
    document = writing.write_report(tmp_path / "store", tmp_path / "r.html")
    assert "Release 1 is left out" in document["notes"][0]
    with pytest.raises(StoreError, match="not a manifest"):
        writing.write_report(tmp_path / "store", tmp_path / "r.html", release=1)


def test_where_it_cannot_be_written_is_said(tmp_path):
    publish_report_store(tmp_path / "store")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="cannot be written"):
        writing.write_report(tmp_path / "store", tmp_path / "taken" / "r.html")


def test_a_missing_plotting_library_is_told_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(GemelError, match=r"pip install 'gemel-ray\[report\]'"):
        writing.check_plotting()


def test_secrets_in_a_uri_are_not_shown():
    assert without_secrets("s3://key:secret@bucket/a/b?region=x") == "s3://bucket/a/b"
    assert without_secrets("here/store@2") == "here/store@2"


def test_the_front_has_what_no_other_beats():
    found = [(0.9, 0.8), (0.95, 0.7), (0.94, 0.6), (0.99, 0.1)]
    points = [OperatingPoint(str(place), place, 0.9, agreement, 0.9, saved)
              for place, (agreement, saved) in enumerate(found)]  # fmt: skip
    assert [point.release for point in pareto(points)] == [0, 1, 3]


def test_operating_points_are_the_last_releases_of_searches(tmp_path):
    store, manifest = publish_report_store(tmp_path / "store")
    trial = manifest.provenance.trial | {"search": "stricter"}
    made = manifest.provenance.model_copy(update={"trial": trial})
    store.publish(manifest.model_copy(update={"provenance": made}))
    found = gather(str(tmp_path / "store"))
    assert [(point.search, point.release) for point in found.points] == [("street-000000000000", 2), ("stricter", 3)]
    assert open_store(tmp_path / "store").head() == found.manifest.release == 3
    assert [section.name for section in sections.present(found)].count("points") == 1


def test_times_count_from_the_originals_whatever_was_removed_between(tmp_path):
    store, merged = publish_report_store(tmp_path / "store")
    last = store.publish(merged.model_copy(update={"parent": merged.release}))
    before = gather(str(tmp_path / "store"))
    store.remove_releases([merged.release])
    after = gather(str(tmp_path / "store"))
    assert [saving.release for saving in after.savings] == [1, last.release]
    assert [saving.after_s for saving in after.savings] == [0, 90]
    assert after.started_at == before.started_at
    assert after.notes[-1] == f"Left out of the history, since they were removed: releases {merged.release}."


def test_keys_that_an_older_release_kept_are_not_shown(tmp_path):
    store, merged = publish_report_store(tmp_path / "store")
    told = "gemel search w.yaml --store s3://KEY:SECRET@bucket/store"
    store.publish(
        merged.model_copy(update={"provenance": merged.provenance.model_copy(update={"command": told}), "parent": 1})
    )
    document = writing.write_report(tmp_path / "store", tmp_path / "report.html")
    for shown in (json.dumps(document), (tmp_path / "report.html").read_text()):
        assert "s3://bucket/store" in shown
        assert "SECRET" not in shown
