"""Token files of a running service, read again now and then: what stands there counts, what is gone from there ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gemel_ray.serving.tokens import Role, Tokens, TokenSource, read_tokens
from gemel_ray.spec.errors import InputError

log = logging.getLogger(__name__)

# A token that was taken out is refused after so long. The files are small and on this machine's own disk: reading them
# costs less than comparing their times would save, and finds changes that leave time and size as they were.
_LOOK_EVERY_S = 1.0


def token_files(sources: Mapping[Role, TokenSource]) -> dict[Role, TokenSource]:
    """Those of the sources that are files, by absolute paths: another process may read them in another folder."""
    return {
        role: source.model_copy(update={"file": str(Path(source.file).expanduser().absolute())})
        for role, source in sources.items()
        if source.file is not None
    }


class TokenFiles:
    """The tokens of now, for a Guard. Read when somebody asks, once a second at most.

    A file that is gone, empty or senseless leaves its role with the tokens it had: nobody is let in who was not before,
    and an editor or a mount that takes a file away for a moment does not lock all cameras out.
    """

    def __init__(
        self, tokens: Tokens, files: Mapping[Role, TokenSource], *, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        """`tokens` are those of the start, with those of environment variables, which stay."""
        self._tokens = tokens
        self._files = dict(files)
        self._now_s = now_s
        self._due_s = now_s()
        # What is wrong with which file, so that it is told once.
        self._problems: dict[Role, str] = {}

    def __call__(self) -> Tokens:
        """The tokens that are taken now."""
        if self._files and self._now_s() >= self._due_s:
            self._due_s = self._now_s() + _LOOK_EVERY_S
            for role, source in self._files.items():
                self._look(role, source)
        return self._tokens

    def _look(self, role: Role, source: TokenSource) -> None:
        try:
            found = self._tokens.with_role(role, read_tokens({role: source}))
        except InputError as error:
            self._tell(role, str(error))
            return
        self._problems.pop(role, None)
        if found != self._tokens:
            log.info("tokens.%s: file %s has changed, what it holds now is taken", role, source.file)
            self._tokens = found

    def _tell(self, role: Role, problem: str) -> None:
        if self._problems.get(role) != problem:
            log.warning("%s; the former tokens stay", problem)
        self._problems[role] = problem
