"""Reading YAML: recipes, and the config that a run leaves in its folder.

Invariants: a plain scalar is what it looks like. Numbers are decimal, only `true` and `false` are booleans, and all that YAML
1.1 would make another number or a date of (`10:30`, `0123`, `0x1F`, `1_000`, `2026-01-01`) stays text, for the field to take or
refuse. A mapping holds each key once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from services.errors import UserError


class _Loader(yaml.SafeLoader):
    """SafeLoader without the implicit types of YAML 1.1, and without keys that stand twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(
                    f"{self.name}, line {line}: {key.value!r} stands already in line {lines[key.value]}, and the later one "
                    "would hide the earlier; make one of the two"
                )
            lines[key.value] = line
        return node


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def read_yaml(path: Path) -> Any:
    """What stands in the file. Raises UserError naming file and line for what is no YAML, or a key that stands twice."""
    with path.open("rb") as file:
        try:
            return yaml.load(file, _Loader)
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not valid YAML: {error}") from None
