"""The drift watch of a service: monitor and response, on originals that a follower brings from the store."""

from __future__ import annotations

import logging
from pathlib import Path

from gemel_ray.engine.originals import Originals
from gemel_ray.serving.changes import OWN_RELEASES
from gemel_ray.serving.drift_attempts import DriftAttempts
from gemel_ray.serving.drift_options import DriftOptions, RemergeOptions
from gemel_ray.serving.drift_reports import Drift, DriftReport
from gemel_ray.serving.drift_response import DriftResponse, Revert
from gemel_ray.serving.drift_watch import DriftWatch, Samples
from gemel_ray.spec.errors import GemelError, InputError, ServingError, StoreError
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.workload import Workload
from gemel_ray.weights.following import Follower
from gemel_ray.weights.maintenance import reverted

log = logging.getLogger(__name__)


class DriftService:
    """Watches what is served. Without its originals at hand it waits for the store to give them."""

    def __init__(
        self,
        options: DriftOptions,
        samples: Samples,
        follower: Follower,
        folder: Path,
        store: str,
        workload: Workload | None,
        *,
        revert: Revert,
        allow_factories: bool,
    ) -> None:
        """Frames and events are kept below `folder`."""
        self._options = options
        self._follower = follower
        self._allow_factories = allow_factories
        self.watch = DriftWatch(options, samples, folder, self._drifted)
        self._response = DriftResponse(
            options, workload, store, folder, revert=revert, kept=self.watch.kept, submit=_submit
        )
        self._attempts = DriftAttempts()
        self._is_watching = False
        # The store's releases, by those that were served here.
        self._followed: dict[int, int] = {}

    def start(self, manifest: Manifest) -> None:
        """Watch a release that is being served, on a thread of its own."""
        self.serve(manifest)
        self.watch.start()

    def stop(self) -> None:
        """End the thread."""
        self.watch.stop()

    def serve(self, manifest: Manifest) -> None:
        """Another release is being served."""
        self._followed[manifest.release] = followed_release(manifest)
        originals: Originals | None = None
        try:
            root = self._follower.originals(manifest)
            originals = Originals(
                root, self._follower.fetch, most_bytes=self._options.originals, allow_factories=self._allow_factories
            )
        except StoreError as error:
            log.warning("nobody watches release %d for drift yet: %s", manifest.release, error)
        self._is_watching = originals is not None
        self.watch.serve(manifest, originals)

    def tend(self, manifest: Manifest) -> None:
        """Now and then: fetch originals that could not be had, submit re-merges that have enough frames."""
        if not self._is_watching:
            self.serve(manifest)
        self._response.submit_what_is_ready()

    def report(self) -> DriftReport:
        """What is known of drift."""
        return DriftReport(queries=self.watch.report(), events=self._response.events)

    def _drifted(self, drift: Drift) -> None:
        """See DriftWatch: what drifted is acted on once in each release that serves it, or until that succeeds."""
        if not self._attempts.is_due(drift.query, drift.release):
            return
        try:
            is_done = self._response(drift, self._followed.get(drift.release))
        except Exception:
            log.exception("the drift of %s was not dealt with", drift.query)
            is_done = False
        self._attempts.note(drift.query, drift.release, is_done=is_done)


def check_serving(manifest: Manifest, release: int) -> None:
    """InputError where another release is served by now than the one in which a query drifted."""
    if manifest.release != release:
        raise InputError(f"release {manifest.release} is served by now, of which nothing is known yet")


def locally_reverted(manifest: Manifest, root: Manifest, query: str) -> Manifest:
    """A release for this box alone, in which a query runs its original of `root`."""
    number = manifest.release + 1 if manifest.release > OWN_RELEASES else OWN_RELEASES + manifest.release
    changed = {"release": number, "parent": followed_release(manifest)}
    return reverted(manifest, root, [query]).model_copy(update=changed)


def followed_release(manifest: Manifest) -> int:
    """The store's release that a release is, or was made from for this box alone."""
    return manifest.parent or 0 if manifest.release > OWN_RELEASES else manifest.release


def _submit(options: RemergeOptions, folder: Path, arguments: list[str]) -> str:
    # The only part of a box that needs Ray, and only where somebody asked for it.
    try:
        from gemel_ray.serving.remerging import submit_search
    except ImportError as error:
        raise ServingError(f"a job cannot be submitted from here ({error}); install ray[default]") from error
    try:
        return submit_search(options.address, folder, arguments)
    except GemelError:
        raise
    except Exception as error:
        # The client raises whatever its HTTP library does.
        raise ServingError(f"{options.address} takes no job ({type(error).__name__}: {error})") from error
