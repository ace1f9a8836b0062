"""Training several models at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from gemel_ray.training.data import QueryData
from gemel_ray.training.originals import train_original

# A state dict as plain arrays, which cross processes without shared memory of torch's own.
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """One model to train; `ancestor` is what it starts from."""

    data: QueryData
    steps: int
    seed: int
    learning_rate: float
    ancestor: Arrays | None = None
    allow_factories: bool = False


def train(job: TrainingJob) -> dict[str, np.ndarray]:
    """Train one original: its state dict. Raises what train_original raises."""
    ancestor = None if job.ancestor is None else {name: torch.tensor(array) for name, array in job.ancestor.items()}
    model = train_original(
        job.data,
        steps=job.steps,
        seed=job.seed,
        ancestor=ancestor,
        learning_rate=job.learning_rate,
        allow_factories=job.allow_factories,
    )
    return {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}


@contextmanager
def trainers(parallel: int) -> Iterator[Executor]:
    """Something to submit `train` to: this process for one at a time, else as many processes of one thread each."""
    if parallel == 1:
        with ThreadPoolExecutor(1) as executor:
            yield executor
        return
    # Forked children would inherit the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parallel, mp_context=context, initializer=_take_one_thread) as processes:
        yield processes


def _take_one_thread() -> None:
    torch.set_num_threads(1)
