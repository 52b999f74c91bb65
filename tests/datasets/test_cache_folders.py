"""Where derived data are stored: in the user's own cache, never in another user's folder."""

import os
import tempfile
from pathlib import Path

import pytest

from dataset_files.cache import user_cache, writable_cache


def test_a_relative_cache_folder_stays_the_same_when_the_working_folder_changes(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.chdir(tmp_path)
    assert user_cache() == tmp_path / "cache" / "mask-rcnn"
    place = writable_cache("converted")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert place.is_absolute() and place.is_dir()


def test_users_without_a_cache_do_not_share_a_temporary_one(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("in the place of the cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = writable_cache("converted")
    monkeypatch.setattr(os, "getuid", lambda: 12345, raising=False)
    assert first != writable_cache("converted") == tmp_path / "mask-rcnn-12345" / "converted"


def test_where_nothing_can_be_written_the_remedy_is_named(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("in the place of both")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(OSError, match="not writable.*set XDG_CACHE_HOME"):
        writable_cache("converted")
