"""Files, names and links from someone who means harm: nothing of theirs is run, nothing is written where it should not
be, and every refusal is one line with exit code 2.

Bundles, names in `safe_name` and HTML have more of the same in their own tests.
"""

import ast
import csv
import errno
import gzip
import io
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from calling import Done, call
from synthetic import CURED, bare_run, curve, origin_run, quick, simple_run, write_csv

from bitnetctl import data
from bitnetctl.analysis.study import study
from bitnetctl.config import RunConfig, build_config
from bitnetctl.errors import DataError, ExitCode, RecordError
from bitnetctl.records import load_runs, read
from bitnetctl.report import junit_xml, markdown_report
from bitnetctl.report.escape import defused
from bitnetctl.verdict import judge, load_criteria

TinyConfig = Callable[..., RunConfig]
CODE = ("bitnetctl", "bitnetctl_interventions")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("BITNETCTL_TRACEBACK", "BITNETCTL_RUNS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    yield
    assert not Path("exploded").exists()


def refused(done: Done) -> str:
    """Check that a command ended in one line of its own and return it."""
    assert (done.code, done.out, done.err.count("\n")) == (ExitCode.USAGE, "", 1), done.err
    assert done.err.startswith("error: ")
    return done.err


def everything(folder: Path) -> dict[Path, bytes | None]:
    """Return every file below a folder with its content; links are not followed."""
    return {path: path.read_bytes() if path.is_file() and not path.is_symlink() else None for path in folder.rglob("*")}


def settings(config: RunConfig) -> list[str]:
    """Return the options that make a tiny config."""
    tree = config.model_dump(mode="json")
    base = build_config("quick").model_dump(mode="json")
    changed = [
        f"--set={section}.{name}={value}"
        for section in ("model", "data", "schedule", "probe")
        for name, value in tree[section].items()
        if value != base[section][name]
    ]
    return ["--recipe", "quick", "--steps", str(config.steps), *changed, "--device", "cpu"]


# pickles


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # type: ignore[return-value]


def bombs() -> dict[str, bytes]:
    """Return files that run code when they are unpickled: plain, as text, and as a numpy file."""
    array = io.BytesIO()
    np.save(array, np.array([_Bomb()], dtype=object), allow_pickle=True)
    return {"pickle": pickle.dumps(_Bomb()), "text": pickle.dumps(_Bomb(), protocol=0), "npy": array.getvalue()}


BOMBS = bombs()


def test_the_bombs_are_live() -> None:
    for content in (BOMBS["pickle"], BOMBS["text"]):
        pickle.loads(content)  # noqa: S301
        Path("exploded").unlink()
    np.load(io.BytesIO(BOMBS["npy"]), allow_pickle=True)
    Path("exploded").unlink()


READERS: dict[str, tuple[str, list[str]]] = {
    "csv": ("x.csv", ["analyze", "x.csv"]),
    "csv judged": ("x.csv", ["verify", "x.csv"]),
    "bundle": ("x.zip", ["verify", "x.zip"]),
    "verdict": ("x.json", ["analyze", "x.csv", "--verdict", "x.json"]),
    "recipe": ("x.toml", ["config", "show", "--recipe", "x.toml"]),
    "plan": ("x.toml", ["sweep", "--plan", "x.toml", "--dry-run"]),
    "criteria": ("x.toml", ["verify", "x.csv", "--criteria", "x.toml"]),
    "configs of a worker": ("x.json", ["sweep", "--configs", "x.json", "--dry-run"]),
    "tokenizer": ("tokenizer.json", ["train", "--dry-run", "--set", "data.tokenizer=file:tokenizer.json"]),
    "vocabulary": ("vocab.json", ["train", "--dry-run", "--set", "data.tokenizer=gpt2-files:."]),
    "merges": ("merges.txt", ["train", "--dry-run", "--set", "data.tokenizer=gpt2-files:."]),
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_by_another_name_is_refused(reader: str, kind: str) -> None:
    name, command = READERS[reader]
    Path("vocab.json").write_text("{}", encoding="utf-8")
    Path("merges.txt").write_text("", encoding="utf-8")
    Path(name).write_bytes(BOMBS[kind])
    refused(call(*command))


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.jsonl.gz", "x.txt.gz", "x.txt"])
def test_a_pickle_as_text_is_refused_or_text(name: str, kind: str, tiny_config: TinyConfig) -> None:
    content = gzip.compress(BOMBS[kind]) if name == "x.jsonl.gz" else BOMBS[kind]
    Path(name).write_bytes(content)
    with pytest.raises(DataError):
        data.prepare(tiny_config(data__source=f"file:{name}").data)


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("name", ["meta.json", "tokenizer.json", "train.bin", "held_out.bin"])
def test_a_pickle_in_the_token_cache_is_built_anew(
    name: str, kind: str, tiny_config: TinyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = data.prepare(tiny_config().data)
    path = first.tokenizer_path.with_name(name)
    content = path.read_bytes()
    # of the same size, so that only its hash tells
    path.write_bytes((BOMBS[kind] * (len(content) // len(BOMBS[kind]) + 1))[: len(content)])
    steps: list[str] = []
    again = data.prepare(tiny_config().data, progress=lambda what, *_: steps.append(what))
    assert any("rebuilding the damaged token cache" in step for step in steps)
    assert again.fingerprint == first.fingerprint
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", BOMBS)
def test_pickled_references_are_counted_anew(
    kind: str, tiny_config: TinyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tokens = data.prepare(tiny_config().data)
    first = data.probe_data(tokens, positions=128, sequence_length=16)
    [path] = (data.cache_folder() / "references").iterdir()
    path.write_bytes(BOMBS[kind])
    assert data.probe_data(tokens, positions=128, sequence_length=16).bigram_loss == first.bigram_loss


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_as_checkpoint_is_refused(kind: str, tiny_config: TinyConfig) -> None:
    folder = Path("step-00000004")
    folder.mkdir()
    for name in ("state.json", "model.safetensors", "optimizer.safetensors", "codes.safetensors"):
        (folder / name).write_bytes(BOMBS[kind])
    assert "state.json is missing or damaged" in refused(
        call("train", *settings(tiny_config()), "--runs-dir", "runs", "--resume", folder)
    )
    # not a single run is begun for it
    assert not Path("runs").exists()


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_as_manifest_is_refused(kind: str, tmp_path: Path) -> None:
    path = simple_run(tmp_path, quick())
    path.with_suffix("").joinpath("run.json").write_bytes(BOMBS[kind])
    assert "damaged manifest" in refused(call("analyze", path))


FORBIDDEN = {
    *("eval", "exec", "compile", "__import__"),
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "dbm"),
    *("torch.load", "torch.jit.load", "torch.hub", "numpy.load", "np.load", "numpy.fromregex", "yaml", "jsonpickle"),
    *("pandas.read_pickle", "pd.read_pickle", "pandas.eval", "pd.eval", "os.system", "os.popen", "runpy"),
}


def dangers(tree: ast.AST) -> Iterator[str]:
    """Yield what a module imports, calls or names that could run what a file holds."""

    def hits(name: str) -> bool:
        return any(name == danger or name.startswith(f"{danger}.") for danger in FORBIDDEN)

    for node in ast.walk(tree):
        names: list[str] = []
        match node:
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(module), names=aliases, level=0):
                names = [module, *(f"{module}.{alias.name}" for alias in aliases)]
            case ast.Attribute() | ast.Name():
                names = [ast.unparse(node)]
            case ast.keyword(arg="allow_pickle" | "shell" | "trust_remote_code" as argument):
                names = ["eval" for _ in [argument] if ast.unparse(node.value) != "False"]
        yield from filter(hits, names)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import torch\ntorch.load(x, weights_only=True)",
        "from torch import load",
        "import numpy as np\nnp.load(x)",
        "f(x, allow_pickle=True)",
        "from joblib import load as read",
        "def f():\n  import marshal",
        "eval(x)",
        "map(exec, x)",
        "from yaml import load",
        "subprocess.run(x, shell=True)",
    ],
)
def test_the_walker_sees_dangers(code: str) -> None:
    assert list(dangers(ast.parse(code)))


def test_no_module_can_run_what_a_file_holds() -> None:
    harmless = "from torch.nn import Module\nmodel.eval()\nloader.exec_module(x)\nf(shell=False)\nre.compile(x)"
    assert not list(dangers(ast.parse(harmless)))
    for package in CODE:
        root = Path(next(iter(__import__(package).__path__)))
        modules = sorted(root.rglob("*.py"))
        assert len(modules) > 10
        for path in modules:
            found = list(dangers(ast.parse(path.read_text(encoding="utf-8"))))
            assert not found, f"{path}: {found}"


# links


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the runs with something worth keeping in it."""
    folder = tmp_path / "outside"
    (folder / "checkpoints" / "step-00000004").mkdir(parents=True)
    for name in ("run.json", "run.lock", "x.csv", "checkpoints/step-00000004/state.json"):
        (folder / name).write_text("precious", encoding="utf-8")
    return folder


LINKS = {"{run}": ".", "{run}.csv": "x.csv", "{run}/run.json": "run.json", "{run}/run.lock": "run.lock"}
LINKS |= {"{run}/checkpoints": "checkpoints"}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_nothing_is_written_through_a_link_out_of_the_runs(
    link: str, command: str, outside: Path, tmp_path: Path, tiny_config: TinyConfig
) -> None:
    config = tiny_config()
    path = tmp_path / "runs" / link.format(run=config.run_name)
    path.parent.mkdir(parents=True)
    path.symlink_to(outside / LINKS[link])
    before = everything(outside)
    assert "leads out of" in refused(call(command, *settings(config), "--runs-dir", tmp_path / "runs"))
    assert everything(outside) == before


def test_the_lock_of_a_sweep_is_no_link(outside: Path, tmp_path: Path, tiny_config: TinyConfig) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".claims.lock").symlink_to(outside / "run.lock")
    before = everything(outside)
    done = call("sweep", *settings(tiny_config()), "--runs-dir", tmp_path / "runs")
    assert done.code == ExitCode.USAGE
    assert "cannot write" in done.err.splitlines()[-1]
    assert everything(outside) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_disk_without_locks_is_refused(
    command: str, number: int, tmp_path: Path, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    done = call(command, *settings(tiny_config()), "--runs-dir", tmp_path / "runs")
    assert done.code == ExitCode.USAGE
    assert done.err.count("no locks (flock) here, take a folder on another disk\n") == done.err.count("error") == 1
    assert not list((tmp_path / "runs").rglob("run.json"))


def test_a_folder_in_place_of_a_lock_is_told(tmp_path: Path, tiny_config: TinyConfig) -> None:
    config = tiny_config()
    (tmp_path / "runs" / config.run_name / "run.lock").mkdir(parents=True)
    assert "Is a directory" in refused(call("train", *settings(config), "--runs-dir", tmp_path / "runs"))


def test_runs_behind_links_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    csv_path = simple_run(tmp_path / "real", quick())
    (tmp_path / "link.csv").symlink_to(csv_path)
    (tmp_path / "runs").symlink_to(tmp_path / "real")
    for path in ("link.csv", "runs"):
        assert call("analyze", path).code == ExitCode.SUPPORTED
    assert len(call("analyze", "link.csv", "runs", csv_path, "--json").json["runs"]) == 1


@pytest.mark.parametrize("kind", ["dangling", "circle", "folder"])
def test_links_to_nothing(kind: str, tmp_path: Path) -> None:
    target = {"dangling": "nowhere", "circle": "x.csv", "folder": "."}[kind]
    (tmp_path / "x.csv").symlink_to(target)
    for command in ("analyze", "verify"):
        refused(call(command, "x.csv"))
        refused(call(command, "."))


@pytest.mark.parametrize("option", ["--markdown", "--html", "--csv"])
def test_a_report_replaces_a_link_and_spares_its_target(option: str, outside: Path, tmp_path: Path) -> None:
    csv_path = simple_run(tmp_path, quick())
    (tmp_path / "report").symlink_to(outside / "x.csv")
    before = everything(outside)
    assert call("analyze", csv_path, option, "report").code == ExitCode.SUPPORTED
    assert everything(outside) == before
    assert not (tmp_path / "report").is_symlink()


@pytest.mark.parametrize("option", ["--markdown", "--html", "--csv"])
def test_a_report_never_replaces_a_run(option: str, tmp_path: Path) -> None:
    csv_path = simple_run(tmp_path, quick())
    (tmp_path / "again.csv").symlink_to(csv_path)
    before = csv_path.read_bytes()
    for path in (csv_path, Path(csv_path.name), tmp_path / "again.csv"):
        assert "is one of the files to analyse" in refused(call("analyze", csv_path, option, path))
    assert csv_path.read_bytes() == before


# names

NAMES = {
    "parent": "../x",
    "absolute": "/nowhere-at-all/x",
    "NUL": "a\0b",
    "device": "CON",
    "device with an end": "nul.txt",
    "long": "x" * 300,
    "folder": "a/b",
    "backslash": "a\\b",
    "dots": "..",
    "hidden": ".x",
    "stream": "x:y",
    "line": "a\nb",
    "steers": "\x1b[31mx",
    "home": "~nobody-at-all",
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_runs(kind: str, tmp_path: Path, tiny_config: TinyConfig) -> None:
    before = everything(tmp_path)
    line = refused(call("train", *settings(tiny_config()), "--runs-dir", tmp_path / "runs", "--name", NAMES[kind]))
    assert "run name" in line
    assert everything(tmp_path) == before


@pytest.mark.parametrize("there", ["Mine", "MINE.csv", "mINE.CSV"])
def test_names_that_differ_in_case_only(there: str, tmp_path: Path, tiny_config: TinyConfig) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / there).touch()
    line = refused(call("train", *settings(tiny_config()), "--runs-dir", tmp_path / "runs", "--name", "mine"))
    assert f"run 'mine' differs from {there[:4]!r}" in line
    config = tiny_config()
    (tmp_path / "runs" / config.run_name.upper()).mkdir()
    assert "in letter case only" in refused(call("sweep", *settings(config), "--runs-dir", tmp_path / "runs"))
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted([there, config.run_name.upper()])


NAMED: dict[str, list[str]] = {
    "plan": ["sweep", "--dry-run", "--plan"],
    "recipe": ["config", "show", "--recipe"],
    "intervention": ["train", "--dry-run", "-i"],
    "shown intervention": ["interventions", "show"],
    "new intervention": ["interventions", "new"],
    "checked intervention": ["interventions", "check"],
    "csv": ["analyze"],
    "judged": ["verify"],
    "criteria": ["verify", "x.csv", "--criteria"],
    "verdict": ["analyze", "x.csv", "--verdict"],
}
FILES = {"plan file": NAMED["plan"], "recipe file": NAMED["recipe"], "criteria file": NAMED["criteria"]}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("what", FILES)
def test_names_of_toml_files(what: str, kind: str) -> None:
    refused(call(*FILES[what], NAMES[kind] + ".toml"))


def test_a_plan_may_not_name_what_no_file_is_called() -> None:
    Path("x.toml").write_text('recipe = "y\\u0000.toml"\n', encoding="utf-8")
    refused(call("sweep", "--dry-run", "--plan", "x.toml"))


TOML = {"brackets": "a = " + "[" * 100_000, "tables": "a = " + "{a=" * 100_000, "digits": "seed = " + "1" * 5000}


@pytest.mark.parametrize("content", TOML)
@pytest.mark.parametrize("what", FILES)
def test_toml_that_is_too_deep_or_too_long(what: str, content: str) -> None:
    Path("x.toml").write_text(TOML[content], encoding="utf-8")
    assert "not valid TOML" in refused(call(*FILES[what], "x.toml"))
    value = TOML[content].partition(" = ")[2]
    refused(call("config", "show", "--set", f"seed={value}"))
    refused(call("config", "show", "-i", f"reduced-lr:peak={value}"))


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("what", NAMED)
def test_names_of_other_things(what: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = everything(tmp_path)
    refused(call(*NAMED[what], NAMES[kind]))
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("form", ["", "file:", "file:~"])
def test_names_in_sources(form: str, kind: str) -> None:
    with pytest.raises(DataError):
        data.sources.open_source(form + NAMES[kind])


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("form", ["", "file:", "file:~", "gpt2-files:", "gpt2-files:~", "bpe:"])
def test_names_in_tokenizers(form: str, kind: str) -> None:
    with pytest.raises(DataError):
        data.tokenizer.open_tokenizer(form + NAMES[kind])


# sizes and depths


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    header = "Step,Loss,UniquePredictions,LR,WD\n"
    path = tmp_path / "x.csv"
    for number, content in enumerate(("1" * 2_000_000, header + "1" * 3_000_000, "title\n" + "S" * 2_000_000), 1):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(RecordError, match="a line of more than 1,048,576 bytes"):
            read(path)
        if number == 2:
            assert f"{path}:2: a line of more than" in refused(call("analyze", path))
    path.write_text(header + "1,2,3,0,0\n" * 200_000 + "1" * 3_000_000, encoding="utf-8")
    with pytest.raises(RecordError, match="Step 1 repeated"):
        read(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no endless file here")
def test_a_file_without_end_is_refused() -> None:
    assert "/dev/zero:1: a line of more than" in refused(call("analyze", "/dev/zero"))


def test_hundreds_of_thousands_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    names = ",".join(f"c{number}" for number in range(100_000))
    path.write_text(f"Step,Loss,UniquePredictions,LR,WD,{names},c1\n1,2,3,0,0,{',' * 100_000}\n", encoding="utf-8")
    with pytest.raises(RecordError, match="duplicate columns: 'c1'"):
        read(path)


DEEP = 200_000


@pytest.mark.parametrize("name", ["run.json", "verdict.json"])
@pytest.mark.parametrize("content", ["[" * DEEP, '{"a":' * DEEP, "1" * 10_000, '{"verdict": NaN}', "null", '"x"'])
def test_json_that_is_too_deep_or_too_long(name: str, content: str, tmp_path: Path) -> None:
    path = simple_run(tmp_path, quick())
    if name == "run.json":
        path.with_suffix("").joinpath(name).write_text(content, encoding="utf-8")
        refused(call("analyze", path))
    else:
        Path(name).write_text(content, encoding="utf-8")
        refused(call("analyze", path, "--verdict", name, "--html", "page.html"))


@pytest.mark.parametrize(
    "verdict",
    [
        {"verdict": 5},
        {"verdict": "x", "reasons": 5},
        {"verdict": "x", "reasons": [5]},
        {"verdict": "x", "notes": None},
        {"verdict": "x", "sizes": [{}]},
        {"verdict": "x", "sizes": ["y"]},
        {"verdict": "x", "checks": {"a": 1}},
        {"verdict": "x", "runs": [[]]},
        {"verdicts": {"verdict": "x"}},
    ],
)
def test_verdicts_of_another_shape(verdict: Any, tmp_path: Path) -> None:
    path = simple_run(tmp_path, quick())
    Path("verdict.json").write_text(json.dumps(verdict), encoding="utf-8")
    assert "not what" in refused(call("analyze", path, "--verdict", "verdict.json", "--html", "page.html"))


def test_a_tokenizer_with_huge_ids() -> None:
    from tokenizers import Tokenizer, models

    # written by hand: the library walks through all the ids between when it writes
    text = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).to_str()
    Path("tokenizer.json").write_text(text.replace('"b":1', '"b":4294967294'), encoding="utf-8")
    with pytest.raises(DataError, match="token ids up to 4294967294, beyond 4194303"):
        data.tokenizer.open_tokenizer("file:tokenizer.json")


# spreadsheets

FORMULAS = ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", "-2x", "＝1+1", "+", "-")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_defused(text: str) -> None:
    assert defused(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["-1.5", "+2", "-1e-3", ".5", "-.5e+7", "1.", "0", "", "a=1", "'=1", "wd=0", "–", "−∞"]
)
def test_numbers_and_words_stay(text: str) -> None:
    assert defused(text) == text


def formula_runs(folder: Path) -> list[Path]:
    """Write runs whose names are formulas, and one whose name is a number."""
    folder.mkdir()
    names = [text for text in FORMULAS if not set(text) & set("/\t\r\n|")] + ["-1.5"]
    rows = curve((1, 1000), HeldOutLoss=(7.5, -1.5), ZeroFraction=(0.3, None))
    return [write_csv(folder / f"{name}.csv", rows) for name in names]


def test_the_export_holds_every_fact_and_no_formula(tmp_path: Path) -> None:
    paths = formula_runs(tmp_path / "runs")
    done = call("analyze", *paths, "--csv", "facts.csv", "--json")
    assert (done.code, done.err) == (ExitCode.SUPPORTED, "written: facts.csv\n")
    with Path("facts.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    facts = done.json["runs"]
    assert header == list(facts[0])
    assert len(rows) == len(facts) == len(paths)
    for row, fact in zip(rows, facts, strict=True):
        for text, value in zip(row, fact.values(), strict=True):
            match value:
                case None:
                    assert text == ""
                case bool():
                    assert text == str(value).lower()
                case int() | float():
                    assert float(text) == value
                case _:
                    assert text == defused(value)
                    assert not text.startswith(("=", "@")) or text == "-1.5"
    exported = {row[header.index("name")] for row in rows}
    assert {"'=1+1", "'@SUM(A1)", "-1.5"} <= exported
    assert {row[header.index("final_held_out_loss")] for row in rows} == {"-1.5"}


def test_cells_of_reports_are_defused(tmp_path: Path) -> None:
    paths = formula_runs(tmp_path / "runs")
    found = study(load_runs(paths))
    cells = [line.split(" | ")[0].removeprefix("| ") for line in markdown_report(found).splitlines() if " | " in line]
    assert {"'=1+1", "'@SUM(A1)", "-1.5"} <= set(cells)
    assert not any(cell.startswith(("=", "@", "+")) for cell in cells)
    assert call("analyze", *paths, "--html", "page.html").code == ExitCode.SUPPORTED
    page = Path("page.html").read_text(encoding="utf-8")
    assert ">&#x27;=1+1</td>" in page
    assert ">=1+1</td>" not in page
    assert ">-1.5</td>" in page
    xml = junit_xml([judge(load_runs(paths), load_criteria("origin"), arm="unknown")])
    assert 'classname="\'=1+1"' in xml
    assert 'classname="="' not in xml


# what a page shows stays text

MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>"


def test_every_text_of_a_manifest_is_escaped(tmp_path: Path) -> None:
    run = origin_run(
        tmp_path,
        CURED,
        "failed",
        message=MARKUP,
        device=MARKUP,
        git={"commit": MARKUP},
        versions={MARKUP: MARKUP},
        plugins=[{"name": MARKUP, "module": MARKUP, "source_sha256": MARKUP, "settings": {MARKUP: MARKUP}}],
        pack=[MARKUP],
    )
    other = bare_run(tmp_path, CURED, name="<script>alert(2)<.csv", seed=1)
    done = call("analyze", run.path, other.path, "--html", "page.html", "--markdown", "report.md")
    assert done.code == ExitCode.SUPPORTED
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2
    assert "<img" not in page
    assert "<script" not in Path("report.md").read_text(encoding="utf-8").replace(r"\<", "")
    assert "source_sha256" in page


def test_a_hostile_arm_or_setting_is_refused_before_it_is_shown() -> None:
    for arm in (MARKUP, f"no-decay:{MARKUP}=1", "no-decay+=cmd"):
        refused(call("config", "show", "-i", arm))
