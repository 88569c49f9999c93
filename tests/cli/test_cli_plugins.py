"""Plug-ins of other versions, at fault, gone, or in a file: what the commands do with their runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from calling import Done, call
from configs import TinyConfig
from distributions import Distribution, forget_plugins

from bitnetctl.errors import ExitCode
from bitnetctl.records import load_run, load_set, read_manifest

pytestmark = pytest.mark.usefixtures("fresh_registry", "wide_terminal", "known_speed")

RATE = """
    from bitnetctl.intervention import Intervention, InterventionSettings

    class Halved(Intervention):
        summary = "half the rate"

        class Settings(InterventionSettings):
            factor: float = {default}

        def learning_rate(self, base, step, steps):
            return base * self.settings.factor
"""
NO_RETURN = """
    from bitnetctl.intervention import Intervention, InterventionSettings

    class Halved(Intervention):
        summary = "forgets to return"

        class Settings(InterventionSettings):
            factor: float = 0.5

        def learning_rate(self, base, step, steps):
            if step > 2:
                return base
"""
NO_INIT = """
    from bitnetctl.intervention import Intervention

    class Halved(Intervention):
        summary = "needs what is not there"

        def __init__(self, settings):
            raise AssertionError("no GPU")
"""


@pytest.fixture
def options(tiny_config: TinyConfig) -> list[str]:
    """Options of the smallest run: four steps."""
    config = tiny_config()
    fields = {
        "model.hidden_size": 16,
        "model.num_layers": 1,
        "data.source": config.data.source,
        "data.tokenizer": config.data.tokenizer,
        "data.batch_size": 2,
        "data.sequence_length": 16,
        "schedule.warmup_steps": 1,
        "probe.positions": 128,
    }
    sets = [text for name, value in fields.items() for text in ("--set", f"{name}={value}")]
    return ["--recipe", "quick", "--steps", "4", "--device", "cpu", *sets]


class Versions:
    """Installs versions of the plug-in `half-rate` one after the other, and none."""

    def __init__(self, distribution: Distribution, monkeypatch: pytest.MonkeyPatch) -> None:
        self._install, self._monkeypatch = distribution, monkeypatch

    def install(self, version: str, code: str) -> None:
        self.remove()
        folder = f"site-{version}"
        # a module name of its own, as Python keeps modules
        name = f"v{version}"
        site = self._install(name, code, version=version, points={"half-rate": f"made_up_{name}:Halved"}, folder=folder)
        self._monkeypatch.setattr("sys.path", [str(site), *self._plain])

    def remove(self) -> None:
        import sys

        if not hasattr(self, "_plain"):
            self._plain = list(sys.path)
        self._monkeypatch.setattr("sys.path", list(self._plain))
        forget_plugins()


@pytest.fixture
def versions(distribution: Distribution, monkeypatch: pytest.MonkeyPatch) -> Versions:
    return Versions(distribution, monkeypatch)


def statuses(done: Done) -> dict[str, str]:
    return {f"{row['arm']} {row['seed']}": row["status"] for row in done.json["runs"]}


def test_runs_of_another_default_are_another_arm(versions: Versions, options: list[str]) -> None:
    sweep = ["sweep", *options, "--no-baseline", "--json"]
    versions.install("1", RATE.format(default=0.5))
    assert statuses(call(*sweep, "--seeds", "2", "-i", "half-rate")) == {
        "half-rate 0": "finished",
        "half-rate 1": "finished",
    }

    versions.install("3", RATE.format(default=0.25))
    done = call(*sweep, "--seeds", "2", "-i", "half-rate")
    assert statuses(done) == {"half-rate 0": "finished", "half-rate 1": "finished"}
    assert "half-rate: 2 runs start anew: half-rate:factor is 0.25 now, was 0.5 in h16-4-half-rate-s0-" in done.err
    # the old ones are found by their settings
    done = call(*sweep, "--seeds", "2", "-i", "half-rate:factor=0.5")
    assert set(statuses(done).values()) == {"finished"}
    assert "all 2 runs are there already" in done.err
    assert "ended with other code of half-rate" in done.err
    assert len(list(Path("runs").glob("*.csv"))) == 4

    runs, _ = load_set(sorted(Path("runs").glob("*.csv")))
    rates = {run.arm: max(run.values("LR")) for run in runs}
    assert rates["half-rate:factor=0.5"] == pytest.approx(2 * rates["half-rate:factor=0.25"])

    verdict = call("verify", "runs", "--json")
    assert set(verdict.json["arms"]) == {"half-rate:factor=0.5", "half-rate:factor=0.25"}
    study = call("analyze", "runs", "--json")
    assert study.code == 0
    assert {run["arm"] for run in study.json["runs"]} == set(verdict.json["arms"])
    # of both versions, and without one, by name and by settings
    assert decided(call("verify", "runs", "-i", "half-rate", "--json")) == ["half-rate:factor=0.25"]
    versions.remove()
    assert decided(call("verify", "runs", "-i", "half-rate:factor=0.5", "--json")) == ["half-rate:factor=0.5"]
    done = call("verify", "runs", "-i", "half-rate")
    assert done.code == ExitCode.USAGE
    assert "could be any of half-rate:factor=0.25, half-rate:factor=0.5" in done.error


def decided(done: Done) -> list[str]:
    names: list[str] = done.json["decided_by"]
    return names


def test_runs_of_a_plugin_that_is_gone_are_judged_by_their_arm(versions: Versions, options: list[str]) -> None:
    versions.install("1", RATE.format(default=0.5))
    call("sweep", *options, "--seeds", "1", "--no-baseline", "-i", "half-rate")
    versions.install("2", RATE.format(default=0.25))
    done = call("verify", "runs", "-i", "half-rate")
    assert "half-rate:factor is 0.25 now, was 0.5; take -i half-rate:factor=0.5 for them" in done.error
    versions.remove()
    for arm in ("half-rate", "half-rate:factor=0.5"):
        assert decided(call("verify", "runs", "-i", arm, "--json")) == ["half-rate"]
    done = call("verify", "runs", "-i", "half-rate:factor=0.3")
    assert "unknown intervention 'half-rate'" in done.error
    assert "arms of these runs: half-rate" in done.error
    done = call("verify", *options, "--seeds", "1", "-i", "half-rate", "--no-train")
    assert done.code == ExitCode.USAGE
    assert "'half-rate' is not installed" in done.error
    assert "bitnetctl verify runs -i half-rate" in done.error


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (NO_INIT, "half-rate: __init__ raised AssertionError: no GPU"),
        (NO_RETURN, "half-rate: learning_rate returned None at step 1, not a number"),
        ("import no_such_module_anywhere\n", "cannot be used: ModuleNotFoundError"),
    ],
)
def test_a_fault_of_a_plugin_fails_its_arm_only(
    code: str, message: str, versions: Versions, options: list[str]
) -> None:
    versions.install("1", code)
    done = call("sweep", *options, "--seeds", "2", "-i", "half-rate", "--json")
    assert done.code == ExitCode.USAGE
    assert statuses(done) == {
        "baseline 0": "finished",
        "baseline 1": "finished",
        "half-rate 0": "failed",
        "half-rate 1": "failed",
    }
    assert done.err.splitlines()[-1].startswith("error: ")
    assert message in done.err.splitlines()[-1]
    assert "made_up_v1.py:" in done.err.splitlines()[-1]
    assert "report it" not in done.err
    done = call("verify", *options, "--seeds", "2", "-i", "half-rate")
    assert done.code == ExitCode.USAGE
    assert message in done.err.splitlines()[-1]
    # once it is mended nothing of it stands against the arm
    versions.install("2", RATE.format(default=0.5))
    assert call("sweep", *options, "--seeds", "2", "-i", "half-rate").code == 0
    absent = [
        run
        for verdict in call("verify", "runs", "--json").json["verdicts"]
        for run in verdict["planned"]["runs"]
        if run["state"] != "judged"
    ]
    assert absent == []


def test_a_fault_of_a_plugin_in_train(versions: Versions, options: list[str]) -> None:
    versions.install("1", NO_RETURN)
    done = call("train", *options, "-i", "half-rate")
    assert done.code == ExitCode.USAGE
    [folder] = Path("runs").glob("*half-rate*")
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest.status, manifest.is_fault_of_plugin) == ("failed", True)
    assert "not a number" in (manifest.message or "")


def test_what_a_plugin_changes_is_in_run_json(versions: Versions, options: list[str]) -> None:
    code = (
        RATE.format(default=0.5) + "\n    print('loaded')\n    import torch; torch.set_default_dtype(torch.float64)\n"
    )
    versions.install("1", code)
    done = call("train", *options, "-i", "half-rate", "--json")
    assert done.json["status"] == "finished"
    text = "set torch's default dtype to torch.float64 at import; put back"
    assert f"warning: half-rate {text}\n" in done.err
    texts = ["printed to stdout at import, where results go; shown on stderr", text]
    manifest = json.loads(Path("runs", done.json["run"], "run.json").read_text(encoding="utf-8"))
    assert manifest["plugins"][0]["put_back"] == texts
    assert manifest["sessions"][0]["plugins"][0]["put_back"] == texts


def write(path: Path, code: str) -> Path:
    import textwrap

    path.write_text(textwrap.dedent(code), encoding="utf-8")
    return path


def test_an_intervention_of_a_file(tmp_path: Path, options: list[str]) -> None:
    file = write(tmp_path / "mine.py", RATE.format(default=0.5))
    done = call("train", *options, "-i", f"{file}:factor=0.25", "--json")
    assert done.json["run"].startswith("h16-4-halved-s0-")
    run = load_run(Path(done.json["csv"]))
    assert run.arm == "halved:factor=0.25"
    assert run.manifest is not None
    [plugin] = run.manifest.plugins
    assert (plugin.distribution, plugin.settings) == (str(file), {"factor": 0.25})
    assert plugin.source_sha256
    again = call("train", *options, "-i", f"{file}:Halved:factor=0.25", "--json")
    assert "already finished" in again.err
    write(file, RATE.format(default=0.5) + "\n")
    forget_plugins()
    again = call("train", *options, "-i", "mine.py:factor=0.25", "--json")
    assert "halved:factor=0.25: 1 run ended with other code of halved" in again.err
    assert call("interventions", "check", file).code == 0


@pytest.mark.parametrize(
    ("arm", "problem"),
    [
        ("nowhere.py", "nowhere.py"),
        ("two.py", "take one of its classes, as in FILE.py:CLASS: One, Two"),
        ("two.py:Three", "take one of its classes"),
        ("rival.py", "has the name of 'no-decay' of bitnetctl"),
        ("two.py:One:x", "expected NAME:key=value"),
    ],
)
def test_a_file_that_cannot_be_taken(arm: str, problem: str, tmp_path: Path, options: list[str]) -> None:
    head = "from bitnetctl.intervention import Intervention\n"
    one = "class {}(Intervention):\n    summary = 'x'\n"
    write(tmp_path / "two.py", head + one.format("One") + one.format("Two"))
    write(tmp_path / "rival.py", head + one.format("NoDecay"))
    done = call("train", *options, "-i", arm)
    assert done.code == ExitCode.USAGE
    assert problem in done.error


@pytest.mark.parametrize(
    ("name", "hint"), [("reduced_lr", "reduced-lr"), ("Reduced LR", "reduced-lr"), ("NoDecay", "no-decay")]
)
def test_a_name_in_another_style_gets_a_suggestion(name: str, hint: str, options: list[str]) -> None:
    done = call("train", *options, "-i", name)
    assert done.code == ExitCode.USAGE
    assert f"did you mean '{hint}'?" in done.error


def test_show_fits_its_text_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paragraphs of the docstring and the source are wrapped at the width, not at the line ends of the code."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = call("interventions", "show", "muon").out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("muon  Step the matrices")
    [source] = [index for index, line in enumerate(lines) if line.startswith("source   Jordan et al. 2024")]
    assert lines[source + 1].startswith(" " * 9 + "Muon is Scalable")
    monkeypatch.setenv("COLUMNS", "500")
    lines = call("interventions", "show", "muon").out.splitlines()
    assert lines[1] == ""
    assert lines[2].startswith("Both decays are decoupled")
    assert lines[2].endswith("that of decoupling, too.")


def test_check_takes_a_name(versions: Versions) -> None:
    assert call("interventions", "check", "no-decay") == Done(0, "NoDecay: keeps the contract\n", "")
    versions.install("1", NO_RETURN)
    done = call("interventions", "check", "half-rate")
    assert done.code == ExitCode.USAGE
    assert "Halved: broken: learning_rate returned None at step 1, not a number" in done.out


READS_ENVIRONMENT = """
    import os
    from bitnetctl.intervention import Intervention

    class Halved(Intervention):
        summary = "reads the environment"

        def configure(self, config):
            rate = float(os.environ.get("MADE_UP_RATE", "1e-3"))
            schedule = config.schedule.model_copy(update={"peak_learning_rate": rate})
            return config.model_copy(update={"schedule": schedule})
"""


def test_seeds_of_other_effective_configs_are_not_pooled(
    versions: Versions, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions.install("1", READS_ENVIRONMENT)
    sweep = ["sweep", *options, "--no-baseline", "-i", "half-rate"]
    assert call(*sweep, "--seeds", "0,1").code == 0
    monkeypatch.setenv("MADE_UP_RATE", "2e-3")
    assert call(*sweep, "--seeds", "2").code in (0, 2)
    assert call(*sweep, "--seeds", "0,1,2").code == 0
    done = call("verify", "runs", "--json")
    assert done.code == ExitCode.INVALID
    reasons: list[Any] = [reason for verdict in done.json["verdicts"] for reason in verdict["reasons"]]
    assert any("peak_learning_rate" in reason for reason in reasons)
