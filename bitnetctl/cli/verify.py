"""`bitnetctl verify`: train what is missing, then judge."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from bitnetctl.cli import options
from bitnetctl.cli.inputs import given_runs, print_unread, refuse_overwriting
from bitnetctl.cli.options import parse_pack, print_json, print_message, stdout
from bitnetctl.cli.requested import find_arm, refuse_faults_of_plugins, runs_of_arm_hinted
from bitnetctl.cli.training import show_plan, train_missing
from bitnetctl.config import BASELINE, InterventionSpec, RunConfig
from bitnetctl.config.numbers import parse_numbers
from bitnetctl.errors import ConfigError, ExitCode
from bitnetctl.records import Run
from bitnetctl.records.bundle import bundle_options, write_bundle
from bitnetctl.records.inventory import Inventory, take_inventory
from bitnetctl.records.load import load_planned
from bitnetctl.records.logs.columns import parse_map
from bitnetctl.records.run import UnreadRun
from bitnetctl.signals import StopRequest
from bitnetctl.sweeps.plan import make_plan
from bitnetctl.trainer.resolved import resolve_all

if TYPE_CHECKING:
    from bitnetctl.verdict import Combined, Criteria, Summary, Verdict


def verify(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATHS]",
            parser=options.user_text,
            help="CSVs, logs of other programs, folders or a bundle: judge these, train nothing.",
        ),
    ] = None,
    sizes: options.Sizes = None,
    steps: options.Steps = None,
    recipe: options.Recipe = "origin",
    arm: options.Arm = "",
    seeds: options.Seeds = None,
    seed: options.EachSeed = None,
    overrides: options.Set = None,
    no_baseline: Annotated[bool, typer.Option("--no-baseline", help="With -i: leave out the baseline.")] = False,
    criteria: Annotated[
        list[str] | None,
        typer.Option(
            "--criteria",
            metavar="NAME|FILE",
            parser=options.user_text,
            help="Built in or FILE.toml; unset: all built in.",
        ),
    ] = None,
    runs_dir: options.RunsDir = Path("runs"),
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    pack: options.Pack = "auto",
    strict: Annotated[
        bool, typer.Option("--strict", help="Invalid, too, if engine, precision, versions or device differ.")
    ] = False,
    distinct_seeds: Annotated[
        bool, typer.Option("--distinct-seeds", help="CSVs without a seed are different seeds, not one.")
    ] = False,
    no_train: Annotated[bool, typer.Option("--no-train", help="Judge what is there; train nothing.")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.md", parser=options.user_path, help="Write a Markdown report."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="FILE.zip", parser=options.user_path, help="Zip runs and verdicts."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE.xml", parser=options.user_path, help="Write JUnit XML.")
    ] = None,
    requeue: options.Requeue = False,
    dry_run: options.DryRun = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE.html", parser=options.user_path, help="Write verdict and curves as one page."
        ),
    ] = None,
    details: Annotated[bool, typer.Option("--details", help="Show trajectories and every check, too.")] = False,
    decimal: options.Decimal = ".",
    columns: options.Map = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> int:
    """Train what is missing, then judge the claim that this setup does not collapse."""
    from bitnetctl.verdict import criteria_names, load_criteria

    judge_and_show = functools.partial(
        _judge_and_show,
        criteria=[load_criteria(name) for name in criteria or criteria_names()],
        report=report,
        bundle=bundle,
        junit=junit,
        html=html,
        details=details,
        as_json=as_json,
    )
    requested_sizes = None if sizes is None else parse_numbers(sizes, "--sizes", "whole numbers such as 256,512")
    requested_seeds = options.chosen_seeds(seeds, seed)
    if paths:
        if len(paths) == 1:
            stored = _bundle_options(Path(paths[0]))
            requested_sizes = stored.sizes if requested_sizes is None else requested_sizes
            requested_seeds = stored.seeds if requested_seeds is None else requested_seeds
            steps = stored.steps if steps is None else steps
            strict, distinct_seeds = strict or stored.strict, distinct_seeds or stored.distinct_seeds
        with given_runs(paths, columns=parse_map(columns or ()), decimal=decimal) as given:
            loaded = given.loaded
            inventory = take_inventory(loaded.runs, loaded.empty, loaded.unread)
            requested_arms = [find_arm(arm, loaded.runs, inventory)] if arm else []
            return judge_and_show(
                loaded.runs,
                inventory,
                unread=loaded.unread,
                arms=None,
                deciding_arms=requested_arms,
                requested=bool(requested_arms),
                sizes=requested_sizes,
                seeds=requested_seeds,
                steps=steps,
                strict=strict,
                distinct_seeds=distinct_seeds,
            )

    if columns:
        raise ConfigError("--map names the columns of given logs: give these, too")
    fields = {
        "recipe": recipe,
        "steps": steps,
        "overrides": overrides or (),
        "arms": (arm,),
        "baseline": not no_baseline,
        "sizes": requested_sizes,
        "seeds": requested_seeds,
    }
    with runs_of_arm_hinted(arm, runs_dir):
        configs = make_plan({name: value for name, value in fields.items() if value is not None}, "verify").configs()
    # the requested arm last
    configs.sort(key=lambda config: config.arm != BASELINE)
    planned = resolve_all(configs, runs_dir)
    if dry_run:
        return show_plan(planned, device, parse_pack(pack), as_json)
    if not no_train:
        with StopRequest() as stop:
            if train_missing(
                planned,
                stop,
                pack=parse_pack(pack),
                requeue=requeue,
                quiet=quiet,
                runs_dir=runs_dir,
                device=device,
                engine=engine,
                precision=precision,
                keep_weights=False,
            ):
                return ExitCode.STOPPED
    runs, inventory, unread = _trained_runs(configs, runs_dir)
    code = judge_and_show(
        runs,
        inventory,
        unread=unread,
        arms=list(dict.fromkeys(config.arm for config in configs)),
        deciding_arms=[configs[-1].arm],
        requested=True,
        sizes=list(dict.fromkeys(config.model.hidden_size for config in configs)),
        seeds=list(dict.fromkeys(config.seed for config in configs)),
        steps=configs[0].steps,
        strict=strict,
        distinct_seeds=distinct_seeds,
    )
    if not no_train:
        refuse_faults_of_plugins(planned, configs[-1].arm)
    return code


def _trained_runs(configs: Sequence[RunConfig], runs_dir: Path) -> tuple[list[Run], Inventory, Sequence[UnreadRun]]:
    """Return those runs of the configs, and of their full-precision twins, that have rows, and what belongs to them."""
    twins = [
        config.model_copy(update={"interventions": (*config.interventions, InterventionSpec(name="full-precision"))})
        for config in configs
        if all(spec.name != "full-precision" for spec in config.interventions)
    ]
    loaded = load_planned(configs, runs_dir)
    names = {config.run_name for config in configs}
    of_twins = load_planned([twin for twin in twins if twin.run_name not in names], runs_dir)
    runs, unread = loaded.runs + of_twins.runs, loaded.unread + of_twins.unread
    inventory = take_inventory(runs, loaded.empty, unread)
    # the plan says which length is meant: a trial of another one is no seed of it
    lengths = {config.steps for config in configs}
    absent = tuple(one for one in inventory.absent if one.planned_steps is None or one.planned_steps in lengths)
    return runs, replace(inventory, absent=absent), unread


def _judge_and_show(
    runs: Sequence[Run],
    inventory: Inventory,
    *,
    unread: Sequence[UnreadRun],
    criteria: "Sequence[Criteria]",
    arms: Sequence[str] | None,
    deciding_arms: Sequence[str],
    sizes: Sequence[int] | None,
    seeds: Sequence[int] | None,
    steps: int | None,
    report: Path | None,
    bundle: Path | None,
    junit: Path | None,
    html: Path | None,
    details: bool,
    requested: bool,
    strict: bool,
    distinct_seeds: bool,
    as_json: bool,
) -> int:
    """Judge, print and write the results; return the exit code of the strictest verdict among `deciding_arms`.

    `arms` None are all that the runs have, `deciding_arms` empty all that are judged.
    """
    from bitnetctl import api
    from bitnetctl.files import write_atomic
    from bitnetctl.report import html_page, junit_xml, verification_report
    from bitnetctl.verdict import JudgeOptions, combine, summarize

    options: dict[str, Any] = {
        "sizes": sizes,
        "seeds": seeds,
        "steps": steps,
        "strict": strict,
        "distinct_seeds": distinct_seeds,
    }

    def judge(one: "Criteria", arms: Sequence[str] | None) -> "dict[str, Verdict]":
        return api.judge(runs, one, arms=arms, inventory=inventory, **options)

    outputs = [path for path in (report, junit, bundle, html) if path is not None]
    refuse_overwriting(outputs, [run.path for run in runs])
    by_criteria = [judge(one, arms) for one in criteria]
    # a requested arm without a run gets its verdict, too
    missing = [arm for arm in deciding_arms if all(arm not in verdicts for verdicts in by_criteria)]
    if missing:
        by_criteria = [verdicts | judge(one, missing) for verdicts, one in zip(by_criteria, criteria, strict=True)]
    every = dict.fromkeys(arm for verdicts in by_criteria for arm in verdicts)
    judged = {arm: combine([verdicts[arm] for verdicts in by_criteria if arm in verdicts]) for arm in every}
    deciding_arms = [arm for arm in deciding_arms or judged if arm in judged]
    if not deciding_arms:
        raise ConfigError("no arm to judge: these criteria compare arms with one another, and there is no other one")
    judging = JudgeOptions(
        sizes=sizes, seeds=seeds, requested_steps=steps, distinct_seeds=distinct_seeds, strict=strict
    )
    summary = summarize(judged, deciding_arms, criteria, runs, judging, requested=requested)
    outcome = summary.outcome
    tree = _json(judged, summary)
    tree["options"] = options
    tree["unread"] = [one.reason for one in unread]
    if report is not None:
        write_atomic(report, verification_report(runs, judged, summary).encode())
    if junit is not None:
        verdicts = [verdict for combined in judged.values() for verdict in combined.verdicts]
        write_atomic(junit, junit_xml(verdicts).encode())
    if bundle is not None:
        described = [(one.name, one.model_dump_json(indent=2)) for one in criteria]
        write_bundle(bundle, runs, described, tree, inventory=inventory)
    if html is not None:
        page = html_page(api.analyze(runs), tree["verdicts"], [summary])
        write_atomic(html, page.encode())
    if as_json:
        print_json(tree)
    else:
        _show(runs, judged, summary, details=details)
    for path in outputs:
        print_message(f"written: {path}")
    print_unread(unread)
    # every file may matter where all is said to be well
    return ExitCode.USAGE if unread and outcome.exit_code == ExitCode.SUPPORTED else outcome.exit_code


class _BundleOptions(BaseModel):
    """The options with which the runs of a bundle were judged, as far as it tells; used unless others are given."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    sizes: tuple[PositiveInt, ...] | None = None
    seeds: tuple[NonNegativeInt, ...] | None = None
    steps: PositiveInt | None = None
    strict: bool = False
    distinct_seeds: bool = False


