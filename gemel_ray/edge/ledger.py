"""The byte ledger: what is held of a budget, refused before it is allocated."""

from __future__ import annotations

from gemel_ray.spec.errors import OverBudgetError


class Ledger:
    """Resident weights by name, each counted once however many queries use it, and running workspace in one sum.

    Keeps numbers only. Not locked: who shares one between threads holds a lock around every call.
    """

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes <= 0:
            raise ValueError(f"a budget of {budget_bytes} bytes holds nothing; give more than zero")
        self.budget_bytes = budget_bytes
        self._weights: dict[str, int] = {}
        self._resident_bytes = 0
        self._workspace_bytes = 0
        self._peak_bytes = 0

    @property
    def resident_bytes(self) -> int:
        """Bytes of all reserved weights."""
        return self._resident_bytes

    @property
    def workspace_bytes(self) -> int:
        """Bytes reserved for inferences under way."""
        return self._workspace_bytes

    @property
    def used_bytes(self) -> int:
        """Weights and workspace together; never above the budget."""
        return self._resident_bytes + self._workspace_bytes

    @property
    def free_bytes(self) -> int:
        """What may still be reserved."""
        return self.budget_bytes - self.used_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that weights and workspace ever took together."""
        return self._peak_bytes

    def __contains__(self, weight: str) -> bool:
        return weight in self._weights

    def bytes_of(self, weight: str) -> int:
        """Bytes that a weight takes; 0 for one that is not reserved."""
        return self._weights.get(weight, 0)

    def reserve(self, weight: str, count_bytes: int) -> None:
        """Count a weight, from the start of its load on. OverBudgetError when it does not fit; nothing changes then."""
        if weight in self._weights:
            raise ValueError(f"weight {weight!r} is reserved already; load only what is missing")
        self._demand(f"weight {weight!r}", count_bytes)
        self._weights[weight] = count_bytes
        self._resident_bytes += count_bytes
        self._note_peak()

    def release(self, weight: str) -> None:
        """Take a weight off, once its bytes are free."""
        if weight not in self._weights:
            raise ValueError(f"weight {weight!r} is not reserved; evict only what is resident")
        self._resident_bytes -= self._weights.pop(weight)

    def reserve_workspace(self, count_bytes: int) -> None:
        """Count an inference's workspace, from its start on. OverBudgetError when it does not fit."""
        self._demand("workspace", count_bytes)
        self._workspace_bytes += count_bytes
        self._note_peak()

    def release_workspace(self, count_bytes: int) -> None:
        """Take an inference's workspace off, once it has ended."""
        if not 0 <= count_bytes <= self._workspace_bytes:
            raise ValueError(f"cannot give back {count_bytes} bytes of workspace, {self._workspace_bytes} are reserved")
        self._workspace_bytes -= count_bytes

    def _demand(self, what: str, count_bytes: int) -> None:
        if count_bytes < 0:
            raise ValueError(f"{what} cannot take {count_bytes} bytes")
        if self._resident_bytes + self._workspace_bytes + count_bytes > self.budget_bytes:
            raise OverBudgetError(
                f"{what} needs {count_bytes} bytes, {self.free_bytes} of the budget of {self.budget_bytes} are free "
                f"(weights hold {self._resident_bytes}, workspace {self._workspace_bytes}); evict something first"
            )

    def _note_peak(self) -> None:
        used_bytes = self._resident_bytes + self._workspace_bytes
        if used_bytes > self._peak_bytes:
            self._peak_bytes = used_bytes
