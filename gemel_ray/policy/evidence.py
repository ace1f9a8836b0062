"""How well the evidence predicted what would share: a search's own report on itself."""

from __future__ import annotations

from dataclasses import dataclass

from gemel_ray.policy.additions import Addition
from gemel_ray.policy.search_state import SearchState
from gemel_ray.spec.merge import MergeConfiguration


@dataclass(frozen=True, slots=True)
class Prediction:
    """Savings across models in bytes.

    `predicted`: by layers whose weights resembled each other; `kept`: what of that was accepted in the end;
    `possible`: by all layer groups; `accepted`: what of that was accepted.
    """

    predicted_bytes: int
    kept_bytes: int
    possible_bytes: int
    accepted_bytes: int

    def __add__(self, other: Prediction) -> Prediction:
        return Prediction(
            self.predicted_bytes + other.predicted_bytes,
            self.kept_bytes + other.kept_bytes,
            self.possible_bytes + other.possible_bytes,
            self.accepted_bytes + other.accepted_bytes,
        )

    def told(self) -> str:
        """In words, for people."""
        predicted = _share(self.predicted_bytes, self.possible_bytes)
        held = _share(self.kept_bytes, self.predicted_bytes)
        surprising = _share(self.accepted_bytes - self.kept_bytes, self.possible_bytes - self.predicted_bytes)
        return (
            f"prediction by resemblance of weights: {predicted} of what models could share was said to; {held} of that "
            f"does, and {surprising} of the rest"
        )


def judged(state: SearchState) -> Prediction:
    """What was predicted of a search's layers, and what came of it."""
    return Prediction(
        _saved(state.relatives),
        _kept(state.relatives, state.accepted),
        _saved(state.groups),
        _kept(state.groups, state.accepted),
    )


def _saved(wanted: Addition) -> int:
    return sum(layer.saved_bytes for layer in wanted)


def _kept(wanted: Addition, accepted: MergeConfiguration) -> int:
    """What the accepted configuration saves of the wanted layers: members that hold one copy count once."""
    copy_of = {member: place for place, layer in enumerate(accepted.shared) for member in layer.members}
    return sum(
        layer.layer_bytes * (len(layer.members) - len({copy_of.get(member, member) for member in layer.members}))
        for layer in wanted
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "nothing"
