"""`bitnetctl verify --claim`: runs of a claim's plan, its verdict, its looks."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from calling import Done, call, judged, names_in, smallest_run
from claim_files import write_arms, write_claim
from sets import plan
from synthetic import empty_run, quick, simple_run

from bitnetctl.claims import claim_names
from bitnetctl.cli.claiming import ClaimTest
from bitnetctl.cli.judging import PlanRequest
from bitnetctl.errors import ExitCode

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    return write_claim(tmp_path / "mine.toml")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def judge(claim: Path, runs: Path) -> Callable[..., Done]:
    """Judge the claim in the folder of runs, with further options."""

    def run(*more: str) -> Done:
        return call("verify", "--claim", claim, "--runs-dir", runs, "--no-train", *more)

    return run


def looks(runs: Path, name: str = "mine") -> list[dict[str, object]]:
    """Return the looks that are kept."""
    return list(json.loads((runs / "claims" / f"{name}.json").read_text(encoding="utf-8"))["looks"])


# outcomes


@pytest.mark.parametrize(
    ("loss", "code", "conclusion"),
    [
        (4.8, ExitCode.SUPPORTED, "Leave the decay out."),
        (4.95, ExitCode.REFUTED, "Keep the decay."),
        (5.5, ExitCode.REFUTED, "Keep the decay."),
    ],
)
def test_a_verdict_is_told_with_what_follows(
    judge: Callable[..., Done], runs: Path, loss: float, code: ExitCode, conclusion: str
) -> None:
    write_arms(runs, {"": 5.0, "no-decay": loss})
    done = judge()
    assert (done.code, done.err) == (code, "")
    lines = done.out.splitlines()
    assert lines[0] == "CLAIM    Training without decay gives a lower loss"
    assert f"so       {conclusion}" in lines
    assert "scale    claimed at hidden 1024, 1B tokens; judged at quick, h64, 1,000 steps, 6" in lines
    assert lines[-1] == f"verdict: {code.name.lower()}"
    assert len(lines) <= 20
    assert not any(line.startswith("horizon") for line in lines)
    tree = judge("--json").json
    assert tree["verdict"] == code.name.lower()
    assert tree["decided_by"] == ["no-decay"]
    assert tree["claim"] | {"hash": "", "looks": []} == {
        "name": "mine",
        "hash": "",
        "title": "Training without decay gives a lower loss",
        "source": "a paper",
        "claimed": "Without weight decay the loss is lower.",
        "arm": "no-decay",
        "conclusion": conclusion,
        "limits": ["that any decay is harmful"],
        "scale": {
            "claimed": "hidden 1024, 1B tokens",
            "judged": "quick, h64, 1,000 steps",
            "recipe": "quick",
            "sizes": [64],
            "steps": [1000],
            "seeds": [0, 1, 2, 3, 4, 5],
        },
        "looks": [],
        "notes": [],
    }
    assert len(tree["claim"]["hash"]) == 64


def test_the_difference_is_told_with_its_bounds(judge: Callable[..., Done], runs: Path) -> None:
    write_arms(runs, {"": 5.0})
    for seed, gain in enumerate((0.11, 0.2, 0.3, 0.4, 0.5, 0.6)):
        simple_run(runs, quick("no-decay", seed=seed), loss=5.0 + seed / 1000 - gain)
    [effect] = judge("--json").json["summary"]["effect"]
    # the least of six is a bound at 1/64, below 5 %; the two middle ones are 0.3 and 0.4
    assert effect == "lower by 0.35 in the median pair (at least 0.11, at most 0.6), margin 0.1"


def test_runs_of_different_data_make_the_claim_invalid(judge: Callable[..., Done], runs: Path) -> None:
    write_arms(runs, {"": 5.0}, data={"fingerprint": "one"})
    write_arms(runs, {"no-decay": 4.5}, data={"fingerprint": "other"})
    done = judge("--json")
    assert judged(done) == (ExitCode.INVALID, "invalid")
    assert done.json["claim"]["conclusion"] == "Nothing: the set-up could not have shown it."


def test_too_few_seeds_leave_it_open_and_say_how_many_to_plan(
    judge: Callable[..., Done], runs: Path, claim: Path
) -> None:
    write_arms(runs, {"": 5.0, "no-decay": 4.5}, range(4))
    done = judge("--seeds", "4")
    assert done.code == ExitCode.INCONCLUSIVE
    assert "bitnetctl power --claim" in done.out
    assert "so       The decay may matter or not." in done.out


def test_values_between_two_thresholds_ask_for_longer_runs(judge: Callable[..., Done], runs: Path, claim: Path) -> None:
    level = '{ kind = "level", measure = "HeldOutLoss", supported_below = 4.0, refuted_above = 6.0 }'
    write_claim(claim, **{'{ kind = "finished" },': f'{{ kind = "finished" }},\n  {level},'})
    write_arms(runs, {"": 5.0, "no-decay": 4.5})
    done = judge("--json")
    assert judged(done) == (ExitCode.INCONCLUSIVE, "inconclusive")
    assert done.json["summary"]["next"].startswith("runs lie between two thresholds: train longer")


# runs that belong to the claim


def test_a_seed_that_is_missing_makes_support_impossible(judge: Callable[..., Done], runs: Path) -> None:
    write_arms(runs, {"": 5.0})
    write_arms(runs, {"no-decay": 4.5}, range(5))
    done = judge("--json")
    assert judged(done) == (ExitCode.INCONCLUSIVE, "inconclusive")
    assert done.json["verdicts"][0]["planned"]["missing"] == 1


def test_a_crashed_seed_counts(judge: Callable[..., Done], runs: Path) -> None:
    write_arms(runs, {"": 5.0})
    write_arms(runs, {"no-decay": 4.5}, range(5))
    empty_run(runs, quick("no-decay", seed=5), message="out of memory")
    done = judge("--json")
    assert judged(done) == (ExitCode.INCONCLUSIVE, "inconclusive")
    assert done.json["verdicts"][0]["planned"]["failed"] == 1
    assert done.json["claim"]["looks"] == []
    assert looks(runs)[0]["seeds_present"] == [0, 1, 2, 3, 4, 5]


def test_a_seed_that_is_left_out_makes_support_impossible(judge: Callable[..., Done], runs: Path) -> None:
    write_arms(runs, {"": 5.0, "no-decay": 4.5}, range(7))
    assert judge().code == ExitCode.INCONCLUSIVE
    assert judge("--seeds", "7").code == ExitCode.SUPPORTED


def test_many_claims_in_one_folder_have_the_levels_that_they_have_alone(runs: Path, tmp_path: Path) -> None:
    arms = ("no-decay", "reduced-lr", "full-precision", "fp-first", "lr-drop", "momentum-reset", "init-scale")
    everything = dict.fromkeys(("", *arms), 5.0) | {"no-decay": 4.5, "fp-first": 4.8}
    write_arms(runs, everything, planned={"seeds": list(range(6)), "arms": ["baseline", *arms]})
    # runs of other settings beside them
    for seed in range(6):
        simple_run(runs, quick("no-decay", seed=seed, optimizer__name="adamw"), loss=9.0)
    for arm in arms:
        file = write_claim(tmp_path / f"{arm}.toml", no_decay=arm)
        alone = tmp_path / f"alone-{arm}"
        alone.mkdir()
        write_arms(alone, {"": 5.0, arm: everything[arm]})
        in_all, by_itself = (
            call("verify", "--claim", file, "--runs-dir", folder, "--no-train", "--json") for folder in (runs, alone)
        )
        assert judged(in_all) == judged(by_itself)
        assert judged(in_all)[1] == ("supported" if everything[arm] < 4.9 else "refuted")
        both = [done.json["verdicts"][0] for done in (in_all, by_itself)]
        assert both[0]["statistics"] == both[1]["statistics"]
        assert [one["rule"]["arms"] for one in both] == [1, 1]
    # judged without a claim they share the error rate
    tree = call("verify", runs, "--criteria", tmp_path / "no-decay.toml", "--json")
    assert tree.code == ExitCode.USAGE


def test_arms_of_the_plan_that_are_not_compared_with_share_the_error_rate(runs: Path, tmp_path: Path) -> None:
    file = write_claim(tmp_path / "two.toml", **{'arms = ["no-decay"]': 'arms = ["no-decay", "reduced-lr"]'})
    write_arms(runs, {"": 5.0, "no-decay": 4.5, "reduced-lr": 4.5})
    tree = call("verify", "--claim", file, "--runs-dir", runs, "--no-train", "--json").json
    assert tree["verdicts"][0]["rule"]["arms"] == 2
    assert list(tree["arms"]) == ["no-decay"]


# looks


def test_every_look_is_kept_and_early_ones_are_told(judge: Callable[..., Done], runs: Path) -> None:
    write_arms(runs, {"": 5.0, "no-decay": 4.5}, range(2))
    for _ in range(2):
        judge()
    write_arms(runs, {"": 5.0, "no-decay": 4.5}, range(2, 4))
    judge()
    # the second look saw nothing new
    assert [look["seeds_present"] for look in looks(runs)] == [[0, 1], [0, 1, 2, 3]]
    assert {tuple(look["seeds_planned"]) for look in looks(runs)} == {(0, 1, 2, 3, 4, 5)}  # type: ignore[arg-type]
    write_arms(runs, {"": 5.0, "no-decay": 4.5}, range(4, 6))
    done = judge()
    assert done.code == ExitCode.SUPPORTED
    text = " ".join(done.out.split())
    assert "note looked at 2 times before its 6 seeds were there: support needs all of them" in text
    tree = judge("--json").json
    assert tree["claim"]["notes"][0].startswith("looked at 2 times before its 6 seeds were there")
    assert [look["outcome"] for look in tree["claim"]["looks"]] == ["inconclusive"] * 2 + ["supported"]
    assert tree["verdicts"][0]["rule"]["looks"] == 1


def test_more_seeds_after_a_look_raise_the_error_rate(judge: Callable[..., Done], runs: Path) -> None:
    write_arms(runs, {"": 5.0, "no-decay": 4.5})
    assert judge().code == ExitCode.SUPPORTED
    write_arms(runs, {"": 5.0, "no-decay": 4.5}, range(6, 9))
    tree = judge("--seeds", "9", "--json").json
    assert tree["verdicts"][0]["rule"]["looks"] == 2
    assert "the number of seeds grew 1 time: error rate up to 10 %" in tree["summary"]["notes"]


@pytest.mark.parametrize(("few", "numbers"), [(2, [6]), (4, [6]), (5, [5, 6])])
def test_a_sweep_of_fewer_seeds_counts_where_these_could_have_decided(
    judge: Callable[..., Done], runs: Path, few: int, numbers: list[int]
) -> None:
    losses = {"": 5.0, "no-decay": 4.5}
    write_arms(runs, losses, range(few), planned=plan(few, "baseline", "no-decay"))
    write_arms(runs, losses, range(few, 6), planned=plan(6, "baseline", "no-decay"))
    page = runs.parent / "page.md"
    rule = judge("--json", "--report", str(page)).json["verdicts"][0]["rule"]
    looks = len(numbers)
    assert (rule["looks"], rule["planned_numbers"]) == (looks, numbers)
    text = page.read_text(encoding="utf-8")
    # in the head, under "How it was tested" and in the table of verdicts
    assert set(re.findall(r"confidence (\d+) %", text)) == {"95" if looks == 1 else "90"}
    assert ("- planned with 5, then 6 seeds, by a sweep in the folder or for a look" in text) == (looks > 1)
    assert "- not judged before" in text


def test_a_claim_that_was_changed_after_a_look_is_told(judge: Callable[..., Done], runs: Path, claim: Path) -> None:
    write_arms(runs, {"": 5.0, "no-decay": 4.95})
    assert judge().code == ExitCode.REFUTED
    write_claim(claim, **{"margin = 0.1": "margin = 0.01"})
    tree = judge("--json").json
    assert tree["verdict"] == "supported"
    assert tree["claim"]["notes"] == [
        "judged before by 1 other version of its plan or criteria: no error rate is promised"
    ]


def test_looks_at_another_scale_are_others(judge: Callable[..., Done], runs: Path) -> None:
    judge()
    assert judge("--steps", "500", "--json").json["claim"]["looks"] == []
    assert len(looks(runs)) == 2


@pytest.mark.parametrize("content", [b"{", b'{"looks": [{}]}', b"\xff\0"])
def test_damaged_looks_do_not_fail_the_verdict_and_are_not_lost(
    judge: Callable[..., Done], runs: Path, content: bytes
) -> None:
    write_arms(runs, {"": 5.0, "no-decay": 4.5})
    judge()
    path = runs / "claims" / "mine.json"
    path.write_bytes(content)
    done = judge()
    assert done.code == ExitCode.SUPPORTED
    assert done.err == (f"this look is not kept: {path}: is damaged; remove it to have looks counted again\n")
    assert path.read_bytes() == content


def test_looks_that_cannot_be_written_do_not_fail_the_verdict(judge: Callable[..., Done], runs: Path) -> None:
    write_arms(runs, {"": 5.0, "no-decay": 4.5})
    (runs / "claims").write_text("in the way", encoding="utf-8")
    done = judge()
    assert done.code == ExitCode.SUPPORTED
    assert done.err.startswith(f"this look is not kept: {runs / 'claims' / 'mine.json'}: cannot write")
    assert done.err.count("\n") == 1


def test_the_folder_of_looks_is_no_run(judge: Callable[..., Done], runs: Path) -> None:
    write_arms(runs, {"": 5.0, "no-decay": 4.5})
    before = [call(*command, runs, "--json") for command in (("verify",), ("analyze",))]
    judge()
    assert "claims" in names_in(runs)
    assert [call(*command, runs, "--json") for command in (("verify",), ("analyze",))] == before


def test_a_folder_with_looks_only_has_no_runs(judge: Callable[..., Done], runs: Path) -> None:
    assert judge().code == ExitCode.INCONCLUSIVE
    assert names_in(runs) == ["claims"]
    assert "no CSV in this folder" in call("verify", runs).error


# given runs


def test_given_runs_are_judged_as_those_of_the_folder(judge: Callable[..., Done], runs: Path, claim: Path) -> None:
    write_arms(runs, {"": 5.0, "no-decay": 4.5, "reduced-lr": 4.0})
    for seed in range(6):
        simple_run(runs, quick("no-decay", seed=seed, optimizer__name="adamw"), loss=9.0)
    folder, given = judge("--json").json, call("verify", runs, "--claim", claim, "--json").json
    assert given["verdict"] == "supported"
    assert given["verdicts"][0]["statistics"] == folder["verdicts"][0]["statistics"]
    assert given["claim"]["scale"] == folder["claim"]["scale"]
    assert len(given["claim"]["looks"]) == len(looks(runs)) == 1


def test_given_runs_without_manifests_are_told_by_their_arms(runs: Path, claim: Path, tmp_path: Path) -> None:
    for path in write_arms(runs, {"": 5.0, "no-decay": 4.5}):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    done = call("verify", str(tmp_path / "h64-*.csv"), "--claim", claim, "--json")
    assert judged(done) == (ExitCode.SUPPORTED, "supported")
    assert done.json["claim"]["scale"]["judged"] == "h64, 1,000 steps"
    # they are no folder of runs
    assert not (tmp_path / "claims").exists()


def test_a_bundle_is_judged_by_its_claim(judge: Callable[..., Done], runs: Path, claim: Path, tmp_path: Path) -> None:
    write_arms(runs, {"": 5.0, "no-decay": 4.5, "reduced-lr": 4.0})
    bundle = tmp_path / "all.zip"
    first = judge("--bundle", str(bundle), "--json").json
    again = call("verify", bundle, "--claim", claim, "--json").json
    assert again["verdicts"] == first["verdicts"]
    assert again["claim"]["looks"] == []


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"steps": 500}, "these runs are of 2 lengths; judge one: --steps 500 or 1000"),
        ({}, "none of these runs is of its arms: baseline, no-decay"),
    ],
)
def test_given_runs_that_are_not_those_of_one_test_are_refused(
    runs: Path, claim: Path, others: dict[str, int], message: str
) -> None:
    write_arms(runs, {"": 5.0, "no-decay": 4.5} if others else {"reduced-lr": 4.0})
    for arm in ("", "no-decay") if others else ():
        simple_run(runs, quick(arm, **others))
    assert message in call("verify", runs, "--claim", claim).error


# the plan


def test_another_recipe_drops_sizes_and_steps(claim: Path) -> None:
    def configs(**asked: object) -> set[tuple[str, int, int, int]]:
        test = ClaimTest(name_or_file=str(claim), request=PlanRequest(**asked))  # type: ignore[arg-type]
        return {(one.recipe, one.model.hidden_size, one.steps, one.eval_every_steps) for one in test.configs}

    assert configs() == {("quick", 64, 1000, 100)}
    assert configs(recipe="quick") == {("quick", 64, 1000, 100)}
    assert configs(recipe="origin") == {("origin", 256, 20000, 100)}
    assert configs(recipe="origin", sizes=(32, 128), steps=70) == {("origin", size, 70, 100) for size in (32, 128)}
    assert configs(overrides=("probe.eval_every_steps=50",)) == {("quick", 64, 1000, 50)}
    # without sizes and steps of its own they can be set
    assert configs(recipe="origin", overrides=("steps=70",)) == {("origin", 256, 70, 100)}


def test_sizes_and_steps_replace_overrides_of_the_claim(claim: Path) -> None:
    write_claim(
        claim, **{"sizes = [64]\nsteps = 1000\n": "", '["probe': '["steps=500", "model.hidden_size=32", "probe'}
    )

    def configs(**asked: object) -> set[tuple[int, int]]:
        test = ClaimTest(name_or_file=str(claim), request=PlanRequest(**asked))  # type: ignore[arg-type]
        return {(one.model.hidden_size, one.steps) for one in test.configs}

    assert configs() == {(32, 500)}
    assert configs(sizes=(64,), steps=70) == {(64, 70)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-i", "no-decay"), "-i beside --claim: arms and criteria are the claim's"),
        (("--criteria", "sound"), "--criteria beside --claim"),
        (("-i", "no-decay", "--criteria", "sound", "--no-baseline"), "-i, --criteria and --no-baseline beside --claim"),
        (("--recipe", "qick"), "unknown recipe 'qick'"),
        (("--set", "optimizer.lr=1"), "--set 'optimizer.lr=1': unknown field"),
        (("--set", "steps=5"), "mine.toml: plan: overrides: steps=5: no effect beside steps (--steps); take --steps"),
        (("--steps", "5", "--set", "steps=6"), "no effect beside steps (--steps); take --steps"),
        (("--set", "seed=5"), "overrides: seed=5: no effect beside seeds (--seeds); take --seeds"),
    ],
)
def test_mistakes_are_one_line(judge: Callable[..., Done], options: tuple[str, ...], message: str) -> None:
    done = judge(*options)
    assert done.code == ExitCode.USAGE
    assert message in done.error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm = ": "plan = 1\narm = "}, "not valid TOML"),
        (
            {'arm = "no-decay"': 'arm = "lr-drop"'},
            "arm: lr-drop is no arm of the plan; its arms are: baseline, no-decay",
        ),
        (
            {'arms = ["no-decay"]': 'arms = ["no-decay"]\nbaseline = false'},
            "the plan lacks an arm to compare with (lower than",
        ),
        (
            {'recipe = "quick"': 'recipe = "quick"\nrecipes = 1'},
            "plan: unknown field 'recipes'; did you mean 'recipe'?",
        ),
        ({"[plan]": '[plan]\ngrid = { "schedule.warmup_steps" = [1, 2] }'}, "plan: grid: gives runs of one arm that"),
        ({'arms = ["no-decay"]': 'arms = ["no-decoy"]'}, "unknown intervention 'no-decoy'; did you mean 'no-decay'?"),
    ],
)
def test_mistakes_in_the_plan_name_file_and_field(
    judge: Callable[..., Done], claim: Path, changes: dict[str, str], message: str
) -> None:
    write_claim(claim, **changes)
    assert message in judge().error


@pytest.mark.parametrize("name", claim_names())
def test_a_built_in_claim_is_a_matter_of_minutes_at_quick_scale(name: str) -> None:
    own, small = (ClaimTest(name_or_file=name, request=PlanRequest(recipe=recipe)) for recipe in (None, "quick"))
    assert {config.seed for config in own.configs} == set(range(6))
    assert len(small.configs) <= 24
    assert {(one.recipe, one.steps, one.model.hidden_size) for one in small.configs} == {("quick", 2000, 64)}
    # the arms differ, also where their names say so only
    assert len({one.model_copy(update={"seed": 0}).hash for one in small.configs}) == len(small.arms)


def test_a_dry_run_is_no_look(judge: Callable[..., Done], runs: Path, known_speed: None) -> None:
    done = judge("--dry-run")
    assert done.code == ExitCode.SUPPORTED
    assert "12 runs, 0 there already" in done.out
    assert names_in(runs) == []


# training


def test_a_claim_is_trained_then_judged_and_shares_the_baseline(tiny_text: Path, tmp_path: Path, runs: Path) -> None:
    options = [*smallest_run(tiny_text), "--steps", "8", "--sizes", "16", "--seeds", "2", "--device", "cpu", "-q"]
    first, second = (write_claim(tmp_path / f"{arm}.toml", no_decay=arm) for arm in ("no-decay", "lr-drop"))
    done = call("verify", "--claim", first, "--runs-dir", runs, *options)
    assert (done.code, done.last_line) == (ExitCode.INCONCLUSIVE, "verdict: inconclusive")
    assert "2 seeds cannot support no-decay; 5 could: --seeds 5\n" in done.err
    csvs = sorted(runs.glob("*.csv"))
    assert [path.name.split("-s")[0] for path in csvs] == ["h16-8-baseline"] * 2 + ["h16-8-no-decay"] * 2
    before = {path: path.stat().st_mtime_ns for path in csvs}
    tree = call("verify", "--claim", second, "--runs-dir", runs, *options, "--json").json
    assert {path: path.stat().st_mtime_ns for path in csvs} == before
    assert len(list(runs.glob("*.csv"))) == 6
    [size] = tree["verdicts"][0]["statistics"]
    assert size["pairs"]["paired HeldOutLoss"]["values"].keys() == {"0", "1"}
    assert tree["verdicts"][0]["rule"]["arms"] == 1
    again = call("verify", "--claim", second, "--runs-dir", runs, *options, "--json")
    assert again.json["verdicts"] == tree["verdicts"]
