"""Documents are read from every kind of file, and tokens can be traced to their documents."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import csv

from husai.errors import InputError
from husai.text import TextConfig, Tokens, find_path, read_documents, tokenise

CLS, SEP, PAD = 1, 2, 0


class Letters:
    """A tokenizer whose tokens are letters, with a token before and after as BERT has."""

    pad_token_id = PAD

    def __call__(self, text, **options):
        found = [[3 + ord(letter) % 50 for letter in one] for one in text]
        if options.get("add_special_tokens", True):
            found = [[CLS, *ids, SEP] for ids in found]
        return {"input_ids": found}


TEXTS = ["one text", "another, and\nof two lines", "a third"]


def write(folder, kind):
    """Write the texts as a file of a kind."""
    path = folder / f"texts{kind}"
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)]
    if kind == ".txt":
        path.write_text("\n\n".join(TEXTS) + "\n")
    elif kind == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        compression = {".csv.zst": "zstd", ".csv.gz": "gzip"}.get(kind)
        with pa.output_stream(str(path), compression=compression) as stream:
            csv.write_csv(pa.Table.from_pylist(rows), stream)
    return path


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".csv.zst", ".csv.gz", ".parquet"])
def test_every_kind_of_file_gives_the_same_documents(tmp_path, kind):
    label = None if kind == ".txt" else "label"
    config = TextConfig(source=str(write(tmp_path, kind)), label=label, shuffle_documents=0)
    found = list(read_documents(config))
    assert [document.text for document in found] == TEXTS
    assert [document.row for document in found] == [0, 1, 2]
    if label:
        assert [document.label for document in found] == ["0", "1", "0"]


def test_the_order_is_a_function_of_the_seed(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"text {i}"}) for i in range(50)))

    def order(seed, at_once=1000):
        config = TextConfig(source=str(path), seed=seed, shuffle_documents=at_once)
        return [document.row for document in read_documents(config)]

    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == list(range(50))
    assert sorted(order(0, at_once=20)[:20]) == list(range(20))


@pytest.fixture
def long_text(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "long.jsonl"
    lengths = generator.integers(1, 30, size=300)
    texts = ["".join(chr(97 + i) for i in generator.integers(0, 26, size=n)) for n in lengths]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path, texts


@pytest.mark.parametrize("mode", ["documents", "packed"])
def test_every_token_can_be_traced_to_its_document(long_text, mode):
    path, texts = long_text
    config = TextConfig(source=str(path), n_tokens=1500, held_out_tokens=400, context=12, mode=mode)
    tokens, documents = tokenise(config, Letters(), n_vocabulary=60, progress=False)
    ordinary = tokens.ordinary
    expected = [
        3 + ord(texts[documents["row"][document]][place]) % 50
        for document, place in zip(tokens.document[ordinary], tokens.place[ordinary], strict=True)
    ]
    assert tokens.ids[ordinary].tolist() == expected
    # special tokens come first and last, then padding
    assert (tokens.ids[:, 0] == CLS).all()
    assert (tokens.ids[np.arange(len(tokens)), tokens.length - 1] == SEP).all()
    assert (tokens.ids[np.arange(12) >= tokens.length[:, None]] == PAD).all()
    counts = tokens.about["counts"]
    assert counts["tokens"] == ordinary.sum() >= 1900
    assert counts["special"] == 2 * len(tokens)
    assert counts["tokens"] + counts["special"] + counts["padding"] == tokens.ids.size
    if mode == "packed":
        assert (tokens.length == 12).all()
    # no document is both trained on and held out
    held = set(tokens.document[-tokens.n_held_out :][ordinary[-tokens.n_held_out :]])
    trained = set(tokens.document[: -tokens.n_held_out][ordinary[: -tokens.n_held_out]])
    assert not held & trained
    assert documents["held_out"].sum() >= len(held)
    # a document's tokens are in contexts as often as the table says
    found = pd.Series(tokens.document[ordinary]).value_counts()
    assert documents["n_tokens"].sum() == pytest.approx(found.sum(), abs=2 * 12)
    again = Tokens.from_file(tokens.to_file())
    assert again.fingerprint == tokens.fingerprint
    assert np.array_equal(again.place, tokens.place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "nowhere.txt"}, r"text\.source: nowhere\.txt: no such file"),
        ({"source": "no_such_package_here:data"}, "the package no_such_package_here is not inst"),
        ({"column": "body"}, "texts has no column 'body'; it has: text, label"),
        ({"label": "kind"}, "no column 'kind'"),
        ({"n_tokens": 10_000}, r"text\.n_tokens: 10,000, and 32,768 held out, but the text has"),
        ({"context": 2}, r"text\.context: 2 tokens, but the tokenizer adds 2 special"),
    ],
)
def test_bad_text_gives_an_error_of_one_line(tmp_path, change, message):
    config = TextConfig.model_validate({"source": str(write(tmp_path, ".jsonl")), **change})
    with pytest.raises(InputError, match=message):
        tokenise(config, Letters(), n_vocabulary=60, progress=False)


def test_the_column_of_the_text_must_be_given_where_several_hold_strings(tmp_path):
    path = tmp_path / "two.jsonl"
    path.write_text(json.dumps({"question": "a", "answer": "b"}))
    with pytest.raises(InputError, match="give the column of two that holds the text"):
        list(read_documents(TextConfig(source=str(path))))
    path.write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(InputError, match="line 2 is not JSON"):
        list(read_documents(TextConfig(source=str(path))))


def test_a_tokenizer_of_another_model_is_refused(long_text):
    config = TextConfig(source=str(long_text[0]), n_tokens=100, held_out_tokens=10)
    with pytest.raises(InputError, match=r"it gives token \d+, but the model knows only 20"):
        tokenise(config, Letters(), n_vocabulary=20, progress=False)


def test_a_folder_inside_a_package_is_found_without_importing_it():
    assert find_path("numpy:linalg", "text.source").is_dir()


def test_a_saved_data_set_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    config = TextConfig(source=str(tmp_path / "saved"), shuffle_documents=0)
    assert [document.text for document in read_documents(config)] == TEXTS


def test_a_data_set_of_the_hub_is_read_as_a_stream(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    streams = []
    real = datasets.load_dataset

    def load(name, *options, **named):  # of a folder the library makes the stream it makes of a hub
        streams.append(named["streaming"])
        return real(str(tmp_path / "hub" / name), *options, **named)

    monkeypatch.setattr(datasets, "load_dataset", load)
    folder = tmp_path / "hub" / "owner" / "texts"
    folder.mkdir(parents=True)
    write(folder, ".jsonl")
    config = TextConfig(source="hf://owner/texts", label="label", shuffle_documents=0)
    found = list(read_documents(config))
    assert streams == [True]
    assert [document.text for document in found] == TEXTS
    assert [document.label for document in found] == ["0", "1", "0"]
    assert {document.source for document in found} == {"owner/texts"}
    missing = config.model_copy(update={"source": "hf://owner/others"})
    message = r"text\.source: hf://owner/others cannot be read"
    with pytest.raises(InputError, match=message) as raised:
        list(read_documents(missing))
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"cannot be read .*split: test"):
        list(read_documents(config.model_copy(update={"split": "test"})))
