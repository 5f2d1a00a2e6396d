"""Nothing is half-written, hashes are of content, archives stay in their folder, errors become one line."""

import errno
import subprocess
import sys
import zipfile

import pytest

from dream import files, manifest
from dream.config import load
from dream.errors import DreamError, explain


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
    target = tmp_path / "value.json"
    files.write_json(target, 1)
    with pytest.raises(OSError, match="No space"), files.replacing(target) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))
    assert files.read_json(target) == 1 and list(tmp_path.iterdir()) == [target]


def test_a_failed_folder_leaves_the_old_folder(tmp_path):
    target = tmp_path / "model"
    with files.replacing_folder(target) as temporary:
        (temporary / "a").write_text("old")
    with pytest.raises(RuntimeError), files.replacing_folder(target) as temporary:
        (temporary / "a").write_text("new")
        raise RuntimeError
    assert (target / "a").read_text() == "old" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_an_archive_cannot_write_outside_its_folder(tmp_path, name):
    archive, folder = tmp_path / "x.zip", tmp_path / "out"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("good", "1")
        opened.writestr(name, "1")
    with pytest.raises(DreamError, match="points outside its folder"):
        files.unzip(archive, folder)
    assert not folder.exists() and not (tmp_path / "evil").exists()


def test_an_archive_cannot_plant_a_link(tmp_path):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(DreamError, match="points outside its folder"):
        files.unzip(archive, tmp_path / "out")


def test_a_truncated_archive_and_a_missing_member_are_named(tmp_path):
    archive = tmp_path / "x.zip"
    archive.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DreamError, match="not a complete zip archive"):
        files.unzip(archive, tmp_path / "out")
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a", "1")
    with pytest.raises(DreamError, match="holds no model/"):
        files.unzip(archive, tmp_path / "out", ["model/"])


def test_errors_of_the_machine_are_one_line():
    assert "no space left" in explain(OSError(errno.ENOSPC, "No space left on device", "x"))
    assert "out of memory" in explain(MemoryError())
    assert explain(ValueError("ours")) is None


def test_a_stage_ends_with_one_line_and_a_code(tmp_path):
    """The user's view: no traceback, exit code 1, the line names the thing and the remedy."""
    ran = subprocess.run(
        [sys.executable, "-m", "stages.train", "--size", "3b", "--objective", "dream", "--seed", "0"], capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert ran.stderr.strip() == "error: --size 3b was asked for, but params.yaml says model.size: tiny. Run it through `dvc repro`"


def test_an_artefact_of_other_settings_is_refused(tmp_path):
    manifest.stamp(tmp_path, load(), "candidates")
    assert manifest.check(tmp_path, load())["config"]["candidates"]["count"] == 8
    with pytest.raises(DreamError, match=r"made with candidates.count = 8, params says 4"):
        manifest.check(tmp_path, load(overrides={"candidates.count": 4}))
    with pytest.raises(DreamError, match=r"made with size\..* = 6, params says 4"):
        manifest.check(tmp_path, load(overrides={"model.size": "tiny-4l"}))
    with pytest.raises(DreamError, match="is missing"):
        manifest.check(tmp_path / "nothing", load())
