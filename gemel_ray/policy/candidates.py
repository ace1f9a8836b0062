"""How an addition is tried: from which start, at which rate, from what frames."""

from __future__ import annotations

from gemel_ray.policy.additions import Addition, told
from gemel_ray.policy.search_state import SearchState
from gemel_ray.spec.trials import Candidate

# Strangers must move far from where averaging leaves them. Relatives, and additions to what is accepted, are close to
# their goal already: at the full rate they are thrown back first (.79 to .73 in 15 steps, then .94 after 90; at the
# gentle one .95 after 45: five street cameras, own measurement). Five layers of ten-class strangers come to .89 at the
# full rate, to .84 at the gentle one.
_FAR = ("leap", "widen", "persist")
_LEAP_RATE = 1e-3
_GENTLE_RATE = 3e-4


def candidate_of(state: SearchState, place: int, addition: Addition, max_steps: int) -> Candidate:
    """What a round tries in one of its places: an addition on top of what is accepted, in so many steps."""
    number, far = state.proposed + place, _is_far(state)
    return Candidate(
        number=number,
        model_set=state.name,
        label=f"{state.phase} {told(addition)}",
        configuration=state.accepted.joined(addition),
        max_steps=max_steps,
        start_release=state.release,
        start=state.settings.start if far else "mean",
        objective=state.settings.objective,
        learning_rate=_LEAP_RATE if far else _GENTLE_RATE,
        gate_margin=state.settings.gate_margin,
        views=state.settings.views and state.overfits,
        seed=state.seed + number,
    )


def _is_far(state: SearchState) -> bool:
    """Whether models are far from sharing: strangers, of which nothing is shared yet."""
    return state.phase in _FAR or (state.phase == "divide" and not state.relatives and not state.accepted.shared)
