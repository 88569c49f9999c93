"""`bitnetctl interventions`: new, check, list, show, and the project that `new` writes."""

import json
import os
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import calling
import pytest
from calling import Done
from distributions import forget_plugins

from bitnetctl.errors import ConfigError, ExitCode, StorageError
from bitnetctl.plugins import registry
from bitnetctl.plugins.composition import HOOKS
from bitnetctl.plugins.scaffold import write_project

pytestmark = pytest.mark.usefixtures("fresh_registry")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of 300 columns, and OpenMP threads that do not spin."""
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")


def call(*arguments: str | Path) -> Done:
    """Run `bitnetctl interventions …` in this process."""
    return calling.call("interventions", *arguments)


def error_of(done: Done) -> str:
    """The one line of an error."""
    assert done.out == ""
    [line] = done.err.splitlines()
    assert line.startswith("error: ")
    return line


SOUND = """
    from bitnetctl.intervention import Intervention, InterventionSettings

    class {name}(Intervention):
        summary = "half the rate"

        class Settings(InterventionSettings):
            factor: float = 0.5

        def learning_rate(self, base, step, steps):
            return base * self.settings.factor
"""
IMPURE = """
    import itertools
    from bitnetctl.intervention import Intervention

    class {name}(Intervention):
        summary = "not the same twice"
        count = itertools.count()

        def learning_rate(self, base, step, steps):
            return base + next(self.count)
"""


def write(path: Path, code: str, name: str = "Halved") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(code).replace("{name}", name), encoding="utf-8")
    return path


def project(path: Path, *targets: str) -> Path:
    points = "".join(f'made-up-{index} = "{target}"\n' for index, target in enumerate(targets))
    write(path / "pyproject.toml", f'[project.entry-points."bitnetctl.interventions"]\n{points}')
    return path


# new


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written project; never edited."""
    return write_project("twice-as-slow2", tmp_path_factory.mktemp("projects"))


