"""Whether a query could pass its gate at all: with few frames not even full agreement is certain enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from gemel_ray.spec.answers import Classified, Detected
from gemel_ray.spec.errors import FeedError
from gemel_ray.training.data import QueryData, score


class SmallGateError(FeedError):
    """No query has frames enough on its gate for anything to pass."""


def check_gates(data: Mapping[str, QueryData], gate_margin: float, report: Callable[[str], None]) -> list[str]:
    """The queries that no merged model could pass for, each one told of.

    Raises SmallGateError where that holds for all of them: a search would try everything in vain.
    """
    problems = {name: problem for name, part in data.items() if (problem := _problem(part, gate_margin))}
    if problems and len(problems) == len(data):
        raise SmallGateError("; ".join(problems.values()))
    for problem in problems.values():
        report(f"{problem}; it will share nothing")
    for part in data.values():
        if unseen := _unseen(part):
            report(
                f"query {part.query.name!r}: no frame of its gate {unseen}, so that no merged model is tested on it; "
                f"give feed {part.query.feed!r} more frames"
            )
    return list(problems)


def _problem(data: QueryData, gate_margin: float) -> str | None:
    query, gate = data.query, data.splits["gate"]
    best = score(data, "gate", gate.answers).lower_bound
    needed = query.accuracy_target - gate_margin
    if best >= needed:
        return None
    return (
        f"query {query.name!r}: its gate has {len(gate.images)} frames{_rarest(data)}, so that not even full agreement "
        f"is surely above {best:.3f}, and accuracy_target - --gate-margin is {needed:.3f}; give feed {query.feed!r} "
        f"more frames, or say --gate-margin {_rounded_up(query.accuracy_target - best)}"
    )


def _unseen(data: QueryData) -> str:
    """A class that what the query is held against never has on the gate."""
    gate, classes, by_labels = data.splits["gate"], data.query.model.classes, data.query.judged_by == "labels"
    if _detects(data):
        given = gate.boxes if by_labels else [each.boxes for each in gate.answers if isinstance(each, Detected)]
        seen, classes = {box.label for boxes in given for box in boxes}, classes[1:]
    elif by_labels:
        seen = {classes[label] for label in gate.labels.tolist() if label >= 0}
    else:
        seen = {answer.label for answer in gate.answers if isinstance(answer, Classified)}
    missing = [label for label in classes if seen and label not in seen]
    done = "is labelled" if by_labels else "is answered by the original with"
    return f"{done} {missing[0]!r}" if missing else ""


def _detects(data: QueryData) -> bool:
    return any(isinstance(answer, Detected) for answer in data.splits["gate"].answers)


def _rarest(data: QueryData) -> str:
    """What the original answers least often there; of a detector, how often it finds anything."""
    answers = data.splits["gate"].answers
    if _detects(data):
        return f", {sum(1 for each in answers if isinstance(each, Detected) and each.boxes)} of them with boxes"
    counts = Counter(answer.label for answer in answers if isinstance(answer, Classified))
    if not counts:
        return ""
    label, count = min(counts.items(), key=lambda found: (found[1], found[0]))
    return f", {count} of them answered {label!r}"


def _rounded_up(fraction: float) -> str:
    return f"{int(fraction * 100) / 100 + 0.01:.2f}"
