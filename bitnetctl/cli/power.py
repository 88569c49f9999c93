"""`bitnetctl power`: how many seeds a claim about pairs of runs needs."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnetctl.cli import options
from bitnetctl.cli.claiming import ClaimTest
from bitnetctl.cli.options import print_json, print_lines, stdout
from bitnetctl.errors import ConfigError, ExitCode
from bitnetctl.units import plural

if TYPE_CHECKING:
    from bitnetctl.verdict import Criteria
    from bitnetctl.verdict.power import Effect


@dataclass(frozen=True, kw_only=True)
class _Question:
    """Criteria whose power is asked for; `planned` is the number of seeds that a claim plans."""

    source: str
    criteria: "Criteria"
    arms: int
    sizes: int = 1
    planned: int | None = None


def power(
    claim: Annotated[
        str | None,
        typer.Option("--claim", metavar="NAME|FILE", parser=options.user_text, help="A claim: built in or FILE.toml."),
    ] = None,
    criteria: Annotated[
        str | None,
        typer.Option("--criteria", metavar="NAME|FILE", parser=options.user_text, help="Criteria, instead of a claim."),
    ] = None,
    effect: Annotated[
        float | None,
        typer.Option(
            "--effect",
            metavar="D",
            help="True effect, in standard deviations of the pairs beyond the margin; with --sd in the measure's unit. "
            "Of `equivalent` the true difference, by default 0.",
        ),
    ] = None,
    sd: Annotated[
        float | None, typer.Option("--sd", metavar="S", help="Standard deviation of the pairs, in the measure's unit.")
    ] = None,
    wanted: Annotated[float, typer.Option("--power", metavar="P", help="Wanted probability of support.")] = 0.8,
    arms: Annotated[
        int | None,
        typer.Option("--arms", min=1, max=100_000, help="Arms that share the error rate; unset: the claim's, else 1."),
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Say how many seeds a claim about pairs needs, if the effect is that large."""
    from bitnetctl.verdict.power import Effect

    if not 0 < wanted < 1:
        raise ConfigError(f"--power {wanted:g}: give a probability between 0 and 1")
    if sd is not None and not 0 < sd < math.inf:
        raise ConfigError(f"--sd {sd:g}: give a standard deviation above 0")
    if effect is not None and not math.isfinite(effect):
        raise ConfigError(f"--effect {effect:g}: give a finite number")
    question = _question(claim, criteria, arms)
    checks = question.criteria.comparisons
    if not checks:
        raise ConfigError(
            f"{question.source} compares no arms; docs/statistics.md says how many seeds a failure rate or a mean needs"
        )
    if effect is None and any(check.kind != "equivalent" for check in checks):
        raise ConfigError("give --effect, in standard deviations of the pairs beyond the margin, or with --sd in units")
    if effect is not None and effect < 0 and any(check.kind != "equivalent" for check in checks):
        raise ConfigError(
            f"--effect {effect:g}: a negative effect is one against the claim, which cannot support it; give the size "
            "of the effect in the claimed direction"
        )
    document = _document(question, Effect(effect=effect or 0.0, sd=sd), wanted)
    if as_json:
        print_json(document)
    else:
        _show(document)
    return ExitCode.SUPPORTED


def _question(claim: str | None, criteria: str | None, arms: int | None) -> _Question:
    if (claim is None) == (criteria is None):
        raise ConfigError("give either --claim or --criteria")
    if criteria is not None:
        from bitnetctl.verdict import load_criteria

        return _Question(source=f"criteria {criteria}", criteria=load_criteria(criteria), arms=arms or 1)
    test = ClaimTest(name_or_file=str(claim))
    configs = test.own_configs
    judged = [arm for arm in test.arms if not test.claim.criteria.is_reference(arm)]
    return _Question(
        source=f"claim {claim}",
        criteria=test.claim.criteria,
        arms=arms or max(1, len(judged)),
        sizes=len({config.model.hidden_size for config in configs}),
        planned=len({config.seed for config in configs}),
    )


