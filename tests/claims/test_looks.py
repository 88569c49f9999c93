"""Looks at a claim: what is kept, and what is counted of it."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from bitnetctl.claims.looks import (
    Look,
    Looks,
    add_look,
    count_elsewhere,
    early_text,
    looks_file,
    otherwise_text,
    read_looks,
)
from bitnetctl.errors import StorageError


def look(
    present: Sequence[int],
    planned: Sequence[int] = range(6),
    *,
    claim: str = "a",
    arm: str = "cure",
    design: str = "d",
) -> Look:
    return Look.now(
        claim=claim, arm=arm, design=design, seeds_planned=planned, seeds_present=present, outcome="inconclusive"
    )


def test_a_look_is_read_back(tmp_path: Path) -> None:
    path = looks_file(tmp_path, "mine")
    assert path == tmp_path / "claims" / "mine.json"
    assert read_looks(path) == Looks()
    first, second = look([2, 0]), look(range(6))
    add_look(path, first)
    add_look(path, second)
    assert read_looks(path).looks == (first, second)
    assert first.seeds_present == (0, 2)


def test_the_same_judgement_again_is_no_further_look(tmp_path: Path) -> None:
    path = looks_file(tmp_path, "mine")
    first, second, other = look(range(6)), look(range(6), design="e"), look(range(6), claim="b")
    for one in (first, second, other):
        add_look(path, one)
    before = path.stat().st_mtime_ns
    add_look(path, first.model_copy(update={"time": "2031-01-01T00:00:00+00:00", "version": "9.9"}))
    assert path.stat().st_mtime_ns == before
    assert read_looks(path).looks == (first, second, other)
    add_look(path, first.model_copy(update={"outcome": "supported"}))
    # not the last one: the judgement changed back
    add_look(path, first)
    assert [one.outcome for one in read_looks(path).at("d")] == [
        "inconclusive",
        "inconclusive",
        "supported",
        "inconclusive",
    ]


@pytest.mark.parametrize("name", ["a b/c", "ü", "." * 300, "x" * 300, ""])
def test_any_name_of_a_claim_has_a_file(tmp_path: Path, name: str) -> None:
    path = looks_file(tmp_path, name)
    add_look(path, look([]))
    assert path.parent == tmp_path / "claims"
    assert len(read_looks(path).looks) == 1


def test_names_that_files_cannot_have_do_not_meet(tmp_path: Path) -> None:
    names = ["ü", "é", "a b", "a/b", "a-b", "", "x" * 101, "x" * 102]
    assert len({looks_file(tmp_path, name) for name in names}) == len(names)


def test_other_claims_about_an_arm_on_the_same_runs_are_counted(tmp_path: Path) -> None:
    mine = looks_file(tmp_path, "mine")
    add_look(mine, look([], claim="before"))
    for name, one in (
        ("renamed", look([], claim="b")),
        ("renamed", look([], claim="b")),
        ("copy", look([], claim="a")),
        ("other-arm", look([], claim="c", arm="placebo")),
        ("other-runs", look([], claim="d", design="e")),
    ):
        add_look(looks_file(tmp_path, name), one)
    looks_file(tmp_path, "damaged").write_text("[]")
    assert count_elsewhere(mine, claim="a", arm="cure", design="d") == 1
    assert count_elsewhere(looks_file(tmp_path, "new"), claim="new", arm="cure", design="d") == 3


def test_looks_of_several_processes_are_all_kept(tmp_path: Path) -> None:
    path = looks_file(tmp_path, "mine")
    threads = [threading.Thread(target=add_look, args=(path, look([seed]))) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.seeds_present for one in read_looks(path).looks) == [(seed,) for seed in range(6)]


def test_what_a_later_version_adds_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    text = Looks(looks=(look([0]),)).model_dump_json().replace('"time"', '"weather":"fair","time"')
    path.write_text(text, encoding="utf-8")
    assert read_looks(path).looks[0].seeds_present == (0,)


def test_damage_is_refused_where_a_look_is_added(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(StorageError, match="is damaged; remove it"):
        add_look(path, look([]))
    assert path.read_text(encoding="utf-8") == "[]"


def test_early_looks_are_those_before_all_seeds_were_there() -> None:
    early, later, whole = look([0]), look([0, 1]), look(range(6))
    for looks, count in (
        ((), 0),
        ((whole, whole), 0),
        ((early,), 1),
        ((early, early, later, whole), 2),
        ((early, later, early), 3),
        ((look([0], claim="b"), look([0], design="e")), 0),
        # all seeds that were planned then
        ((look([0, 1], [0, 1]),), 0),
    ):
        assert Looks(looks=looks).early("a", "d") == count


def test_seeds_planned_over_time_grow_with_every_plan_that_adds_some() -> None:
    looks = Looks(looks=(look([], [0, 1]), look([], [1, 0]), look([], [0, 5]), look([], range(9), design="e")))
    assert looks.planned("d", range(6)) == (2, 3, 6)
    assert looks.planned("d", [0, 1, 5]) == (2, 3)
    assert Looks().planned("d", range(6)) == (6,)


def test_looks_at_other_arms_are_left_out_by_their_labels() -> None:
    mine, other, before, unknown = (look([], arm=arm) for arm in ("cure", "placebo", "cure:old=1", ""))
    looks = Looks(looks=(mine, other, before, unknown))
    assert looks.without_arms({"placebo", "baseline"}).looks == (mine, before, unknown)


def test_other_versions_of_a_claim_are_counted_once() -> None:
    looks = Looks(
        looks=(look([], claim="a"), look([], claim="b"), look([], claim="b"), look([], claim="c", design="e"))
    )
    assert looks.otherwise("a", "d") == 1
    assert looks.otherwise("x", "d") == 2


def test_the_sentences() -> None:
    assert early_text(0, 6) == otherwise_text(0) == ""
    assert early_text(1, 6).startswith("looked at 1 time before its 6 seeds were there: ")
    assert otherwise_text(2).startswith("judged before by 2 other versions of its plan or criteria")
