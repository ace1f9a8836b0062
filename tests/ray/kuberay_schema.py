"""What of KubeRay's resources (ray.io/v1, operator 1.5) our manifests use, as a JSON schema without unknown keys.

Written after the field tables of https://ray-project.github.io/kuberay/reference/api/; the whole definitions are some
ten thousand lines, nearly all of them Kubernetes' pod.
"""

STRING, NUMBER, BOOLEAN = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
# The operator hands both on as command-line flags and labels.
STRINGS = {"type": "object", "additionalProperties": STRING}


def closed(required=(), **fields):
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def each(item):
    return {"type": "array", "items": item, "minItems": 1}


QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^\d+(m|Mi|Gi)?$"}}
SECRET = closed(("secretKeyRef",), secretKeyRef=closed(("name", "key"), name=STRING, key=STRING))
CONTAINER = closed(
    ("name", "image", "resources"),
    name=STRING,
    image=STRING,
    env=each(closed(("name",), name=STRING, value=STRING, valueFrom=SECRET)),
    ports=each(closed(("containerPort",), name=STRING, containerPort=NUMBER)),
    resources=closed(("requests",), requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=each(closed(("name", "mountPath"), name=STRING, mountPath=STRING, readOnly=BOOLEAN)),
)
VOLUME = closed(("name",), name=STRING, emptyDir=closed(), configMap=closed(("name",), name=STRING))
POD = closed(("spec",), spec=closed(("containers",), containers=each(CONTAINER), volumes=each(VOLUME)))
# Labels in rayStartParams are refused since 1.5: they are a field of their own.
START = STRINGS | {"propertyNames": {"not": {"const": "labels"}}}
GROUP = {"rayStartParams": START, "labels": STRINGS, "template": POD}
CLUSTER = closed(
    ("headGroupSpec",),
    rayVersion=STRING,
    authOptions=closed(("mode",), mode={"enum": ["disabled", "token"]}),
    headGroupSpec=closed(("rayStartParams", "template"), **GROUP),
    workerGroupSpecs=each(
        closed(
            ("groupName", "rayStartParams", "template", "minReplicas", "maxReplicas"),
            groupName=STRING, replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER, **GROUP,
        )
    ),
)  # fmt: skip


def resource(kind, spec):
    metadata = closed(("name",), name=STRING)
    return closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"}, kind={"const": kind}, metadata=metadata, spec=spec,
    )  # fmt: skip


RESOURCES = {
    "RayService": resource(
        "RayService",
        closed(
            ("serveConfigV2", "rayClusterConfig"),
            serveConfigV2=STRING,
            upgradeStrategy=closed(
                ("type",), type={"enum": ["None", "NewCluster", "NewClusterWithIncrementalUpgrade"]}
            ),
            rayClusterConfig=CLUSTER,
        ),
    ),
    "RayJob": resource(
        "RayJob",
        closed(
            ("entrypoint", "rayClusterSpec"),
            entrypoint=STRING,
            backoffLimit=NUMBER,
            activeDeadlineSeconds=NUMBER,
            shutdownAfterJobFinishes=BOOLEAN,
            ttlSecondsAfterFinished=NUMBER,
            rayClusterSpec=CLUSTER,
        ),
    ),
}
