"""YAML files that the command line writes."""

from collections.abc import Mapping
from pathlib import Path

import yaml


def write_yaml(path: Path, content: Mapping[str, object]) -> Path:
    """Write a mapping, in the order of its keys, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
    return path
