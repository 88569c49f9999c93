"""The short form of `python -m benchmarks.fuzz`: damaged and re-saved CSVs against the reader and both criteria."""

import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.fuzz import DAMAGES, Bench, check_damage, check_resaved, collapsed_table, sound_table
from benchmarks.resaved import RESAVED, SAVED, SPOILED, Sheet
from bitnetctl.errors import RecordError
from bitnetctl.records import load_run


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_damage_is_never_supported(bench: Bench) -> None:
    counts, wrong = check_damage(bench, 8 * len(DAMAGES), random.Random(1))
    assert wrong == []
    assert {sum(counted.values()) for counted in counts.values()} == {8}


def test_files_saved_anew_give_the_same_rows_and_verdict(bench: Bench) -> None:
    counts, wrong = check_resaved(bench, 120, random.Random(2))
    assert wrong == []
    total = sum(counts.values(), Counter[str]())
    assert total["supported"] > 40
    assert total["refuted"] > 40
    assert total["refused"] < 20


def test_misread_files_and_lost_verdicts_are_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def lower_the_loss(sheet: Sheet, rng: random.Random) -> None:
        sheet.rows[-1][sheet.column("Loss")] = "0.5"

    def cut(sheet: Sheet, rng: random.Random) -> None:
        del sheet.rows[5:]

    for change, found in ((lower_the_loss, "other rows"), (cut, "inconclusive instead of supported")):
        monkeypatch.setattr("benchmarks.fuzz.RESAVED", {"x": ()})
        monkeypatch.setattr("benchmarks.fuzz.resaved", lambda table, kind, rng, change=change: _sheet(table, change))
        _, wrong = check_resaved(bench, 2, random.Random(0))
        assert any(found in text for text in wrong), wrong


def _sheet(table: list[list[str]], change: object) -> Sheet:
    assert callable(change)
    sheet = Sheet.of(table)
    change(sheet, random.Random(0))
    return sheet


@pytest.mark.parametrize("change", [change for changes in RESAVED.values() for change in changes] + list(SAVED))
def test_every_way_of_saving_alone_is_read(bench: Bench, change: object) -> None:
    assert callable(change)
    sheet = Sheet.of(sound_table(0))
    change(sheet, random.Random(3))
    bench.paths[0].write_bytes(sheet.content())
    assert len(load_run(bench.paths[0], decimal=sheet.decimal).steps) == 21


@pytest.mark.parametrize("kind", SPOILED)
def test_what_is_not_certain_is_refused(bench: Bench, kind: str) -> None:
    sheet = Sheet.of(collapsed_table(0))
    SPOILED[kind](sheet, random.Random(4))
    bench.paths[0].write_bytes(sheet.content())
    with pytest.raises(RecordError):
        load_run(bench.paths[0])
