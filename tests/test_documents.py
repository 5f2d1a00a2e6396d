"""Documents without questions under `own:`: what is read, how it is cut, and one line for what cannot be used."""

import itertools
import json
import time
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dream.data import documents
from dream.data.documents import cut
from dream.errors import DreamError


def read(path, tmp_path, monkeypatch, words=20, overlap=0, boilerplate=1.0):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    data = SimpleNamespace(passage_words=words, passage_overlap=overlap, boilerplate=boilerplate)
    return documents.passages("mine", str(path), SimpleNamespace(data=data))


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def pdf(text=""):
    """A PDF of one page that holds this text, or nothing but a page."""
    stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode() if text else b""
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]  # fmt: skip
    out, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, part)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        table,
        len(out),
    )


def test_thirty_markdown_files_become_passages_under_their_headings(tmp_path, monkeypatch):
    files = {
        f"page{i}__md": f"# Page {i}\n\nFirst words of {i}.\n\n## Part\n\n{' '.join(f'w{i}x{j}' for j in range(50))}\n"
        for i in range(30)
    }
    table = read(write(tmp_path / "docs", **files), tmp_path, monkeypatch)
    assert table["group"].nunique() == 30 and table["passage_id"].is_unique
    ours = table[table["text"].str.contains("w7x")]
    assert " ".join(ours["text"]).split() == [f"w7x{j}" for j in range(50)] and len(ours) == 3
    assert set(ours["title"]) == {"Page 7 > Part"} and ours["text"].str.split().str.len().max() <= 20


def test_html_and_text_give_their_words_and_no_markup(tmp_path, monkeypatch):
    html = "<html><head><title>Ants</title><script>var x;</script></head><body><h2>Legs</h2><p>Six &amp; more.</p></body></html>"
    table = read(write(tmp_path / "docs", a__html=html, b__txt="Bees have <five> eyes."), tmp_path, monkeypatch)
    shown = " ".join(table["text"])
    assert "Six & more." in shown and "Bees have <five> eyes." in shown and "var x" not in shown and "<p>" not in shown
    assert table[table["text"].str.contains("Six")]["title"].item() == "Ants > Legs"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_table_is_a_document_a_row(tmp_path, monkeypatch, ending):
    rows = pd.DataFrame({"id": ["007", "b"], "title": ["Ant", "Bee"], "text": ["six legs", "five eyes"]})
    path = tmp_path / f"texts.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_dict("records")))
    else:
        rows.to_csv(path, index=False) if ending == "csv" else rows.to_parquet(path)
    table = read(path, tmp_path, monkeypatch)
    assert list(zip(table["passage_id"], table["title"], table["text"], strict=True)) == [
        ("mine:007#1", "Ant", "six legs"), ("mine:b#1", "Bee", "five eyes"),
    ]  # fmt: skip


def test_chinese_is_cut_though_it_has_no_spaces(tmp_path, monkeypatch):
    text = "".join(f"蜜蜂有五只眼睛，蚂蚁{chr(0x4E00 + i)}有六条腿。" for i in range(40))  # no two parts alike
    table = read(write(tmp_path / "docs", a__txt=text), tmp_path, monkeypatch)
    assert len(table) > 10 and "".join(table["text"]) == text and table["text"].str.len().max() <= 3 * 20


def test_twenty_thousand_passages_take_seconds_and_bounded_memory(tmp_path, monkeypatch):
    import tracemalloc

    path = tmp_path / "many.jsonl"
    with path.open("w") as file:
        for i in range(20_000):
            file.write(json.dumps({"id": str(i), "text": f"document {i} says " + " ".join(f"{i}-{j}" for j in range(15))}) + "\n")
    started = time.monotonic()
    tracemalloc.start()
    table = read(path, tmp_path, monkeypatch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table) == 20_000 and table["group"].nunique() == 20_000
    assert peak < 120 * 2**20, "the table at the end, and one document"
    assert time.monotonic() - started < 300


