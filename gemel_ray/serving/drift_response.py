"""What follows when a query has drifted: it runs its original again, somebody is told, a re-merge is made ready."""

from __future__ import annotations

import json
import logging
import shlex
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import yaml

from gemel_ray.serving.drift_options import DriftOptions, RemergeOptions
from gemel_ray.serving.drift_reports import Drift, DriftEvent
from gemel_ray.spec.errors import GemelError, StoreError
from gemel_ray.spec.feeds import FeedSpec
from gemel_ray.spec.workload import Workload
from gemel_ray.vision.feeds.keeping import KeptFrames
from gemel_ray.weights.files import Files

log = logging.getLogger(__name__)

_EVENTS = "drift-events.json"
_MOST_EVENTS = 100

# Makes a query of the release that is served run its original: the release it does so in, None where another one is to
# be served that has other weights of it already, and how that was done.
Revert = Callable[[str, int], tuple[int | None, str]]


class Submit(Protocol):
    """Runs `gemel search` with these arguments as a job elsewhere, with a folder as its working directory."""

    def __call__(self, options: RemergeOptions, folder: Path, arguments: list[str]) -> str:
        """The job's name. GemelError where it cannot be submitted."""
        ...


class DriftResponse:
    """Called on the monitor's thread. Events are kept in a file, so that a restart forgets none."""

    def __init__(
        self,
        options: DriftOptions,
        workload: Workload | None,
        store: str,
        folder: Path,
        *,
        revert: Revert,
        kept: Callable[[str], KeptFrames | None],
        submit: Submit,
    ) -> None:
        """`store` is where a re-merge goes; without a workload, none is made ready."""
        self._options = options
        self._workload = workload
        self._store = store
        self._folder = folder
        self._revert = revert
        self._kept = kept
        self._submit = submit
        self._files = Files.at(folder)
        self._lock = threading.Lock()
        self._events = self._read()

    @property
    def events(self) -> tuple[DriftEvent, ...]:
        """The newest, oldest first."""
        return self._events

    def __call__(self, drift: Drift, from_release: int | None = None) -> bool:
        """Revert, and tell what was done; never raises for what can be told instead. False where it is worth trying
        again later: the event of this release and these weights then tells how that went.

        A re-merge goes on from `from_release`, which is that of the store where the release served is this box's own.
        """
        known = self._told(drift)
        number, outcome, is_done = self._reverted(drift)
        event = known or self._event_of(drift, from_release)
        made = {} if event.folder else self._made_ready(event)
        self._tell(known, event.model_copy(update={"reverted_in": number, "outcome": outcome, **made}))
        return is_done

    def submit_what_is_ready(self) -> None:
        """Submit the re-merges whose frames are enough by now; those that cannot be submitted are tried again later."""
        if self._options.remerge is None:
            return
        # Where the same weights drifted in several releases, a search from the last of them is enough.
        for event in {(event.query, event.model): event for event in self._events}.values():
            kept = self._kept(event.query)
            if event.job is None and event.folder and kept and len(kept) >= self._options.remerge.frames:
                self._submit_one(event, self._options.remerge)

    def _reverted(self, drift: Drift) -> tuple[int | None, str, bool]:
        if not self._options.revert:
            return None, "left as it is: 'revert' is off", True
        try:
            return *self._revert(drift.query, drift.release), True
        except GemelError as error:
            told = str(error)
        except Exception as error:
            log.exception("query %s is not reverted", drift.query)
            told = f"an error of the watch itself ({type(error).__name__}); its log says more"
        return None, f"not reverted: {told}; it is tried again", False

    def _told(self, drift: Drift) -> DriftEvent | None:
        asked = (drift.query, drift.model, drift.release)
        found = [event for event in self._events if (event.query, event.model, event.release) == asked]
        return found[-1] if found else None

    def _event_of(self, drift: Drift, from_release: int | None) -> DriftEvent:
        """An event that says nothing yet of what was done, but for a re-merge of these weights that is under way."""
        asked, reply = (drift.query, drift.model), drift.reply
        jobs = [event.job for event in self._events if (event.query, event.model) == asked and event.job]
        return DriftEvent(
            at=datetime.now(UTC).isoformat(timespec="seconds"), query=drift.query, release=drift.release,
            model=drift.model, agreement=reply.agreement, floor=reply.floor, samples=reply.samples,
            from_release=from_release, job=jobs[-1] if jobs else None,
        )  # fmt: skip

    def _tell(self, known: DriftEvent | None, event: DriftEvent) -> None:
        if event == known:
            return
        log.warning("drift: %s", event.model_dump_json())
        if known is not None:
            self._change(event, event.model_dump(exclude={"job"}))
            return
        with self._lock:
            self._events = (*self._events, event)[-_MOST_EVENTS:]
            self._write()

    def _change(self, event: DriftEvent, changed: Mapping[str, object]) -> None:
        """Know more about an event; this thread of what was done, another one of the job."""
        with self._lock:
            self._events = tuple(
                known.model_copy(update=changed) if _is_same(known, event) else known for known in self._events
            )
            self._write()

    def _made_ready(self, event: DriftEvent) -> dict[str, str]:
        """Where the workload of a re-merge lies, and the command that starts it."""
        query = event.query
        kept = self._kept(query)
        if self._workload is None or kept is None:
            return {}
        folder = self._folder / query
        try:
            feed = kept.feed(fps=max(1 / self._options.sample_every_s, 0.001))
            workload = with_feed(self._workload, query, _below(folder, feed))
            Files.at(folder).write("workload.yaml", yaml.safe_dump(workload, sort_keys=False).encode())
        except (OSError, StoreError) as error:
            log.warning("the re-merge of %s is not made ready: %s", query, error)
            return {}
        command = shlex.join(["gemel", *self._arguments(folder / "workload.yaml", event)])
        return {"folder": str(folder), "command": command}

    def _arguments(self, workload: Path, event: DriftEvent) -> list[str]:
        more = self._options.remerge.arguments if self._options.remerge else ()
        # What the other queries share stays; this one is merged into it anew, on its newest frames.
        start = ["--from-release", str(event.from_release), "--apart", event.query] if event.from_release else []
        return ["search", str(workload), "--store", self._store, *start, *more]

    def _submit_one(self, event: DriftEvent, options: RemergeOptions) -> None:
        self._made_ready(event)
        folder = Path(str(event.folder))
        try:
            job = self._submit(options, folder, self._arguments(Path("workload.yaml"), event))
        except GemelError as error:
            log.warning("the re-merge of %s is not submitted: %s", event.query, error)
            return
        self._change(event, {"job": job})

    def _read(self) -> tuple[DriftEvent, ...]:
        try:
            data = self._files.read(_EVENTS)
            return tuple(DriftEvent.model_validate(event) for event in json.loads(data or b"[]"))
        except (StoreError, ValueError) as error:
            log.warning("earlier drift events are lost: %s", error)
            return ()

    def _write(self) -> None:
        try:
            self._files.write(_EVENTS, json.dumps([event.model_dump() for event in self._events], indent=1).encode())
        except StoreError as error:
            log.warning("drift events are not kept: %s", error)


def _is_same(one: DriftEvent, other: DriftEvent) -> bool:
    """Whether they tell of the same, of which one may know more."""
    return (one.at, one.query, one.model, one.release) == (other.at, other.query, other.model, other.release)


def _below(folder: Path, feed: FeedSpec) -> FeedSpec:
    """The feed with paths relative to the workload file: the folder may be sent elsewhere as a whole."""
    paths = {
        field: str(Path(value).relative_to(folder))
        for field in ("path", "images", "annotations")
        if (value := getattr(feed, field, None)) is not None
    }
    return feed.model_copy(update=paths)


def with_feed(workload: Workload, query: str, feed: FeedSpec) -> dict[str, object]:
    """The document of the same workload, in which one query reads another feed."""
    name = f"{query[:57]}_drift"
    queries = tuple(
        asked.model_copy(update={"feed": name}) if asked.name == query else asked for asked in workload.queries
    )
    used = {asked.feed for asked in queries}
    feeds = {key: found for key, found in workload.feeds.items() if key in used} | {name: feed}
    changed = workload.model_copy(update={"feeds": feeds, "queries": queries})
    return changed.model_dump(mode="json", exclude_none=True)