def _bundle_options(path: Path) -> _BundleOptions:
    try:
        return _BundleOptions.model_validate(bundle_options(path))
    except ValidationError:
        return _BundleOptions()


def _json(judged: "dict[str, Combined]", summary: "Summary") -> dict[str, Any]:
    return {
        "verdict": summary.outcome.value,
        "decided_by": list(summary.arms),
        "summary": summary.model_dump(mode="json"),
        "arms": {arm: {"verdict": combined.outcome.value} for arm, combined in judged.items()},
        "disagreements": {arm: combined.disagreement for arm, combined in judged.items() if combined.disagreement},
        "verdicts": [verdict.to_json() for combined in judged.values() for verdict in combined.verdicts],
    }


def _show(runs: Sequence[Run], judged: "dict[str, Combined]", summary: "Summary", *, details: bool) -> None:
    from bitnetctl import report
    from bitnetctl.report.escape import printable

    console = stdout()
    for line in report.summary_lines(summary, console.width):
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    if details:
        _show_details(runs, judged)
    console.print(printable(summary.last_line), style="bold", markup=False, highlight=False, soft_wrap=True)


def _show_details(runs: Sequence[Run], judged: "dict[str, Combined]") -> None:
    """Print the trajectory of every run, every check and every note."""
    from bitnetctl import report
    from bitnetctl.report.escape import printable
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
