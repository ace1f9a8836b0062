"""The originals, run beside an engine and outside its budget: what merged models are held against."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from gemel_ray.engine.blobs import Fetch
from gemel_ray.spec.answers import Answer
from gemel_ray.spec.errors import ServingError, nearest
from gemel_ray.spec.release import Manifest
from gemel_ray.vision.checkpoints import fit_state
from gemel_ray.vision.models import build_model
from gemel_ray.vision.tasks import Image, task_for
from gemel_ray.weights.models import load_state
from gemel_ray.weights.tensors import Tensors, decode


class Originals:
    """Answers with the models of the release that nothing was merged in. On the CPU; for one thread.

    As many models as fit into `most_bytes` are kept in memory, the one used last always; the others come from local
    disk again.
    """

    def __init__(self, root: Manifest, fetch: Fetch, *, most_bytes: int, allow_factories: bool = False) -> None:
        """`root` is the release of the originals, `fetch` gives a blob's verified file on local disk."""
        self.root = root
        self._fetch = fetch
        self._most_bytes = most_bytes
        self._allow_factories = allow_factories
        self._models: OrderedDict[str, nn.Module] = OrderedDict()

    @torch.inference_mode()
    def answers(self, query: str, images: Sequence[Image]) -> list[Answer]:
        """One answer for each frame. Raises StoreError, ModelError, and ServingError for a query without original."""
        if query not in self.root.queries:
            raise ServingError(f"release {self.root.release} has no {query!r}; {nearest(query, self.root.queries)}")
        asked = self.root.queries[query].query
        task = task_for(asked.model, asked.score_threshold)
        return task.answers(self._model(query)(task.prepare(images)), images)

    def _model(self, query: str) -> nn.Module:
        if query not in self._models:
            self._make_room(self._bytes(query))
            self._models[query] = self._built(query)
        self._models.move_to_end(query)
        return self._models[query]

    def _make_room(self, more_bytes: int) -> None:
        while self._models and sum(map(self._bytes, self._models)) + more_bytes > self._most_bytes:
            self._models.popitem(last=False)

    def _bytes(self, query: str) -> int:
        return sum(self.root.blobs[sha].tensor_bytes for sha in self.root.blobs_of(query))

    def _built(self, query: str) -> nn.Module:
        released = self.root.queries[query]
        model = build_model(released.query.model, allow_factories=self._allow_factories)
        state = load_state(self._read, released.weights, released.slices)
        fit_state(model, state, source=f"release {self.root.release}, query {query!r}")
        return model.eval()

    def _read(self, sha: str) -> Tensors:
        return decode(Path(self._fetch(sha)).read_bytes())
