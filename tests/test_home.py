"""The home folder: `~` in paths, and what is done where there is no home."""

import inspect
import os
import pwd
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin

import pytest
from calling import call, training

from bitnetctl import cli
from bitnetctl.errors import ConfigError, ExitCode
from bitnetctl.files import expand_user, home_folder


def nameless(user: int) -> NoReturn:
    raise KeyError(user)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_only_a_leading_tilde_is_the_home_folder(home: Path) -> None:
    assert expand_user("~") == str(home)
    assert expand_user("~/a b/[1].csv") == f"{home}/a b/[1].csv"
    for text in ("./~", "a/~/b", "a~", "", "/~"):
        assert expand_user(text) == text


def test_a_leading_tilde_is_the_home_folder_although_a_folder_has_that_name(home: Path) -> None:
    Path("~").mkdir()
    assert expand_user("~/runs") == f"{home}/runs"


def test_the_home_of_another_user() -> None:
    entry = pwd.getpwall()[0]
    assert expand_user(f"~{entry.pw_name}/x") == f"{entry.pw_dir.rstrip('/')}/x"


def test_an_unknown_user_is_refused_unless_a_file_has_the_name() -> None:
    with pytest.raises(
        ConfigError, match=r"~no-such/x: no user 'no-such'; for a file of that name write \./~no-such/x"
    ):
        expand_user("~no-such/x")
    Path("~$sheet.csv").touch()
    assert expand_user("~$sheet.csv") == "~$sheet.csv"


def test_an_empty_home_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    assert str(home_folder()) == pwd.getpwuid(os.getuid()).pw_dir
    monkeypatch.setattr(pwd, "getpwuid", nameless)
    assert home_folder() is None
    monkeypatch.delenv("HOME")
    assert home_folder() is None
    with pytest.raises(ConfigError, match="no home folder is known; set HOME"):
        expand_user("~/x")
    monkeypatch.setenv("HOME", "relative")
    assert home_folder() is None


def parameters() -> dict[str, Any]:
    """Return the annotation of every parameter of every command, by `command parameter`."""
    groups = [cli.app, *(group.typer_instance for group in cli.app.registered_groups)]
    commands = [command.callback for group in groups if group for command in group.registered_commands]
    return {
        f"{callback.__name__} {name}": parameter.annotation
        for callback in commands
        if callback
        for name, parameter in inspect.signature(callback, eval_str=True).parameters.items()
    }


def takes_a_path(name: str, annotation: Any) -> bool:
    named = name.split()[1] in ("paths", "path", "recipe", "plan", "criteria", "resume")
    return named or "Path" in str(annotation)


PATHS = {
    name: annotation
    for name, annotation in parameters().items()
    if get_origin(annotation) is Annotated and takes_a_path(name, get_args(annotation)[0])
}


def test_every_command_that_takes_paths_is_looked_at() -> None:
    assert {"train runs_dir", "verify paths", "verify report", "analyze verdicts", "check path"} <= PATHS.keys()


@pytest.mark.parametrize("name", PATHS)
def test_a_tilde_is_expanded_in_every_path_option(home: Path, name: str) -> None:
    [option] = get_args(PATHS[name])[1:]
    assert option.parser is not None, f"{name}: give the option parser=user_path or user_text"
    assert os.fspath(option.parser("~/x")) == f"{home}/x"


@pytest.mark.usefixtures("plain_environment")
def test_a_tilde_that_the_shell_left(home: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("analyze", "~/none.csv").error == f"error: {home}/none.csv: cannot read: No such file or directory"
    (home / "mine.toml").write_text('steps = "many"\n', encoding="utf-8")
    assert "recipe ~/mine.toml" not in call("config", "show", "--recipe", "~/mine.toml").error
    monkeypatch.setenv("BITNETCTL_RUNS_DIR", "~/runs")
    done = call(*training(tiny_text))
    assert done.code == ExitCode.SUPPORTED
    assert done.out.startswith(str(home / "runs"))
    assert not Path("~").exists()


def test_a_file_whose_name_begins_with_a_tilde_is_no_home_folder() -> None:
    Path("~no-such.zip").write_bytes(b"")
    for name in ("./~no-such.zip", "~no-such.zip"):
        assert call("verify", name).error.startswith("error: ~no-such.zip: not a bundle")
        assert call("analyze", name).error.startswith("error: ~no-such.zip: not a bundle")
    Path("~no-such.py").write_text("", encoding="utf-8")
    assert "~no-such.py" in call("interventions", "check", "./~no-such.py").error
