"""edge.reconsidering in a process of its own: seconds of computing that must not hold up what is being served.

    python -m gemel_ray.engine.reconsidering < question.json > answer.json

The process knows neither torch nor the device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from gemel_ray.edge.recent import RecentTraffic
from gemel_ray.edge.reconsidering import Reconsidered, reconsider
from gemel_ray.policy.released import released_plans
from gemel_ray.spec.errors import ServingError
from gemel_ray.spec.plan import EdgePlan
from gemel_ray.spec.profile import DeviceProfile
from gemel_ray.spec.release import Manifest

_TIMEOUT_S = 120.0
# Behind all that serves.
_NICENESS = 10


@dataclass(frozen=True, slots=True)
class Question:
    """What is being served by which plan, what it costs, and what came of it."""

    manifest: Manifest
    profile: DeviceProfile
    policy: str
    plan: EdgePlan
    recent: RecentTraffic

    def answer(self) -> Reconsidered:
        """Of all the policy's plans, made for the rates at which frames really come."""
        others = released_plans(
            self.manifest, self.profile, self.policy, budget_bytes=self.plan.budget_bytes, fps=self.recent.fps
        )
        return reconsider(self.plan, [other.plan for other in others], self.recent)


def answered_elsewhere(question: Question) -> Reconsidered:
    """The question's answer. Raises ServingError where the process fails or takes minutes."""
    packages = str(Path(__file__).parents[2])
    paths = [packages, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        ended = subprocess.run(
            [sys.executable, "-m", __name__],
            input=_QUESTIONS.dump_json(question),
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").splitlines()[-1:]
        raise ServingError(f"no other plan was looked for: {error} {' '.join(said)}".rstrip()) from error
    return _ANSWERS.validate_json(ended.stdout)


_QUESTIONS = TypeAdapter(Question)
_ANSWERS = TypeAdapter(Reconsidered)


def main() -> None:
    """Read a question, write its answer."""
    os.nice(_NICENESS)
    question = _QUESTIONS.validate_json(sys.stdin.buffer.read())
    sys.stdout.buffer.write(_ANSWERS.dump_json(question.answer()))


if __name__ == "__main__":
    main()
