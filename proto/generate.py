"""Generate fl_core/wire/v1 from proto/.  usage: python proto/generate.py [--check]

`--check` generates into a temporary folder and fails when the committed code differs.
The compiler is pinned (grpcio-tools 1.66) so that the generated code runs on the protobuf and grpcio that users have.
"""

import argparse
import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("fl_core/wire/v1")


def generate(out: Path) -> None:
    """Write the Python modules and stubs of every .proto file below `out`."""
    protos = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'proto'}",
            f"--python_out={out}", f"--mypy_out=quiet:{out}", f"--grpc_python_out={out}",
            f"--mypy_grpc_out=quiet:{out}",
            *protos,
        ],
        check=True,
        # The compiler looks for its plug-in on PATH; it is installed beside this interpreter.
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"},
    )  # fmt: skip


def stale(fresh: Path) -> list[str]:
    """Names of generated files that differ from the committed ones."""
    names = sorted(path.name for path in (fresh / PACKAGE).iterdir())
    kept = sorted(path.name for path in (ROOT / PACKAGE).glob("*_pb2*"))
    _, different, missing = filecmp.cmpfiles(fresh / PACKAGE, ROOT / PACKAGE, names, shallow=False)
    return sorted({*different, *missing, *(set(kept) - set(names))})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if not arguments.check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        names = stale(Path(folder))
    if names:
        print(f"generated code is stale: {', '.join(names)}; run `make proto`", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
