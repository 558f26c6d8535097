"""The README's example runs as it stands, and names the two commands that there are."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from pages import ROOT

from fl_core.errors import ConfigError

README = (ROOT / "README.md").read_text()
SITE_YAML = "coordinator: 127.0.0.1:7001\ncertificate: none.pem\nkey: key.pem\nca: ca.pem\nstate_dir: state\n"


def test_the_example_of_a_site_works_up_to_its_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    hospital = ModuleType("my_hospital")
    batches = [(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))]
    vars(hospital).update(model=torch.nn.Linear(2, 2), train_loader=batches, test_loader=batches)
    monkeypatch.setitem(sys.modules, "my_hospital", hospital)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site.yaml").write_text(SITE_YAML)
    with pytest.raises(ConfigError, match=r"none\.pem"):
        exec(compile(example, "README.md", "exec"), {})


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert commands == ["demo", "test"]
    for target in commands:
        assert re.search(rf"^{target}: setup", makefile, re.MULTILINE)


def test_the_map_of_the_tree_names_folders_that_exist() -> None:
    for folder in re.findall(r"^\| `(\w+/)` \|", README, re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder
