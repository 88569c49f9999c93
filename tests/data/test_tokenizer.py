"""Tokenizers: trained, from files, from the hub, and the training subprocess."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import END, data_config, decode, failure, prose
from tokenizers import Tokenizer, models, pre_tokenizers

from bitnetctl import data
from bitnetctl.data import bpe, store, tokenizer as tokenizer_module
from bitnetctl.errors import DataError

pytestmark = pytest.mark.usefixtures("token_cache")


def gpt2_files(folder: Path, *, end: bool = True) -> dict[str, int]:
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*symbols, "ab", "abc"])}
    if end:
        vocabulary[END] = len(vocabulary)
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b\nab c\n")
    return vocabulary


def test_a_trained_tokenizer_has_the_requested_size_and_is_deterministic(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = data.prepare(data_config(corpus))
    assert first.vocab_size == 300 == data.vocab_size_of(data_config(corpus))
    assert first.train_N.dtype == np.uint16
    assert int(first.train_N.max()) < 300
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    again = data.prepare(data_config(corpus))
    assert again.tokenizer_path != first.tokenizer_path
    assert again.tokenizer_path.read_bytes() == first.tokenizer_path.read_bytes()
    assert again.fingerprint == first.fingerprint


def test_the_end_of_text_in_the_text_is_the_token(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text(prose(400).replace("\n", f"\n{END}\n"))
    tokens = data.prepare(data_config(path))
    assert np.count_nonzero(tokens.train_N == 0) > 300
    vocabulary = data.load_tokenizer(tokens.tokenizer_path).get_vocab()
    assert not [token for token in vocabulary if token != END and ("<|" in token or "of" in token)]


def test_gpt2_files(tmp_path: Path) -> None:
    vocabulary = gpt2_files(tmp_path / "gpt2")
    path = tmp_path / "t.txt"
    # lines of other lengths, since held-out text is no text that is trained on
    path.write_text("".join(" abc ab" + " ab" * (number % 97) + " b" * (number % 89) + "\n" for number in range(300)))
    fields = {"tokenizer": f"gpt2-files:{tmp_path / 'gpt2'}"}
    tokens = data.prepare(data_config(path, **fields))
    assert tokens.vocab_size == len(vocabulary) == 259 == data.vocab_size_of(data_config(path, **fields))
    assert tokens.end_of_text == vocabulary[END] == tokens.train_N[-1]
    assert tokens.train_N[:2].tolist() == [vocabulary["Ġ"], vocabulary["abc"]]
    assert END + "abc" not in decode(tokens, tokens.train_N[:50])
    gpt2_files(tmp_path / "gpt2", end=False)
    assert data.prepare(data_config(path, **fields)).end_of_text is None


def test_a_tokenizer_file_neither_truncates_nor_adds_tokens(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "b": 70_000}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_truncation(max_length=8)
    tokenizer.enable_padding(length=512)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "t.txt"
    path.write_text("".join(f"a b c{number}\n" for number in range(200)))
    fields = {"tokenizer": f"file:{tmp_path / 'tokenizer.json'}"}
    tokens = data.prepare(data_config(path, **fields))
    assert tokens.vocab_size == 70_001 == data.vocab_size_of(data_config(path, **fields))
    assert tokens.train_N.dtype == np.uint32
    assert tokens.end_of_text == 2
    ids = [*tokens.train_N.tolist(), *tokens.held_out_N.tolist()]
    assert Counter(token for token in ids if token != 2) == {0: 200, 70_000: 200, 3: 200}


def word_level(path: Path, *words: str, special: tuple[str, ...] = (), template: str | None = None) -> None:
    """Save a tokenizer of whole words, the last ones special."""
    from tokenizers.processors import TemplateProcessing

    vocabulary = {word: index for index, word in enumerate(["a", "<unk>", *words, *special])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    if template is not None:
        pairs = [(word, vocabulary[word]) for word in template.split() if word != "$A"]
        tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=pairs)
    path.parent.mkdir(exist_ok=True)
    tokenizer.save(str(path))


@pytest.mark.parametrize(
    ("special", "template", "settings", "expected"),
    [
        (("<s>", "</s>"), None, {}, "</s>"),
        (("<|end_of_text|>",), None, {}, "<|end_of_text|>"),
        # the name that the settings give goes before a usual one
        (("</s>", "<done>"), None, {"tokenizer_config.json": {"eos_token": "<done>"}}, "<done>"),
        (("<done>",), None, {"special_tokens_map.json": {"eos_token": {"content": "<done>"}}}, "<done>"),
        (("<done>",), None, {"tokenizer_config.json": {"eos_token": None}}, None),
        # a name that is no token
        (("</s>",), None, {"tokenizer_config.json": {"eos_token": "<other>"}}, "</s>"),
        # no usual name, but the tokenizer puts it behind every text
        (("<first>", "<last>"), "<first> $A <last>", {}, "<last>"),
        (("<first>",), "<first> $A", {}, None),
        (("[CLS]", "[SEP]"), "[CLS] $A [SEP]", {}, "[SEP]"),
        (("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), None, {}, "<｜end▁of▁sentence｜>"),
        # a special token whose name says so
        (("<pad>", "<|endofdocument|>"), None, {}, "<|endofdocument|>"),
        (("<PAD>", "<END-OF-DOC>"), None, {}, "<END-OF-DOC>"),
        (("<pad>", "<unk>"), None, {}, None),
        ((), None, {}, None),
    ],
)
def test_the_end_of_text_token_is_found_by_its_role(
    tmp_path: Path,
    special: tuple[str, ...],
    template: str | None,
    settings: dict[str, Any],
    expected: str | None,
) -> None:
    word_level(tmp_path / "of" / "tokenizer.json", special=special, template=template)
    for name, content in settings.items():
        (tmp_path / "of" / name).write_text(json.dumps(content))
    path = tmp_path / "t.txt"
    path.write_text("".join(f"a b{number}\n" for number in range(400)))
    for spec in (f"file:{tmp_path / 'of' / 'tokenizer.json'}", f"file:{tmp_path / 'of'}"):
        lines: list[str] = []
        tokens = data.prepare(data_config(path, tokenizer=spec), log=lines.append)
        assert tokens.counts["end_of_text"] == expected
        if expected is None:
            assert tokens.end_of_text is None
            assert len(lines) == 1
            assert f"tokenizer {spec}: has no end-of-text token" in lines[0]
        else:
            assert tokens.train_N[-1] == tokens.held_out_N[-1] == tokens.end_of_text
            assert lines == []


def test_another_end_of_text_is_another_cache(tmp_path: Path) -> None:
    word_level(tmp_path / "of" / "tokenizer.json", special=("<one>", "<two>"))
    path = tmp_path / "t.txt"
    path.write_text("".join(f"a b{number}\n" for number in range(400)))
    ends = []
    for name in ("<one>", "<two>"):
        (tmp_path / "of" / "tokenizer_config.json").write_text(json.dumps({"eos_token": name}))
        ends.append(data.prepare(data_config(path, tokenizer=f"file:{tmp_path / 'of'}")).counts["end_of_text"])
    assert ends == ["<one>", "<two>"]


def test_a_hub_tokenizer(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2_files(tmp_path / "gpt2")
    source = tokenizer_module.open_tokenizer(f"gpt2-files:{tmp_path / 'gpt2'}")

    class Hub:
        @staticmethod
        def from_pretrained(name: str) -> Any:
            if name != "org/name":
                raise OSError("cannot find\nthe requested files")
            return source.loaded

    monkeypatch.setattr(tokenizer_module, "Tokenizer", Hub)
    assert data.vocab_size_of(data_config(corpus, tokenizer="hf:org/name")) is None
    message = failure(corpus, tokenizer="hf:none")
    assert "tokenizer hf:none: cannot find the requested files; check the name and the network" in message
    assert data.prepare(data_config(corpus, tokenizer="hf:org/name")).vocab_size == 259


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("bpe:256", "expected bpe:SIZE with a SIZE from 257"),
        ("bpe:2k", "expected bpe:SIZE"),
        ("bpe:-300", "expected bpe:SIZE"),
        ("bpe:9999999", "to 1048576, such as bpe:2048"),
        ("bpe:" + "9" * 5000, "expected bpe:SIZE"),
        ("bpe:", "names nothing after the scheme: expected bpe:SIZE, gpt2-files:DIR"),
        ("bpe", "names nothing after the scheme"),
        ("bpee:300", "unknown tokenizer 'bpee:300'; did you mean 'bpe'? expected"),
        ("gpt2-file:x", "did you mean 'gpt2-files'?"),
        ("word:300", "unknown tokenizer 'word:300': expected"),
        ("bpe:50257", "tokenizer bpe:50257: the training text supports only "),
        ("gpt2-files:none", "no vocab.json and no merges.txt in none"),
        ("file:none.json", "tokenizer file:none.json: there is no file none.json"),
    ],
)
def test_unusable_tokenizers(corpus: Path, spec: str, expected: str) -> None:
    assert expected in failure(corpus, tokenizer=spec)


def test_too_large_a_vocabulary_suggests_the_largest_possible(corpus: Path) -> None:
    message = failure(corpus, tokenizer="bpe:50257")
    supported = message.partition("use ")[2].partition(" ")[0]
    assert data.prepare(data_config(corpus, tokenizer=supported)).vocab_size == int(supported[4:])


def test_a_token_beyond_the_vocabulary_is_refused(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "vocab_size", lambda tokenizer: 10)
    assert "tokenizer bpe:300: gives token 299 beyond its vocabulary of 10" in failure(corpus)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "expected"),
    [
        ("{", None, "malformed vocab.json or merges.txt: Expecting"),
        (None, "#version: 0.2\na\n", "malformed vocab.json or merges.txt"),
        (None, "#version: 0.2\na zz\n", "malformed vocab.json or merges.txt"),
        (None, b"\xff \xfe\n", "malformed vocab.json or merges.txt"),
        ('{"a": 0, "b": 1}', "", "not byte-level BPE: vocab.json lacks 254 of the 256 byte symbols"),
        ("[1]", "", "malformed vocab.json or merges.txt"),
    ],
)
def test_malformed_gpt2_files(
    tmp_path: Path, corpus: Path, vocabulary: str | None, merges: str | bytes | None, expected: str
) -> None:
    gpt2_files(tmp_path / "gpt2")
    if vocabulary is not None:
        (tmp_path / "gpt2" / "vocab.json").write_text(vocabulary)
    if merges is not None:
        content = merges if isinstance(merges, bytes) else merges.encode()
        (tmp_path / "gpt2" / "merges.txt").write_bytes(content)
    assert expected in failure(corpus, tokenizer=f"gpt2-files:{tmp_path / 'gpt2'}")


def test_unusable_tokenizer_files(tmp_path: Path, corpus: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    assert f"tokenizer {path}: not a valid tokenizer.json" in failure(corpus, tokenizer=f"file:{path}")
    path.write_bytes(b"\xff")
    assert "not a valid tokenizer.json" in failure(corpus, tokenizer=f"file:{path}")
    Tokenizer(models.BPE()).save(str(path))
    assert "the vocabulary is empty" in failure(corpus, tokenizer=f"file:{path}")
    Tokenizer(models.WordLevel({"a": 0}, "<unk>")).save(str(path))
    assert "cannot encode the text" in failure(corpus, tokenizer=f"file:{path}")
    assert f"did you mean 'file:{path}'?" in failure(corpus, tokenizer=str(path))
    assert f"did you mean 'gpt2-files:{tmp_path}'?" in failure(corpus, tokenizer=str(tmp_path))
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    assert f"{path}: a Git-LFS pointer, not the file itself; run `git lfs pull`" in failure(
        corpus, tokenizer=f"file:{path}"
    )
    path.unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    for spec in (f"file:{tmp_path}", f"file:{tmp_path}/tokenizer.model"):
        assert "SentencePiece models are not read: save it as tokenizer.json" in failure(corpus, tokenizer=spec)
    gpt2_files(tmp_path)
    assert f"for its vocab.json and merges.txt: gpt2-files:{tmp_path}" in failure(corpus, tokenizer=f"file:{tmp_path}")
    with pytest.raises(DataError, match="cannot read: No such file"):
        data.load_tokenizer(tmp_path / "none.json")


def test_a_training_process_that_dies_is_reported(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "bpe.py"
    monkeypatch.setattr("bitnetctl.data.bpe.__file__", str(program))
    program.write_text("raise MemoryError('too much')")
    assert "bpe:300: its training ended with exit code 1: MemoryError: too much" in failure(corpus)
    program.write_text("import os; os.kill(os.getpid(), 9)")
    assert failure(corpus).endswith("its training ended with exit code -9")


def test_an_interrupt_kills_the_training_process(
    corpus: Path, token_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, started = tmp_path / "bpe.py", tmp_path / "started"
    monkeypatch.setattr("bitnetctl.data.bpe.__file__", str(program))
    program.write_text(
        "import os, sys, time\n"
        "assert os.path.getsize(sys.argv[2]) > 0 and sys.stdin.read() == ''\n"
        f"open({str(started)!r} + '-', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(started)!r} + '-', {str(started)!r})\n"
        "time.sleep(600)"
    )

    def interrupt(*_: object) -> None:
        if started.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.prepare(data_config(corpus), progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert not list(token_cache.iterdir())


def test_the_training_program_reads_a_text_from_every_line(tmp_path: Path) -> None:
    texts = [prose(200), f'two\r\nlines\u2028{END} "é" 中 \x00\x85\n']
    lines, path = tmp_path / "texts.jsonl", tmp_path / "bpe.json"
    lines.write_text("".join(f"{json.dumps(text, ensure_ascii=False)}\n" for text in texts), encoding="utf-8")
    subprocess.run([sys.executable, "-P", bpe.__file__, "270", str(lines), str(path)], check=True)
    assert path.read_text() == bpe.train_bpe(270, texts).to_str(pretty=True)


@pytest.mark.parametrize("program", ["", "raise SystemExit(1)"])
def test_no_texts_are_left_after_training(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, texts = tokenizer_module.open_tokenizer("bpe:270"), [prose(200)]
    if program:
        monkeypatch.setattr("bitnetctl.data.bpe.__file__", str(tmp_path / "bpe.py"))
        (tmp_path / "bpe.py").write_text(program)
        with pytest.raises(DataError, match="exit code 1"):
            source.build(texts, tmp_path, lambda: None)
        (tmp_path / "bpe.py").unlink()
    else:
        assert source.build(texts, tmp_path, lambda: None).to_str() == bpe.train_bpe(270, texts).to_str()
    assert not list(tmp_path.iterdir())
