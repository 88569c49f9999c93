"""Interventions of files: those that could be confused, or do nothing, are refused before anything is trained."""

import textwrap
from pathlib import Path

import pytest
from calling import Done, call
from claim_files import write_claim
from configs import TinyConfig
from distributions import forget_plugins

from bitnetctl.errors import ExitCode

pytestmark = pytest.mark.usefixtures("fresh_registry", "wide_terminal", "known_speed")

IDEA = """
    from bitnetctl.intervention import Intervention, InterventionSettings

    class {name}(Intervention):
        summary = "a factor on the rate"

        class Settings(InterventionSettings):
            factor: float = {factor}

        def {hook}(self, base, step, steps):
            return base * self.settings.factor
"""


def write(path: Path, *, name: str = "Idea", factor: float = 0.5, hook: str = "learning_rate") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(IDEA).format(name=name, factor=factor, hook=hook), encoding="utf-8")
    return path


@pytest.fixture
def options(tiny_config: TinyConfig) -> list[str]:
    """Options of the smallest run: two steps."""
    fields = {
        "model.hidden_size": 16,
        "model.num_layers": 1,
        "data.source": tiny_config().data.source,
        "data.tokenizer": tiny_config().data.tokenizer,
        "data.batch_size": 2,
        "data.sequence_length": 16,
        "schedule.warmup_steps": 1,
        "probe.positions": 128,
    }
    sets = [text for name, value in fields.items() for text in ("--set", f"{name}={value}")]
    return ["--recipe", "quick", "--steps", "2", "--device", "cpu", *sets]


def refused(done: Done, *parts: str) -> None:
    assert done.code == ExitCode.USAGE
    for part in parts:
        assert part in done.error
    assert not list(Path().glob("runs/*"))


def test_two_files_with_one_class_name_and_other_code_are_refused(tmp_path: Path, options: list[str]) -> None:
    one, other = write(tmp_path / "a" / "idea.py"), write(tmp_path / "other.py", factor=0.25)
    text = f"{other}: its intervention has the name of 'idea' of {one}; rename the class"
    refused(call("sweep", *options, "-i", one, "-i", other), text)
    refused(call("train", *options, "-i", f"{one}+{other}"), text)
    refused(call("verify", *options, "-i", f"{one}+{other}"), text)
    claim = write_claim(tmp_path / "claim.toml", **{'arms = ["no-decay"]': f'arms = ["{one}", "{other}"]'})
    refused(call("verify", "--claim", claim), text)
    # of one stem, too, and where one cannot be imported
    broken = write(tmp_path / "b" / "idea.py")
    broken.write_text("1 / 0\n", encoding="utf-8")
    unbroken = write(tmp_path / "c" / "idea.py", factor=0.75)
    refused(call("sweep", *options, "-i", one, "-i", unbroken), "rename the class")
    refused(call("sweep", *options, "-i", one, "-i", broken), "rename the class")


def test_copies_of_a_file_are_one_arm(tmp_path: Path, options: list[str]) -> None:
    one, copy = write(tmp_path / "a" / "idea.py"), write(tmp_path / "copy.py")
    done = call("sweep", *options, "-i", one, "-i", f"{copy}:factor=0.25", "--no-baseline", "--json")
    assert [run["arm"] for run in done.json["runs"]] == ["idea", "idea:factor=0.25"]


@pytest.mark.parametrize("command", ["train", "verify"])
def test_a_method_with_almost_the_name_of_a_hook_is_refused(command: str, tmp_path: Path, options: list[str]) -> None:
    file = write(tmp_path / "misspelt.py", hook="learning_rates")
    done = call(command, *options, "-i", file)
    assert done.code == ExitCode.USAGE
    text = "learning_rates is no hook and is never called; did you mean learning_rate?"
    assert f"intervention 'idea' of {file} cannot be used: {text}" in done.err


def test_runs_of_other_settings_are_not_said_to_start_anew(tmp_path: Path, options: list[str]) -> None:
    file = write(tmp_path / "idea.py")
    assert call("train", *options, "-i", f"{file}:factor=0.25").code == 0
    assert "anew" not in call("train", *options, "-i", file).err
    assert "anew" not in call("train", *options, "-i", f"{file}:factor=0.75").err
    forget_plugins()
    write(tmp_path / "idea.py", factor=0.125)
    text = "idea: 1 run starts anew: idea:factor is 0.125 now, was 0.5 in h16-2-idea-s0-"
    assert text in call("train", *options, "-i", file).err


def test_analyze_names_arms_whose_runs_have_other_code(tmp_path: Path, options: list[str]) -> None:
    file = write(tmp_path / "idea.py")
    assert call("train", *options, "-i", file).code == 0
    assert call("train", *options, "-i", file, "--seed", "1").code == 0
    assert "not of one plug-in" not in " ".join(call("analyze", "runs", "--json").json["notes"])
    forget_plugins()
    file.write_text(file.read_text(encoding="utf-8").replace("return base", "return 0.5 * base"), encoding="utf-8")
    assert call("train", *options, "-i", file, "--seed", "2").code == 0
    [note] = [each for each in call("analyze", "runs", "--json").json["notes"] if "not of one plug-in" in each]
    assert note.startswith(
        "idea: its runs are not of one plug-in, though they count as seeds of one arm: code of idea "
    )
    assert "(seeds 0, 1)" in note
    assert "(seed 2)" in note


@pytest.mark.parametrize("target", ["idea.py", "idea.py:Idea"])
def test_show_and_check_take_what_i_takes(target: str, tmp_path: Path) -> None:
    write(tmp_path / "idea.py")
    shown = call("interventions", "show", f"{target}:factor=0.25")
    assert shown.code == 0
    assert shown.out.startswith("idea  ")
    assert shown.out.splitlines()[-1].split() == ["factor", "0.25", "0.5"]
    assert call("interventions", "show", target).out.splitlines()[-1].split() == ["factor", "0.5"]
    assert call("interventions", "check", f"{target}:factor=0.25") == Done(0, "Idea: keeps the contract\n", "")
    assert "Idea: broken: learning_rate returned" in call("interventions", "check", f"{target}:factor=-1").out
    for command in ("show", "check"):
        done = call("interventions", command, f"{target}:factr=1")
        assert done.code == ExitCode.USAGE
        assert "factr" in done.out + done.err
    assert "take one of them" in call("interventions", "check", f"{target}:factor=1", "--settings", "{}").error


def test_show_and_check_take_a_name_with_settings() -> None:
    shown = call("interventions", "show", "reduced-lr:peak=1e-4", "--json")
    assert (shown.json["name"], shown.json["given"]) == ("reduced-lr", {"peak": 1e-4})
    assert call("interventions", "check", "reduced-lr:peak=1e-4").out == "ReducedLearningRate: keeps the contract\n"
    assert "ReducedLearningRate: broken: " in call("interventions", "check", "reduced-lr:peak=-1").out
    assert "is not one intervention" in call("interventions", "show", "no-decay+reduced-lr").error


def test_new_refuses_the_name_of_an_intervention() -> None:
    done = call("interventions", "new", "lion")
    assert done.code == ExitCode.USAGE
    assert "intervention name 'lion' is taken by bitnetctl " in done.error
    assert not list(Path().iterdir())
