"""What a file is, by its name and its content: packed, encoded, in JSON, in a table, or plain."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import sys
import tarfile
import tracemalloc
import types
import warnings

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from sae.text import Document, Tally, TextWarning, iter_documents, read_documents

ONE_TWO = '{"text": "one"}\n{"text": "two"}\n'
ARRAY = '[{"text": "one"}, {"text": "two"}]'


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(path, **options):
    return [document.text for document in read_documents(path, **options)]


def refused(path, *messages):
    with pytest.raises(ValueError) as error:
        read_documents(path)
    assert all(message in str(error.value) for message in messages), error.value
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", ARRAY),
        ("A.JSON", json.dumps(json.loads(ARRAY), indent=2)),
        ("a.json", ONE_TWO),  # as `datasets` and pandas write it
        ("a.json", '{"version": 1, "data": [{"text": "one"}, {"text": "two"}], "next": null}'),
        ("a.json", json.dumps({"rows": json.loads(ARRAY)}, indent=1)),
        ("a.json", '{"text": "one"}{"text": "two"}'),
        ("a.jsonl", ONE_TWO),
        ("A.JSONL", ONE_TWO),
        ("a.jsonl", ARRAY),  # the name says lines, the content an array
        ("a.jsonl", json.dumps({"text": "one"}, indent=1) + "\n" + json.dumps({"text": "two"}, indent=1)),
        ("a.jsonl", ONE_TWO.replace("\n", "\r")),
        ("a.jsonl", ONE_TWO.replace("\n", "\r\n")),
        ("a.ndjson", ONE_TWO),
        ("corpus", ONE_TWO),  # no suffix: the content says it
        ("a.csv", "text\none\ntwo\n"),
        ("a.CSV", 'id,"text"\r\na,one\r\n,"two"\r\n'),
        ("a.csv", "id;text\r1;one\r2;two\r"),
        ("a.tsv", "text\tid\none\t1\n\ntwo\t2"),
    ],
)
@pytest.mark.parametrize("mark", [False, True])
def test_a_file_is_read_as_what_it_says_it_is(tmp_path, name, content, mark):
    path = write(tmp_path / name, "\ufeff" * mark + content)
    documents = read_documents(path)
    assert [document.text for document in documents] == ["one", "two"]
    assert all(document.source in ("a", "A", "corpus") for document in documents)
    for encoding in ("utf-16", "utf-32") if mark else ():
        assert texts(write(tmp_path / name, content.encode(encoding))) == ["one", "two"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        path = write(tmp_path / "a.txt", "naïve 東京 🌊\n".encode(encoding))
        assert read_documents(path) == [Document("a.txt", "a", "naïve 東京 🌊\n")]
    path = write(tmp_path / "a.txt", b"\xfe\xff" + "naïve".encode("utf-16-be"))
    assert texts(path) == ["naïve"]
    # Longer than what is decoded at a time, with characters of two units.
    long = "🌊a" * 700_000
    assert texts(write(tmp_path / "b.txt", long.encode("utf-16"))) == [long]
    # Files that were joined.
    assert texts(write(tmp_path / "c.jsonl", f"\ufeff{ONE_TWO}\ufeff{ONE_TWO}")) == ["one", "two"] * 2


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda content: pyarrow.compress(content, codec="zstd", asbytes=True)),
    ],
)
def test_packed_files_are_unpacked(tmp_path, suffix, pack):
    for name, content in (("a.jsonl", ONE_TWO), ("a.json", ARRAY), ("a.csv", "text\none\ntwo\n")):
        path = write(tmp_path / f"{name}{suffix}", pack(content.encode()))
        assert [(d.source, d.text) for d in read_documents(path)] == [("a", "one"), ("a", "two")]
        # Two files after one another are one.
        write(path, pack(content.encode()) + pack(b"three,\n"))
        if name == "a.csv":
            assert texts(path, skip_bad=True, tally=Tally()) == ["one", "two"]
    assert read_documents(write(tmp_path / f"b.TXT{suffix.upper()}", pack("sea".encode("utf-16")))) == [
        Document("b.TXT", "b", "sea")
    ]
    # Browsers unpack and keep the name, or do not unpack and lose it.
    assert texts(write(tmp_path / f"c.jsonl{suffix}", ONE_TWO)) == ["one", "two"]
    assert texts(write(tmp_path / "d.jsonl", pack(ONE_TWO.encode()))) == ["one", "two"]
    short = pack(ONE_TWO.encode() * 1000)[:-9]
    refused(write(tmp_path / f"e.jsonl{suffix}", short), "is damaged or ends too early", "fetch it again")


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda content: pyarrow.compress(content, codec="zstd", asbytes=True)),
    ],
)
def test_damage_in_a_later_part_of_a_packed_file_is_an_error(tmp_path, suffix, pack):
    """Whichever byte it is of the second of three parts (some decide nothing), and what is no part after the last."""
    first, second, third = (pack((json.dumps({"text": text}) + "\n").encode()) for text in ("one", "two", "three"))
    path = tmp_path / f"a.jsonl{suffix}"
    assert texts(write(path, first + second + third)) == ["one", "two", "three"]
    refusals = 0
    for at in range(len(second)):
        damaged = bytearray(first + second + third)
        damaged[len(first) + at] ^= 0xFF
        try:
            assert texts(write(path, bytes(damaged))) == ["one", "two", "three"], at
        except ValueError:
            refusals += 1
    assert refusals > 0.7 * len(second)
    refused(write(path, first + second + b"more"), "is damaged or ends too early", "fetch it again")
    if suffix != ".zst":  # which knows no such thing
        assert texts(write(path, first + bytes(8) + second + bytes(2**20))) == ["one", "two"]


def test_a_zstd_file_may_begin_with_a_frame_to_be_skipped(tmp_path):
    frame = pyarrow.compress(ONE_TWO.encode(), codec="zstd", asbytes=True)
    for first in (0x50, 0x5F):
        skipped = bytes([first]) + b"\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
        assert texts(write(tmp_path / "a.jsonl.zst", skipped + frame + skipped)) == ["one", "two"]


def test_damage_in_a_table_with_checksums_is_an_error(tmp_path):
    path, table = tmp_path / "a.parquet", pyarrow.table({"text": ["the sea is calm", "the king went home"]})
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pyarrow.parquet.write_table(table, path, **plain, write_page_checksum=True)
    damaged = path.read_bytes().replace(b"the sea", b"the tea", 1)
    refused(write(path, damaged), "cannot read the text", "CRC checksum verification failed")


def test_a_pipe_is_refused_before_anything_is_read_from_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", tmp_path):
        refused(path, "pipe.jsonl is no file on a disk but a pipe or a device: write its text to a file")
    read, write_end = os.pipe()
    os.close(write_end)
    refused(f"/dev/fd/{read}", "is no file on a disk but a pipe")
    os.close(read)


def test_zstd_of_pythons_own_is_taken_where_it_exists(tmp_path, monkeypatch):
    asked = {}

    def zstd_file(file, options):
        asked.update(options)
        return gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(ONE_TWO.encode())))

    module = types.SimpleNamespace(ZstdFile=zstd_file, DecompressionParameter=types.SimpleNamespace(window_log_max="w"))
    monkeypatch.setitem(sys.modules, "compression", types.SimpleNamespace(zstd=module))
    monkeypatch.setitem(sys.modules, "compression.zstd", module)
    path = write(tmp_path / "a.jsonl.zst", b"\x28\xb5\x2f\xfd")
    assert texts(path) == ["one", "two"] and asked == {"w": 31}
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(path, "takes Python 3.14 or pyarrow: pip install pyarrow, or unpack it with `zstd -d`")


def test_zstd_with_a_long_window_says_how_to_unpack_it(tmp_path):
    # What `zstd --ultra --long=31` writes: a frame that asks for a window of 2 GiB, and the text in a raw block.
    frame = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(31 - 10) << 3]) + (3 * 8 + 1).to_bytes(3, "little") + b"sea"
    refused(write(tmp_path / "a.txt.zst", frame), "was packed with a long window: unpack it with `zstd -d --long=31`")


def packed(content):
    """The same bytes in every process: a test is named by them, and gzip writes down the second of packing."""
    return gzip.compress(content, mtime=0)


def archive():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    return packed(file.getvalue())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "café".encode("latin-1"), "is not UTF-8: byte 0xe9 at offset 3; convert it first"),
        ("a.jsonl", ONE_TWO.encode() + b'{"text": "\xe9"}', "is not UTF-8: byte 0xe9 at offset 42; convert it first"),
        ("a.jsonl", b"\xef\xbb\xbf" + ONE_TWO.encode() + b"\xe9", "is not UTF-8: byte 0xe9 at offset 35"),
        ("a.json", b'[{"text": "one"},\n {"text": "\xe9"}]', "is not UTF-8: byte 0xe9 at offset 29"),
        ("a.csv", b"text\none\ncaf\xe9\n", "is not UTF-8: byte 0xe9 at offset 12"),
        ("a.txt", "sea".encode("utf-16-le"), "no text: byte 0x00 at offset 1. If it is UTF-16 without a byte order"),
        (
            "a.txt",
            "sea".encode("utf-16") + b"a",
            "not UTF-16, although its byte order mark says so: the bytes at offset 8",
        ),
        ("a.txt", ONE_TWO, "has the name of a plain text and is JSON: rename it to .jsonl or .json"),
        ("a.txt", ARRAY, "has the name of a plain text and is JSON"),
        ("a.jsonl", "It was a dark night.\n", "line 1: not JSON (Expecting value)"),
        ("a.csv", ONE_TWO, 'expected a first line that names the columns, "text" among them, got \'{"text": "one"}\''),
        ("a.csv", "body,id\nsea,1\n", "got 'body,id'"),
        ("a.csv", "text,text\na,b\n", "expected columns of different names, got text, text"),
        ("a.csv", 'text\none\n"two\nthree\n', "line 3: a quote is opened and never closed"),
        ("a.parquet", ONE_TWO, "is not Parquet"),
        ("a.arrow", ONE_TWO, "is not an Arrow file"),
        ("a.txt", b"PK\x03\x04", "is a zip archive (or a document of an office program): unpack it"),
        ("a.txt", b"%PDF-1.7 \xff", "is a PDF: extract its text first"),
        ("a.tar.gz", archive(), "is a tar archive: unpack it, and name the folder"),
        ("a.parquet.gz", packed(b"PAR1"), "is a packed table: unpack it first"),
        ("a.json", "[]", "is empty: it holds no text"),
        ("a.json", '["one", "two"]', 'record 1 (line 1): expected an object with a string "text", or with'),
        (
            "a.json",
            '[{"text": "one"},\n {"text": "two"',
            "line 2: not JSON (Expecting ',' delimiter). The rest cannot",
        ),
        ("a.json", '[{"text": "one"}\n {"text": "two"}]', "line 2: not JSON (expected one of , ], got '{')"),
        ("a.json", '[{"text": "one"}', "line 1: not JSON (an array breaks off)"),
        ("a.json", '{"a": [{"text": "one"}], "b": [{"text": "two"}]}', "two lists of records, 'a' and 'b'"),
        ("a.json", '{"a": [{"text": "one"}],\n "text": "two"}', "has a text of its own, and the list 'a'"),
    ],
)
def test_what_contradicts_the_name_is_refused_in_words(tmp_path, name, content, message):
    refused(write(tmp_path / name, content), message)


def test_what_is_another_table_than_its_name_says_is_read(tmp_path):
    table = pyarrow.table({"text": ["one", "two"]})
    for name in ("a.parquet", "B.PARQUET", "a.csv", "a.arrow"):
        pyarrow.parquet.write_table(table, tmp_path / name)
        assert texts(tmp_path / name) == ["one", "two"]
    for name in ("a.feather", "a.arrow", "a.parquet"):
        pyarrow.feather.write_feather(table, tmp_path / name)
        assert texts(tmp_path / name) == ["one", "two"]
    with pyarrow.ipc.new_stream(tmp_path / "s.arrow", table.schema) as stream:
        stream.write_table(table)
    assert texts(tmp_path / "s.arrow") == ["one", "two"]


def test_an_object_of_many_fields_is_a_record_of_its_own(tmp_path):
    record = {"tags": ["x"], "parts": [{"name": "y"}], "text": "one", "pieces": [{"text": "o"}]}
    assert texts(write(tmp_path / "a.json", json.dumps(record, indent=1))) == ["one"]
    chat = {"id": 7, "messages": [{"role": "user", "content": "hi", "text": None}]}
    (document,) = read_documents(write(tmp_path / "b.json", json.dumps(chat, indent=1)))
    assert document.id == "7" and document.messages[0].content == "hi"


def test_fields_of_tables_hold_what_quotes_allow(tmp_path):
    rows = 'text,id\r\n"one, ""two""\r\nthree",a\r\n' + "x" * 300_000 + ",b\r\n"
    assert [(d.id, d.text[:20]) for d in read_documents(write(tmp_path / "a.csv", rows))] == [
        ("a", 'one, "two"\r\nthree'),
        ("b", "x" * 20),
    ]
    tally = Tally()
    bad = 'text,id\none,two,3\nfine,4\nshort\n"a" b,5\nfine,6\n'
    assert texts(write(tmp_path / "b.csv", bad), skip_bad=True, tally=tally) == ["fine", "fine"]
    assert tally.bad == 3 and "b.csv, line 2: has 3 fields, the first line 2; a field with ','" in tally.first_bad
    refused(tmp_path / "b.csv", "line 2: has 3 fields", "skip_bad=True (--skip_bad)")


def test_bad_records_are_counted_and_left_out_where_this_is_wanted(tmp_path):
    lines = ['{"text": "one"}', '{"text": ', '{"txt": 1}', '{"text": 5}', "7", r'{"text": "\ud800"}', "[" * 100_000]
    lines += ['{"text": "a", "n": ' + "9" * 5000 + "}", '{"messages": "a"}', '{"text": " "}', '{"text": "two"}']
    path, tally = write(tmp_path / "a.jsonl", "\n".join(lines)), Tally()
    assert [(d.id, d.text) for d in read_documents(path, skip_bad=True, tally=tally)] == [
        ("a:1", "one"),
        ("a:11", "two"),
    ]
    assert (tally.documents, tally.bad, tally.blank) == (2, 8, 1)
    assert tally.first_bad == f"{path}, line 2: not JSON (Expecting value)"
    assert str(tally).startswith("2 documents; 1 blank document is left out; 8 bad records are left out, the first: ")
    refused(
        path, "line 2: not JSON (Expecting value). Mend it, or leave such records out with skip_bad=True (--skip_bad)"
    )
    with pytest.warns(TextWarning, match=r"a\.jsonl: 8 bad records are left out, the first: .*line 2"):
        read_documents(path, skip_bad=True)
    # An array goes on after a bad record.
    path = write(tmp_path / "b.json", '[{"text": "one"}, {"txt": 1}, {"text": "two"}]')
    assert texts(path, skip_bad=True, tally=tally) == ["one", "two"] and tally.bad == 9
    path = write(tmp_path / "c.jsonl", '{"txt": 1}\n')
    with pytest.raises(ValueError, match=r"c\.jsonl is empty: it holds no text; 1 bad record is left out, .*line 1"):
        read_documents(path, skip_bad=True)


def test_a_folder_says_what_it_does_not_read(tmp_path):
    for name in ("a.JSONL", "c.ndjson.gz", "README.md", ".hidden.jsonl"):
        write(tmp_path / name, gzip.compress(ONE_TWO.encode()) if name.endswith("gz") else ONE_TWO)
    write(tmp_path / "b.csv", "text\nthree\n")
    (tmp_path / "more").mkdir()
    with pytest.warns(TextWarning, match=r"2 entries of the folder are not read \(README\.md, more\)"):
        assert texts(tmp_path) == ["one", "two", "three", "one", "two"]


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Arrays, lines, tables and plain text of 24 MB, some packed."""
    line, count = json.dumps({"text": "The sea was calm. " * 220}), 6000
    files = {
        "a.json": f"[{', '.join([line] * count)}]",
        "b.json": json.dumps({"data": [json.loads(line)] * count}),
        "c.jsonl.gz": gzip.compress("\n".join([line] * count).encode(), 1),
        "d.csv": "text\n" + f"{json.loads(line)['text']}\n" * count,
        "e.txt": "\n\n".join([json.loads(line)["text"]] * count),
    }
    for name, content in files.items():
        write(tmp_path / name, content)
        del content
    files.clear()
    for name in ("a.json", "b.json", "c.jsonl.gz", "d.csv", "e.txt"):
        tracemalloc.start()
        characters = sum(document.characters for document in iter_documents(tmp_path / name, tally=Tally()))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert characters >= 3960 * count and peak < (48e6 if name == "e.txt" else 12e6), (name, peak)


