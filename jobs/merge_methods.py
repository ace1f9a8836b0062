"""What bench_merge compares: our search, GEMEL's, and what else one could do about memory. One thread, no Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gemel_ray.merging.options import SearchOptions, initial_states
from gemel_ray.merging.progress import Progress, superseded
from gemel_ray.policy.additions import memory_forward
from gemel_ray.policy.greedy import advance_greedy, begin_greedy, greedy_candidate
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.spec.merge import MergeConfiguration, SharedLayer
from gemel_ray.spec.release import Manifest
from gemel_ray.spec.trials import Candidate, Outcome
from gemel_ray.spec.workload import Workload
from gemel_ray.training.data import QueryData, run_model, score
from gemel_ray.training.losses import batch_loss
from gemel_ray.training.releases import publish_candidate
from gemel_ray.training.trial import Trial
from gemel_ray.vision.checkpoints import put_state
from gemel_ray.vision.inspection import analyze
from gemel_ray.vision.models import build_model, task_of
from gemel_ray.weights.models import load_state, reader_of
from gemel_ray.weights.store import Store

Row = dict[str, Any]
# What an original is distilled into, by its task, and how long.
STUDENTS = {"classification": "resnet18_quarter", "detection": "fcos_resnet18_quarter"}
STUDENT_STEPS = 300


@dataclass(frozen=True)
class Setting:
    """What every method starts from, and when it has to end."""

    workload: Workload
    models: dict[str, nn.Module]
    data: dict[str, QueryData]
    store: Store
    root: Manifest
    settings: SearchSettings
    is_over: Callable[[], bool]

    def attempt(self, candidate: Candidate) -> Outcome:
        """Run one candidate to its end, or until time is up."""
        trial = Trial(candidate, self.data, self.store, allow_factories=True)
        for validation in trial.run():
            if validation.verdict is not None:
                return trial.outcome(validation)
            if self.is_over():
                break
        return superseded(candidate)


def ours(setting: Setting, *, paper: bool = False, slices: bool = True) -> Iterator[Row]:
    """Our search; after every trial what it was and what is saved."""
    options = SearchOptions(settings=setting.settings, paper=paper, slices=slices, allow_factories=True)
    states = initial_states(setting.workload, setting.models, setting.root, options)
    progress = Progress(setting.store, "bench", states, root=setting.root.release)
    while not setting.is_over() and (candidate := progress.next_candidate()) is not None:
        outcome = setting.attempt(candidate)
        progress.take(candidate, outcome)
        yield row(candidate, outcome, progress.latest())


def greedy(setting: Setting, **how: Any) -> Iterator[Row]:  # noqa: ANN401 - as begin_greedy takes it
    """GEMEL's search: one layer group after the other."""
    latest = setting.root
    groups = analyze(setting.workload, allow_factories=True).groups
    state = begin_greedy(groups, release=latest.release, settings=setting.settings, **how)
    while not setting.is_over() and (candidate := greedy_candidate(state)) is not None:
        outcome = setting.attempt(candidate)
        if outcome.passed:
            latest = publish_candidate(setting.store, latest, candidate, outcome)
        state = advance_greedy(state, candidate, passed=outcome.passed, release=latest.release)
        yield row(candidate, outcome, latest)


def averaged(setting: Setting) -> Iterator[Row]:
    """Everything across models shared at once, without retraining."""
    yield _without_training(setting, MergeConfiguration.of(_groups(setting)).shared, "averaged")


def stem(setting: Setting) -> Iterator[Row]:
    """Mainstream's way: the longest run of first layers that can be shared without retraining, by bisection."""
    ordered = _in_order_of_appearance(setting)
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high + 1) // 2
        found = _without_training(setting, memory_forward(ordered[:middle]), f"stem of {middle} layer groups")
        low, high = (middle, high) if found["reason"] == "passed" else (low, middle - 1)
        yield found


def dedup(setting: Setting) -> Iterator[Row]:
    """Tensors that are bit-identical already."""
    seen: set[bytes] = set()
    saved = total = 0
    for model in setting.models.values():
        for tensor in model.state_dict().values():
            held = tensor.numel() * tensor.element_size()
            content = tensor.cpu().numpy().tobytes()
            saved, total = saved + held * (content in seen and held > 1024), total + held
            seen.add(content)
    yield _plain_row("bit-identical tensors", saved / total, {query: (1.0, 1.0) for query in setting.models})


def bf16(setting: Setting) -> Iterator[Row]:
    """The originals' weights in half of the bits."""
    yield _plain_row("originals in bf16", 0.5, {q: _gate(setting, q, _rounded(m)) for q, m in setting.models.items()})


