"""A search over plain values: what may be shared is known beforehand, and nothing is trained."""

from hypothesis import strategies as st

from gemel_ray.policy.judging import is_superseded, winner
from gemel_ray.policy.search import advance, is_finished
from gemel_ray.policy.search_state import SearchSettings, SearchState
from gemel_ray.spec.layers import LayerGroup, LayerRef
from gemel_ray.spec.trials import SUPERSEDED, Outcome


def group_of(signature, size, queries="ab", rank_bytes=0):
    return LayerGroup(signature, tuple(LayerRef(query, signature) for query in queries), size, rank_bytes)


def groups_of(sizes, queries="ab", rank_bytes=0):
    ordered = enumerate(sorted(sizes, reverse=True))
    return tuple(group_of(f"s{place}", size, queries, rank_bytes) for place, size in ordered)


class World:
    """Some layers of some queries can never be shared, some groups only after training.

    `tamed`: hard layers become willing with private corrections. Each hard layer keeps its queries `far` more below
    their target.
    """

    def __init__(self, hard=(), trainable=(), *, tamed=False, far=None):
        self.hard, self.trainable, self.tamed, self.far = set(hard), set(trainable), tamed, far

    def judge(self, candidate):
        plain = [layer for layer in candidate.configuration.shared if not (self.tamed and layer.rank)]
        members = [member for layer in plain for member in layer.members]
        resists = [m for m in members if m.layer in self.hard or (m.query, m.layer) in self.hard]
        hard = sorted({member.query for member in resists})
        untrained = {m.query for m in members if m.layer in self.trainable} if not candidate.max_steps else set()
        passed = not hard and not untrained
        return Outcome(
            candidate=candidate.number, passed=passed, reason="passed" if passed else "missed", objectors=tuple(hard),
            shortfall=None if passed or self.far is None else self.far * len({member.layer for member in resists}),
        )  # fmt: skip


def run(state, world, *, interrupt=False, skip=False):
    history = []
    while not is_finished(state):
        if interrupt:
            state = SearchState.model_validate_json(state.model_dump_json())
        outcomes = {}
        for candidate in state.round:
            if skip and is_superseded(state, candidate, outcomes):
                outcomes[candidate.number] = Outcome(candidate=candidate.number, passed=False, reason=SUPERSEDED)
                continue
            outcomes[candidate.number] = world.judge(candidate)
            history.append(candidate)
        won = winner(state, outcomes)
        state = advance(state, outcomes, release=state.release + (won is not None))
    return state, history


SIZES = st.lists(st.integers(1, 10**6), min_size=1, max_size=14)
PLACES = st.sets(st.integers(0, 13).map(lambda place: f"s{place}"))
BIG = SearchSettings(max_trials=10_000, max_steps=10)


def shared_signatures(state):
    return {layer.signature for layer in state.accepted.shared}
