"""Account for every run that was planned: judged, or why not (failed without rows, unreadable, missing, doubled)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bitnetctl.records import Run
from bitnetctl.records.distinct import Double
from bitnetctl.records.inventory import AbsentRun, Inventory
from bitnetctl.verdict import wording
from bitnetctl.verdict.options import JudgeOptions

State = Literal["judged", "failed", "unreadable", "unfinished", "missing", "left out", "doubled"]
STATES: tuple[State, ...] = ("judged", "failed", "unreadable", "unfinished", "missing", "left out", "doubled")


@dataclass(frozen=True, kw_only=True)
class AccountedRun:
    """A run of the set and what became of it; one that is judged has rows, one that `failed` has none.

    `is_planned` is whether it stands for one of the seeds that are judged; a run of other steps than those requested is
    only mentioned where its seed has one of the requested steps.
    """

    run: str
    size: int | None
    seed: int | None
    state: State
    reason: str = ""
    is_planned: bool = True

    @property
    def may_be_any_size(self) -> bool:
        """Whether it could be of any size, since it cannot be read and nothing else tells."""
        return self.state == "unreadable" and self.size is None

    @property
    def label(self) -> str:
        """Its seed, else its name."""
        return f"seed {self.seed}" if self.seed is not None else self.run


@dataclass(frozen=True, kw_only=True)
class Account:
    """Every run of one arm; `looks` are the numbers of seeds planned over time, by size."""

    runs: tuple[AccountedRun, ...]
    looks: tuple[tuple[int | None, tuple[int, ...]], ...] = ()

    def count(self, state: State) -> int:
        """Return how many runs are in this state."""
        return sum(run.state == state for run in self.runs)

    def absent(self, size: int | None) -> list[AccountedRun]:
        """Return the planned runs of one size that have no rows here."""
        absent = ("failed", "unreadable", "unfinished", "missing", "left out")
        return [
            run
            for run in self.runs
            if run.state in absent and run.is_planned and (run.size == size or run.may_be_any_size)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the counts and every run that is not simply judged."""
        return {
            **{state.replace(" ", "_"): self.count(state) for state in STATES},
            "runs": [vars(run) for run in self.runs if run.state != "judged"],
            "seeds_planned_over_time": [{"size": size, "seeds": list(numbers)} for size, numbers in self.looks],
        }


def take_account(
    arm: str,
    runs: Sequence[Run],
    doubles: Iterable[Double],
    inventory: Inventory,
    options: JudgeOptions,
) -> tuple[list[Run], Account]:
    """Return the runs of an arm that are to be judged, and the account of all of them."""
    sizes, seeds, steps = options.sizes, options.seeds, options.requested_steps
    kept: list[Run] = []
    accounted: list[AccountedRun] = []
    at_length = {(run.size, run.seed) for run in runs if run.seed is not None and run.planned_steps == steps}
    for run in runs:
        reason = _why_left_out(run, sizes, seeds)
        is_other_length = run.planned_steps not in (steps, None) and (run.size, run.seed) in at_length
        if reason is None and is_other_length:
            reason = wording.other_length(run.planned_steps or 0)
        if reason is None:
            kept.append(run)
        accounted.append(
            AccountedRun(
                run=run.name,
                size=run.size,
                seed=run.seed,
                state="judged" if reason is None else "left out",
                reason=reason or "",
                is_planned=not is_other_length,
            )
        )
    accounted += (
        AccountedRun(run=one.run.source, size=one.run.size, seed=one.run.seed, state="doubled", reason=one.reason)
        for one in doubles
    )
    # a file that cannot be read and whose name does not tell may be of any arm
    of_arm = [one for one in inventory.absent if one.arm == arm or (one.arm is None and one.state == "unreadable")]
    accounted += (
        _absent(one, seeds, is_planned=one.planned_steps in (steps, None) or (one.size, one.seed) not in at_length)
        for one in of_arm
        if sizes is None or one.size in sizes or one.size is None
    )
    accounted += _requested(accounted, sizes, seeds)
    looks = tuple(
        (size, numbers)
        for (of, size), numbers in inventory.plans.items()
        if of == arm and len(numbers) > 1 and (sizes is None or size in sizes)
    )
    return kept, Account(runs=tuple(accounted), looks=looks)


def _why_left_out(run: Run, sizes: Sequence[int] | None, seeds: Sequence[int] | None) -> str | None:
    if sizes is not None and run.size is None:
        return wording.UNKNOWN_SIZE
    if sizes is not None and run.size not in sizes:
        return wording.not_requested(f"hidden {run.size}")
    if seeds is not None and run.seed is not None and run.seed not in seeds:
        return wording.not_requested(f"seed {run.seed}")
    return None


def _absent(one: AbsentRun, seeds: Sequence[int] | None, *, is_planned: bool) -> AccountedRun:
    left_out = seeds is not None and one.seed is not None and one.seed not in seeds
    return AccountedRun(
        run=one.run,
        size=one.size,
        seed=one.seed,
        state="left out" if left_out else one.state,
        reason=f"{one.reason}; {wording.not_requested(f'seed {one.seed}')}" if left_out else one.reason,
        is_planned=is_planned,
    )


def _requested(
    accounted: Sequence[AccountedRun], sizes: Sequence[int] | None, seeds: Sequence[int] | None
) -> Iterator[AccountedRun]:
    """Yield the requested seeds of every size that no run has; a run of unknown seed could be one of them."""
    known = sizes if sizes is not None else dict.fromkeys(run.size for run in accounted if run.state == "judged")
    for size in known:
        of_size = [run for run in accounted if run.size == size and run.state not in ("left out", "doubled")]
        unknown = sum(run.seed is None for run in of_size)
        for seed in [seed for seed in seeds or () if all(run.seed != seed for run in of_size)][unknown:]:
            yield AccountedRun(
                run=f"seed {seed}", size=size, seed=seed, state="missing", reason="requested, and there is no run"
            )
