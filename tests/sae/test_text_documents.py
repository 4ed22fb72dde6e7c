"""Documents from files, tables, saved datasets and folders."""

import json
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from sae.text import Document, Message, Tally, TextWarning, iter_documents, read_documents

CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
MESSAGES = (Message("user", "Hello?"), Message("assistant", "Hello."))


def save_dataset(folder, *tables, rows=2):
    """What `datasets.Dataset.save_to_disk` (5.2) writes: a file for each shard, batches of `rows`."""
    folder.mkdir(parents=True)
    names = [f"data-{k:05d}-of-{len(tables):05d}.arrow" for k in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pyarrow.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(table, max_chunksize=rows)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "13fe", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "features": {}}))


def save_splits(folder, **tables):
    """The same of a `DatasetDict`."""
    for name, table in tables.items():
        save_dataset(folder / name, table)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(tables)}))


def refused(path, message):
    with pytest.raises(ValueError) as error:
        read_documents(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_plain_text_and_json_lines(tmp_path):
    (tmp_path / "a.txt").write_text("naïve 東京\n", encoding="utf-8")
    assert read_documents(tmp_path / "a.txt") == [Document("a.txt", "a", "naïve 東京\n")]
    lines = [{"text": "one\u2028two", "id": "x", "source": "s"}, {"text": " "}, {"text": "three", "id": None}]
    (tmp_path / "b.jsonl").write_text(
        "\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8"
    )
    assert read_documents(tmp_path / "b.jsonl") == [Document("x", "s", "one\u2028two"), Document("b:3", "b", "three")]


def test_parquet(tmp_path):
    table = pyarrow.table({"text": ["one", None, "three"], "source": ["s", "s", "t"], "stars": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    assert read_documents(tmp_path / "c.parquet") == [Document("c:0", "s", "one"), Document("c:2", "t", "three")]
    for name, table, got in (
        ("numbers", pyarrow.table({"text": [1, 2]}), "got text: int64"),
        ("other", pyarrow.table({"content": ["a"]}), "got content: string"),
        ("names", pyarrow.table({"messages": [["a"]]}), "got messages: list<"),
        ("half", pyarrow.table({"messages": [[{"role": "user"}]]}), "got messages: list<"),
    ):
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
        refused(tmp_path / f"{name}.parquet", 'expected a column "text" of strings, or "messages" of lists of')
        refused(tmp_path / f"{name}.parquet", got)


def test_chats(tmp_path):
    lines = [{"messages": CHAT, "id": "x"}, {"text": None, "messages": CHAT}, {"text": "t", "messages": CHAT}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"messages": []}])))
    tally = Tally()
    x, second, third = read_documents(tmp_path / "a.jsonl", tally=tally)
    assert x == Document("x", "a", messages=MESSAGES) and second == Document("a:2", "a", messages=MESSAGES)
    assert third == Document("a:3", "a", "t")  # "messages" is in the place of "text" only where there is none
    assert tally.omissions == ["1 record is read by the text alone, with messages beside it"] and tally.blank == 1
    table = pyarrow.table({"messages": [CHAT, None, [], CHAT], "source": ["s"] * 4})
    expected = [Document("b:0", "s", messages=MESSAGES), Document("b:3", "s", messages=MESSAGES)]
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    assert read_documents(tmp_path / "b.parquet") == expected
    save_dataset(tmp_path / "b", table)
    assert read_documents(tmp_path / "b") == expected
    with pytest.raises(ValueError, match="'x' has both text and messages"):
        Document("x", "s", "text", MESSAGES)


def test_messages_beside_an_empty_text_are_read(tmp_path):
    chats = [{"text": text, "messages": CHAT} for text in ("", None, " \n")]
    for name in ("a.jsonl", "a.json"):
        content = "\n".join(map(json.dumps, chats)) if name == "a.jsonl" else json.dumps(chats)
        (tmp_path / name).write_text(content)
        assert [document.messages for document in read_documents(tmp_path / name)] == [MESSAGES] * 3
    table = pyarrow.table({"text": ["plain", None, "", None], "messages": [None, CHAT, CHAT, None]})
    expected = [Document("b:0", "b", "plain"), *(Document(f"b:{k}", "b", messages=MESSAGES) for k in (1, 2))]
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    save_dataset(tmp_path / "b", table)
    assert read_documents(tmp_path / "b.parquet") == read_documents(tmp_path / "b") == expected


TOOLS = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image_url", "image_url": {"url": "x"}}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "see"}}]},
    {"role": "tool", "content": "A ship.", "tool_call_id": "1"},
    {"role": "assistant", "content": ["It is ", {"type": "output_text", "text": "a ship."}]},
]


