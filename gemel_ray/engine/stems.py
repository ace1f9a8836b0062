"""Stem reuse: what several queries of one feed compute alike from the input on is computed once for each batch.

What is kept is found by the very input of the model. It needs no word of whether two frames are the same one, holds for
frames that came in separate requests, and cannot be wrong: the same bits went in, the same tensors were applied.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gemel_ray.engine.blobs import BlobFile, read_tensor
from gemel_ray.engine.models import Skeleton, Source, kind_of
from gemel_ray.engine.tracing import Tokens, TracedForm, trace
from gemel_ray.policy.baselines import fits_whole
from gemel_ray.policy.stems import Chain, choose_stems, frames_kept
from gemel_ray.spec.plan import EdgePlan
from gemel_ray.spec.release import Manifest
from gemel_ray.vision.models import task_of

log = logging.getLogger(__name__)

# Of the budget, at most, for what is kept of all stems. A release that comes later is planned in what is left.
_MOST_FRACTION = 0.05
# Private tensors up to this size are compared by content; larger ones that are alike were merged.
_MOST_COMPARED_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class _Batch:
    inputs: torch.Tensor
    outputs: torch.Tensor


class KeptStem:
    """The newest batch that went through a stem. Used by one thread at a time."""

    def __init__(self, most_frames: int) -> None:
        self._most_frames = most_frames
        self._batch: _Batch | None = None

    def outputs(self, inputs: torch.Tensor, head: nn.Module) -> torch.Tensor:
        """What the head gives for these inputs, computed unless these were the last ones.

        Only whole batches are taken up: kernels may round a frame otherwise in a batch of another size.
        """
        batch = self._batch
        if batch is not None and torch.equal(batch.inputs, inputs):
            # Copies, since the rest of a model may work in place.
            return batch.outputs.clone()
        if len(inputs) > self._most_frames:
            return head(inputs)
        given, outputs = inputs.clone(), head(inputs)
        self._batch = _Batch(given, outputs)
        return outputs.clone()


class StemmedModel:
    """One query's model, whose first part it has in common with others."""

    def __init__(self, head: nn.Module, tail: nn.Module, kept: KeptStem) -> None:
        self._head = head
        self._tail = tail
        self._kept = kept

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """The forward pass."""
        return self._tail(self._kept.outputs(inputs, self._head))


class StemSharing:
    """Lets queries of one feed reuse each other's stems."""

    def __init__(self) -> None:
        # By kind of model; None for those that cannot be cut.
        self._forms: dict[str, TracedForm | None] = {}

    def learn(self, manifest: Manifest, skeletons: Mapping[str, Skeleton]) -> None:
        """Get to know the forms of a release's models. While nothing computes in this process, see tracing.trace."""
        for name in _together(manifest):
            spec = manifest.queries[name].query.model
            if (kind := kind_of(spec)) not in self._forms:
                self._forms[kind] = trace(skeletons[name].model, (1, 3, spec.input_size, spec.input_size))

    def share(
        self, manifest: Manifest, skeletons: Mapping[str, Skeleton], blobs: Mapping[str, BlobFile], most_bytes: int
    ) -> int:
        """Settle which of these share what, where that is worth it; the bytes that this may take.

        Models of forms that were never learnt are computed by themselves.
        """
        forms = {name: self._forms.get(kind_of(manifest.queries[name].query.model)) for name in _together(manifest)}
        known = {name: form for name, form in forms.items() if form is not None}
        stems = choose_stems(_chains(manifest, known, skeletons, blobs))
        most_frames = frames_kept(stems, most_bytes)
        stemmed: dict[str, StemmedModel] = {}
        for stem in stems if most_frames else ():
            kept = KeptStem(most_frames)
            stemmed |= {name: StemmedModel(*known[name].cut(skeletons[name].model, stem.steps), kept)
                        for name in stem.queries}  # fmt: skip
            log.info("queries %s compute their first %d steps once a frame", ", ".join(stem.queries), stem.steps)
        for name, skeleton in skeletons.items():
            skeleton.stemmed = stemmed.get(name)
        return most_frames * sum(stem.frame_bytes for stem in stems)


def most_kept_bytes(plan: EdgePlan) -> int:
    """What may be set aside for stems: a small part of the budget, and nothing that any weights need."""
    if not fits_whole(plan):
        return 0
    workspace_bytes = max(max(query.workspace_bytes.values()) for query in plan.queries)
    free_bytes = plan.budget_bytes - sum(plan.weight_bytes.values()) - workspace_bytes
    return min(int(plan.budget_bytes * _MOST_FRACTION), free_bytes)


def _together(manifest: Manifest) -> list[str]:
    """Classifiers that are not alone with their feed; a detector's input is no tensor."""
    asked: dict[str, list[str]] = defaultdict(list)
    for name, released in manifest.queries.items():
        if task_of(released.query.model) == "classification":
            asked[released.query.feed].append(name)
    return [name for names in asked.values() if len(names) > 1 for name in names]


def _chains(
    manifest: Manifest,
    forms: Mapping[str, TracedForm],
    skeletons: Mapping[str, Skeleton],
    blobs: Mapping[str, BlobFile],
) -> dict[str, Chain]:
    contents: dict[Source, str] = {}
    chains = {}
    for name, form in forms.items():
        query, skeleton = manifest.queries[name].query, skeletons[name]
        steps = form.steps(skeleton.model, _tokens(skeleton, blobs, contents))
        chains[name] = Chain(f"{query.feed} {query.model.input_size} {skeleton.way}", form.input_bytes, steps)
    return chains


def _tokens(skeleton: Skeleton, blobs: Mapping[str, BlobFile], contents: dict[Source, str]) -> Tokens:
    sources = skeleton.sources

    def token(path: str) -> str:
        own = {full.removeprefix(path): source for full, source in sources.items() if full.startswith(f"{path}.")}
        return " ".join(f"{name}={_content(source, blobs, contents)}" for name, source in sorted(own.items()))

    return token


def _content(source: Source, blobs: Mapping[str, BlobFile], contents: dict[Source, str]) -> str:
    """A word for a tensor's bits, equal where they are."""
    if source not in contents:
        blob = blobs[source.weight]
        is_small = blob.tensors[source.name].bytes <= _MOST_COMPARED_BYTES
        whole = hashlib.sha256(read_tensor(blob, source.name)).hexdigest() if is_small else repr(source)
        contents[source] = whole if source.slice is None else f"{whole} {source.slice}"
    return contents[source]