def _document(question: _Question, effect: "Effect", wanted: float) -> dict[str, Any]:
    from dataclasses import replace

    from bitnetctl.verdict.power import power as power_of, seeds_needed, worth_planning

    checks, rule, arms, sizes = question.criteria.comparisons, question.criteria.seeds, question.arms, question.sizes
    heavy = replace(effect, noise="heavy")
    needed, needed_heavy = (
        seeds_needed(checks, one, rule, wanted=wanted, arms=arms, sizes=sizes) for one in (effect, heavy)
    )
    numbers = {number for number in (needed, needed_heavy, question.planned) if number is not None}
    up_to = max(numbers, default=20)
    numbers.update(worth_planning(checks, effect, rule, arms=arms, sizes=sizes, up_to=up_to))
    rows = []
    for seeds in sorted(numbers):
        normal, tails = (power_of(checks, seeds, one, rule, arms=arms, sizes=sizes) for one in (effect, heavy))
        rows.append(
            {
                "seeds": seeds,
                "power": normal.value,
                "power_heavy_tails": tails.value,
                "standard_error": max(normal.standard_error, tails.standard_error),
            }
        )
    return {
        "source": question.source,
        "checks": [check.label for check in checks],
        "effect": effect.effect,
        "sd": effect.sd,
        "wanted_power": wanted,
        "error_rate": rule.error_rate,
        "arms": arms,
        "sizes": sizes,
        "seeds_planned": question.planned,
        "seeds_needed": needed,
        "seeds_needed_heavy_tails": needed_heavy,
        "rows": rows,
        "assumed": _assumed(question, effect),
    }


def _assumed(question: _Question, effect: "Effect") -> str:
    rule, comparisons = question.criteria.seeds, question.criteria.comparisons
    known = f"{effect.effect:g} sd beyond the margin" if effect.sd is None else f"{effect.effect:g}, sd {effect.sd:g}"
    gains = ", of differences of gains," * any(check.kind == "interaction" for check in comparisons)
    others = any(check.about_arm for check in question.criteria.checks if check not in comparisons)
    return (
        f"a true effect{gains} of {known}; normal noise, or Student's t with 3 degrees of freedom and the same "
        "quartiles (heavy tails); every run ends healthy, where the claim needs a failure rate below "
        f"{rule.max_failure_rate:.0%}; {plural(question.arms, 'arm')} at {_sizes(question.sizes)}, error "
        f"rate {rule.error_rate:g}" + "; claims about the mean of a level hold" * others
    )


def _sizes(count: int) -> str:
    return "one size" if count == 1 else f"{count} sizes, each of which has to be supported"


def _show(document: dict[str, Any]) -> None:
    from bitnetctl.report.fitted import Column, FittedTable, rows_of

    wanted, planned = document["wanted_power"], document["seeds_planned"]
    notes = {
        document["seeds_needed_heavy_tails"]: f"least for {wanted:g} with heavy tails",
        document["seeds_needed"]: f"least for {wanted:g}",
    }
    is_simulated = any(row["standard_error"] for row in document["rows"])
    cells = [
        [
            str(row["seeds"]),
            _rate(row["power"]),
            _rate(row["power_heavy_tails"]),
            ", ".join(filter(None, (notes.get(row["seeds"]), "planned" * (row["seeds"] == planned)))),
        ]
        for row in document["rows"]
    ]
    columns = [Column("seeds", number=True), Column("power", number=True), Column("heavy tails", number=True)]
    stdout().print(FittedTable([*columns, Column("", note=True)], rows_of(cells)))
    print_lines("", f"{document['source']}: {', '.join(document['checks'])}")
    needed = document["seeds_needed"]
    print_lines(
        f"{plural(needed, 'seed')} for a power of {wanted:g}; fix the number before looking"
        if needed is not None
        else f"no number of seeds has a power of {wanted:g}: the effect is not beyond the margin, or nearly so"
    )
    error = max((row["standard_error"] for row in document["rows"]), default=0.0)
    simulated = f"; simulated, standard error {error:.2g}" * is_simulated
    stdout().print(f"assumed: {document['assumed']}{simulated}", markup=False, highlight=False)


def _rate(value: float) -> str:
    return f"{value:.3f}".replace("1.000", "> 0.999") if value > 0.9995 else f"{value:.3f}"
