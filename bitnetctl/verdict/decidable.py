"""How many seeds a decision takes: with fewer, nothing that comes out supports or refutes."""

from bitnetctl.verdict.accounting import Account
from bitnetctl.verdict.criteria import Criteria
from bitnetctl.verdict.rule import Levels, fewest_seeds

_MOST_SEEDS = 10_000


def can_support(criteria: Criteria, seeds: int, level: float) -> bool:
    """Whether so many planned seeds of one arm and size could support, at the level of the arm."""
    if fewest_seeds(criteria.seeds.max_failure_rate, level, failing=False) > seeds:
        return False
    return all(check.can_decide(seeds, level)[0] for check in criteria.checks if check.about_arm)


def can_refute(criteria: Criteria, seeds: int, level: float) -> bool:
    """Whether so many planned seeds of one arm and size could refute, at the level that its statements share."""
    about_arm = [check for check in criteria.checks if check.about_arm]
    each = Levels(level, level).shared(1 + len(about_arm)).refuting
    if fewest_seeds(1 - criteria.seeds.max_failure_rate, each, failing=False) <= seeds:
        return True
    return any(check.can_decide(seeds, each)[1] for check in about_arm)


def fewest_to_decide(criteria: Criteria, level: float) -> tuple[int | None, int | None]:
    """Return the least numbers of seeds that could support and refute; None beyond 10,000."""
    numbers = range(1, _MOST_SEEDS)
    support = next((seeds for seeds in numbers if can_support(criteria, seeds, level)), None)
    return support, next((seeds for seeds in numbers if can_refute(criteria, seeds, level)), None)


def looks(account: Account, criteria: Criteria) -> list[tuple[int | None, tuple[int, ...]]]:
    """Return the planned numbers of seeds over time at which a look could have decided, by size."""
    if criteria.seeds.rule != "rate":
        return []
    # with fewer arms and sizes the level was a larger one
    level = criteria.seeds.error_rate
    found = []
    for size, numbers in account.looks:
        able = tuple(
            number for number in numbers if can_support(criteria, number, level) or can_refute(criteria, number, level)
        )
        if able:
            found.append((size, able))
    return found
