"""The committed wire code is what the .proto files say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_generated_wire_code_is_current() -> None:
    result = subprocess.run(
        [sys.executable, "proto/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


def test_tensors_are_bytes_and_never_repeated_floats() -> None:
    for path in (ROOT / "proto").rglob("*.proto"):
        assert "repeated float" not in path.read_text(), path
        assert "repeated double" not in path.read_text(), path
