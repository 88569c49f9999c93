"""Judge runs, print the verdicts and write them to files, as `verify` does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnetctl.cli.inputs import print_unread, refuse_overwriting
from bitnetctl.cli.options import print_json, print_message, stdout
from bitnetctl.config import RunConfig
from bitnetctl.errors import ConfigError, ExitCode, StorageError
from bitnetctl.files import write_atomic
from bitnetctl.records import Run
from bitnetctl.records.bundle import write_bundle
from bitnetctl.records.inventory import Inventory, take_inventory
from bitnetctl.records.run import EmptyRun, UnreadRun

if TYPE_CHECKING:
    from bitnetctl.claims import JudgedClaim
    from bitnetctl.verdict import Combined, Criteria, JudgeOptions, Summary


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What was requested of the runs to judge, None for what was not, and how strictly they are judged."""

    recipe: str | None = None
    sizes: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None
    steps: int | None = None
    overrides: tuple[str, ...] = ()
    strict: bool = False
    distinct_seeds: bool = False

    def plan_fields(self) -> dict[str, Any]:
        """Return the fields of a plan that were requested."""
        fields = {name: getattr(self, name) for name in ("recipe", "sizes", "seeds", "steps", "overrides")}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files to write, None for none, and what is printed: with `as_json` one JSON object."""

    report: Path | None
    bundle: Path | None
    junit: Path | None
    html: Path | None
    details: bool
    as_json: bool

    @property
    def files(self) -> list[Path]:
        """The files to write."""
        return [path for path in (self.report, self.junit, self.bundle, self.html) if path is not None]


def judge_and_show(
    runs: Sequence[Run],
    inventory: Inventory,
    unread: Sequence[UnreadRun],
    *,
    criteria: "Sequence[Criteria]",
    options: "JudgeOptions",
    outputs: Outputs,
    requested_arms: Sequence[str],
    arms: Sequence[str] | None = None,
    claim: "JudgedClaim | None" = None,
) -> int:
    """Judge `arms` (None: all that the runs have), print and write the verdicts; return the exit code.

    With a `claim` that has a file the summary is one of the claim, and the look is kept. The exit code is that of the
    strictest verdict on `requested_arms`, without any on all arms; where a file cannot be read, that of a usage error
    instead of support. Raises ConfigError where there is no arm to judge, StorageError for a file that cannot be
    written.
    """
    from bitnetctl.verdict import summarize

    claim_files = [] if claim is None else [path for path in (Path(claim.name_or_file), claim.file) if path is not None]
    refuse_overwriting(outputs.files, [*(run.path for run in runs), *claim_files])
    judged = _judge(runs, inventory, criteria, options, arms, requested_arms)
    deciding = [arm for arm in requested_arms or judged if arm in judged]
    if not deciding:
        raise ConfigError("no arm to judge: these criteria compare arms with one another, and there is no other one")
    summary = summarize(judged, deciding, criteria, runs, options, requested=bool(requested_arms))
    if claim is not None:
        summary = claim.complete(summary, judged[claim.arm].verdicts)
    tree = {**_json(judged, summary, options, unread), "texts": _texts(runs)}
    if claim is not None:
        tree["claim"] = claim.to_json(summary.outcome)
        _keep_look(claim, summary)
    _write(outputs, runs, inventory, criteria, judged, summary, tree, claim)
    if outputs.as_json:
        print_json(tree)
    else:
        _show(runs, judged, summary, details=outputs.details)
    for path in outputs.files:
        print_message(f"written: {path}")
    print_unread(unread)
    # every file may matter where all is said to be well
    code = summary.outcome.exit_code
    return ExitCode.USAGE if unread and code == ExitCode.SUPPORTED else code


def planned_inventory(
    runs: Sequence[Run], empty: Sequence[EmptyRun], unread: Sequence[UnreadRun], configs: Sequence[RunConfig]
) -> Inventory:
    """Return what belongs to the runs of a plan."""
    inventory = take_inventory(runs, empty, unread)
    # the plan says which length is meant: a trial of another one is no seed of it
    lengths = {config.steps for config in configs}
    absent = tuple(one for one in inventory.absent if one.planned_steps is None or one.planned_steps in lengths)
    return replace(inventory, absent=absent)


def options_of_plan(configs: Sequence[RunConfig], request: PlanRequest) -> "JudgeOptions":
    """Return the options by which the runs of a plan are judged: all of its sizes and seeds have to be there."""
    from bitnetctl.verdict import JudgeOptions

    return JudgeOptions(
        sizes=list(dict.fromkeys(config.model.hidden_size for config in configs)),
        seeds=list(dict.fromkeys(config.seed for config in configs)),
        requested_steps=configs[0].steps,
        strict=request.strict,
        distinct_seeds=request.distinct_seeds,
    )


def options_of_given(request: PlanRequest) -> "JudgeOptions":
    """Return the options by which given runs are judged: all sizes and seeds among them unless some were requested."""
    from bitnetctl.verdict import JudgeOptions

    return JudgeOptions(
        sizes=request.sizes,
        seeds=request.seeds,
        requested_steps=request.steps,
        strict=request.strict,
        distinct_seeds=request.distinct_seeds,
    )


def _keep_look(claim: "JudgedClaim", summary: "Summary") -> None:
    """Keep the look at a claim; a verdict does not fail where that cannot be written."""
    try:
        claim.keep_look(summary.outcome)
    except StorageError as error:
        print_message(f"this look is not kept: {error}")


def _judge(
    runs: Sequence[Run],
    inventory: Inventory,
    criteria: "Sequence[Criteria]",
    options: "JudgeOptions",
    arms: Sequence[str] | None,
    requested_arms: Sequence[str],
) -> "dict[str, Combined]":
    """Return the verdicts of all criteria by arm; a requested arm without a run gets one, too."""
    from bitnetctl.verdict import combine, judge_arms

    by_criteria = [judge_arms(runs, one, options, arms=arms, inventory=inventory) for one in criteria]
    missing = [arm for arm in requested_arms if all(arm not in verdicts for verdicts in by_criteria)]
    if missing:
        by_criteria = [
            verdicts | judge_arms(runs, one, options, arms=missing, inventory=inventory)
            for verdicts, one in zip(by_criteria, criteria, strict=True)
        ]
    every = dict.fromkeys(arm for verdicts in by_criteria for arm in verdicts)
    return {arm: combine([verdicts[arm] for verdicts in by_criteria if arm in verdicts]) for arm in every}


def _write(
    outputs: Outputs,
    runs: Sequence[Run],
    inventory: Inventory,
    criteria: "Sequence[Criteria]",
    judged: "Mapping[str, Combined]",
    summary: "Summary",
    tree: dict[str, Any],
    claim: "JudgedClaim | None",
) -> None:
    """Write the files that are asked for; `tree` is the JSON of the verdicts."""
    from bitnetctl import api
    from bitnetctl.report import claim_page, html_page, junit_xml, verification_report

    page = None if claim is None else claim_page(claim, judged[claim.arm].verdicts[0], summary, runs)
    if outputs.report is not None:
        write_atomic(outputs.report, verification_report(runs, judged, summary, page).encode())
    if outputs.junit is not None:
        verdicts = [verdict for combined in judged.values() for verdict in combined.verdicts]
        write_atomic(outputs.junit, junit_xml(verdicts).encode())
    if outputs.bundle is not None:
        described = [(one.name, one.model_dump_json(indent=2)) for one in criteria]
        write_bundle(outputs.bundle, runs, described, tree, inventory=inventory)
    if outputs.html is not None:
        write_atomic(outputs.html, html_page(api.analyze(runs), tree["verdicts"], [summary], page).encode())


def _json(
    judged: "Mapping[str, Combined]", summary: "Summary", options: "JudgeOptions", unread: Sequence[UnreadRun]
) -> dict[str, Any]:
    """Return the JSON of `verify --json`, which a bundle holds as `verdict.json`."""
    return {
        "verdict": summary.outcome.value,
        "decided_by": list(summary.arms),
        "summary": summary.model_dump(mode="json"),
        "arms": {arm: {"verdict": combined.outcome.value} for arm, combined in judged.items()},
        "disagreements": {arm: combined.disagreement for arm, combined in judged.items() if combined.disagreement},
        "verdicts": [verdict.to_json() for combined in judged.values() for verdict in combined.verdicts],
        "options": {
            "sizes": options.sizes,
            "seeds": options.seeds,
            "steps": options.requested_steps,
            "strict": options.strict,
            "distinct_seeds": options.distinct_seeds,
        },
        "unread": [one.reason for one in unread],
    }


def _texts(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return the measures of the text that runs wrote; the text itself is in their `samples.json`."""
    from bitnetctl.analysis.text_quality import texts_json
    from bitnetctl.verdict import UNKNOWN_ARM

    tree = texts_json(runs, [run.arm or UNKNOWN_ARM for run in runs])
    return None if tree is None else {name: value for name, value in tree.items() if name != "runs"}


