"""An engine that serves what it is told to: some queries of a release, kept on disk so that a restart takes them up.

The release before is served on whatever happens to the new one. Neither Ray nor HTTP: a plain class.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gemel_ray.engine.engine import Engine
from gemel_ray.policy.backoff import wait_s
from gemel_ray.policy.canary import FrameCounts, failed_more
from gemel_ray.policy.rollout import NodeReport
from gemel_ray.policy.transition import restricted
from gemel_ray.serving.backend import ElsewhereError, MeasuringError
from gemel_ray.serving.description import Description
from gemel_ray.serving.engine_backend import describe
from gemel_ray.serving.releases import cache_folder
from gemel_ray.spec.errors import GemelError, ServingError, StoreError, nearest
from gemel_ray.spec.profile import DeviceProfile
from gemel_ray.spec.release import Manifest
from gemel_ray.weights.cache import Fetched, LocalCache
from gemel_ray.weights.files import Files
from gemel_ray.weights.store import open_store

log = logging.getLogger(__name__)

# What failed a check is tried again after this time: the store may have been mended. A release whose frames failed is
# tried again after so long too, but later each time, since cameras pay for it.
_RETRY_S = 60.0
_MOST_RETRY_S = 3600.0


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: str
    at_s: float
    holds_s: float = _RETRY_S
    # How often it was refused by whoever assigns, in a row.
    times: int = 0


_NONE = FrameCounts()


class AssignedEngine:
    """One node's engine under a controller. From any thread; one change at a time, on a thread of its own."""

    def __init__(
        self, engine: Engine, store: str, cache: str, node: str, *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        """`store` is a URI or an absolute path; `cache` a folder that engines of one machine may share."""
        self._engine = engine
        self._uri = store
        self._folder = cache_folder(store, cache)
        self._last, self._costs = f"assigned-{node}.json", f"costs-{node}.json"
        self._now_s = now_s
        self._cache = LocalCache(None, self._folder, last=self._last)
        self._lock = threading.Lock()
        self._serving: Manifest | None = None
        self._whole: Manifest | None = None
        # What it is at; None while it is at nothing.
        self._busy: str | None = None
        self._refused: dict[int, _Refusal] = {}
        self._report = NodeReport(engine.budget_bytes)
        self._changed_s = now_s()
        # Each query's frames up to the last change, and those under the release before.
        self._until_change: dict[str, FrameCounts] = {}
        self._under_former: dict[str, FrameCounts] = {}
        self._thread: threading.Thread | None = None

    def boot(self, release: int | None = None, *, with_all: bool, resume: bool) -> None:
        """Measure what the release's models cost; serve all its queries, or wait to be assigned some.

        With `resume`, what was assigned last comes first; without, only where the store does not give the release.
        Raises StoreError where neither the store nor the disk has one, and what Engine.start raises.
        """
        last = self._last_assignment()
        whole = self._manifest(release, or_else=last)
        self._measure(whole)
        if not (resume and last is not None and self._resumed(last, whole)) and with_all:
            try:
                self._take(whole.release, tuple(whole.queries))
            except StoreError as error:
                if last is None or not self._resumed(last, whole):
                    raise
                log.warning("serving release %d from local disk: %s", last.release, error)
        log.info("node engine is up, serving %s", self._report.queries or "nothing yet")

    def _measure(self, whole: Manifest) -> None:
        """Once on this device: a restart must not take the seconds that it takes."""
        costs, files = self._engine.costs, Files.at(self._folder)
        try:
            costs.recall((files.read(self._costs) or b"").decode(), self._engine.device_name)
        except (ValueError, KeyError, TypeError, StoreError) as error:
            log.info("no costs are known from before: %s", error)
        if costs.unknown(whole):
            self._engine.measure(whole, self.fetch)
            self._write_costs()

    def _measure_now(self, manifest: Manifest) -> None:
        if self._serving is None:
            self._engine.measure(manifest, self.fetch)
        else:
            self._engine.measure_beside(manifest, self.fetch)
        self._write_costs()

    def _write_costs(self) -> None:
        Files.at(self._folder).write(self._costs, self._engine.costs.dump().encode())

    def assign(self, release: int, queries: Sequence[str], refuse: str | None = None) -> None:
        """Serve these queries of a release, soon; at once when it does so already. `refuse` says why the release served
        now must not come back for a while. A change under way is not interrupted: ask again when the report says it has
        ended."""
        with self._lock:
            asked = (release, tuple(sorted(queries)))
            if refuse is not None and self._report.release is not None:
                self._refuse(self._report.release, refuse)
            if asked != (self._report.release, self._report.queries):
                self._begin(f"changing to release {release}", release, partial(self._take, *asked))

    def _refuse(self, release: int, reason: str) -> None:
        former = self._refused.get(release)
        times = 1 if former is None else former.times + 1
        holds_s = wait_s(times - 1, every_s=_RETRY_S, most_s=_MOST_RETRY_S, chance=0.5)
        self._refused[release] = _Refusal(reason, self._now_s(), holds_s, times)

    def report(self) -> NodeReport:
        """How it stands. ServingError when the engine has failed, so that whoever watches it starts another."""
        with self._lock:
            since = {name: found.since(self._until_change.get(name, _NONE)) for name, found in self._counts().items()}
            return replace(
                self._report,
                busy=self._busy,
                refused={number: found.reason for number, found in self._refused.items() if self._holds(found)},
                settled_s=self._now_s() - self._changed_s,
                failed_frames=failed_more(since, self._under_former),
            )

    def describe(self) -> Description | None:
        """What it answers; None where it is idle."""
        serving, whole = self._serving, self._whole
        if serving is None or whole is None:
            return None
        found = describe(whole)
        cards = {name: found.queries[name].model_copy(update={"release": serving.release}) for name in serving.queries}
        return found.model_copy(update={"queries": cards})

    def check_here(self, query: str) -> None:
        """Raise ElsewhereError for a query that this engine does not answer."""
        serving = self._serving
        if serving is None or query not in serving.queries:
            raise ElsewhereError(f"query {query!r} is not answered by this node any more; ask again")

    def costs(self, release: int) -> DeviceProfile:
        """What each query of a release costs here. Raises StoreError, and ServingError while models of a form that is
        new here are being measured, which begins with this question, and where they cannot be."""
        manifest = self._manifest(release)
        if self._engine.costs.unknown(manifest):
            with self._lock:
                if (found := self._refused.get(release)) is not None and self._holds(found):
                    raise ServingError(found.reason)
                self._begin("measuring models of a new form", release, partial(self._measure_now, manifest))
            raise MeasuringError(f"models of release {release} are of a form that is new here, and are being measured")
        return self._engine.costs.profile(manifest)

    def fetch(self, sha: str) -> Path:
        """The verified local file of a blob. Raises StoreError."""
        return self._cache.fetch(sha)

    def stop(self) -> None:
        """End the engine; what was assigned stays on disk."""
        self._engine.stop()
        if self._thread is not None:
            self._thread.join()

    # changing

    def _begin(self, busy: str, release: int, work: Callable[[], None]) -> None:
        """Do something on a thread of its own, unless it is at something already. Called with the lock held."""
        if self._busy is None:
            self._busy = busy
            self._thread = threading.Thread(target=self._do, args=(release, work), name="gemel-assign", daemon=True)
            self._thread.start()

    def _do(self, release: int, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            known = isinstance(error, GemelError)
            log.warning("release %d is not served: %s", release, error, exc_info=not known)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            with self._lock:
                times = self._refused[release].times if release in self._refused else 0
                self._refused[release] = _Refusal(reason, self._now_s(), times=times)
        finally:
            with self._lock:
                self._busy = None

    def _take(self, release: int, queries: tuple[str, ...]) -> None:
        begun_s = self._now_s()
        whole = self._manifest(release)
        if unknown := [query for query in queries if query not in whole.queries]:
            raise ServingError(f"release {release} has no query {unknown[0]!r}; {nearest(unknown[0], whole.queries)}")
        mine = restricted(whole, queries)
        came = self._cache.bring(mine)
        former = self._serving
        if not queries:
            self._idle()
        elif former is None:
            self._engine.start(mine, self.fetch)
        else:
            self._engine.roll(mine, self.fetch)
        self._settle(mine, whole, came, begun_s)
        # Queries of other nodes may come here while the store is away.
        self._cache.settle(mine, also=(whole,))

    def _resumed(self, last: Manifest, whole: Manifest) -> bool:
        """Whether what was assigned last is served again."""
        begun_s = self._now_s()
        try:
            if last.queries:
                self._engine.start(last, self.fetch)
        except GemelError as error:
            log.warning("what was assigned last cannot be served: %s", error)
            return False
        self._settle(last, whole if whole.release == last.release else last, Fetched(), begun_s)
        return True

    def _idle(self) -> None:
        self._serving = None
        self._engine.stop()

    def _settle(self, mine: Manifest, whole: Manifest, came: Fetched, begun_s: float) -> None:
        with self._lock:
            self._serving, self._whole = (mine, whole) if mine.queries else (None, None)
            self._changed_s = self._now_s()
            former = self._report.release
            self._count_anew(is_other_release=former != mine.release)
            self._report = replace(
                self._report,
                release=mine.release,
                queries=tuple(sorted(mine.queries)),
                former=former if former != mine.release else self._report.former,
                fetched_bytes=came.bytes,
                took_ms=(self._changed_s - begun_s) * 1e3,
            )

    # what is known

    def _count_anew(self, *, is_other_release: bool) -> None:
        counts = self._counts()
        if is_other_release:
            self._under_former = {
                name: found.since(self._until_change.get(name, _NONE)) for name, found in counts.items()
            }
        self._until_change = counts

    def _counts(self) -> dict[str, FrameCounts]:
        if self._serving is None:
            return {}
        queries = self._engine.status().queries
        return {name: FrameCounts(found.arrived, found.failed) for name, found in queries.items()}

    def _holds(self, refusal: _Refusal) -> bool:
        return self._now_s() - refusal.at_s < refusal.holds_s

    def _last_assignment(self) -> Manifest | None:
        try:
            return self._cache.last_manifest()
        except StoreError as error:
            log.warning("what was assigned last is lost: %s", error)
            return None

    def _manifest(self, release: int | None, or_else: Manifest | None = None) -> Manifest:
        """A release from the store, HEAD's for None; what is known of it here where the store is away."""
        try:
            self._cache = LocalCache(open_store(self._uri), self._folder, last=self._last)
            return self._cache.read_manifest(release)
        except StoreError:
            known = [found for found in (self._whole, or_else) if found is not None]
            fitting = [found for found in known if release in (None, found.release)]
            if not fitting:
                raise
            return fitting[0]
