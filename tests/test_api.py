"""The library's face: what a notebook calls, that it is lazy, and that README's example runs."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from configs import TinyConfig

import bitnetctl
from bitnetctl import api
from bitnetctl.config.load import config_text
from bitnetctl.errors import ConfigError, StoppedBySignal
from bitnetctl.trainer.events import Evaluated, Event, Failed

ROOT = Path(__file__).parents[1]
RUNS = Path("runs")
OPTIONS = bitnetctl.TrainOptions(device="cpu")


@pytest.fixture(autouse=True)
def quick_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def test_the_package_offers_what_the_module_has() -> None:
    assert sorted([*api.__all__, "__version__"]) == bitnetctl.__all__
    assert set(bitnetctl.__all__) <= set(dir(bitnetctl))
    for name in api.__all__:
        assert getattr(bitnetctl, name) is getattr(api, name)
        assert getattr(api, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        bitnetctl.__getattr__("trian")


def test_submodules_do_not_hide_the_functions() -> None:
    import bitnetctl.sweeps.executor
    import bitnetctl.trainer.factory

    assert callable(bitnetctl.train)
    assert callable(bitnetctl.sweep)


def test_a_recipe_with_changes() -> None:
    config = bitnetctl.load_recipe(
        "quick",
        arm="reduced-lr:peak=5e-4+no-decay",
        size=32,
        steps=10,
        seed=3,
        overrides={"optimizer.name": "adamw", "optimizer.max_norm": None, "optimizer.exempt": ["norms"]},
    )
    # the default setting is left out
    assert config.arm == "reduced-lr+no-decay"
    assert (config.model.hidden_size, config.steps, config.seed) == (32, 10, 3)
    assert (config.optimizer.name, config.optimizer.max_norm, config.optimizer.exempt) == ("adamw", None, ("norms",))
    with pytest.raises(ConfigError, match="did you mean 'quick'"):
        bitnetctl.load_recipe("quikc")


def test_a_run_is_trained_once(tiny_config: TinyConfig) -> None:
    events: list[Event] = []
    run = bitnetctl.train(tiny_config(), OPTIONS, on_event=events.append)
    assert (run.final_step, run.is_complete, run.diverged_at) == (12, True, None)
    assert run.records.frame["Step"].tolist() == [1, 4, 8, 12]
    assert sum(isinstance(event, Evaluated) for event in events) == 4
    events.clear()
    again = bitnetctl.train(tiny_config(), OPTIONS, on_event=events.append)
    assert events == []
    assert again.records.frame.equals(run.records.frame)
    assert bitnetctl.train(tiny_config(), OPTIONS, name="other").path == RUNS / "other.csv"


def test_a_stop_is_an_error_and_the_next_call_resumes(tiny_config: TinyConfig) -> None:
    asked = iter(range(100))
    stopping = bitnetctl.TrainOptions(device="cpu", should_stop=lambda: next(asked) >= 5)
    with pytest.raises(StoppedBySignal, match="resumes from step 6"):
        bitnetctl.train(tiny_config(), stopping)
    assert bitnetctl.train(tiny_config(), OPTIONS).is_complete


def test_a_run_that_diverges_is_returned(tiny_config: TinyConfig) -> None:
    config = tiny_config(schedule__peak_learning_rate=1e30)
    assert bitnetctl.train(config, OPTIONS).diverged_at is not None


def test_a_sweep_of_configs_and_what_it_shows(tiny_config: TinyConfig) -> None:
    configs = [tiny_config(arm=arm, seed=seed) for arm in ("", "no-decay") for seed in range(2)]
    runs = bitnetctl.sweep(configs, OPTIONS, pack=4)
    assert [run.seed for run in runs] == [0, 1, 0, 1]
    study = bitnetctl.analyze(runs)
    assert study.arms == ("baseline", "no-decay")
    verdicts = bitnetctl.judge(runs, "origin")
    assert {arm: verdict.outcome.value for arm, verdict in verdicts.items()} == {
        "baseline": "inconclusive",
        "no-decay": "inconclusive",
    }
    assert bitnetctl.judge(runs, arms=["baseline"]).keys() == {"baseline"}
    assert [run.name for run in bitnetctl.load_runs(RUNS)] == sorted(run.name for run in runs)
    assert len(bitnetctl.load_runs(["runs/*no-decay*.csv", runs[0].path])) == 3
    with pytest.raises(ConfigError, match="no such arm"):
        bitnetctl.analyze(runs, baseline="unheard-of")


def test_a_trained_run_is_opened(tiny_config: TinyConfig) -> None:
    run = bitnetctl.train(tiny_config(), OPTIONS, name="a")
    opened = bitnetctl.open_run("a", runs_dir=RUNS)
    assert (opened.step, opened.logits(torch.zeros(1, 3, dtype=torch.long)).shape) == (12, (1, 3, 300))
    assert run.path is not None
    assert bitnetctl.open_run(run.path).name == "a"


def test_a_sweep_of_a_plan_whose_files_are_beside_it(tiny_config: TinyConfig, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(config_text(tiny_config()), encoding="utf-8")
    (tmp_path / "mine.py").write_text(
        "from bitnetctl.intervention import Intervention\n"
        "class Unchanged(Intervention):\n"
        "    summary = 'changes nothing'\n",
        encoding="utf-8",
    )
    plan = tmp_path / "plan.toml"
    plan.write_text('recipe = "recipe.toml"\narms = ["mine.py"]\n', encoding="utf-8")
    runs = bitnetctl.sweep(str(plan), OPTIONS)
    assert [run.arm for run in runs] == ["baseline", "unchanged"]
    again = bitnetctl.sweep(bitnetctl.load_plan(str(plan), {}), OPTIONS)
    assert [run.name for run in again] == [run.name for run in runs]


def test_a_failed_run_is_warned_of(tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitnetctl.trainer import factory

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(factory, "make_pack", fail)
    events: list[Event] = []
    with pytest.warns(UserWarning, match="no rows"):
        assert bitnetctl.sweep([tiny_config()], OPTIONS, pack=1, on_event=events.append) == []
    assert any(isinstance(event, Failed) for event in events)


def test_the_example_of_the_readme_runs(tmp_path: Path, tiny_text: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    # the same calls at a size that takes a second
    overrides = TINY | {"data.source": f"file:{tiny_text}"}
    tiny = code.replace('"quick"', f'"quick", steps=40, size=16, overrides={overrides}')
    assert tiny != code
    (tmp_path / "example.py").write_text(f"import warnings\nwarnings.simplefilter('error', UserWarning)\n{tiny}")
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "decoupled-decay" in done.stdout


TINY = {"data.tokenizer": "bpe:300", "data.batch_size": 2, "data.sequence_length": 16, "probe.positions": 128}


def test_no_warning_where_nothing_is_missing(tiny_config: TinyConfig) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bitnetctl.sweep([], OPTIONS) == []


def test_long_warm_ups_are_logged_of_what_is_to_be_trained(tiny_config: TinyConfig) -> None:
    logged: list[str] = []
    options = bitnetctl.TrainOptions(device="cpu", log=logged.append)
    config = tiny_config(steps=4, schedule__warmup_steps=3)
    note = "note: {} warms up for 3 of 4 steps; lower schedule.warmup_steps"
    bitnetctl.train(config, options)
    assert logged[0] == note.format(config.run_name)
    logged.clear()
    other = config.model_copy(update={"seed": 1})
    longer = tiny_config(steps=4, schedule__warmup_steps=4)
    bitnetctl.sweep([config, other, longer, tiny_config(steps=4, schedule__warmup_steps=2)], options)
    assert [line for line in logged if line.startswith("note: ")] == [
        note.format(other.run_name),
        note.format(longer.run_name).replace("3 of 4", "4 of 4"),
    ]
    logged.clear()
    bitnetctl.train(config, options)
    assert logged == []