def _show(runs: Sequence[Run], judged: "Mapping[str, Combined]", summary: "Summary", *, details: bool) -> None:
    from bitnetctl import report
    from bitnetctl.escape import printable

    console = stdout()
    for line in report.summary_lines(summary, console.width, whole=details):
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    if details:
        _show_details(runs, judged)
    console.print(printable(summary.last_line), style="bold", markup=False, highlight=False, soft_wrap=True)


def _show_details(runs: Sequence[Run], judged: "Mapping[str, Combined]") -> None:
    """Print the trajectory of every run, every check and every note."""
    from bitnetctl import report
    from bitnetctl.escape import printable
    from bitnetctl.verdict import UNKNOWN_ARM

    console = stdout()

    def line(text: str, style: str = "") -> None:
        console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)

    for arm, combined in judged.items():
        console.print()
        of_arm = [run for run in runs if (run.arm or UNKNOWN_ARM) == arm]
        if of_arm:
            console.print(report.trajectory_table(arm, of_arm))
        for verdict in combined.verdicts:
            console.print()
            console.print(report.checks_table(verdict))
            for text in report.verdict_lines(verdict):
                line(text)
            for note in verdict.notes:
                line(f"note: {note}", "dim")
        if combined.disagreement:
            line(combined.disagreement)
    console.print()
    if len(judged) > 1:
        for arm, combined in judged.items():
            line(f"{arm}: {combined.outcome.value}")