def test_turns_of_tools_and_content_in_parts(tmp_path):
    tally = Tally()
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TOOLS, "tools": [{"name": "see"}]}))
    (document,) = read_documents(tmp_path / "a.jsonl", tally=tally)
    assert [(message.role, message.content) for message in document.messages] == [
        ("developer", "Be brief."),
        ("user", "Look: "),
        ("assistant", ""),
        ("tool", "A ship."),
        ("assistant", "It is a ship."),
    ]
    assert tally.parts == {"image_url": 1, "tool_calls": 1, "tools": 1}
    assert tally.omissions == [
        "3 parts of messages are left out, being no text (1 image_url, 1 tool_calls, 1 tools)",
        "2 turns are neither the system's nor the user's nor the model's (1 developer, 1 tool)",
    ]
    with pytest.warns(TextWarning, match=r"a\.jsonl: 3 parts of messages are left out, being no text"):
        read_documents(tmp_path / "a.jsonl")


def test_parts_in_tables(tmp_path):
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What "}, {"type": "text", "text": "is this?"}]
    table = pyarrow.table({"messages": [[{"role": "user", "content": parts}]]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    tally = Tally()
    (document,) = read_documents(tmp_path / "a.parquet", tally=tally)
    assert document.messages == (Message("user", "What is this?"),) and tally.parts == {"image": 1}


def columns():
    """Columns of texts and of chats, however Arrow stores them."""
    text, words = ["one", None, "three"], pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        yield pyarrow.table({"text": pyarrow.array(text, kind)})
    yield pyarrow.table({"text": pyarrow.array(text).dictionary_encode()})
    yield pyarrow.table({"text": pyarrow.array(text, pyarrow.large_string()).dictionary_encode()})
    named = pyarrow.struct(
        [
            ("role", pyarrow.dictionary(pyarrow.int8(), pyarrow.string())),
            ("content", pyarrow.large_string()),
        ]
    )
    for list_ in (pyarrow.list_, pyarrow.large_list, pyarrow.list_view, pyarrow.large_list_view):
        for kind in (words, named):
            yield pyarrow.table({"messages": pyarrow.array([CHAT, None, CHAT], list_(kind))})
    yield pyarrow.table({"messages": pyarrow.array([CHAT, None, CHAT], pyarrow.list_(words, 2))})


def test_text_is_read_however_a_table_stores_it(tmp_path):
    for number, table in enumerate(columns()):
        name, chats = f"t{number}", "messages" in table.schema.names
        expected = [
            Document(f"{name}:{row}", name, "" if chats else text, MESSAGES if chats else ())
            for row, text in ((0, "one"), (2, "three"))
        ]
        save_dataset(tmp_path / name, table)
        assert read_documents(tmp_path / name) == expected, table.schema
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
        assert read_documents(tmp_path / f"{name}.parquet") == expected, table.schema


def test_a_dataset_saved_to_disk(tmp_path):
    first = pyarrow.table({"text": ["one", "two", None], "id": ["a", None, "c"], "stars": [1, 2, 3]})
    second = pyarrow.table({"text": ["four"], "id": ["d"], "stars": [4]})
    expected = [Document("a", "set", "one"), Document("set:1", "set", "two"), Document("d", "set", "four")]
    save_dataset(tmp_path / "set", first, second)
    assert read_documents(tmp_path / "set") == expected
    large = pyarrow.table({"text": pyarrow.array([str(k) for k in range(700)], pyarrow.large_string())})
    save_dataset(tmp_path / "large", large, large, rows=1000)
    numbers = [(d.id, d.text) for d in read_documents(tmp_path / "large")]
    assert numbers == [(f"large:{k}", str(k % 700)) for k in range(1400)]


def test_of_a_dataset_with_splits_train_or_the_only_one_is_taken(tmp_path):
    one, two = (pyarrow.table({"text": [text]}) for text in ("one", "two"))
    save_splits(tmp_path / "a", test=one, train=two)
    assert read_documents(tmp_path / "a") == [Document("a:0", "a", "two")]
    save_splits(tmp_path / "b", test=one)
    assert read_documents(tmp_path / "b") == [Document("b:0", "b", "one")]
    save_splits(tmp_path / "c", left=one, right=two)
    refused(tmp_path / "c", "has the splits left, right, and none is `train`: name the folder of one of them")
    assert read_documents(tmp_path / "c" / "right") == [Document("right:0", "right", "two")]


def test_a_folder_of_files(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n')
    (tmp_path / "d.txt").write_text(" ")
    for name in ("README.md", ".hidden.txt"):
        (tmp_path / name).write_text("not read")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["third"]}), tmp_path / "c.parquet")
    with pytest.warns(TextWarning, match=r"1 entry of the folder is not read \(README\.md\)"):
        documents = read_documents(str(tmp_path))
    assert documents == [
        Document("a:1", "a", "first"),
        Document("b.txt", "b", "second"),
        Document("c:0", "c", "third"),
    ]
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\nno\n')
    refused(tmp_path, "a.jsonl, line 2: not JSON")
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty",
        "empty is a folder without .arrow, .csv, .feather, .json, .jsonl, .ndjson, .parquet, .tsv, .txt files",
    )


