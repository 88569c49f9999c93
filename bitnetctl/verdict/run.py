"""Apply every check of the criteria to one run."""

from collections.abc import Sequence

from bitnetctl.records import Run
from bitnetctl.verdict.checks.base import CheckContext
from bitnetctl.verdict.checks.completion import torn_end
from bitnetctl.verdict.criteria import Criteria
from bitnetctl.verdict.outcome import CheckedRun, Outcome


def check_run(
    run: Run, criteria: Criteria, *, requested_steps: int | None = None, candidates: Sequence[Run] = ()
) -> CheckedRun:
    """Return the results of every check that applies.

    The set-up is judged on any run whose file is whole. What a run shows is judged on completed runs only, since a
    collapse in the middle of training may be part of the claim. `candidates` are runs among which twins are looked up.
    """
    context = CheckContext(
        requested_steps=requested_steps,
        candidates=candidates,
        # without candidates, since a twin needs no twin of its own
        check_twin=lambda twin: check_run(twin, criteria, requested_steps=requested_steps),
    )
    completion = tuple(
        check.result(run, finding)
        for check in criteria.checks
        if check.about_completion and (finding := check.judge(run, context))
    )
    if torn_end(run) is not None:
        return CheckedRun(run=run, completion=completion, others=())
    completed = all(result.outcome is Outcome.SUPPORTED for result in completion)
    others = []
    for check in (check for check in criteria.checks if not check.about_completion):
        finding = check.judge_setup(run)
        if finding is None and completed:
            finding = check.judge(run, context)
        if finding is not None:
            others.append(check.result(run, finding))
    return CheckedRun(run=run, completion=completion, others=tuple(others))
