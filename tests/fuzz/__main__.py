"""`python -m tests.fuzz TARGET [libFuzzer options]`: fuzz one parser with coverage, by atheris, until it is stopped.

`python -m tests.fuzz --list` names the targets. What is found is written to `crash-*` in the current folder, and is
run again by `python -m tests.fuzz TARGET crash-...`. Atheris is in the extra `fuzz`.
"""

import sys
import tempfile
from pathlib import Path

LIMITS = ("-rss_limit_mb=1024", "-malloc_limit_mb=256", "-timeout=10", "-max_len=65536")
"""What an input may cost before it counts as a finding: memory, one allocation, seconds."""


def main(arguments: list[str]) -> int:
    """Fuzz the target that is named first; the rest goes to libFuzzer."""
    if not arguments or arguments[0].startswith("-h"):
        sys.stdout.write(f"{__doc__}\n")
        return 0
    try:
        import atheris
    except ImportError:
        sys.stderr.write("atheris is not installed: pip install 'tacit[fuzz]'\n")
        return 2
    # Kernels stay as they are: numba compiles them from the bytecode that atheris would change.
    with atheris.instrument_imports(include=["fl_core", "client_sdk", "services"], exclude=_kernels()):
        from tests.fuzz.targets import targets

        known = targets()
    name, *options = arguments
    if name not in known:
        sys.stdout.write("".join(f"{target}\n" for target in known))
        return 0 if name == "--list" else 2
    target = known[name]
    with tempfile.TemporaryDirectory(prefix="tacit-corpus-") as corpus:
        for number, seed in enumerate(target.seeds):
            Path(corpus, f"seed-{number}").write_bytes(seed)
        has_inputs = any(not option.startswith("-") for option in options)
        atheris.Setup([sys.argv[0], *LIMITS, *options, *([] if has_inputs else [corpus])], target.run)
        atheris.Fuzz()
    return 0


def _kernels() -> list[str]:
    root = Path(__file__).parents[2]
    compiled = [path for path in (root / "fl_core").rglob("*.py") if "njit" in path.read_text()]
    return [".".join(path.relative_to(root).with_suffix("").parts) for path in compiled]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
