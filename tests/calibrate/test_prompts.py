"""Prompt sources: the values that come out of each format, the seeded choice, and the wording of each refusal."""

import hashlib
import json
import socket
import sys
import time

import numpy as np
import pytest
from toprovar.calibrate.prompt_files import read_file
from toprovar.calibrate.prompts import load_prompts
from toprovar.profiles.errors import PromptError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args):
        raise OSError("a test tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def write_parquet(folder, name, columns):
    from datasets import Dataset

    Dataset.from_dict(columns).to_parquet(str(folder / name))
    return str(folder / name)


def one_line_error(source, **options):
    with pytest.raises(PromptError) as caught:
        load_prompts(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_txt_drops_bom_carriage_returns_blanks_and_duplicates(tmp_path):
    source = write(tmp_path, "p.txt", "\ufeffa cat\r\n\r\na dog \u2028 runs\r\n  \r\na cat\r\nün café\n")
    found = load_prompts(source)
    assert found.prompts == ("a cat", "a dog \u2028 runs", "ün café")
    assert (found.source, found.duplicates, found.blank) == (source, 1, 2)
    assert found.sha256 == hashlib.sha256("a cat\na dog \u2028 runs\nün café".encode()).hexdigest()


JSONL = '{"id": 1, "prompt": "a 😀, \\"b\\""}\r\n\n{"prompt": null, "id": "x"}\n{"caption": "no"}\n{"prompt": "c", "id": [2]}'


@pytest.mark.parametrize(
    ("name", "content", "prompts", "blank"),
    [
        pytest.param("p.jsonl", JSONL, ('a 😀, "b"', "c"), 3, id="jsonl-mixed-types-elsewhere"),
        pytest.param("p.json", '[{"caption": "a"},\n {"caption": "b"}]', ("a", "b"), 0, id="json-array-of-objects"),
        pytest.param("p.json", '["a", "b"]', ("a", "b"), 0, id="json-array-of-strings"),
        pytest.param("p.json", '{\n "prompt": "a"\n}', ("a",), 0, id="json-one-object"),
        pytest.param("p.csv", '\ufeffid,prompt\n1,NA\n2,"x, ""y"""\n\n3\n4,"two\nlines"\n', None, 2, id="csv"),
        pytest.param("p.CSV", "\n\ntext\nnull\n7\n", ("null", "7"), 0, id="csv-upper-case-suffix-numbers-among-text"),
        pytest.param("a[1]*.txt", "x\ny", ("x", "y"), 0, id="name-that-looks-like-a-pattern"),
        pytest.param(".hidden.txt", "x\ny", ("x", "y"), 0, id="hidden-name"),
    ],
)
def test_formats(tmp_path, name, content, prompts, blank):
    found = load_prompts(write(tmp_path, name, content))
    assert found.prompts == (prompts or ("NA", 'x, "y"', "two\nlines"))
    assert (found.blank, found.duplicates) == (blank, 0)


def test_csv_longer_than_one_chunk_of_the_reader(tmp_path):
    """The reader guesses types by chunks of 10,000 rows: a chunk of digits must not turn into numbers."""
    rows = [f"p{i}" for i in range(10_000)] + [f"{i:05d}" for i in range(10_000)]
    assert load_prompts(write(tmp_path, "p.csv", "prompt\n" + "\n".join(rows))).prompts == tuple(rows)


def test_parquet_and_column_order_of_preference(tmp_path):
    source = write_parquet(tmp_path, "p.parquet", {"text": ["t", "u"], "prompt": ["a", None], "n": [1, 2]})
    assert load_prompts(source).prompts == ("a",)
    assert load_prompts(source).blank == 1
    assert load_prompts(source, column="text").prompts == ("t", "u")
    assert "holds no rows" in one_line_error(write_parquet(tmp_path, "empty.parquet", {"prompt": []}))
    assert "column 'n' holds int64, expected text" in one_line_error(source, column="n")
    assert "no column 'x'; the columns are ['text', 'prompt', 'n']" in one_line_error(source, column="x")


def test_choice_is_a_seeded_permutation(tmp_path):
    prompts = [f"prompt {i}" for i in range(23)]
    source = write(tmp_path, "p.txt", "\n".join(prompts))
    expected = tuple(prompts[i] for i in np.random.default_rng(5).permutation(23)[:7])
    assert load_prompts(source, num_prompts=7, seed=5).prompts == expected
    assert load_prompts(source, num_prompts=9, seed=5).prompts[:7] == expected
    assert load_prompts(source, num_prompts=7, seed=6).prompts != expected
    for all_of_them in (None, 23, 99):
        assert load_prompts(source, num_prompts=all_of_them, seed=5).prompts == tuple(prompts)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        pytest.param("p.txt", b"", "is empty", id="empty"),
        pytest.param("p.txt", b" \n\t\r\n\n", "holds only blank lines", id="blank"),
        pytest.param("p.txt", b"cat\n\x00dog", "zero byte at offset 4", id="nul"),
        pytest.param("p.txt", "ab".encode("utf-16"), "zero byte at offset 3; save it as UTF-8", id="utf-16"),
        pytest.param("p.txt", b"caf\xe9\n", "byte 0xe9 at offset 3", id="latin-1"),
        pytest.param("p.md", b"cat", "cannot tell the format of '.md'; expected one of .txt, .jsonl", id="suffix"),
        pytest.param("p.jsonl", b'{"prompt": "a"}\n\n{"prompt": }\n', "line 3: malformed JSON", id="jsonl"),
        pytest.param("p.json", b'[{"prompt": "a"},\n{"prompt": "b"]', "line 2: malformed JSON", id="json"),
        pytest.param("p.json", b"[]", "holds no rows", id="json-no-rows"),
        pytest.param("p.jsonl", b'{"prompt": "a"}\n3\n', "line 2: expected an object or a string, got int", id="scalar"),
        pytest.param("p.jsonl", b'{"prompt": "a"}\n{"prompt": 3}', "line 2: column 'prompt' holds int", id="jsonl-not-text"),
        pytest.param("p.jsonl", b'{"prompt": "\\ud83d"}', "item 1: column 'prompt' holds half", id="surrogate"),
        pytest.param("p.jsonl", b'{"a": "x", "b": 1}', "the columns are ['a', 'b']", id="jsonl-column"),
        pytest.param("p.jsonl", b'{"prompt": ""}\n{"prompt": null}', "only blank prompts (2)", id="jsonl-blank"),
        pytest.param("p.csv", b"id,name\n1,a\n", "no column 'prompt' or 'caption' or 'text'", id="csv-column"),
        pytest.param("p.csv", b"prompt,id\na,b,1\n", "line 2: 3 fields under a header of 2", id="csv-comma"),
        pytest.param("p.csv", b'prompt\n"a\n', "malformed CSV", id="csv-quote"),
        pytest.param("p.csv", b"prompt,text\n1,a\n2.5,b\n", "column 'prompt' holds numbers", id="csv-numbers"),
        pytest.param("p.csv", b"prompt,prompt\na,b\n", "stands twice", id="csv-twice"),
        pytest.param("p.csv", b"prompt,text\n", "holds no rows", id="csv-no-rows"),
        pytest.param("p.parquet", b"PK\x03\x04abcd", "is not a Parquet file, it starts with b'PK", id="parquet-foreign"),
        pytest.param("p.parquet", b"PAR1abcd", "cannot be read as parquet", id="parquet-cut-short"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, capfd, name, content, said):
    message = one_line_error(write(tmp_path, name, content))
    assert message.startswith(str(tmp_path / name))
    assert said in message
    assert capfd.readouterr() == ("", "")


def test_missing_file_and_folder_get_a_hint(tmp_path):
    write(tmp_path, "prompts.txt", "a")
    assert "no such file; did you mean prompts.txt?" in one_line_error(str(tmp_path / "promts.txt"))
    assert f"the folder {tmp_path / 'no'} does not exist" in one_line_error(str(tmp_path / "no" / "p.txt"))
    assert "is a folder; pass a file in it: prompts.txt" in one_line_error(str(tmp_path))
    assert "a red cube: no such file" in one_line_error("a red cube")
    assert "cannot be read (File name too long)" in one_line_error("a red cube on a blue sphere " * 20)
    assert "no prompts given" in one_line_error("")


def test_bad_numbers(tmp_path):
    source = write(tmp_path, "p.txt", "a")
    assert "num_prompts must be at least 1, got 0" in one_line_error(source, num_prompts=0)
    assert "seed must be 0 or more, got -1" in one_line_error(source, seed=-1)


def test_hub_without_network_is_told_at_once(capfd):
    start_s = time.monotonic()
    message = one_line_error("someone/prompts")
    assert "someone/prompts: neither a file nor a dataset that can be reached" in message
    assert "no network or a wrong id" in message
    assert time.monotonic() - start_s < 10
    assert capfd.readouterr().err == ""


def test_hub_dataset(monkeypatch):
    """The dataset comes from a stand-in for the hub: its split and revision must arrive there."""
    import datasets
    from huggingface_hub import HfApi

    asked = {}

    def load_dataset(name, split, revision):
        asked.update(name=name, split=split, revision=revision)
        return datasets.Dataset.from_dict({"n": [1, 2, 3], "caption": ["a", "", "a"]})

    monkeypatch.setattr(HfApi, "dataset_info", lambda *args, **options: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load_prompts("someone/prompts", split="test", revision="abc")
    assert asked == {"name": "someone/prompts", "split": "test", "revision": "abc"}
    assert (found.prompts, found.duplicates, found.blank) == (("a",), 1, 1)

    def no_split(name, split, revision):
        raise ValueError('Unknown split "dev".\nShould be one of [...]')

    monkeypatch.setattr(datasets, "load_dataset", no_split)
    message = one_line_error("someone/prompts", split="dev")
    assert "split 'dev', revision None (Unknown split" in message


def test_forty_thousand_lines_are_quick(tmp_path):
    source = write(tmp_path, "p.txt", "\n".join(f"prompt number {i}" for i in range(40_000)))
    load_prompts(write(tmp_path, "warm.txt", "imports are not timed"))
    start_s = time.monotonic()
    assert len(load_prompts(source).prompts) == 40_000
    assert time.monotonic() - start_s < 3


def test_progress_bars_are_left_as_they_were(tmp_path):
    import datasets

    hidden, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    load_prompts(write(tmp_path, "p.jsonl", json.dumps({"prompt": "a"})))
    assert (datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()) == (hidden, level)


def test_a_text_file_needs_no_datasets(tmp_path, monkeypatch):
    """Red before: `--prompts p.txt` failed where `datasets` was not installed."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    path = tmp_path / "p.txt"
    path.write_text("a red circle\na blue star\n")
    assert read_file(path, None) == ["a red circle", "a blue star"]
