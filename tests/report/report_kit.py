"""Stores for reports, written without training: real manifests and search states, blobs of so many zeros."""

from gemel_ray.policy.grouping import group_layers, group_repeats
from gemel_ray.policy.search import begin
from gemel_ray.policy.search_state import SearchSettings
from gemel_ray.report.layers import inventories_of
from gemel_ray.spec.merge import MergeConfiguration
from gemel_ray.spec.release import Accuracy, BlobInfo, Manifest, Provenance, ReleasedQuery
from gemel_ray.spec.weight_sets import REMAINDER
from gemel_ray.spec.workload import ModelSpec, Query
from gemel_ray.weights.store import open_store

SEARCH = "street-000000000000"
HOSTILE = "</script><script>alert('x')</script>&\"<b>$5</b>"


def queries(count=3, architecture="squeezenet1_1", classes=("background", "car")):
    model = ModelSpec(architecture=architecture, classes=classes, input_size=32)
    return {
        f"query_{place}": Query(
            name=f"query_{place}", feed="f", model=model, accuracy_target=0.9, fps=10, slo_ms=100
        )
        for place in range(count)
    }  # fmt: skip


def publish_report_store(folder, count=3, note="kin, 2 layer groups", search=SEARCH, history=True):
    """Originals, and a release that shares all that models can share with each other; the search that found it."""
    store = open_store(folder, create=True)
    root = store.publish(_manifest(store, queries(count), MergeConfiguration(), "originals", None, {}, 0))
    inventories, _ = inventories_of(root)
    groups, repeats = group_layers(inventories), group_repeats(inventories)
    configuration = MergeConfiguration.of(groups)
    trial = {"search": search, "model_set": "query_0", "candidate": 1}
    merged = store.publish(_manifest(store, queries(count), configuration, note, root.release, trial, 90))
    state = begin(groups, release=1, settings=SearchSettings(), relatives=groups[:4], beyond=repeats, name="query_0")
    state = state.model_copy(update={"accepted": configuration, "round": (), "adds": ()})
    if history:
        store.write_state(search, {"root": 1, "states": [state.model_dump(mode="json")], "history": trials(note)})
    return store, merged


def trials(label, timed=False):
    told = [
        ("probe everything", False, "missed on the gate", 0, 4.5, ["query_0"]),
        (label, True, "passed", 30, 61.25, []),
        ("kin less", False, "superseded", 0, 0.0, []),
        ("leap", False, "failed: out of memory", 3, 7.0, []),
    ]
    found = []
    for number, (name, passed, reason, steps, seconds, objectors) in enumerate(told):
        entry = {
            "model_set": "query_0", "candidate": number, "label": name, "saved_bytes": 1000 * (number + 1),
            "passed": passed, "reason": reason, "steps": steps, "seconds": seconds, "objectors": objectors,
            "validation": {}, "gate": {},
        }  # fmt: skip
        found.append(entry | ({"ended_at": f"2026-01-01T00:0{number + 1}:00.000+00:00"} if timed else {}))
    return found


def _manifest(store, asked, configuration, note, parent, trial, after_s, target=0.9):
    inventories, _ = inventories_of(_bare(asked))
    weights, blobs = {name: {} for name in asked}, {}

    def put(size_bytes, name):
        sha = store.put_blob(name.encode())
        blobs[sha] = BlobInfo(tensor_bytes=size_bytes, file_bytes=len(name))
        return sha

    shared = {member for layer in configuration.shared for member in layer.members}
    for layer in configuration.shared:
        sha = put(layer.layer_bytes, str(layer.members))
        for member in layer.members:
            weights[member.query][member.layer] = sha
    for inventory in inventories:
        own = sum(layer.bytes for layer in inventory.layers if (inventory.query, layer.path) not in shared)
        weights[inventory.query][REMAINDER] = put(own + inventory.other_bytes, f"rest of {inventory.query}")
    accuracy = {
        name: Accuracy(
            target=target, measure="agreement", agreement=0.985 - 0.013 * place % 0.1,
            lower_bound=0.95 - 0.013 * place % 0.1, gate_frames=500 + place, validation_agreement=0.98,
        )
        for place, name in enumerate(asked if configuration.shared else ())
    }  # fmt: skip
    return Manifest(
        release=1,
        parent=parent,
        workload_name="street",
        workload_hash="0" * 64,
        queries={
            name: ReleasedQuery(query=query, weights=weights[name], accuracy=accuracy.get(name))
            for name, query in asked.items()
        },
        merge_configuration=configuration,
        blobs=blobs,
        bytes_before=sum(inventory.total_bytes for inventory in inventories),
        bytes_after=sum(info.tensor_bytes for info in blobs.values()),
        provenance=Provenance(
            created_at=f"2026-01-01T00:{after_s // 60:02d}:{after_s % 60:02d}+00:00",
            command="/opt/x/gemel search w.yaml", seed=7, versions={"torch": "2.0"}, note=note, trial=trial,
        ),
    )  # fmt: skip


def _bare(asked):
    """A manifest of these queries, with nothing in it, to read their layers from."""
    return Manifest.model_construct(
        queries={name: ReleasedQuery(query=query, weights={}) for name, query in asked.items()}
    )