def test_values_go_over_the_ends_of_what_is_read_at_a_time(tmp_path):
    """A number, an escape and a word, at every place about the first 2^20 bytes."""
    for value, shift in itertools.product((1.5e-300, -12, True, 'a"b\\é'), range(12)):
        begin = '{"text": "'
        text = "x" * (2**20 - len(begin) - len('", "n": ') - shift)
        content = f'{begin}{text}", "n": {json.dumps(value)}}}\n{{"text": "two"}}'
        assert texts(write(tmp_path / "a.json", content)) == [text, "two"], (value, shift)


def test_a_large_plain_text_is_several_documents(tmp_path):
    paragraphs = [f"{number} " + "naïve 東京 " * 3000 for number in range(450)]
    text = "\n\n".join(paragraphs)
    documents = read_documents(write(tmp_path / "a.txt", text))
    assert "".join(document.text for document in documents) == text and len(documents) > 4
    assert [document.id for document in documents[:2]] == ["a.txt:0", "a.txt:1"]
    assert all(document.text.endswith("\n\n") for document in documents[:-1])
    assert max(len(document.text.encode()) for document in documents) <= 2**22
    # Without a place to part, between characters.
    text = "東" * 6_000_000
    documents = read_documents(write(tmp_path / "b.txt", text))
    assert "".join(document.text for document in documents) == text
    small = write(tmp_path / "c.txt", "a" * (2**24 - 1))
    assert [document.id for document in read_documents(small)] == ["c.txt"]


def test_nothing_is_said_where_nothing_is_left_out(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(write(tmp_path / "a.jsonl", ONE_TWO + '{"text": " "}')) == ["one", "two"]
