"""Nothing is half-written, hashes are of content, archives stay in their folder, errors become one line."""

import contextlib
import errno
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dream import files, manifest
from dream.errors import DreamError, explain
from dream.files import write_json


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


def member(name, link=False):
    info = zipfile.ZipInfo(name)
    info.external_attr = (0o120777 if link else 0o100644) << 16
    return info


def edited(archive, start, change, record=b"PK\x01\x02"):
    """Change bytes of every record of the central directory (or of every local header), ``start`` bytes behind its mark."""
    raw, at = bytearray(archive.read_bytes()), -1
    while (at := raw.find(record, at + 1)) >= 0:
        raw[at + start : at + start + len(change)] = change
    archive.write_bytes(raw)


HOSTILE = [
    *((name, "points outside its folder") for name in ("../evil", "/evil", "a/../../evil", "C:/evil", "c:evil")),
    *((name, "has a name that no file can have") for name in ("a" * 300, "é" * 128, "..\\evil", "a\\b", "a/" + "b" * 256 + "/c")),
    ("good", "stands in it twice"), ("./good", "stands in it twice"),
    ("good/evil", "is a file and a folder"), ("good/x/evil", "is a file and a folder"), ("there", "is a file and a folder"),
    (".", "is a file and a folder"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("name", "fault"), HOSTILE)
def test_a_member_that_cannot_be_a_file_of_the_folder_is_refused(tmp_path, name, fault):
    archive, folder = tmp_path / "x.zip", tmp_path / "out"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("good", "1")
        opened.writestr("there/file", "1")
        opened.writestr(member(name), "1")
    with pytest.raises(DreamError, match=rf"x\.zip: member .* {fault}\. ") as caught:
        files.unzip(archive, folder)
    assert len(str(caught.value)) < 250 + len(str(archive)) and list(tmp_path.iterdir()) == [archive]


def test_a_link_a_password_and_a_nul_in_a_name_are_refused(tmp_path):
    archive = tmp_path / "x.zip"
    for name, fault in (
        ("link", "points outside its folder"),
        ("secret", "is encrypted"),
        ("n?l", "has a name that no file can have"),
    ):
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr(member(name, link=name == "link"), "/etc/passwd")
        edited(archive, 8, b"\1\0" if name == "secret" else b"\0\0")
        if name == "n?l":
            edited(archive, 46, b"n\0l")
            edited(archive, 30, b"n\0l", b"PK\x03\x04")
        with pytest.raises(DreamError, match=f"member '.*' {fault}"):
            files.unzip(archive, tmp_path / "out")
        assert list(tmp_path.iterdir()) == [archive]


def test_an_archive_has_a_limit(tmp_path, monkeypatch):
    """On the sum of what is declared; beside wheels' members that are not asked for; and zipfile writes no more than that."""
    archive, out = tmp_path / "x.zip", tmp_path / "out"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("small", b"1")
        for name in "ab":
            opened.writestr(name, bytes(600_000))
    assert files.unpacked_size(archive) == 1_200_001  # small archives may hold what they like
    monkeypatch.setattr(files, "UNPACKED_SMALL", 1_200_000)
    for read in (files.unpacked_size, lambda path: files.unzip(path, out)):
        with pytest.raises(DreamError, match=r"x\.zip would unpack to 1 MB, more than the 1 MB that an archive of its size may"):
            read(archive)
    assert not out.exists()
    files.unzip(archive, out, ["small", "a"])
    assert (out / "a").stat().st_size == 600_000
    monkeypatch.setattr(files, "UNPACKED_SMALL", 0)
    monkeypatch.setattr(files, "UNPACKED_RATIO", 1_200_001 / archive.stat().st_size + 1)
    assert files.unpacked_size(archive) == 1_200_001
    monkeypatch.setattr(files, "UNPACKED_TOTAL", 1_200_000)
    with pytest.raises(DreamError, match="would unpack"):
        files.unpacked_size(archive)
    edited(archive, 24, (1000).to_bytes(4, "little"))  # every member says that it has 1,000 bytes
    with pytest.raises(DreamError, match="not a complete zip archive"):
        files.unzip(archive, tmp_path / "lie")
    assert all(p.stat().st_size <= 1000 for p in (tmp_path / "lie").iterdir())


def test_unknown_compression_is_named(tmp_path):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a", "1")
    edited(archive, 10, b"\x63\0")
    with pytest.raises(DreamError, match=r"is packed in an unknown way \(.*not supported\)\. Pack it again as an ordinary zip"):
        files.unzip(archive, tmp_path / "out")


def packed(method):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as opened:
        opened.writestr("corpus.jsonl", "hello world " * 50)
        opened.writestr("qrels/ü.tsv", "a\tb\t1\n" * 30)
    return stream.getvalue()


WHOLE = [packed(m) for m in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)]


@settings(max_examples=150, deadline=None)
@given(
    whole=st.sampled_from(WHOLE), cut=st.integers(0, 20),
    damage=st.lists(st.tuples(st.floats(0, 0.999), st.sampled_from([0, 1, 255]) | st.integers(0, 255)), min_size=1, max_size=4),
)  # fmt: skip
def test_any_damage_is_one_line_or_none(whole, cut, damage):
    raw = bytearray(whole)
    for place, byte in damage:
        raw[int(place * len(raw))] = byte
    with tempfile.TemporaryDirectory() as folder:
        archive = pathlib.Path(folder) / "x.zip"
        archive.write_bytes(raw[: len(raw) - max(0, cut - 15)])
        with contextlib.suppress(DreamError):
            files.unzip(archive, archive.with_name("out"))
        assert {p.name for p in archive.parent.iterdir()} <= {"x.zip", "out"}


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
    ran = subprocess.run([sys.executable, "-m", "stages.configure", "--size", "3b"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert (
        ran.stderr.strip() == "error: --size 3b was asked for, but params.yaml says model.size: tiny. Run it through `dvc repro`"
    )


def test_an_artefact_of_other_settings_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {"candidates": {"count": 8}, "code": {"a.py": "1"}}
    write_json(manifest.RUNS / "candidates.json", [{"settings": "candidates", "config": asked}])
    (tmp_path / "here").mkdir()
    for now, line in (
        (asked, None),
        (asked | {"code": {"a.py": "2"}}, None),
        ({"candidates": {"count": 4}}, "count = 8, params says 4"),
    ):
        write_json(manifest.CONFIG / "candidates.json", now)
        if line is None:
            manifest.check("candidates", "here")
            continue
        with pytest.raises(DreamError, match=f"here was made with candidates.{line}"):
            manifest.check("candidates", "here")
    with pytest.raises(DreamError, match="nothing is missing"):
        manifest.check("candidates", "nothing")


def test_an_interruption_between_old_and_new_folder_leaves_the_old_one(tmp_path, monkeypatch):
    """The new folder cannot take its place: the old one is back, with nothing beside it. A link's target is replaced."""
    folder, link = tmp_path / "kept", tmp_path / "link"
    folder.mkdir()
    (folder / "a").write_text("old")
    link.symlink_to(folder)
    real = os.replace

    def replace(source, target):
        if pathlib.Path(target) == folder and pathlib.Path(source).suffix != ".old":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), files.replacing_folder(link) as new:
        (new / "a").write_text("new")
    assert (folder / "a").read_text() == "old" and sorted(p.name for p in tmp_path.iterdir()) == ["kept", "link"]
    monkeypatch.undo()
    with files.replacing_folder(link) as new:
        (new / "a").write_text("new")
    assert (folder / "a").read_text() == "new" and link.is_symlink() and len(list(tmp_path.iterdir())) == 2
