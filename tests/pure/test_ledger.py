"""The byte ledger: never above its budget, refused before anything changes."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gemel_ray.edge.ledger import Ledger
from gemel_ray.spec.errors import OverBudgetError

NAMES = st.sampled_from("abcdef")


class LedgerAgainstAnAccountOfItsOwn(RuleBasedStateMachine):
    """Reserves and releases at random beside a plain list of what is held."""

    @initialize(budget_bytes=st.integers(1, 60))
    def open(self, budget_bytes):
        self.ledger = Ledger(budget_bytes)
        self.weights = {}
        self.workspaces = []
        self.most_bytes = 0

    def used_bytes(self):
        return sum(self.weights.values()) + sum(self.workspaces)

    def attempt(self, reserve, count_bytes):
        """Whether it was granted; checks that it was if and only if it fits."""
        fits = self.used_bytes() + count_bytes <= self.ledger.budget_bytes
        if fits:
            reserve()
            self.most_bytes = max(self.most_bytes, self.used_bytes() + count_bytes)
        else:
            with pytest.raises(OverBudgetError, match=f"needs {count_bytes} bytes"):
                reserve()
        return fits

    @rule(name=NAMES, count_bytes=st.integers(0, 40))
    def reserve(self, name, count_bytes):
        if name in self.weights:
            with pytest.raises(ValueError, match="reserved already"):
                self.ledger.reserve(name, count_bytes)
        elif self.attempt(lambda: self.ledger.reserve(name, count_bytes), count_bytes):
            self.weights[name] = count_bytes

    @rule(name=NAMES)
    def release(self, name):
        if name in self.weights:
            self.ledger.release(name)
            del self.weights[name]
        else:
            with pytest.raises(ValueError, match="not reserved"):
                self.ledger.release(name)

    @rule(count_bytes=st.integers(0, 40))
    def reserve_workspace(self, count_bytes):
        if self.attempt(lambda: self.ledger.reserve_workspace(count_bytes), count_bytes):
            self.workspaces.append(count_bytes)

    @rule()
    def release_workspace(self):
        if self.workspaces:
            self.ledger.release_workspace(self.workspaces.pop())

    @invariant()
    def agrees(self):
        ledger = self.ledger
        assert ledger.resident_bytes == sum(self.weights.values())
        assert ledger.workspace_bytes == sum(self.workspaces)
        assert ledger.used_bytes == self.used_bytes() <= ledger.budget_bytes
        assert ledger.free_bytes == ledger.budget_bytes - self.used_bytes()
        assert ledger.peak_bytes == self.most_bytes
        assert {name for name in "abcdef" if name in ledger} == self.weights.keys()


TestLedger = LedgerAgainstAnAccountOfItsOwn.TestCase


def test_the_refusal_names_what_is_held():
    ledger = Ledger(10)
    ledger.reserve("a", 6)
    ledger.reserve_workspace(1)
    with pytest.raises(OverBudgetError, match=r"'b' needs 4 bytes, 3 of the budget of 10 are free \(weights hold 6"):
        ledger.reserve("b", 4)


@pytest.mark.parametrize("budget_bytes", [0, -1])
def test_a_budget_that_holds_nothing_is_refused(budget_bytes):
    with pytest.raises(ValueError, match="holds nothing"):
        Ledger(budget_bytes)


def test_negative_bytes_are_refused():
    ledger = Ledger(10)
    with pytest.raises(ValueError, match="-1 bytes"):
        ledger.reserve("a", -1)
    with pytest.raises(ValueError, match="-1 bytes"):
        ledger.reserve_workspace(-1)
    assert ledger.used_bytes == 0


def test_more_workspace_than_is_reserved_cannot_be_given_back():
    ledger = Ledger(10)
    ledger.reserve_workspace(2)
    with pytest.raises(ValueError, match="2 are reserved"):
        ledger.release_workspace(3)
    with pytest.raises(ValueError, match="-1 bytes"):
        ledger.release_workspace(-1)
    assert ledger.workspace_bytes == 2
