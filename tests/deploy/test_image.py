"""The Dockerfile fits the repository. Its steps themselves are rehearsed by `python -m tests.deploy.image`."""

import re
import tomllib
from fnmatch import fnmatch

from compose_kit import services_of_our_image

from tests.deploy.image import ROOT, arguments_of, copied_sources, defaults, words_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_what_is_copied_is_there_and_nothing_that_the_package_needs_is_left_out() -> None:
    sources = set(copied_sources())
    assert all((ROOT / source).exists() for source in sources)
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= sources
    assert {"pyproject.toml", "constraints.txt", PROJECT["project"]["readme"]} <= sources


def test_the_build_context_holds_what_is_copied_and_no_secret() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    assert lines[0] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert allowed == set(copied_sources())
    assert not any(fnmatch(name, "*.pem") or name.startswith((".git", "deploy")) for name in allowed)


def test_the_extras_exist() -> None:
    assert set(defaults()["EXTRAS"].split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_the_base_is_pinned_by_tag_to_a_python_that_we_support() -> None:
    base = re.fullmatch(r"python:(\d+)\.(\d+)-slim(@sha256:[0-9a-f]{64})?", defaults()["BASE"])
    assert base is not None
    lowest = tuple(map(int, PROJECT["project"]["requires-python"].removeprefix(">=").split(".")))
    assert (int(base[1]), int(base[2])) >= lowest
    assert all("${BASE}" in words for words in arguments_of("FROM"))


def test_it_runs_as_nobody_that_has_rights() -> None:
    (user,) = arguments_of("USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    steps = " ".join(arguments_of("RUN"))
    assert f"--uid {user.split(':')[0]}" in steps
    assert "apt-get" not in steps
    assert "sudo" not in steps


def test_the_entry_point_is_the_command_of_the_package() -> None:
    (entry,) = arguments_of("ENTRYPOINT")
    assert words_of(entry)[0] in PROJECT["project"]["scripts"]


def test_every_volume_of_our_image_has_a_folder_that_its_user_may_write() -> None:
    made = " ".join(arguments_of("RUN"))
    for name, service in services_of_our_image().items():
        for volume in service["volumes"]:
            source, colon, target = volume.partition(":")
            path = target if colon else source
            assert path.endswith(":ro") or f" {path} " in f"{made} ", f"{name}: {path}"


def test_every_pinned_dependency_is_one_that_the_image_can_install() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines} | {"tacit"}
    wanted = list(PROJECT["project"]["dependencies"])
    for extra in defaults()["EXTRAS"].split(","):
        wanted += PROJECT["project"]["optional-dependencies"][extra]
    for requirement in wanted:
        name = re.split(r"[\[<>=;! ]", requirement, maxsplit=1)[0]
        assert name.lower().replace("_", "-") in pinned, f"constraints.txt does not pin {name}"
