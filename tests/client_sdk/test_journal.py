"""The journal of a site outlives its process, and refuses what was done before."""

import os
from pathlib import Path

import pytest

from client_sdk.journal import JOURNAL_NAME, SiteJournal
from fl_core.errors import ConfigError, LocalProtocolError, StaleMessage, StorageError

SESSION = bytes(range(16))


def test_a_second_reveal_is_refused_by_the_same_process(tmp_path: Path) -> None:
    with SiteJournal(tmp_path) as journal:
        journal.record_unmasked(SESSION)
        with pytest.raises(LocalProtocolError, match="revealed before"):
            journal.record_unmasked(SESSION)


def test_a_second_reveal_is_refused_after_a_restart(tmp_path: Path) -> None:
    with SiteJournal(tmp_path) as journal:
        journal.record_unmasked(SESSION)
    with SiteJournal(tmp_path) as journal, pytest.raises(LocalProtocolError):
        journal.record_unmasked(SESSION)


@pytest.mark.parametrize("again", [(2, 3), (2, 2), (1, 9)])
def test_an_older_or_equal_attempt_is_refused_after_a_restart(tmp_path: Path, again: tuple[int, int]) -> None:
    with SiteJournal(tmp_path) as journal:
        journal.record_attempt("job", 2, 3)
    with SiteJournal(tmp_path) as journal:
        with pytest.raises(StaleMessage, match="later than round 2, attempt 3"):
            journal.record_attempt("job", *again)
        journal.record_attempt("job", 2, 4)
        journal.record_attempt("another job", 1, 1)
        assert journal.highest_attempt("job") == (2, 4)


def test_a_record_is_on_the_disk_before_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        synced.append((tmp_path / JOURNAL_NAME).read_bytes())

    with SiteJournal(tmp_path) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        journal.record_unmasked(SESSION)
    assert SESSION.hex().encode() in synced[-1]


def test_a_record_that_the_disk_refuses_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with SiteJournal(tmp_path) as journal:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            journal.record_attempt("job", 1, 1)
        assert journal.highest_attempt("job") is None


def test_a_record_that_a_crash_cut_off_is_forgotten(tmp_path: Path) -> None:
    with SiteJournal(tmp_path) as journal:
        journal.record_attempt("job", 1, 1)
    with (tmp_path / JOURNAL_NAME).open("a") as file:
        file.write('{"kind": "attempt", "job_id": "job", "rou')
    with SiteJournal(tmp_path) as journal:
        assert journal.highest_attempt("job") == (1, 1)
        journal.record_attempt("job", 1, 2)
    with SiteJournal(tmp_path) as journal:
        assert journal.highest_attempt("job") == (1, 2)


def test_a_damaged_record_stops_the_site(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).write_text('{"kind": "attempt"}\n')
    with pytest.raises(StorageError, match="line 1"):
        SiteJournal(tmp_path)


def test_two_sites_cannot_share_a_folder(tmp_path: Path) -> None:
    with SiteJournal(tmp_path), pytest.raises(ConfigError, match="in use by another site"):
        SiteJournal(tmp_path)
    SiteJournal(tmp_path).close()


def test_the_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    SiteJournal(tmp_path / "state").close()
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        SiteJournal(tmp_path / "file" / "state")
