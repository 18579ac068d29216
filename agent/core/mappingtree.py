"""A mapping file's bytes → its leaves: YAML or JSON, flat or as a tree with `children`.

Rules:
 * One meaning, whoever reads it: a name that stands twice, an alias or a merge key is an error.
 * Only `true` and `false` are booleans: a choice called ON, off or No in a DBC stays text.
 * Size and depth are bounded.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from agent.errors import MappingError

MAX_BYTES = 16 * 1024 * 1024  # A full VSS tree as JSON is half a megabyte.
MAX_DEPTH = 64
FORMAT_HINT = "the format is described in docs/mapping.md"

_LEAF_TYPES = ("sensor", "actuator", "attribute")


def read_leaves(data: bytes, *, name: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield (path, leaf) of a mapping file, in its order; a path may come twice.

    Args:
        data: The file's bytes, UTF-8.
        name: The file's name, for messages.

    Raises:
        MappingError: Not YAML or JSON, or no mapping.
    """
    tree = _parse_tree(data, name)
    if not isinstance(tree, dict):
        raise MappingError(
            "holds no mapping from VSS paths to signals", file=name, hint=FORMAT_HINT
        )
    yield from _leaves(tree, "", 0)


def _leaves(node: dict[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield (path, leaf) of a tree with `children`, or of a flat overlay."""
    if depth > MAX_DEPTH:
        return
    for key, child in node.items():
        if not isinstance(child, dict) or not isinstance(key, str):
            continue
        path = f"{prefix}.{key}" if prefix else key
        if isinstance(child.get("children"), dict):
            yield from _leaves(child["children"], path, depth + 1)
        elif child.get("type") in _LEAF_TYPES or "dbc2vss" in child or "dbc" in child:
            yield path, child
        elif child.get("type") != "branch":
            yield from _leaves(child, path, depth + 1)


def _parse_tree(data: bytes, name: str) -> Any:
    if len(data) > MAX_BYTES:
        raise MappingError(
            f"{len(data)} bytes; at most {MAX_BYTES} are read", file=name, hint=FORMAT_HINT
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise MappingError("not UTF-8", file=name, line=line, hint="save it as UTF-8") from exc
    try:
        if text.lstrip().startswith("{"):
            return json.loads(text, object_pairs_hook=_unique)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - derived from SafeLoader
    except json.JSONDecodeError as exc:
        raise MappingError(
            f"not JSON: {exc.msg}", file=name, line=exc.lineno, hint=FORMAT_HINT
        ) from exc
    except yaml.MarkedYAMLError as exc:
        at = exc.problem_mark.line + 1 if exc.problem_mark else None
        raise MappingError(
            f"not YAML: {exc.problem}", file=name, line=at, hint=FORMAT_HINT
        ) from exc
    except (
        *(yaml.YAMLError, ValueError, RecursionError, TypeError),
        *(LookupError, AttributeError, ArithmeticError),  # PyYAML's for `!!int ""`, `!!bool x`.
    ) as exc:
        raise MappingError(
            "not YAML or JSON that a mapping can be read from", file=name, hint=FORMAT_HINT
        ) from exc


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return made


class _Loader(yaml.SafeLoader):
    """Safe YAML: YAML 1.2 booleans, no aliases (they can swell), no duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not read", None)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        made = super().construct_mapping(node, deep=deep)
        if len(made) != len(node.value):
            mark = node.start_mark
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", mark)
        return made


# SafeLoader's table without its YAML 1.1 booleans (yes, no, on, off), dates and merge keys.
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if not tag.endswith((":bool", ":timestamp", ":merge"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
