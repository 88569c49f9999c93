"""One label for an arm, in whatever order its settings were typed or written."""

from pathlib import Path

import pytest
from sets import inventory, plan
from synthetic import quick, simple_run

from bitnetctl.config import arm_beside, canonical_arm, parse_arm, split_arm
from bitnetctl.records import read_manifest

TYPED, LABEL = "batch-growth:start=0.4,factor=2", "batch-growth:factor=2,start=0.4"


def test_settings_are_sorted_by_name_and_the_interventions_keep_their_order() -> None:
    assert canonical_arm(f" {TYPED} + no-decay ") == f"{LABEL}+no-decay"
    assert canonical_arm("./b.py:Kind:y=1,x=2") == "./b.py:Kind:x=2,y=1"
    assert canonical_arm("") == canonical_arm("baseline") == "baseline"
    # a name that another program gave
    assert canonical_arm("mine:b,a=1") == "mine:b,a=1"


def test_the_order_changes_neither_label_nor_hash_nor_name() -> None:
    one, other = (quick().model_copy(update={"interventions": parse_arm(text)}) for text in (TYPED, LABEL))
    assert one.arm == other.arm == LABEL == canonical_arm(one.arm)
    assert (one.hash, one.run_name) == (other.hash, other.run_name)


def test_an_arm_that_an_earlier_version_planned_in_another_order_is_the_same_arm(tmp_path: Path) -> None:
    planned = plan(2, "baseline", TYPED)
    files = [simple_run(tmp_path, quick(arm, seed=seed), planned=planned) for arm in ("", TYPED) for seed in (0, 1)]
    manifest = read_manifest(files[-1].with_suffix(""))
    assert manifest is not None
    assert manifest.planned is not None
    assert TYPED in manifest.planned.arms
    assert set(inventory(files).arms) == {"baseline", LABEL}


def test_a_plus_sign_in_a_path_joins_nothing() -> None:
    parts = ["/a+b/mine.py:Kind:x=1e+3", "no-decay", "~/c+d/e.py", "./f+g.py", "../h.py"]
    assert split_arm(" + ".join(parts)) == parts
    # a relative path with one is indistinguishable from two interventions
    assert split_arm("a+b/mine.py") == ["a", "b/mine.py"]


@pytest.mark.parametrize(
    ("file", "arm", "beside"),
    [
        ("plans/mine.toml", "mine.py:Kind:x=1+no-decay", "plans/mine.py:Kind:x=1+no-decay"),
        ("mine.toml", "./mine.py", "mine.py"),
        ("../mine.toml", "deep/mine.py", "../deep/mine.py"),
        ("plans/mine.toml", "/abs/mine.py", "/abs/mine.py"),
        ("a+b/mine.toml", "mine.py+no-decay", "{cwd}/a+b/mine.py+no-decay"),
        ("2026/mine.toml", "no-decay+mine.py", "no-decay+{cwd}/2026/mine.py"),
        ("root-cause", "mine.py", "mine.py"),
        ("mine.toml", "baseline", "baseline"),
    ],
)
def test_an_arm_of_a_file_is_beside_it(file: str, arm: str, beside: str) -> None:
    assert arm_beside(file, arm) == beside.format(cwd=Path.cwd())