def test_reading_is_streaming(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\nno\n')
    documents = iter_documents(tmp_path / "a.jsonl")
    assert next(documents).text == "first"
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not JSON"):
        next(documents)
    table = pyarrow.table({"text": ["one", "two"]})
    save_dataset(tmp_path / "set", table, table)
    (tmp_path / "set" / "data-00001-of-00002.arrow").unlink()
    documents = iter_documents(tmp_path / "set")
    assert [next(documents).text, next(documents).text] == ["one", "two"]
    with pytest.raises(ValueError, match=r"cannot read the text .*data-00001-of-00002\.arrow: .*No such file"):
        next(documents)


def test_bad_text_is_one_clear_line(tmp_path):
    cases = {
        "empty.txt": (b" \n", "is empty: it holds no text"),
        "empty.jsonl": (b'{"text": " "}\n\n', "is empty: it holds no text"),
        "latin.txt": ("né".encode("latin-1"), "is not UTF-8: byte 0xe9 at offset 1"),
        "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}', "is not UTF-8: byte 0xe9 at offset 24; convert it first"),
        "bad.jsonl": (b'{"text": "a"}\n{"text": \n', "bad.jsonl, line 2: not JSON"),
        "bad.parquet": (b"PAR1 and no more", "bad.parquet is not Parquet"),
        "other.jsonl": (
            b'{"content": "a"}\n',
            'line 1: expected an object with a string "text", or with "messages", got an object with content: call the',
        ),
        "number.jsonl": (b"7\n", 'expected an object with a string "text", or with "messages", got 7'),
        "half.jsonl": (b'{"text": "\\ud83d"}\n', "line 1: a lone surrogate, which is no text"),
        "none.jsonl": (b'{"messages": "a"}\n', "line 1: expected \"messages\" to be a list, got 'a'"),
        "role.jsonl": (
            b'{"messages": [{"content": "a"}]}\n',
            'expected a message with a string "role" and a "content"',
        ),
        "said.jsonl": (b'{"messages": [{"role": "user"}]}\n', "that is a string or a list of parts, got"),
        "parts.jsonl": (b'{"messages": [{"role": "user", "content": [7]}]}\n', "a part of a message to be a string or"),
        "part.jsonl": (
            b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}\n',
            'expected a part of text with a string "text"',
        ),
        "id.jsonl": (b'{"text": "a", "id": "\\ud83d"}\n', "line 1: a lone surrogate, which is no text"),
        "spoken.jsonl": (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}\n', "a lone surrogate"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, message)
    for name in ("none.txt", "none2.jsonl", "none.parquet"):
        with pytest.raises(ValueError, match=rf"cannot read the text .*{name}: .*No such file"):
            read_documents(tmp_path / name)


def test_a_damaged_dataset_is_one_clear_line(tmp_path):
    table = pyarrow.table({"text": ["one", "two"]})
    save_dataset(tmp_path / "set", table)
    file, state = tmp_path / "set" / "data-00000-of-00001.arrow", tmp_path / "set" / "state.json"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "set", "data-00000-of-00001.arrow is not an Arrow stream")
    save_dataset(tmp_path / "other", pyarrow.table({"content": ["one"]}))
    refused(tmp_path / "other", 'expected a column "text" of strings, or "messages"')
    state.write_text('{"_data_files": [{"file": "a"}]}')
    refused(tmp_path / "set", "expected a filename in each of _data_files")
    state.write_text("{}")
    refused(tmp_path / "set", 'state.json: expected an object with a list "_data_files"')
    state.write_text('{"_data')
    refused(tmp_path / "set", "state.json is not JSON")
    save_splits(tmp_path / "splits", train=table)
    (tmp_path / "splits" / "train" / "state.json").unlink()
    refused(tmp_path / "splits", "No such file or directory; is the dataset saved in full?")


def test_a_damaged_table_is_one_clear_line(tmp_path):
    """Texts that end before they begin, which pyarrow follows into other memory, and bytes that are no UTF-8."""
    for name, offsets, content, message in (
        ("a.arrow", [0, 3, 1], b"sea", "a.arrow is not an Arrow file, or damaged: "),
        ("b.arrow", [0, 1, 3], b"s\xe9a", "b.arrow is not UTF-8 from row 0 on"),
    ):
        buffers = [None, pyarrow.py_buffer(np.asarray(offsets, np.int32).tobytes()), pyarrow.py_buffer(content)]
        table = pyarrow.table({"text": pyarrow.Array.from_buffers(pyarrow.string(), 2, buffers)})
        with pyarrow.ipc.new_stream(tmp_path / name, table.schema) as stream:
            stream.write_table(table)
        refused(tmp_path / name, message)


def test_tables_take_pyarrow(tmp_path, monkeypatch):
    table = pyarrow.table({"text": ["one"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    save_dataset(tmp_path / "set", table)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("a.parquet", "set"):
        refused(tmp_path / name, f"{name} needs pyarrow: pip install pyarrow")
