"""Summaries of the verdicts on runs."""

from collections.abc import Sequence

from bitnetctl.records import Run
from bitnetctl.records.inventory import Inventory
from bitnetctl.verdict import Criteria, JudgeOptions, Summary, combine, judge_arms, load_criteria, summarize

ORIGIN, SOUND = load_criteria("origin"), load_criteria("sound")


def summary_of(
    runs: Sequence[Run],
    *,
    arm: str | None = None,
    criteria: Sequence[Criteria] = (ORIGIN, SOUND),
    steps: int | None = None,
    inventory: Inventory | None = None,
    **options: object,
) -> Summary:
    """Judge all arms and summarize; `arm` is the one asked for."""
    judging = JudgeOptions(requested_steps=steps, **options)  # type: ignore[arg-type]
    by_criteria = [judge_arms(runs, one, judging, inventory=inventory) for one in criteria]
    if arm is not None:
        missing = [arm] if arm not in by_criteria[0] else []
        by_criteria = [
            verdicts | judge_arms(runs, one, judging, arms=missing, inventory=inventory)
            for verdicts, one in zip(by_criteria, criteria, strict=True)
        ]
    arms = dict.fromkeys(name for verdicts in by_criteria for name in verdicts)
    judged = {name: combine([one[name] for one in by_criteria if name in one]) for name in arms}
    deciding = list(judged) if arm is None else [arm]
    return summarize(judged, deciding, criteria, runs, judging, requested=arm is not None)
