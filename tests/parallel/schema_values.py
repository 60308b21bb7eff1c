"""The values at which a test runs each field of the config: from the schema, and where the schema
cannot say, from the tables here."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from hvdtrain.config.schema import Config

Node = dict[str, Any]

MORE: dict[str, list[Any]] = {
    "name": ["run", "a-1.b_c", "9"],
    "output": ["runs", "deep/er/runs", "set #2", "2024", "no"],
    "data.train": ["train", "./train", "https://me:secret@host/a.tar", "ftp://host/a.tar"],
    "data.val": ["val"],
    "data.remote_cache.folder": ["cache"],
    "data.columns.path": ["photo", "missing"],
    "data.columns.label": ["kind", "missing"],
    "data.crop_aspect": [[0.01, 0.01], [0.01, 100.0], [1.5, 0.75]],
    "data.color_jitter": [[0.0] * 4, [1.0] * 4],
    "data.rand_augment": [[1, 0], [1, 30], [16, 30], [0, 0], [1, 31]],
    "data.mean": [[0.0] * 3, [1.0] * 3, [-0.1, 0.5, 0.5], [123.7, 116.3, 103.5]],
    "data.std": [[0.001] * 3, [1.0] * 3, [58.4, 57.1, 57.4]],
    "model.name": [
        *("resnet18", "resnet18d", "resnet8_cifar", "resnet20_cifar", "resnet11_cifar"),
        *("resnet8_gn", "preact_resnet18", "wrn16", "resnet9", "vgg_small", "airbench94"),
        "vgg_sigmoid",
        *("nf_resnet11_cifar", "nf_resnet26", "resnet_50", "timm:resnet18", "torchvision:resnet18"),
    ],
    "model.freeze": [[], ["stem"], ["stages"], ["stem", "stages", "classifier"], ["head"]],
    "model.weights": ["weights.safetensors", "missing.safetensors", "hf:name"],
    "optimizer.betas": [[0.0, 0.0], [1 - 2**-53, 1 - 2**-53], [0.9, 0.999]],
    "optimizer.lookahead.share": [[1.0, 0.2], [0.0, 0.0]],
    "lr.milestones": [[], [0.0], [1.0, 2.0], [0.5], [1.7976931348623157e308]],
    "lr.points": [[], [[0.0, 1.0]], [[0.0, 0.0], [0.5, 1.0], [1.0, 0.0]]],
    "lr.cycle_momentum": [[0.85, 0.95], [0.0, 0.0]],
    "phases.0.image_size": [[8, 64], [64, 8], [16, 16]],
    "phases.0.crop_aspect": [[0.01, 100.0], [100.0, 100.0]],
    "phases.0.lr": [[0.01, 0.001]],
    "phases.0.momentum": [[0.9, 0.0], [0.5, 0.5]],
    "phases.0.freeze": [[], ["stem"], ["head"]],
    "phases.0.unfreeze": [[], ["stem"], ["stages"]],
    "train.teacher.weights": ["weights.safetensors", "missing.safetensors", "hf:name"],
    "train.teacher.model": ["resnet8_cifar", "resnet18"],
    "train.stop_when": ["absent", "http://127.0.0.1:9/notice", "ftp://host/notice"],
    "checkpoint.mirror": [
        *("second", "train/0/0.png", "https://host/runs"),
        *(() if find_spec("s3fs") else ("s3://bucket/runs",)),  # no test asks the network
    ],
    "comm.engine": ["auto", "horovod", "torch"],
    "comm.interface": ["auto", "lo", "127.0.0.0/8", "10.9.8.0/24", "nothing0"],
    "metrics.bind": ["127.0.0.1", "localhost", "::1", "0.0.0.0", "192.0.2.1"],
    "metrics.token_file": ["token", "missing"],
    "metrics.tls_cert": ["server.pem", "missing"],
    "metrics.tls_key": ["server.key", "missing"],
    "metrics.tls_client_ca": ["ca.pem", "missing"],
    "metrics.calibration": ["calibration.json", "missing"],
    "metrics.file_sd_dir": ["served", "missing", "train/0/0.png"],
    "metrics.textfile_dir": ["texts", "missing", "train/0/0.png"],
    # No test of values asks a network.
    "metrics.wandb": ["a/b/c", "", *(() if find_spec("wandb") else ("digits",))],
    "metrics.mlflow": ["digits"],
    "metrics.pushgateway": ["http://127.0.0.1:9", "gateway", "http://[::1", ""],
}
"""Free text, lists, and forms of a value that the schema gives no ends for."""
ENDS: dict[str, tuple[Any, Any]] = {
    "data.val": (0.25, 0.5),  # of 4 images of each class
    "data.train_size": (1, 8),  # the images that there are
    "model.num_classes": (1, 2),  # the classes that there are
    "data.crop_padding": (1, 16),  # the size of the images, which is too much
    "phases.0.epochs": (1, 2),  # time
    "phases.0.image_size": (8, 96),  # time and memory
    "phases.0.val_image_size": (8, 96),
    "model.width": (1, 2),  # memory
    "train.noise_scale_every": (0, 10**9),  # no upper end in the schema
    "phases.0.batch_per_worker": (1, 8),  # all images
    "train.accumulate": (1, 2),  # all images
    "lr.warmup_epochs": (0.0, 1e308),
}
"""The smallest and largest value that the test's dataset allows, where the schema allows more."""


