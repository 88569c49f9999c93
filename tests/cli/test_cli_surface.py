"""What scripts rely on: options, exit codes, help, `config`, and the Slurm scripts of the documentation."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
from calling import Done, call
from configs import RECIPES

from bitnetctl import __version__, cli
from bitnetctl.config import build_config, field_paths
from bitnetctl.errors import ExitCode

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("plain_environment")


def test_exit_codes_are_a_contract() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "SUPPORTED": 0,
        "REFUTED": 1,
        "USAGE": 2,
        "INTERNAL": 3,
        "INVALID": 4,
        "INCONCLUSIVE": 5,
        "STOPPED": 75,
        "INTERRUPTED": 130,
        "OUTPUT_CLOSED": 141,
    }


def test_version() -> None:
    assert call("--version") == Done(ExitCode.SUPPORTED, f"bitnetctl {__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["config"], ["interventions"]])
def test_a_missing_command_shows_the_help(arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.code == ExitCode.USAGE
    assert "Usage: bitnetctl" in done.out + done.err
    assert "error" not in done.out + done.err


CONFIG_OPTIONS = "--recipe -r --size --sizes --steps --seed --set --intervention -i"

# the command line is a contract with scripts: a change here is a change for CHANGELOG.md
LIBRARIES = ("recipes", "plans", "searches", "criteria", "claims")
OPTIONS = {
    "": "--version",
    "train": f"{CONFIG_OPTIONS} --name --runs-dir --device --engine --precision --eval-every "
    "--checkpoint-every --on-divergence --samples --no-samples --extend --resume --requeue --dry-run --quiet -q --json",
    "sweep": "--search --recipe -r --sizes --size --steps --seeds --seed --grid --set --intervention -i --plan "
    "--no-baseline --pack --keep-weights --no-keep-weights --samples --no-samples --configs "
    "--runs-dir --device --engine --precision --eval-every --checkpoint-every "
    "--on-divergence --requeue --dry-run --quiet -q --json",
    "verify": "paths --size --sizes --steps --recipe -r --intervention -i --seeds --seed --set --no-baseline "
    "--criteria --claim --runs-dir --device --engine --precision --pack --samples --no-samples "
    "--strict --distinct-seeds --no-train --report --bundle --junit --html --details "
    "--requeue --dry-run --decimal --map --quiet -q --json",
    "analyze": "paths --baseline --markdown --html --csv --figure --show --verdict --decimal --map --text "
    "--details --json",
    "eval": "names --text --stride --step --runs-dir --device --json",
    "export": "run target --to --form --masters --outtype --step --check --no-check --force --runs-dir --json",
    "import": "path --name --recipe -r --steps --set --runs-dir --device --json",
    "power": "--claim --criteria --effect --sd --power --arms --json",
    "generate": "runs --prompt -p --file -f --max-new-tokens -n --num-samples --temperature --temp --top-k --top-p "
    "--min-p --greedy --seed --ignore-eos --step --runs-dir --device --quiet -q --json",
    "interventions": "",
    "interventions list": "--json",
    "interventions show": "name --json",
    "interventions new": "name --path",
    "interventions check": "path --settings",
    **{f"{kind} list": "--json" for kind in LIBRARIES},
    **{f"{kind} show": "name --json" for kind in LIBRARIES},
    **{f"{kind} new": "file --from" for kind in LIBRARIES},
    **dict.fromkeys(LIBRARIES, ""),
    "config": "",
    "config show": f"{CONFIG_OPTIONS} --json",
    "config schema": "",
}


def commands() -> dict[str, Any]:
    """Return every command of the app by its full name."""
    by_name: dict[str, Any] = {}

    def walk(command: Any, name: str) -> None:
        by_name[name] = command
        for child, below in getattr(command, "commands", {}).items():
            walk(below, f"{name} {child}".strip())

    walk(typer.main.get_command(cli.app), "")
    return by_name


def test_the_options_of_every_command_are_frozen() -> None:
    actual = {
        name: {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in commands().items()
    }
    assert actual == {name: set(options.split()) for name, options in OPTIONS.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_command_explains_its_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for flag in ("--help", "-h"):
        done = call(*name.split(), flag)
        assert (done.code, done.err) == (ExitCode.SUPPORTED, "")
        for parameter in commands()[name].params:
            if not parameter.hidden:
                assert parameter.opts[0].casefold() in done.out.casefold()
                assert parameter.help.split()[0] in done.out


@pytest.fixture
def loaded() -> Callable[..., set[str]]:
    """Run a command line in a fresh process and return the modules it has loaded."""

    def run(*arguments: str) -> set[str]:
        code = "import sys; from bitnetctl.cli import run; run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        return set(done.stderr.split())

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["verify", "--help"],
        ["analyze", "--help"],
        ["train", "--recipe", "orign"],
        ["analyze", "nowhere", "--verdict", "none.json"],
        ["generate", "run", "--greedy", "--temp", "1"],
    ],
)
def test_help_and_mistakes_load_no_heavy_module(loaded: Callable[..., set[str]], arguments: list[str]) -> None:
    modules = loaded(*arguments)
    assert "bitnetctl.cli" in modules
    assert not modules & {"torch", "pandas", "scipy", "numpy"}


# config


def test_config_show_is_the_config_as_it_would_run() -> None:
    options = ["--recipe", "b158", "--size", "512", "--steps", "7", "--seed", "3", "--set", "optimizer.exempt=head"]
    config = build_config("b158", size=512, steps=7, seed=3, overrides=["optimizer.exempt=head"])
    assert call("config", "show", *options, "--json").json == config.model_dump(mode="json")
    shown = call("config", "show", *options).out
    for line in ("steps = 7", "seed = 3", "hidden_size = 512", 'exempt = ["head"]', "peak_learning_rate = 0.0015"):
        assert f"{line}\n" in shown


def test_config_show_is_what_interventions_make_of_it() -> None:
    options = ["config", "show", "--recipe", "origin", "-i", "reduced-lr:peak=5e-4"]
    assert "peak_learning_rate = 0.0005\n" in call(*options).out
    assert call(*options, "--json").json["schedule"]["peak_learning_rate"] == 5e-4


def test_what_config_show_prints_is_a_recipe(tmp_path: Path) -> None:
    for recipe in RECIPES:
        path = tmp_path / f"{recipe}.toml"
        path.write_text(call("config", "show", "--recipe", recipe).out, encoding="utf-8")
        assert build_config(str(path)) == build_config(recipe)


def test_config_show_says_that_clipping_is_off(tmp_path: Path) -> None:
    off = ["--set", "optimizer.max_norm=none"]
    shown = call("config", "show", "--recipe", "quick", *off).out
    assert 'max_norm = "none"\n' in shown
    (tmp_path / "quick.toml").write_text(shown, encoding="utf-8")
    assert build_config(str(tmp_path / "quick.toml")).optimizer.max_norm is None


def test_the_schema_knows_every_field() -> None:
    done = call("config", "schema")
    assert (done.code, done.err) == (ExitCode.SUPPORTED, "")
    schema = done.json
    for path in field_paths():
        *sections, field = path.split(".")
        owner = schema
        for section in sections:
            owner = schema["$defs"][owner["properties"][section]["$ref"].rpartition("/")[2]]
        assert field in owner["properties"], path
        assert owner["additionalProperties"] is False


# Slurm


SCRIPTS = re.findall(r"```bash\n(#!.*?)```", (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_for_slurm_run_and_pass_the_signal_on(tmp_path: Path, script: str) -> None:
    path = tmp_path / "job.sh"
    path.write_text(script, encoding="utf-8")
    subprocess.run(["bash", "-n", path], check=True)
    # a stand-in that prints its arguments and receives the signal of the scheduler
    stand_in = tmp_path / "bitnetctl"
    stand_in.write_text(
        "#!/bin/bash\ntrap 'sleep 0.1; exit 75' USR1\nprintf '%s\\n' \"$@\"\nkill -USR1 \"$JOB\"\n"
        "while :; do sleep 0.05; done\n",
        encoding="utf-8",
    )
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_SUBMIT_DIR": "there"}
    # the shell that becomes the job has this process number
    done = subprocess.run(
        ["bash", "-c", f"JOB=$$ exec bash {path}"], env=environment, stdout=subprocess.PIPE, timeout=60, check=False
    )
    command, *arguments = done.stdout.decode().splitlines()
    assert done.returncode == ExitCode.STOPPED
    assert {argument for argument in arguments if argument.startswith("-")} <= set(OPTIONS[command].split())
    assert arguments[arguments.index("--runs-dir") + 1] == "there/runs"
    assert "--requeue" in arguments


def test_there_are_scripts_for_slurm() -> None:
    assert len(SCRIPTS) == 2