def merged_bf16(setting: Setting) -> Iterator[Row]:
    """Our search, and its result in half of the bits."""
    yield from ours(setting)
    head = setting.store.manifest(max(setting.store.releases()))
    gates, read = {}, reader_of(setting.store, head.queries.values())
    for query, released in head.queries.items():
        model = build_model(released.query.model, allow_factories=True)
        put_state(model, load_state(read, released.weights, released.slices))
        gates[query] = _gate(setting, query, _rounded(model))
    yield _plain_row("merged, in bf16", 1 - head.bytes_after / head.bytes_before / 2, gates)


def distilled(setting: Setting) -> Iterator[Row]:
    """Every original distilled into a smaller model of its own."""
    gates, held, total = {}, 0, 0
    for query, model in setting.models.items():
        student = _student(setting, query)
        gates[query] = _gate(setting, query, student)
        held += _bytes(student)
        total += _bytes(model)
    steps = STUDENT_STEPS * len(setting.models)
    yield _plain_row("distilled into a quarter-width ResNet18", 1 - held / total, gates) | {"steps": steps}


# Of an original's own spec, what its student does not follow.
_UNSTATED = {"factory": None, "options": {}}


def _student(setting: Setting, query: str) -> nn.Module:
    torch.manual_seed(0)
    data, rng = setting.data[query], np.random.default_rng(0)
    spec = data.query.model.model_copy(update=_UNSTATED | {"architecture": STUDENTS[task_of(data.query.model)]})
    student, train = build_model(spec), data.splits["train"]
    optimiser = torch.optim.AdamW(student.parameters())
    student.train()
    for step in range(STUDENT_STEPS):
        optimiser.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / STUDENT_STEPS))
        optimiser.zero_grad(set_to_none=True)
        places = rng.choice(len(train.images), size=min(32, len(train.images)), replace=False)
        batch_loss(student, data.task, train, places).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return student


def _rounded(model: nn.Module) -> nn.Module:
    state = model.state_dict()
    floating = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    put_state(model, state | {name: tensor.bfloat16().to(tensor.dtype) for name, tensor in floating.items()})
    return model


def _gate(setting: Setting, query: str, model: nn.Module) -> tuple[float, float]:
    data = setting.data[query]
    _, answers = run_model(model, data.task, data.splits["gate"].images)
    found = score(data, "gate", answers)
    return found.estimate, found.lower_bound


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _groups(setting: Setting) -> Any:  # noqa: ANN401
    return analyze(setting.workload, allow_factories=True).groups


def _in_order_of_appearance(setting: Setting) -> tuple[SharedLayer, ...]:
    inventories = analyze(setting.workload, allow_factories=True).inventories
    places = {
        (inventory.query, layer.path): place
        for inventory in inventories
        for place, layer in enumerate(inventory.layers)
    }
    shared = MergeConfiguration.of(_groups(setting)).shared
    return tuple(sorted(shared, key=lambda layer: min(places[tuple(member)] for member in layer.members)))


def _without_training(setting: Setting, shared: tuple[SharedLayer, ...], label: str) -> Row:
    candidate = Candidate(
        number=0,
        label=label,
        configuration=MergeConfiguration(shared=shared),
        max_steps=0,
        start_release=setting.root.release,
        gate_margin=setting.settings.gate_margin,
    )
    outcome = setting.attempt(candidate)
    if outcome.passed:
        return row(candidate, outcome, publish_candidate(setting.store, setting.root, candidate, outcome))
    return row(candidate, outcome, setting.root)


def row(candidate: Candidate, outcome: Outcome, latest: Manifest) -> Row:
    gates = {name: query.accuracy.held for name, query in latest.queries.items() if query.accuracy}
    saved = 1 - latest.bytes_after / latest.bytes_before
    return _plain_row(candidate.label, saved, gates) | {"reason": outcome.reason, "steps": outcome.steps}


def _plain_row(label: str, saved_fraction: float, gates: dict[str, tuple[float, float]]) -> Row:
    return {"label": label, "reason": "", "steps": 0, "saved_fraction": saved_fraction, "gates": gates}


METHODS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "ours": merged_bf16,
    "ours-no-slices": lambda setting: ours(setting, slices=False),
    "ours-paper-rule": lambda setting: ours(setting, paper=True),
    "greedy": greedy,
    "greedy-authors-rate": lambda setting: greedy(setting, learning_rate=1e-5),
    "greedy-our-recipe": lambda setting: greedy(setting, recipe="ours", start="mean", learning_rate=3e-4),
    "averaged": averaged,
    "stem": stem,
    "dedup": dedup,
    "bf16": bf16,
    "distilled": distilled,
}
# Follow the feeds' labels, as the authors do.
BY_LABELS = frozenset({"greedy", "greedy-authors-rate"})