def fields() -> dict[str, Node]:
    """Every field of the config as `section.key`, with its JSON schema."""
    schema = Config.model_json_schema()
    return dict(_leaves(schema, schema["$defs"], ()))


def values(field: str, node: Node) -> list[Any]:
    """The values to run; empty if the schema and the tables name none."""
    given = MORE.get(field, [])
    found = [*given, *_from_schema(field, node)]
    return [value for i, value in enumerate(found) if value not in found[:i] or value is None]


def override(field: str, value: Any) -> str:
    """The value as a setting of the command line."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{field}={text}"


def _leaves(node: Node, defs: Node, path: tuple[str, ...]) -> Iterator[tuple[str, Node]]:
    if "$ref" in node:
        node = defs[node["$ref"].rsplit("/", 1)[-1]]
    if "properties" in node:
        for key, inner in node["properties"].items():
            yield from _leaves(inner, defs, (*path, key))
    elif "$ref" in node.get("items", {}):
        yield from _leaves(node["items"], defs, (*path, "0"))
    else:
        yield ".".join(path), node


def _from_schema(field: str, node: Node) -> list[Any]:
    if "anyOf" in node:
        return [value for one in node["anyOf"] for value in _from_schema(field, one)]
    if "enum" in node:
        return list(node["enum"])
    if "const" in node:
        return [node["const"]]
    if "$ref" in node:  # a section that may be null: its values are in MORE
        return []
    kind = node["type"]
    if kind == "boolean":
        return [False, True]
    if kind == "null":
        return [None]
    if kind in ("integer", "number"):
        return list(ENDS[field]) if field in ENDS else _ends(node, whole=kind == "integer")
    return []


def _ends(node: Node, *, whole: bool) -> list[Any]:
    """Smallest and largest number; fails for a whole number without an upper end."""
    step = (lambda x, towards: x + (1 if towards > x else -1)) if whole else math.nextafter
    low, high = node.get("minimum"), node.get("maximum")
    if low is None:
        low = step(node["exclusiveMinimum"], math.inf)
    if high is None and "exclusiveMaximum" in node:
        high = step(node["exclusiveMaximum"], -math.inf)
    if high is None:
        assert not whole, "a whole number needs an upper end: in the schema or in ENDS"
        high = sys.float_info.max
    return [low, high] if whole else [float(low), float(high)]
