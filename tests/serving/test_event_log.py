"""Events in the order in which they happened, whatever the clock says."""

from gemel_ray.serving.event_log import MOST_EVENTS, EventLog


def log_at(path, times):
    clock = iter(times)
    return EventLog(path, now=lambda: next(clock))


def texts(log):
    return [event.text for event in log.all]


def test_events_stay_in_order_when_the_clock_is_set_back_also_after_a_restart(tmp_path):
    path = tmp_path / "events.json"
    log = log_at(path, ["2026-01-01T00:00:00+00:00", "1970-01-01T00:00:01+00:00", "2099-01-01T00:00:00+00:00"])
    for text in ("first", "second", "third"):
        log.add("node", text)
    again = log_at(path, ["1970-01-01T00:00:00+00:00"])
    again.add("node", "fourth")
    assert texts(again) == texts(EventLog(path)) == ["first", "second", "third", "fourth"]


def test_the_newest_events_stay_though_their_times_are_the_oldest(tmp_path):
    log = log_at(tmp_path / "events.json", (f"{3000 - number}-01-01" for number in range(MOST_EVENTS + 5)))
    for number in range(MOST_EVENTS + 5):
        log.add("node", f"event {number}")
    assert texts(log)[0] == "event 5"
    assert texts(EventLog(tmp_path / "events.json"))[-1] == f"event {MOST_EVENTS + 4}"


def test_what_stands_last_is_not_said_twice_at_another_time(tmp_path):
    log = log_at(None, ["a", "b", "c"])
    for text in ("same", "same", "other"):
        log.add("store", text)
    assert texts(log) == ["same", "other"]


def test_a_damaged_log_begins_anew(tmp_path):
    path = tmp_path / "events.json"
    path.write_text('[{"at": 1}]')
    log = EventLog(path)
    log.add("node", "first")
    assert texts(EventLog(path)) == ["first"]
