"""The verdicts that the documentation names of the runs in the repository."""

from pathlib import Path

from calling import call

ROOT = Path(__file__).parents[2]


def test_the_origin_at_its_own_length() -> None:
    done = call("verify", str(ROOT / "runs/reference/origin-h256"), "--json")
    verdicts = {(one["arm"], one["criteria"]["name"]): one["verdict"] for one in done.json["verdicts"]}
    assert verdicts == {
        ("baseline", "origin"): "supported",
        ("baseline", "sound"): "refuted",
        ("decoupled-decay", "origin"): "supported",
        ("decoupled-decay", "sound"): "supported",
        ("wd-schedule:preset=before-fix", "origin"): "refuted",
        ("wd-schedule:preset=before-fix", "sound"): "refuted",
    }
