"""The quickstart does what it says: its blocks are run against the cluster that it starts."""

import json
import re
import socket
from pathlib import Path

import pytest
from tutorials import Block, TutorialFailed, blocks_of, run_tutorial, write_file

ROOT = Path(__file__).parents[2]
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
SERVICES = 3


def free_base_port() -> int:
    """The first of as many free ports in a row as there are services."""
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            base = int(probe.getsockname()[1])
        if base + SERVICES < 65536 and all(is_free(base + offset) for offset in range(SERVICES)):
            return base
    raise RuntimeError("there are no free ports in a row")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_the_quickstart_works_from_certificate_request_to_model(tmp_path: Path) -> None:
    run_tutorial(QUICKSTART.replace("7001", str(free_base_port())), tmp_path, timeout_s=200)

    for name, rounds in (("result.json", 3), ("clinic-result.json", 2)):
        result = json.loads((tmp_path / name).read_text())
        assert [entry["state"] for entry in result["rounds"]] == ["committed"] * rounds
        assert all(sorted(entry["survivors"]) == ["hospital-a", "site-01", "site-02"] for entry in result["rounds"])
        assert result["rounds"][-1]["metrics"]["accuracy"] > 0.9
    assert oct((tmp_path / "hospital-a" / "key.pem").stat().st_mode & 0o777) == "0o600"


def test_the_bash_blocks_of_the_quickstart_name_every_step() -> None:
    commands = "".join(block.text for block in blocks_of(QUICKSTART) if block.language == "bash")
    for step in ("up", "pki request", "pki sign", "site", "model init", "train", "status", "evaluate", "model get"):
        assert re.search(rf"\btacit {step}\b", commands), step


@pytest.mark.parametrize(
    "page",
    [
        "```bash\ntacit pki shwo nothing\necho never\n```\n",
        "```bash\nfalse\ntrue\n```\n",
        "```bash\nvalue=$(python -c 'raise SystemExit(1)')\n```\n",
        "```bash\nkill $(jobs -p)\nwait\n```\n",
        "```bash\nsleep 300 &\nfalse\n```\n",
        "```bash terminal=other until=READY\necho no\nfalse\n```\n",
    ],
)
def test_a_command_that_fails_fails_the_tutorial(page: str, tmp_path: Path) -> None:
    with pytest.raises(TutorialFailed):
        run_tutorial(page, tmp_path, timeout_s=20)


def test_the_log_of_what_ran_in_the_background_is_shown(tmp_path: Path) -> None:
    page = "```bash\ntacit site --config none.yaml --trainer a:b 2> site.log &\nwait\nfalse\n```\n"
    with pytest.raises(TutorialFailed, match=r"none\.yaml: the file cannot be read"):
        run_tutorial(page, tmp_path, timeout_s=30)


def test_a_command_that_hangs_fails_the_tutorial(tmp_path: Path) -> None:
    with pytest.raises(TutorialFailed, match="in time"):
        run_tutorial("```bash\nsleep 60\n```\n", tmp_path, timeout_s=0.5)


def test_a_block_that_nobody_runs_is_refused() -> None:
    with pytest.raises(TutorialFailed, match="console"):
        blocks_of("```console\n$ tacit\n```\n")


def test_a_file_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TutorialFailed, match="names no file"):
        write_file(Block("python", {}, "import os\n"), tmp_path)


def test_blocks_run_in_one_shell_and_files_lie_beside_it(tmp_path: Path) -> None:
    page = "```python\n# say.py\nprint('hello')\n```\n\n```bash\nWORD=there\n```\n```bash\npython say.py > $WORD\n```\n"
    run_tutorial(page, tmp_path, timeout_s=20)
    assert (tmp_path / "there").read_text() == "hello\n"
