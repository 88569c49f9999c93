"""Pickles and files that run code when they are read: they are refused, and no module could run them."""

import ast
import gzip
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calling import call
from configs import TinyConfig
from hostile import environment as environment, refused, settings
from synthetic import quick, simple_run

from bitnetctl import data
from bitnetctl.errors import DataError

CODE = ("bitnetctl", "bitnetctl_interventions")


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
    content = gzip.compress(BOMBS[kind], mtime=0) if name == "x.jsonl.gz" else BOMBS[kind]
    Path(name).write_bytes(content)
    with pytest.raises(DataError):
        data.prepare(tiny_config(data__source=f"file:{name}").data)


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("name", ["meta.json", "tokenizer.json", "train.bin", "held_out.bin"])
def test_a_pickle_in_the_token_cache_is_rebuilt(
    name: str, kind: str, tiny_config: TinyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = data.prepare(tiny_config().data)
    path = first.tokenizer_path.with_name(name)
    content = path.read_bytes()
    # of the same size, so that only its hash differs
    path.write_bytes((BOMBS[kind] * (len(content) // len(BOMBS[kind]) + 1))[: len(content)])
    steps: list[str] = []
    again = data.prepare(tiny_config().data, progress=lambda what, *_: steps.append(what))
    assert any("rebuilding the damaged token cache" in step for step in steps)
    assert again.fingerprint == first.fingerprint
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", BOMBS)
def test_pickled_references_are_counted_again(
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
    # no run is started
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
            calls = list(dangers(ast.parse(path.read_text(encoding="utf-8"))))
            assert not calls, f"{path}: {calls}"
