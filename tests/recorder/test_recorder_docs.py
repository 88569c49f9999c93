"""The programs of the documentation run, at a smaller size."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitnetctl import load_runs

DOCS = Path(__file__).parents[2] / "docs"


def test_the_loop_of_the_page_records_its_seeds() -> None:
    page = (DOCS / "recorder.md").read_text(encoding="utf-8")
    loop, *others = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(others) == 3
    for long, short in (("STEPS, LENGTH = 200", "STEPS, LENGTH = 20"), ("range(5)", "range(2)"), ("=2048", "=256")):
        assert long in loop
        loop = loop.replace(long, short)
    exec(compile(loop, "recorder.md", "exec"), {})
    runs = load_runs("runs")
    assert [run.seed for run in runs] == [0, 1]
    for run in runs:
        assert run.steps.tolist() == [1, 10, 20]
        assert (run.arm, run.is_complete, run.manifest and run.manifest.status) == ("adamw", True, "finished")
        losses = run.values("HeldOutLoss")
        assert losses[2] < losses[0]
        assert (run.values("HeldOutBitsPerByte") > 0).all()


@pytest.fixture
def recipe(tmp_path: Path, tiny_text: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(f'[data]\nsource = "file:{tiny_text.as_posix()}"\ntokenizer = "bpe:300"\n', encoding="utf-8")
    return str(path)


@pytest.fixture
def example(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Import an example of the documentation."""
    pytest.importorskip({"transformers_training": "accelerate", "lightning_training": "lightning"}[request.param])
    path = DOCS / "examples" / f"{request.param}.py"
    spec = importlib.util.spec_from_file_location(request.param, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[request.param] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[request.param]


def train(example: Any, recipe: str) -> None:
    for arm in example.OPTIMIZERS:
        example.train(arm, 1, Path("runs"), seeds=2, steps=4, hidden=16, recipe=recipe, positions=128)
    runs = load_runs("runs")
    assert {(run.arm, run.seed, run.size, run.planned_steps) for run in runs} == {
        ("adamw", 1, 16, 4),
        ("coupled", 1, 16, 4),
    }
    for run in runs:
        assert run.steps.tolist() == [1, 2, 3, 4]
        assert None not in run.column("Loss")
        assert run.column("WD") == [0.1] * 4


@pytest.mark.parametrize("example", ["transformers_training"], indirect=True)
def test_the_example_for_transformers(example: Any, recipe: str) -> None:
    train(example, recipe)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("example", ["lightning_training"], indirect=True)
def test_the_example_for_lightning(example: Any, recipe: str) -> None:
    train(example, recipe)
    assert all(None not in run.column("ZeroFraction") for run in load_runs("runs"))
