"""YAML without its traps: no code, no key given twice, no document that grows when its aliases are followed."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

# Aliases of aliases grow without bound; no settings or data file has a hundredth of this.
MOST_VALUES = 1_000_000


class YamlError(ValueError):
    """The text is not a YAML document that is read here."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key '{key.value}' is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Return the one document of `text`.

    Raises:
        YamlError: it is not YAML, names Python objects, gives a key twice, or its aliases unfold to too many values.
    """
    loader = None
    try:
        loader = _Loader(text)  # looks for characters that no YAML may have
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, ())
        return loader.construct_document(node)
    # The readers of numbers and dates raise whatever int() and datetime do.
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, TypeError) as error:
        raise YamlError(" ".join(str(error).split())[:200] or type(error).__name__) from None
    finally:
        if loader is not None:
            loader.dispose()


def _count(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Return how many values `node` unfolds to, each alias counted as what it stands for."""
    if id(node) in above:
        raise YamlError("an alias stands inside what it stands for")
    if id(node) not in known:
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inside = node.value
        elif isinstance(node, yaml.MappingNode):
            inside = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count(part, known, (*above, id(node))) for part in inside)
        if known[id(node)] > MOST_VALUES:
            raise YamlError(f"its aliases unfold to more than {MOST_VALUES} values")
    return known[id(node)]
