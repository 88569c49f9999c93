"""Files without end, too deep, too wide or of another shape: each is refused in one line with exit code 2."""

import json
from pathlib import Path
from typing import Any

import pytest
from calling import call
from hostile import environment as environment, refused
from synthetic import quick, simple_run

from bitnetctl import data
from bitnetctl.errors import DataError, RecordError
from bitnetctl.records import read


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    header = "Step,Loss,UniquePredictions,LR,WD\n"
    path = tmp_path / "x.csv"
    for number, content in enumerate(("1" * 2_000_000, header + "1" * 3_000_000, "title\n" + "S" * 2_000_000), 1):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(RecordError, match="a line of more than 1,048,576 bytes"):
            read(path)
        if number == 2:
            assert f"{path}:2: a line of more than" in refused(call("analyze", path))
    path.write_text(header + "1,2,3,0,0\n" * 200_000 + "1" * 3_000_000, encoding="utf-8")
    with pytest.raises(RecordError, match="Step 1 repeated"):
        read(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no endless file here")
def test_a_file_without_end_is_refused() -> None:
    assert "/dev/zero:1: nothing but NUL bytes" in refused(call("analyze", "/dev/zero"))


def test_hundreds_of_thousands_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    names = ",".join(f"c{number}" for number in range(100_000))
    path.write_text(f"Step,Loss,UniquePredictions,LR,WD,{names},c1\n1,2,3,0,0,{',' * 100_000}\n", encoding="utf-8")
    with pytest.raises(RecordError, match="duplicate columns: 'c1'"):
        read(path)


DEEP = 200_000


@pytest.mark.parametrize("name", ["run.json", "verdict.json"])
@pytest.mark.parametrize("content", ["[" * DEEP, '{"a":' * DEEP, "1" * 10_000, '{"verdict": NaN}', "null", '"x"'])
def test_json_that_is_too_deep_or_too_long(name: str, content: str, tmp_path: Path) -> None:
    path = simple_run(tmp_path, quick())
    if name == "run.json":
        path.with_suffix("").joinpath(name).write_text(content, encoding="utf-8")
        refused(call("analyze", path))
    else:
        Path(name).write_text(content, encoding="utf-8")
        refused(call("analyze", path, "--verdict", name, "--html", "page.html"))


@pytest.mark.parametrize(
    "verdict",
    [
        {"verdict": 5},
        {"verdict": "x", "reasons": 5},
        {"verdict": "x", "reasons": [5]},
        {"verdict": "x", "notes": None},
        {"verdict": "x", "sizes": [{}]},
        {"verdict": "x", "sizes": ["y"]},
        {"verdict": "x", "checks": {"a": 1}},
        {"verdict": "x", "runs": [[]]},
        {"verdicts": {"verdict": "x"}},
    ],
)
def test_verdicts_of_another_shape(verdict: Any, tmp_path: Path) -> None:
    path = simple_run(tmp_path, quick())
    Path("verdict.json").write_text(json.dumps(verdict), encoding="utf-8")
    assert "not what" in refused(call("analyze", path, "--verdict", "verdict.json", "--html", "page.html"))


def test_a_tokenizer_with_huge_ids() -> None:
    from tokenizers import Tokenizer, models

    # written by hand: the library walks through all the ids between when it writes
    text = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).to_str()
    Path("tokenizer.json").write_text(text.replace('"b":1', '"b":4294967294'), encoding="utf-8")
    with pytest.raises(DataError, match="token ids up to 4294967294, beyond 4194303"):
        data.tokenizer.open_tokenizer("file:tokenizer.json")
