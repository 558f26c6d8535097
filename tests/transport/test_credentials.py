"""Credentials from files: each broken file gets one clear error, and files are followed while a service runs."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fl_core.errors import ConfigError, IdentityError, TacitError
from fl_core.transport.identity import Role
from fl_core.transport.tls import Credentials, LiveCredentials, check_role


def load(files: Any, **changes: Path) -> Credentials:
    paths = {"certificate": files.certificate, "key": files.key, "ca": files.ca, "crl": files.crl, **changes}
    return Credentials.from_files(**paths)


@pytest.mark.parametrize("which", ["certificate", "key", "ca", "crl"])
def test_a_missing_file_is_named(federation: Any, tmp_path: Path, which: str) -> None:
    with pytest.raises(ConfigError, match=rf"{tmp_path}/nowhere.pem cannot be read: expected .*, got No such file"):
        load(federation.issue(Role.SITE, "a"), **{which: tmp_path / "nowhere.pem"})


@pytest.mark.parametrize("which", ["certificate", "key", "ca", "crl"])
def test_a_file_of_junk_is_named(federation: Any, tmp_path: Path, which: str) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_bytes(b"-----BEGIN JUNK-----")
    junk.chmod(0o600)
    with pytest.raises(ConfigError, match=r"junk.pem"):
        load(federation.issue(Role.SITE, "a"), **{which: junk})


def test_a_key_of_another_certificate_is_refused(federation: Any) -> None:
    other = federation.issue(Role.SITE, "b")
    with pytest.raises(ConfigError, match="does not belong to the certificate"):
        load(federation.issue(Role.SITE, "a"), key=other.key)


def test_a_key_that_everybody_may_read_is_refused(federation: Any) -> None:
    files = federation.issue(Role.SITE, "a")
    files.key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"may be read by everybody; run `chmod 600"):
        load(files)


def test_our_own_revoked_certificate_is_found_before_anybody_is_called(federation: Any) -> None:
    federation.revoke(federation.credentials(Role.SITE, "a"))
    with pytest.raises(ConfigError, match=r"certificate.pem cannot be used: .*site/a .*was revoked"):
        load(federation.issue(Role.SITE, "a"))


def test_a_ca_of_another_federation_is_refused(federation: Any, make_federation: Any) -> None:
    other = make_federation("other").issue(Role.SITE, "a")
    with pytest.raises(ConfigError, match=r"site/a .*is not of this federation: expected signed by the CA of 'other'"):
        load(federation.issue(Role.SITE, "a"), ca=other.ca, crl=other.crl)


def test_credentials_never_show_their_key(federation: Any) -> None:
    files = federation.issue(Role.SITE, "a")
    credentials = load(files)
    body = files.key.read_text().splitlines()[1]
    assert body not in repr(credentials)
    assert "PRIVATE" not in repr(credentials)
    assert body not in repr(credentials.signer())


def test_an_error_about_a_key_never_shows_the_key(federation: Any) -> None:
    files = federation.issue(Role.SITE, "a")
    broken = files.key.read_text().replace("PRIVATE KEY", "SECRET KEY")
    files.key.write_text(broken)
    with pytest.raises(ConfigError) as caught:
        load(files)
    assert broken.splitlines()[1] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_wrong_role_is_refused_with_both_roles(federation: Any) -> None:
    with pytest.raises(ConfigError, match="has the wrong role: expected aggregator, got site"):
        check_role(federation.credentials(Role.SITE, "a"), Role.AGGREGATOR)


def test_live_credentials_follow_a_renewed_certificate_and_survive_a_broken_one(
    federation: Any, tmp_path: Path
) -> None:
    files = federation.issue(Role.SITE, "a")
    seen: list[TacitError | None] = []
    live = LiveCredentials(load(files), seen.append)
    first = live.current
    assert live.current is first

    renewed = federation.authority.issue(Role.SITE, "a", tmp_path / "renewed")
    renewed.key.replace(files.key)
    renewed.certificate.replace(files.certificate)
    assert live.current.identity.serial != first.identity.serial

    files.certificate.write_bytes(b"half a certif")
    kept = live.current
    assert kept.identity.serial != first.identity.serial
    assert [type(error) for error in seen] == [type(None), ConfigError]


def test_a_revocation_counts_even_when_our_own_certificate_is_on_the_list(federation: Any) -> None:
    service, site = federation.credentials(Role.AGGREGATOR, "agg-1"), federation.credentials(Role.SITE, "a")
    live = LiveCredentials(service)
    now = datetime.now(UTC)
    live.trust.check(site.certificate_der, now)
    federation.revoke(service)
    federation.revoke(site)
    with pytest.raises(IdentityError, match=r"site/a .*was revoked"):
        live.trust.check(site.certificate_der, now)