def test_copies_and_boilerplate_are_dropped_and_said(tmp_path, monkeypatch):
    pages = {f"p{i}__txt": f"Home | Contact | Imprint\n\nPage {i} speaks of thing{i}.\n" for i in range(10)}
    folder = write(tmp_path / "docs", **pages, copy__txt=pages["p3__txt"])
    table = read(folder, tmp_path, monkeypatch, boilerplate=0.3)
    assert len(table) == 10 and not table["text"].str.contains("Imprint").any()
    notes = " ".join(table.attrs["notes"])
    assert "1 copies of " in notes and "copy.txt" in notes and "Home | Contact | Imprint" in notes
    assert read(folder, tmp_path, monkeypatch)["text"].str.contains("Imprint").all(), "1 = none"


def test_a_folder_with_one_table_and_no_text_is_that_table(tmp_path, monkeypatch):
    """Beside texts a table is skipped and counted; of two nobody says which."""
    rows = "".join(f'{{"id": "{name}", "text": "{name} has six legs"}}\n' for name in ("ant", "bee"))
    folder = write(tmp_path / "docs", rows__jsonl=rows, logo__svg="<svg/>")
    alone, named = (read(place, tmp_path, monkeypatch) for place in (folder, folder / "rows.jsonl"))
    assert list(alone["text"]) == ["ant has six legs", "bee has six legs"] and alone.equals(named)
    assert "1 files of other kinds skipped (1 .svg)" in alone.attrs["notes"]
    beside = read(write(tmp_path / "texts", rows__jsonl=rows, a__txt="a word"), tmp_path, monkeypatch)
    assert list(beside["text"]) == ["a word"] and "1 files of other kinds skipped (1 .jsonl)" in beside.attrs["notes"]
    with pytest.raises(DreamError, match=r"two holds no document \(2 files of other kinds skipped \(1 .csv, 1 .jsonl\)\)"):
        read(write(tmp_path / "two", rows__jsonl=rows, more__csv="id,text\n1,x\n"), tmp_path, monkeypatch)


def test_an_empty_folder_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    with pytest.raises(DreamError, match=r"none holds no document \(it is empty\)\. Name a folder with"):
        read(tmp_path / "none", tmp_path, monkeypatch)


def test_a_binary_file_is_named_and_the_others_are_read(tmp_path, monkeypatch):
    folder = write(tmp_path / "docs", a__txt="six legs", b__txt=b"\x00\x01\xff\xfe\x00" * 40, c__exe=b"MZ\x90")
    table = read(folder, tmp_path, monkeypatch)
    notes = " ".join(table.attrs["notes"])
    assert list(table["text"]) == ["six legs"] and "b.txt: it is binary" in notes and "1 .exe" in notes


def test_a_pdf_gives_its_text_and_one_without_text_is_named(tmp_path, monkeypatch):
    table = read(write(tmp_path / "docs", a__pdf=pdf("Bees have five eyes"), scan__pdf=pdf()), tmp_path, monkeypatch)
    assert list(table["text"]) == ["Bees have five eyes"] and "scan.pdf" in " ".join(table.attrs["notes"])
    with pytest.raises(DreamError, match=r"holds no document \(.*scan\.pdf"):
        read(write(tmp_path / "scans", scan__pdf=pdf()), tmp_path, monkeypatch)


@given(text=st.text(st.characters(codec="utf-8"), max_size=200), most=st.integers(1, 9), share=st.floats(0, 0.5))
def test_every_word_is_in_a_passage_in_its_order(text, most, share):
    """Without overlap the passages are the words; with it each begins with the last words of the one before."""
    words = [text[a:b] for a, b in cut.words(text)]
    plain = [[p[a:b] for a, b in cut.words(p)] for p in cut.cut(text, most, 0)]
    assert [word for piece in plain for word in piece] == words and all(len(piece) <= most for piece in plain)
    overlap = int(share * most)
    pieces = [[p[a:b] for a, b in cut.words(p)] for p in cut.cut(text, most, overlap)]
    assert all(len(piece) <= most for piece in pieces)
    for before, piece in itertools.pairwise(pieces):
        assert piece[:overlap] == before[len(before) - overlap :] or len(before) < overlap
