"""One label for an arm, in whatever order its settings were typed or written."""

from pathlib import Path

from sets import inventory, plan
from synthetic import quick, simple_run

from bitnetctl.config import canonical_arm, parse_arm
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
