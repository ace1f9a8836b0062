"""Which queries of one feed may share the first part of a forward pass, and how much of it.

Memory is shared by the layer; computation only from the input on, and only where everything on the way is the same:
the feed, the preprocessing, and every tensor bit for bit, normalisation included.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A stem must spare at least so many multiply-adds for each byte that is kept of it, since keeping copies bytes:
# resnet18's first convolution spares 37 and brought nothing, its first seven layers 700 and brought a tenth
# (jobs/bench_stems.py).
_LEAST_PER_BYTE = 100
# Larger batches than that come from backlogs, whose queries rarely hold the same frames.
_MOST_FRAMES = 8


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a model between two places where one tensor is all that goes on.

    Steps of equal identity compute the same of the same input. Costs are of one frame.
    """

    identity: str
    multiply_adds: int
    output_bytes: int


@dataclass(frozen=True, slots=True)
class Chain:
    """A query's model from the input on. `source` is equal for queries that see the same input."""

    source: str
    input_bytes: int
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Stem:
    """Queries whose first steps are to be computed once, and what keeping one frame's input and output takes."""

    queries: tuple[str, ...]
    steps: int
    frame_bytes: int


def choose_stems(chains: Mapping[str, Chain]) -> tuple[Stem, ...]:
    """Stems of disjoint sets of queries, always the one next that spares most multiply-adds."""
    stems: list[Stem] = []
    left = dict(chains)
    while (best := max(_candidates(left), key=lambda found: found[0], default=None)) is not None:
        stems.append(best[1])
        left = {name: chain for name, chain in left.items() if name not in best[1].queries}
    return tuple(stems)


def frames_kept(stems: Sequence[Stem], most_bytes: int) -> int:
    """The largest batch that every stem may keep within so many bytes; 0 where not even one frame fits."""
    frame_bytes = sum(stem.frame_bytes for stem in stems)
    return min(most_bytes // frame_bytes, _MOST_FRAMES) if frame_bytes else 0


def _candidates(chains: Mapping[str, Chain]) -> list[tuple[int, Stem]]:
    """What each stem of two queries and more would spare for one frame of each, where it is worth keeping."""
    users: dict[tuple[str, int, tuple[str, ...]], list[str]] = defaultdict(list)
    for name, chain in chains.items():
        identities = tuple(step.identity for step in chain.steps)
        for depth in range(1, len(identities) + 1):
            users[chain.source, chain.input_bytes, identities[:depth]].append(name)
    found = []
    for (_, input_bytes, prefix), names in users.items():
        steps = chains[names[0]].steps[: len(prefix)]
        multiply_adds, output_bytes = sum(step.multiply_adds for step in steps), steps[-1].output_bytes
        if len(names) > 1 and multiply_adds >= _LEAST_PER_BYTE * output_bytes:
            # The output twice: as it is kept, and as the rest of a model works on it.
            stem = Stem(tuple(names), len(steps), input_bytes + 2 * output_bytes)
            found.append((multiply_adds * (len(names) - 1), stem))
    return found