def test_a_project_passes_its_own_tests(written: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(written),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(written)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_a_project_is_complete(written: Path) -> None:
    assert written.name == "bitnetctl-twice-as-slow2"
    assert sorted(str(path.relative_to(written)) for path in written.rglob("*") if path.suffix in (".py", ".md")) == [
        "README.md",
        "bitnetctl_twice_as_slow2.py",
        "tests/test_bitnetctl_twice_as_slow2.py",
    ]
    tree = tomllib.loads((written / "pyproject.toml").read_text(encoding="utf-8"))
    assert tree["project"]["name"] == "bitnetctl-twice-as-slow2"
    assert "bitnetctl" in tree["project"]["dependencies"]
    points = tree["project"]["entry-points"][registry.GROUP]
    assert points == {"twice-as-slow2": "bitnetctl_twice_as_slow2:TwiceAsSlow2"}
    assert tree["tool"]["setuptools"]["py-modules"] == ["bitnetctl_twice_as_slow2"]
    assert not [path for path in written.rglob("*") if path.is_file() and "$" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    "arguments",
    [
        ("format", "--check"),
        ("check", "--select", "E,F,W,N,UP,B"),
        ("check", "--select", "I"),
    ],
)
def test_a_project_is_clean(arguments: tuple[str, ...], written: Path) -> None:
    ruff = [sys.executable, "-m", "ruff", *arguments, "--isolated", "--no-cache", "--line-length", "120"]
    done = subprocess.run([*ruff, "."], cwd=written, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def in_comments(text: str) -> tuple[str, dict[str, str]]:
    """Return the module without its hooks in comments, and the code of each by name."""
    head, _, tail = text.partition("    # The other hooks")
    lines = [line.removeprefix("    #").removeprefix(" ") for line in tail.splitlines()]
    starts = [index for index, line in enumerate(lines) if line.startswith("def ")]
    bodies = [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
    code = ["\n".join(body).rstrip() + "\n" for body in bodies]
    return head.rstrip() + "\n", {one.removeprefix("def ").partition("(")[0]: one for one in code}


def test_a_hook_can_be_taken_out_of_its_comment(written: Path, tmp_path: Path) -> None:
    [module] = written.glob("*.py")
    head, hooks = in_comments(module.read_text(encoding="utf-8"))
    assert {*hooks, "learning_rate"} == {*HOOKS, "state_dict", "load_state_dict"}
    added = {name: "\n" + textwrap.indent(hook, "    ") for name, hook in hooks.items()}
    for name, code in {**added, "all": "".join(added.values())}.items():
        file = tmp_path / f"with_{name}.py"
        file.write_text(head + code, encoding="utf-8")
        done = call("check", file)
        assert done == Done(0, "TwiceAsSlow2: keeps the contract\n", ""), name
    for command in (["format", "--check"], ["check", "--select", "E,F,W,UP,B,I"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", "--line-length", "120", "."]
        linted = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert linted.returncode == 0, linted.stdout


def test_a_written_plugin_can_be_installed_and_used(written: Path) -> None:
    info = written.parent / "bitnetctl_twice_as_slow2-0.1.0.dist-info"
    info.mkdir()
    points = tomllib.loads((written / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    [(name, target)] = points[registry.GROUP].items()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bitnetctl-twice-as-slow2\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = {target}\n")
    sys.path += [str(written), str(written.parent)]
    forget_plugins()
    shown = call("show", "twice-as-slow2")
    assert shown.code == 0
    assert "bitnetctl-twice-as-slow2 0.1.0" in shown.out
    assert "factor" in shown.out
    assert registry.load("twice-as-slow2").hooks == ["learning_rate"]


def test_new_prints_the_folder_and_the_next_command(tmp_path: Path) -> None:
    done = call("new", "halved-rate", "--path", tmp_path / "not" / "there")
    folder = tmp_path / "not" / "there" / "bitnetctl-halved-rate"
    assert done.code == 0
    assert done.err == ""
    assert done.out.splitlines()[0] == str(folder)
    assert f"pip install -e {folder} && bitnetctl interventions show halved-rate" in done.out
    assert (folder / "bitnetctl_halved_rate.py").is_file()


def test_new_writes_into_the_current_folder_by_default(tmp_path: Path) -> None:
    assert call("new", "x").code == 0
    assert (tmp_path / "bitnetctl-x" / "bitnetctl_x.py").is_file()
    assert call("check", "bitnetctl-x").code == 0


def test_new_prints_a_command_to_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    folder = tmp_path / "bitnetctl-halved-rate"
    assert call("new", "halved-rate", "--path", tmp_path).out.splitlines() == [
        str(folder),
        f"next: pip install -e {folder} && bitnetctl interventions show halved-rate",
    ]


def test_new_in_a_folder_with_brackets(tmp_path: Path) -> None:
    done = call("new", "halved-rate", "--path", tmp_path / "a[" / "b]")
    assert done.code == 0
    assert done.out.splitlines()[0] == str(tmp_path / "a[" / "b]" / "bitnetctl-halved-rate")


@pytest.mark.parametrize("name", ["x", "con", "a1-b2", "x" * 64])
def test_good_names(name: str, tmp_path: Path) -> None:
    folder = write_project(name, tmp_path)
    assert folder.parent == tmp_path
    [module] = folder.glob("*.py")
    assert module.stem.isidentifier()
    compile(module.read_text(encoding="utf-8"), str(module), "exec")


BAD_NAMES = ["../x", "/x", "a/b", "a\\b", "A", "Ab", "", " ", "a b", "a\n", "-a", "a-", "a--b", "a_b", "1a", "a.b", "é"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "x" * 65, "x" * 300])
def test_bad_names(name: str, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    with pytest.raises(ConfigError, match="lower-case letters and digits joined by '-'"):
        write_project(name, parent)
    assert not parent.exists()
    done = call("new", "--path", parent, "--", name)
    assert done.code == ExitCode.USAGE
    assert "intervention name" in error_of(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["none", "true", "false", "interventions"])
def test_reserved_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        write_project(name, tmp_path)


def test_new_overwrites_nothing(tmp_path: Path) -> None:
    folder = write_project("halved", tmp_path)
    module = folder / "bitnetctl_halved.py"
    module.write_text("mine", encoding="utf-8")
    done = call("new", "halved")
    assert done.code == ExitCode.USAGE
    assert "bitnetctl-halved exists already" in error_of(done)
    assert module.read_text(encoding="utf-8") == "mine"
    (tmp_path / "bitnetctl-other").write_text("a file", encoding="utf-8")
    assert "exists already" in error_of(call("new", "other"))


def test_new_into_a_path_that_is_not_a_folder(tmp_path: Path) -> None:
    blocked = write(tmp_path / "file", "")
    with pytest.raises(StorageError):
        write_project("halved", blocked)
    done = call("new", "halved", "--path", blocked)
    assert done.code == ExitCode.USAGE
    assert "cannot write" in error_of(done)


# check


def test_check_a_project(written: Path) -> None:
    done = call("check", written)
    assert done == Done(0, "TwiceAsSlow2: keeps the contract\n", "")
    assert call("check", written, "--settings", '{"factor": 0.1, "after": 1}').code == 0
    bad = call("check", written, "--settings", '{"factor": 0}')
    assert bad.code == ExitCode.USAGE
    assert bad.out.startswith("TwiceAsSlow2: broken: ")
    assert "factor" in bad.out
    assert bad.out.count("\n") == 1


def test_check_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "made_up_file.py", SOUND)
    assert call("check", file) == Done(0, "Halved: keeps the contract\n", "")


def test_check_distinguishes_sound_and_broken_interventions(tmp_path: Path) -> None:
    file = write(
        tmp_path / "made_up_both.py", textwrap.dedent(SOUND) + textwrap.dedent(IMPURE).replace("{name}", "Bad")
    )
    done = call("check", file)
    assert done.code == ExitCode.USAGE
    assert done.err == ""
    assert done.out.splitlines() == [
        "Halved: keeps the contract",
        "Bad: broken: learning_rate is not a pure function of the step",
    ]


@pytest.mark.parametrize("folder", ["", "src"])
def test_check_every_entry_point_of_a_project(folder: str, tmp_path: Path) -> None:
    project(tmp_path / "p", "made_up_a:A", "made_up_pack.b:B")
    write(tmp_path / "p" / folder / "made_up_a.py", SOUND, "A")
    write(tmp_path / "p" / folder / "made_up_pack" / "b.py", SOUND, "B")
    done = call("check", tmp_path / "p")
    assert done.code == 0
    assert done.out == "A: keeps the contract\nB: keeps the contract\n"


@pytest.mark.parametrize("folder", ["", "src"])
@pytest.mark.parametrize("statement", ["from made_up_pack.common import FACTOR", "from .common import FACTOR"])
def test_check_a_package_of_several_files(statement: str, folder: str, tmp_path: Path) -> None:
    package = tmp_path / "p" / folder / "made_up_pack"
    project(tmp_path / "p", "made_up_pack.halved:Halved")
    write(package / "__init__.py", "")
    write(package / "common.py", "FACTOR = 0.5\n")
    write(package / "halved.py", f"{statement}\n{textwrap.dedent(SOUND)}")
    assert call("check", tmp_path / "p") == Done(0, "Halved: keeps the contract\n", "")


def test_check_a_package_itself(tmp_path: Path) -> None:
    project(tmp_path / "p", "made_up_pack:Halved")
    write(tmp_path / "p" / "made_up_pack" / "__init__.py", SOUND)
    assert call("check", tmp_path / "p") == Done(0, "Halved: keeps the contract\n", "")


def test_check_does_not_replace_a_module_of_the_same_name(tmp_path: Path) -> None:
    import colorsys

    assert call("check", write(tmp_path / "colorsys.py", SOUND)).code == 0
    assert sys.modules["colorsys"] is colorsys


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("import no_such_module_anywhere\n", "no_such_module_anywhere"),
        ("import sys\nsys.exit(0)\n", "SystemExit"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("X = 1\n", "no subclass of bitnetctl.intervention.Intervention"),
        ("from bitnetctl.intervention import Intervention\n", "no subclass of bitnetctl.intervention.Intervention"),
    ],
)
def test_check_a_file_without_usable_interventions(code: str, problem: str, tmp_path: Path) -> None:
    file = write(tmp_path / "made_up_bad.py", code)
    done = call("check", file)
    assert done.code == ExitCode.USAGE
    assert problem in error_of(done)
    assert str(file) in error_of(done)


def test_check_a_path_without_interventions(tmp_path: Path) -> None:
    def refused(path: Path, *parts: str) -> None:
        done = call("check", path)
        assert done.code == ExitCode.USAGE
        for part in (*parts, str(path)):
            assert part in error_of(done)

    refused(tmp_path / "nowhere", "neither a Python file nor a project")
    refused(write(tmp_path / "text.txt", "hello"), "not a Python file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "neither a Python file nor a project")
    write(tmp_path / "toml" / "pyproject.toml", "no = = toml")
    refused(tmp_path / "toml", "not valid TOML")
    write(tmp_path / "none" / "pyproject.toml", "[project]\nname = 'x'\n")
    refused(tmp_path / "none", "no entry points of the group bitnetctl.interventions")
    refused(project(tmp_path / "missing", "made_up_gone.x:X"), "'made_up_gone.x:X'", "made_up_gone/x.py is not there")


@pytest.mark.parametrize(
    ("settings", "problem"), [("{", "not JSON"), ("[1]", "expected a JSON object"), ("5", "expected a JSON object")]
)
def test_check_with_invalid_settings(settings: str, problem: str, tmp_path: Path) -> None:
    done = call("check", write(tmp_path / "made_up_file.py", SOUND), "--settings", settings)
    assert done.code == ExitCode.USAGE
    assert problem in error_of(done)


# list and show


def install(site: Path, name: str, code: str) -> None:
    module = f"made_up_{name}"
    write(site / f"{module}.py", code)
    info = site / f"{name}-2.5.dist-info"
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
    write(info / "entry_points.txt", f"[{registry.GROUP}]\n{name} = {module}:Halved\n")
    sys.path.append(str(site))
    forget_plugins()


def test_list(tmp_path: Path) -> None:
    install(tmp_path / "one", "sound", SOUND)
    install(tmp_path / "two", "unwell", "raise RuntimeError('so\\nbroken [red]')")
    done = call("list")
    assert done.code == 0
    assert done.err == ""
    header, *lines = done.out.splitlines()
    assert header.split() == ["name", "from", "what", "it", "does"]
    names = [line.split()[0] for line in lines]
    assert names == sorted(each.name for each in registry.discover())
    assert {"sound", "unwell", "reduced-lr"} < set(names)
    rows = dict(zip(names, lines, strict=True))
    assert rows["sound"].split(maxsplit=3)[1:3] == ["sound", "2.5"]
    assert "broken: RuntimeError: so broken [red]" in rows["unwell"]
    assert registry.load("reduced-lr").intervention is not None
    assert "scale the learning-rate schedule to a lower peak" in rows["reduced-lr"]


def test_list_as_json(tmp_path: Path) -> None:
    install(tmp_path / "one", "sound", SOUND)
    install(tmp_path / "two", "unwell", "raise RuntimeError('broken')")
    done = call("list", "--json")
    assert done.code == 0
    assert done.err == ""
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in json.loads(done.out)}
    assert rows.keys() == {each.name for each in registry.discover()}
    assert rows["sound"] == {
        "name": "sound",
        "distribution": "sound",
        "version": "2.5",
        "target": "made_up_sound:Halved",
        "problem": None,
        "summary": "half the rate",
        "source": "",
        "hooks": ["learning_rate"],
        "settings": {"factor": {"default": 0.5, "title": "Factor", "type": "number"}},
    }
    assert rows["unwell"]["problem"] == f"RuntimeError: broken ({tmp_path / 'two' / 'made_up_unwell.py'}:1)"
    assert (rows["unwell"]["summary"], rows["unwell"]["settings"], rows["unwell"]["hooks"]) == (None, {}, [])
    assert rows["no-decay"]["settings"] == {}
    assert set(rows["wd-schedule"]["settings"]) == {"preset", "stage1", "stage2", "boundary"}


def test_show() -> None:
    done = call("show", "reduced-lr")
    assert done.code == 0
    assert done.err == ""
    for part in (
        "reduced-lr",
        "founding document, phase 3",
        "changes  configure",
        "bitnetctl_interventions.reduced_lr",
    ):
        assert part in done.out
    rows = [" ".join(line.split()) for line in done.out.splitlines()[-3:]]
    assert rows == [
        "setting default meaning",
        "peak 0.0005 new peak learning rate",
        "factor unset factor on the peak; overrides `peak`",
    ]
    assert "setting" not in call("show", "no-decay").out
    shown = json.loads(call("show", "reduced-lr", "--json").out)
    assert shown in json.loads(call("list", "--json").out)


@pytest.mark.parametrize("extra", [(), ("--json",)])
def test_show_an_unknown_intervention(extra: tuple[str, ...]) -> None:
    done = call("show", "reduced-rl", *extra)
    assert done.code == ExitCode.USAGE
    assert "unknown intervention 'reduced-rl'; did you mean 'reduced-lr'?" in error_of(done)


def test_show_a_broken_intervention(tmp_path: Path) -> None:
    install(tmp_path / "one", "unwell", "raise RuntimeError('so\\nbroken')")
    done = call("show", "unwell")
    assert done.code == ExitCode.USAGE
    assert "intervention 'unwell' of unwell 2.5 cannot be used: RuntimeError: so broken" in error_of(done)
    assert call("show", "reduced-lr").code == 0


def test_list_show_and_new_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from bitnetctl import cli; "
        "codes = [cli.run(['interventions', *line.split()]) for line in ('list', 'show reduced-lr', 'new halved')]; "
        "assert codes == [0, 0, 0], codes; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
