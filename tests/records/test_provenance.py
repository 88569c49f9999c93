"""What differs between the provenance of runs: data, config and code break a comparison, the rest is noted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from synthetic import bare_run, continued, quick, simple_run

from bitnetctl.records import Run, load_run
from bitnetctl.records.provenance import Differences, provenance_differences

DATA = {"fingerprint": "ab" * 32, "tokenizer_fingerprint": "cd" * 32}
HERE: dict[str, Any] = {
    "data": DATA,
    "device": "cpu (AMD EPYC, 2 cores)",
    "engine": "eager",
    "precision": "fp32",
    "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
}


def run(folder: Path, seed: int = 0, arm: str = "", *, changes: Mapping[str, Any] | None = None, **fields: Any) -> Run:
    """Write a run of this provenance; `changes` are to its config."""
    config = quick(arm, seed=seed, **changes or {})
    return load_run(simple_run(folder, config, **{**HERE, **fields}))


def breaking(runs: Sequence[Run], *, same_arm: bool = True) -> tuple[str, ...]:
    return provenance_differences(runs, same_arm=same_arm).breaking


def minor(runs: Sequence[Run]) -> tuple[str, ...]:
    found = provenance_differences(runs, same_arm=True)
    assert found.breaking == ()
    return found.minor


def plugin(code: str | None = "e" * 64, name: str = "no-decay", **settings: Any) -> list[dict[str, Any]]:
    return [{"name": name, "settings": settings, "source_sha256": code}]


def test_runs_of_one_provenance_do_not_differ(tmp_path: Path) -> None:
    runs = [run(tmp_path, seed) for seed in range(3)]
    for same_arm in (True, False):
        assert provenance_differences(runs, same_arm=same_arm) == Differences()
    assert provenance_differences([], same_arm=True) == Differences()
    # seed, size, steps, recipe and the interval of evaluations may differ
    others = [run(tmp_path, 0, changes={"size": 128}), run(tmp_path, 1, changes={"steps": 500})]
    others += [run(tmp_path, 2, changes={"probe__eval_every_steps": 50})]
    assert provenance_differences([*runs, *others], same_arm=True) == Differences()
    longer = [load_run(simple_run(tmp_path, continued(quick(seed=seed)), **HERE)) for seed in range(2)]
    assert provenance_differences(longer, same_arm=True) == Differences()
    assert breaking([*runs[2:], *longer]) == ("continues none (seed 2) and @400 (seeds 0, 1)",)


MINOR: dict[str, tuple[dict[str, Any], str]] = {
    "precision": ({"precision": "int8"}, "precision fp32 (seeds 0, 1) and int8 (seed 2)"),
    "engine": ({"engine": "compile"}, "engine eager (seeds 0, 1) and compile (seed 2)"),
    "torch": ({"versions": {"torch": "2.9.0"}}, "torch 2.13.0 (seeds 0, 1) and 2.9.0 (seed 2)"),
    "device": ({"device": "NVIDIA H100"}, "device cpu (seeds 0, 1) and NVIDIA H100 (seed 2)"),
}


@pytest.mark.parametrize("kind", MINOR)
def test_what_changes_values_by_rounding_is_minor(tmp_path: Path, kind: str) -> None:
    fields, text = MINOR[kind]
    assert minor([run(tmp_path, 0), run(tmp_path, 1), run(tmp_path, 2, **fields)]) == (text,)


def test_another_cpu_or_library_is_the_same_kind(tmp_path: Path) -> None:
    other: dict[str, Any] = {"device": "cpu (Intel Xeon, 64 cores)", "versions": {"torch": "2.13.0", "numpy": "1.0"}}
    assert minor([run(tmp_path, 0), run(tmp_path, 1, **other)]) == ()


def test_a_run_trained_in_two_precisions_is_mixed_by_itself(tmp_path: Path) -> None:
    sessions = [{**HERE, "from_step": 0}, {**HERE, "precision": "int8", "from_step": 400}]
    mixed = run(tmp_path, 3, precision="int8", sessions=sessions)
    assert minor([mixed]) == ("precision fp32 (seed 3) and int8 (seed 3)",)
    assert minor([run(tmp_path, 0), mixed]) == ("precision fp32 (seeds 0, 3) and int8 (seed 3)",)
    # a session whose steps were never evaluated is no part of the rows
    late = [{**HERE, "from_step": 0}, {**HERE, "precision": "int8", "from_step": 1000}]
    assert minor([run(tmp_path, 4, sessions=late)]) == ()


BREAKING: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"data": {**DATA, "fingerprint": "00" * 32}}, "data fingerprint abababababab… (seed 0) and 000000000000…"),
    "tokenizer": (
        {"data": {**DATA, "tokenizer_fingerprint": "00" * 32}},
        "tokenizer fingerprint cdcdcdcdcdcd… (seed 0) and 000000000000…",
    ),
    "config": ({"changes": {"optimizer__eps": "1e-6"}}, "optimizer.eps 1e-08 (seed 0) and 1e-06 (seed 1)"),
    "none": ({"changes": {"optimizer__max_norm": "none"}}, "optimizer.max_norm 1.0 (seed 0) and none (seed 1)"),
    "code": ({"plugins": plugin("f" * 64)}, "code of no-decay eeeeeeeeeeee… (seed 0) and ffffffffffff… (seed 1)"),
}


@pytest.mark.parametrize("kind", BREAKING)
@pytest.mark.parametrize("same_arm", [True, False])
def test_what_makes_another_experiment_is_breaking(tmp_path: Path, kind: str, same_arm: bool) -> None:
    fields, text = BREAKING[kind]
    (found,) = breaking([run(tmp_path, 0, plugins=plugin()), run(tmp_path, 1, **fields)], same_arm=same_arm)
    assert found.startswith(text)


def test_settings_and_effective_config_count_for_seeds_of_one_arm_only(tmp_path: Path) -> None:
    plugins = [plugin(factor=factor) for factor in (0.5, 0.25)]
    runs = [run(tmp_path, seed, plugins=of_run) for seed, of_run in enumerate(plugins)]
    assert breaking(runs) == ("no-decay:factor 0.5 (seed 0) and 0.25 (seed 1)",)
    assert breaking(runs, same_arm=False) == ()

    effective = quick(optimizer__eps="1e-6").model_dump(mode="json")
    runs = [run(tmp_path, 0), run(tmp_path, 1, effective_config=effective)]
    assert breaking(runs) == ("effective optimizer.eps 1e-08 (seed 0) and 1e-06 (seed 1)",)
    assert breaking(runs, same_arm=False) == ()


def test_a_requested_difference_is_named_once(tmp_path: Path) -> None:
    assert len(breaking([run(tmp_path, 0), run(tmp_path, 1, changes={"optimizer__eps": "1e-6"})])) == 1


def test_an_effective_config_may_depend_on_size_and_steps(tmp_path: Path) -> None:
    def effective(size: int, eps: str) -> dict[str, Any]:
        return quick(size=size, optimizer__eps=eps).model_dump(mode="json")

    sizes = ((64, "1e-7"), (128, "1e-6"))
    runs = [run(tmp_path, 0, changes={"size": size}, effective_config=effective(size, eps)) for size, eps in sizes]
    assert breaking(runs) == ()
    runs += [run(tmp_path, 1, changes={"size": 128}, effective_config=effective(128, "1e-5"))]
    assert breaking(runs) == (
        "effective optimizer.eps at hidden 128 and 1,000 steps 1e-06 (seed 0) and 1e-05 (seed 1)",
    )


def test_arms_have_different_plugins_and_effective_configs(tmp_path: Path) -> None:
    runs = [run(tmp_path, 0), run(tmp_path, 0, "no-decay", plugins=plugin())]
    assert provenance_differences(runs, same_arm=False) == Differences()


def test_unequal_provenance_of_two_arms(tmp_path: Path) -> None:
    elsewhere: dict[str, Any] = {
        "precision": "fp32",
        "device": "NVIDIA H100",
        "data": {**DATA, "fingerprint": "00" * 32},
        "versions": {"torch": "2.9.0"},
    }
    runs = [run(tmp_path, seed, precision="int8") for seed in range(2)]
    runs += [run(tmp_path, seed, "no-decay", **elsewhere) for seed in range(2)]
    assert provenance_differences(runs, same_arm=False) == Differences(
        breaking=("data fingerprint abababababab… (baseline) and 000000000000… (no-decay)",),
        minor=(
            "precision int8 (baseline) and fp32 (no-decay)",
            "torch 2.13.0 (baseline) and 2.9.0 (no-decay)",
            "device cpu (baseline) and NVIDIA H100 (no-decay)",
        ),
    )


def test_how_runs_are_named(tmp_path: Path) -> None:
    def text(*runs: Run) -> str:
        (found,) = provenance_differences(runs, same_arm=False).minor
        return found

    half: dict[str, Any] = {"precision": "bf16"}
    sizes = [run(tmp_path, 0, changes={"size": 64}), run(tmp_path, 0, changes={"size": 128}, **half)]
    assert text(*sizes) == "precision fp32 (hidden 64) and bf16 (hidden 128)"
    arms = [run(tmp_path, seed, arm, **half if seed else {}) for seed in (0, 1) for arm in ("", "no-decay")]
    assert text(*arms) == "precision fp32 (seed 0) and bf16 (seed 1)"
    mixed = [run(tmp_path, 2, **half), run(tmp_path, 2, "no-decay"), *arms]
    assert text(*mixed) == "precision bf16 (3 runs) and fp32 (3 runs)"
    many = [run(tmp_path, seed, **half if seed > 9 else {}) for seed in range(11)]
    assert text(*many) == "precision fp32 (seeds 0, 1, 2, 3, 4, 5 and 4 more) and bf16 (seed 10)"
    all_different = [run(tmp_path, seed, engine=f"e{seed}") for seed in range(6)]
    assert text(*all_different) == "engine e0 (seed 0), e1 (seed 1), e2 (seed 2) and 3 other values"


def test_what_is_unknown_differs_from_nothing(tmp_path: Path) -> None:
    older = load_run(simple_run(tmp_path, quick(seed=1), effective_config=None))
    foreign = bare_run(tmp_path, name="x.csv")
    no_code = run(tmp_path, 2, plugins=plugin(None))
    odd = run(tmp_path, 3, data={"fingerprint": 3})
    runs = [run(tmp_path, 0, plugins=plugin()), older, foreign, no_code, odd]
    assert provenance_differences(runs, same_arm=True) == Differences()


def test_a_thousand_runs(tmp_path: Path) -> None:
    runs = [run(tmp_path, seed, precision=("fp32", "int8")[seed % 2]) for seed in range(10)] * 100
    assert provenance_differences(runs, same_arm=True).minor == (
        "precision fp32 (seeds 0, 2, 4, 6, 8) and int8 (seeds 1, 3, 5, 7, 9)",
    )
