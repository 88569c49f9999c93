"""`bitnetctl verify`: train what is missing, then judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from bitnetctl.cli import judging, options
from bitnetctl.cli.claiming import ClaimTest, refuse_beside_claim
from bitnetctl.cli.inputs import Given, given_runs
from bitnetctl.cli.judging import PlanRequest
from bitnetctl.cli.options import parse_pack, print_message
from bitnetctl.cli.requested import find_arm, refuse_faults_of_plugins, runs_of_arm_hinted
from bitnetctl.cli.training import note_long_warm_ups, show_plan, train_missing
from bitnetctl.config import BASELINE, InterventionSpec, RunConfig
from bitnetctl.errors import ConfigError, ExitCode
from bitnetctl.records import Run
from bitnetctl.records.bundle import bundle_options
from bitnetctl.records.inventory import Inventory, take_inventory
from bitnetctl.records.load import load_planned
from bitnetctl.records.logs.columns import parse_map
from bitnetctl.records.run import UnreadRun
from bitnetctl.signals import StopRequest
from bitnetctl.sweeps.plan import make_plan
from bitnetctl.trainer.resolved import ResolvedRun, resolve_all
from bitnetctl.units import listed, plural

if TYPE_CHECKING:
    from bitnetctl.verdict import Criteria


def verify(
    context: typer.Context,
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
    recipe: options.OptionalRecipe = None,
    arms: options.Arm = None,
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
    claim: Annotated[
        str | None,
        typer.Option(
            "--claim",
            metavar="NAME|FILE",
            parser=options.user_text,
            help="Built in or FILE.toml: train its plan, judge its arm; --recipe replaces recipe, sizes, steps.",
        ),
    ] = None,
    runs_dir: options.RunsDir = Path("runs"),
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    pack: options.Pack = "auto",
    samples: options.Samples = None,
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
    """Train what is missing, then judge the claim that this setup does not collapse, or a claim that has a file."""
    outputs = judging.Outputs(report=report, bundle=bundle, junit=junit, html=html, details=details, as_json=as_json)
    requested_sizes = options.chosen_sizes(sizes)
    requested_seeds = options.chosen_seeds(seeds, seed)
    if paths:
        _refuse_beside_paths(context, of_claim=claim is not None)
        stored = _bundle_options(Path(paths[0])) if len(paths) == 1 else _BundleOptions()
        requested_sizes = stored.sizes if requested_sizes is None else requested_sizes
        requested_seeds = stored.seeds if requested_seeds is None else requested_seeds
        steps = stored.steps if steps is None else steps
        strict, distinct_seeds = strict or stored.strict, distinct_seeds or stored.distinct_seeds
    request = PlanRequest(
        recipe=recipe,
        sizes=requested_sizes,
        seeds=requested_seeds,
        steps=steps,
        overrides=tuple(overrides or ()),
        strict=strict,
        distinct_seeds=distinct_seeds,
    )
    subject: _SetUp | ClaimTest
    if claim is None:
        arm = options.chosen_arm(arms)
        subject = _SetUp(request=request, arm=arm, baseline=not no_baseline, criteria_names=criteria or ())
    else:
        refuse_beside_claim(arms, criteria, no_baseline=no_baseline)
        subject = ClaimTest(request=request, name_or_file=claim)
    subject.read_files()
    if paths:
        with given_runs(paths, columns=parse_map(columns or ()), decimal=decimal) as given:
            return subject.judge_given(given, outputs)
    of_logs = options.given_options(context, ("decimal", "columns"))
    if of_logs:
        raise ConfigError(f"{listed(of_logs)} without paths: given logs are read so; name them, too")
    planned = resolve_all(subject.planned_configs(runs_dir), runs_dir)
    pack_size = parse_pack(pack)
    if dry_run:
        code = show_plan(planned, device, pack_size, as_json)
        subject.note_too_few_seeds(planned)
        note_long_warm_ups(planned)
        return code
    if not no_train:
        subject.note_too_few_seeds(planned)
        note_long_warm_ups(planned)
        with StopRequest() as stop:
            if train_missing(
                planned,
                stop,
                pack=pack_size,
                requeue=requeue,
                quiet=quiet,
                runs_dir=runs_dir,
                device=device,
                engine=engine,
                precision=precision,
                keep_weights=False,
                samples=samples,
            ):
                return ExitCode.STOPPED
    code = subject.judge_trained(planned, runs_dir, outputs)
    if not no_train:
        refuse_faults_of_plugins(planned, subject.arm_of(planned))
    return code


_OF_TRAINING = (
    "no_baseline",
    "runs_dir",
    "device",
    "engine",
    "precision",
    "pack",
    "samples",
    "requeue",
    "dry_run",
)
"""Parameters that say which runs are trained, and how."""
_OF_PLAN = ("recipe", "overrides")
"""Those that also say which of given runs are those of a claim."""


def _refuse_beside_paths(context: typer.Context, *, of_claim: bool) -> None:
    """Raise ConfigError for options that do nothing where runs are given, since none is trained."""
    given = options.given_options(context, _OF_TRAINING if of_claim else (*_OF_PLAN, *_OF_TRAINING))
    if given:
        raise ConfigError(
            f"{listed(given)} beside paths: given runs are judged as they are; leave out one or the other"
        )


@dataclass(frozen=True, kw_only=True)
class _SetUp:
    """The claim that a set-up does not collapse: an arm, beside the baseline, by criteria."""

    request: PlanRequest
    arm: str
    baseline: bool
    criteria_names: Sequence[str]

    @cached_property
    def criteria(self) -> "list[Criteria]":
        """The criteria by which is judged; raises ConfigError."""
        from bitnetctl.verdict import criteria_names, load_criteria

        return [load_criteria(name) for name in self.criteria_names or criteria_names()]

    def read_files(self) -> None:
        """Read the criteria; raises ConfigError, before runs are read or trained."""
        self.criteria  # noqa: B018 - cached

    def judge_given(self, given: Given, outputs: judging.Outputs) -> int:
        """Judge given runs, print and write the verdict; return the exit code."""
        criteria, loaded = self.criteria, given.loaded
        inventory = take_inventory(loaded.runs, loaded.empty, loaded.unread)
        return judging.judge_and_show(
            loaded.runs,
            inventory,
            loaded.unread,
            criteria=criteria,
            outputs=outputs,
            requested_arms=[find_arm(self.arm, loaded.runs, inventory)] if self.arm else [],
            options=judging.options_of_given(self.request),
        )

    def planned_configs(self, runs_dir: Path) -> list[RunConfig]:
        """Return the runs to train, those of the requested arm last; raises ConfigError."""
        fields = {"arms": (self.arm,), "baseline": self.baseline, **self.request.plan_fields()}
        with runs_of_arm_hinted(self.arm, runs_dir):
            configs = make_plan(fields, "verify").configs()
        return sorted(configs, key=lambda config: config.arm != BASELINE)

    def arm_of(self, planned: Sequence[ResolvedRun]) -> str:
        """Return the label of the requested arm."""
        return planned[-1].config.arm

    def judge_trained(self, planned: Sequence[ResolvedRun], runs_dir: Path, outputs: judging.Outputs) -> int:
        """Judge the planned runs, print and write the verdict; return the exit code."""
        configs = [run.config for run in planned]
        runs, inventory, unread = _trained_runs(configs, runs_dir)
        return judging.judge_and_show(
            runs,
            inventory,
            unread,
            criteria=self.criteria,
            outputs=outputs,
            arms=list(dict.fromkeys(config.arm for config in configs)),
            requested_arms=[self.arm_of(planned)],
            options=judging.options_of_plan(configs, self.request),
        )

    def note_too_few_seeds(self, planned: Sequence[ResolvedRun]) -> None:
        """Say of runs to be trained which criteria cannot support by so few seeds, whatever comes out."""
        from bitnetctl.verdict.rule import fewest_seeds

        seeds, arms = len({run.config.seed for run in planned}), len({run.config.arm for run in planned})
        # a claim about a mean or pairs has bounds of its own
        by_rate = [
            one for one in self.criteria if one.seeds.rule == "rate" and not any(c.about_arm for c in one.checks)
        ]
        needed = {one.name: fewest_seeds(one.seeds.max_failure_rate, one.seeds.error_rate / arms) for one in by_rate}
        too_few = {name: least for name, least in needed.items() if seeds < least}
        # the files of thousands of runs are looked at only where there is something to say
        if too_few and not all(run.has_ended() for run in planned):
            for name, least in too_few.items():
                print_message(f"{plural(seeds, 'seed')} cannot support by {name}; {least} could: --seeds {least}")


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
    return runs, judging.planned_inventory(runs, loaded.empty, unread, configs), unread


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
