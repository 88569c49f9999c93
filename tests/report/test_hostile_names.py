"""Hostile names of runs, files and plug-ins: each is refused in one line with exit code 2."""

from pathlib import Path

import pytest
from calling import call
from configs import TinyConfig
from hostile import environment as environment, everything, refused, settings

from bitnetctl import data
from bitnetctl.errors import DataError

NAMES = {
    "parent": "../x",
    "absolute": "/nowhere-at-all/x",
    "NUL": "a\0b",
    "device": "CON",
    "device with an end": "nul.txt",
    "long": "x" * 300,
    "folder": "a/b",
    "backslash": "a\\b",
    "dots": "..",
    "hidden": ".x",
    "stream": "x:y",
    "line": "a\nb",
    "steers": "\x1b[31mx",
    "home": "~nobody-at-all",
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_runs(kind: str, tmp_path: Path, tiny_config: TinyConfig) -> None:
    before = everything(tmp_path)
    line = refused(call("train", *settings(tiny_config()), "--runs-dir", tmp_path / "runs", "--name", NAMES[kind]))
    assert "run name" in line
    assert everything(tmp_path) == before


@pytest.mark.parametrize("there", ["Mine", "MINE.csv", "mINE.CSV"])
def test_names_that_differ_in_case_only(there: str, tmp_path: Path, tiny_config: TinyConfig) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / there).touch()
    line = refused(call("train", *settings(tiny_config()), "--runs-dir", tmp_path / "runs", "--name", "mine"))
    assert f"run 'mine' differs from {there[:4]!r}" in line
    config = tiny_config()
    (tmp_path / "runs" / config.run_name.upper()).mkdir()
    assert "in letter case only" in refused(call("sweep", *settings(config), "--runs-dir", tmp_path / "runs"))
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted([there, config.run_name.upper()])


NAMED: dict[str, list[str]] = {
    "plan": ["sweep", "--dry-run", "--plan"],
    "recipe": ["config", "show", "--recipe"],
    "intervention": ["train", "--dry-run", "-i"],
    "shown intervention": ["interventions", "show"],
    "new intervention": ["interventions", "new"],
    "checked intervention": ["interventions", "check"],
    "csv": ["analyze"],
    "judged": ["verify"],
    "criteria": ["verify", "x.csv", "--criteria"],
    "verdict": ["analyze", "x.csv", "--verdict"],
}
FILES = {"plan file": NAMED["plan"], "recipe file": NAMED["recipe"], "criteria file": NAMED["criteria"]}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("what", FILES)
def test_names_of_toml_files(what: str, kind: str) -> None:
    refused(call(*FILES[what], NAMES[kind] + ".toml"))


def test_a_plan_that_names_an_impossible_file() -> None:
    Path("x.toml").write_text('recipe = "y\\u0000.toml"\n', encoding="utf-8")
    refused(call("sweep", "--dry-run", "--plan", "x.toml"))


TOML = {"brackets": "a = " + "[" * 100_000, "tables": "a = " + "{a=" * 100_000, "digits": "seed = " + "1" * 5000}


@pytest.mark.parametrize("content", TOML)
@pytest.mark.parametrize("what", FILES)
def test_toml_that_is_too_deep_or_too_long(what: str, content: str) -> None:
    Path("x.toml").write_text(TOML[content], encoding="utf-8")
    assert "not valid TOML" in refused(call(*FILES[what], "x.toml"))
    value = TOML[content].partition(" = ")[2]
    refused(call("config", "show", "--set", f"seed={value}"))
    refused(call("config", "show", "-i", f"reduced-lr:peak={value}"))


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("what", NAMED)
def test_names_of_other_things(what: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = everything(tmp_path)
    refused(call(*NAMED[what], NAMES[kind]))
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("prefix", ["", "file:", "file:~"])
def test_names_in_sources(prefix: str, kind: str) -> None:
    with pytest.raises(DataError):
        data.sources.open_source(prefix + NAMES[kind])


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("prefix", ["", "file:", "file:~", "gpt2-files:", "gpt2-files:~", "bpe:"])
def test_names_in_tokenizers(prefix: str, kind: str) -> None:
    with pytest.raises(DataError):
        data.tokenizer.open_tokenizer(prefix + NAMES[kind])
