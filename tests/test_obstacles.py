"""What keeps files from coming to be at a path."""

from __future__ import annotations

from pathlib import Path

from navit_clip.obstacles import obstacle_to


def test_a_folder_or_nothing_yet_in_one_is_no_obstacle_and_is_left_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "there", tmp_path / "new" / "deep", Path("new/deep"), Path()):
        assert obstacle_to(path) == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_file_on_the_way_and_a_folder_that_takes_no_files_are_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "deep" / "er"):
        assert obstacle_to(path) == f"{tmp_path / 'file'} is a file"
    assert obstacle_to(Path("/proc/run/deep")).startswith("/proc cannot be written: ")
