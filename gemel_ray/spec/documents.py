"""YAML as people write it, read strictly: no key twice, nothing that grows without end when it is written out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

# Of values in one document; ten thousand queries have a quarter of that.
_MOST_VALUES = 1_000_000
# Of a whole number, in any base: more than any field takes.
_MOST_DIGITS = 100


def read_yaml(text: str) -> object:
    """The plain data of one document. Raises YAMLError, ValueError or RecursionError for what is none."""
    return yaml.load(text, Loader=_StrictLoader)


class _StrictLoader(yaml.SafeLoader):
    def construct_document(self, node: yaml.Node) -> object:
        # A few lines of aliases can stand for more values than any memory holds; an error that shows one would try to.
        if _values(node, {}) > _MOST_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, f"its aliases (*name) stand for more than {_MOST_VALUES} values", node.start_mark
            )
        return super().construct_document(node)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        # Python does not write out a number of so many digits, not even in an error about it.
        if len(node.value) > _MOST_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of {len(node.value)} digits, which are more than {_MOST_DIGITS}", node.start_mark
            )
        return super().construct_yaml_int(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # PyYAML keeps the last of two equal keys without a word; a feed would be gone.
        written = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, count in Counter(written).items():
            if count > 1 and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is written {count} times in one mapping", node.start_mark
                )
        return super().construct_mapping(node, deep)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)


def _values(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for when its aliases are written out; endless for one that holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        known[id(node)] = 1 + sum(
            _values(each, known) for item in below for each in (item if isinstance(item, tuple) else (item,))
        )
    return known[id(node)]
