"""Tables as people see them in a terminal of 80 characters: numbers and names whole, nothing cut off."""

import pytest

from gemel_ray.cli.placing import placement_tables
from gemel_ray.cli.render import brief_signature
from gemel_ray.cli.render_edge import profile_table, simulations_table
from gemel_ray.cli.render_stores import diff_tables

QUERY = "north_gate_people"


@pytest.fixture
def told(monkeypatch, capsys):
    """What a table prints, after a look at how wide it is."""
    monkeypatch.setenv("COLUMNS", "80")

    def tell(show, *given):
        show(*given)
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= 80
        assert "…" not in printed
        return printed

    return tell


def simulated(policy, **more):
    shares = {"mean_goodput_fraction": 1.0, "worst_goodput_fraction": 1.0, "busy_fraction": 1.0}
    sizes = {"budget_bytes": 24 << 20, "weights_bytes": 50 << 20, "swap_bytes": 500 << 30}
    phases = {"stale_fraction": {QUERY: 0.0}, "goodput_at_other_phases": [0.5, 0.625]}
    return {"policy": policy, "device": "NVIDIA T4", "estimated": True} | shares | sizes | phases | more


def test_a_simulation_tells_how_much_depends_on_when_frames_come(told):
    unfit = {"policy": "model_lru", "budget_bytes": 24 << 20, "device": "NVIDIA T4", "estimated": True, "problem": "no"}
    printed = told(simulations_table, [simulated("everything_resident", mean_accuracy=1.0), unfit])
    (line,) = [line for line in printed.splitlines() if "everything_resident" in line]
    assert "100.0 (50-100)" in line
    assert "500.0 GiB" in line
    assert "does not fit" in printed
    steady = told(simulations_table, [simulated("ours", goodput_at_other_phases=[1.0])])
    assert "(" not in next(line for line in steady.splitlines() if line.startswith("ours"))


def test_a_placement_fits(told):
    node = {"node": "gate-box", "device": "NVIDIA A100-SXM4-80GB", "estimated": True, "queries": [QUERY]}
    node |= {f"{what}_bytes": 100 << 20 for what in ("memory", "shared", "private", "workspace", "free")}
    node |= {"over_bytes": 0, "overloaded": False, "load_fraction": 1.0}
    query = {"query": QUERY, "node": "gate-box", "goodput_fraction": 1.0, "reason": "all of it is there " * 5}
    dealt = {"worst_goodput_fraction": 1.0, "spared_bytes": 0}
    document = {"release": 1, "workload": "w", "nodes": [node], "queries": [query], "moved": [], "spared_bytes": 0}
    printed = told(placement_tables, document | {"worst_goodput_fraction": 1.0, "dealt_in_turn": dealt})
    assert printed.count("100.0 MiB") == 4
    assert printed.count("gate-box") == 2


def test_a_difference_names_layers_briefly(told):
    signature = (
        "Conv2d weight=64x64x3x3 stride=1x1 padding=1x1 dilation=1x1 groups=1 padding_mode=zeros output_padding=0x0"
    )
    assert brief_signature(signature) == "Conv2d weight=64x64x3x3 padding=1x1"
    assert brief_signature("Conv2d stride=1x2 padding=0x1 groups=16") == "Conv2d stride=1x2 padding=0x1 groups=16"
    keys = ("agreement_before", "agreement_after", "lower_bound_after", "target_after")
    query = {"query": QUERY, "state": "unchanged", "changed": ["weights"]} | dict.fromkeys(keys, 1.0)
    layer = {"signature": signature, "members": [f"{QUERY}:a", "b:a"], "copies_before": 2, "copies_after": 1}
    document = {"before": 1, "after": 2, "queries": [query], "share_now": [layer | {"layer_bytes": 1}]}
    document |= dict.fromkeys(("bytes_before", "bytes_after", "fetch_blobs", "fetch_file_bytes", "kept_blobs"), 1)
    printed = told(diff_tables, document | {"share_no_longer": []})
    assert "unchanged" in printed
    assert printed.count("100.0 %") == 4


def test_what_a_terminal_cannot_hold_is_wider_than_it_and_never_cut(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    simulations_table([simulated("everything_resident", mean_accuracy=1.0)])
    assert "everything_resident  100.0 (50-100)" in capsys.readouterr().out


def test_a_profile_fits(told):
    costs = {"run_ms": {1: 12.3, 2: 23.4, 4: 45.6, 8: 78.9}, "workspace_bytes": dict.fromkeys((1, 2, 4, 8), 1000 << 20)}
    rates = {"load_bytes_per_ms": 1e6, "load_fixed_ms": 0.1, "run_slowdown": 1.0, "load_slowdown": 1.0}
    printed = told(profile_table, {"device": "x86_64 CPU", "queries": {QUERY: costs}} | rates)
    assert QUERY in printed
