"""Fixtures: an isolated cache and folder, a tiny text, tiny runs on it, and made-up plug-ins."""

import itertools
import os
import random
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# before the import of transformers, whose BitNet layers would be compiled for a minute
os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

if not torch.cuda.is_available():
    # before the import of Triton: its kernels then run in Python, on tensors of the CPU
    os.environ["TRITON_INTERPRET"] = "1"
    import interpreted

    interpreted.mend()

from distributions import HALVED, Distribution, forget_plugins
from hypothesis import settings
from packs import PackArms, compose
from texts import prose
from training import open_trainer

from bitnetctl import data
from bitnetctl.config import RunConfig, build_config, parse_arm
from bitnetctl.data import ProbeData, TokenData
from bitnetctl.engine.pack import Pack
from bitnetctl.trainer import loop
from bitnetctl.trainer.events import Event
from bitnetctl.trainer.loop import Trainer
from bitnetctl.trainer.options import TrainOptions

pytest_plugins = ("calling", "run_files", "sweeping", "tiny_runs")

# reproducible examples, no files in the checkout, no time limits on a shared machine
settings.register_profile("tests", derandomize=True, database=None, deadline=None)
settings.load_profile("tests")


def pseudo_english(characters: int, seed: int = 0) -> str:
    """Sentences of made-up words with Zipf-distributed frequencies."""
    generator = random.Random(seed)
    syllables = [a + b for a in "bcdfglmnprstw" for b in ("a", "e", "i", "o", "u", "en", "ing", "er")]
    words = ["".join(generator.choices(syllables, k=generator.randint(1, 3))) for _ in range(600)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    lines, length = [], 0
    while length < characters:
        line = " ".join(generator.choices(words, weights, k=generator.randint(4, 14))).capitalize() + ".\n"
        lines.append(line)
        length += len(line)
    return "".join(lines)


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Enable them again: training disables them for the process, and hypothesis needs them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Use one thread, for sums in a fixed order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache folder of all tests, so that the tiny text is encoded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use neither the user's cache nor the checkout as the current folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def token_cache(tmp_path: Path, isolated: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache; returns its folder of tokens."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bitnetctl" / "tokens"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A text file of 800 lines that the test may edit."""
    path = tmp_path / "corpus.txt"
    path.write_text(prose(800))
    return path


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of about 200 KB; never edited."""
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text(pseudo_english(200_000), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_config(tiny_text: Path) -> Callable[..., RunConfig]:
    """Build a tiny version of the quick recipe; `model__hidden_size=64` overrides `model.hidden_size`."""

    def build(*, arm: str = "", **overrides: Any) -> RunConfig:
        fields = {
            "steps": 12,
            "model__hidden_size": 32,
            "model__num_layers": 2,
            "data__source": f"file:{tiny_text}",
            "data__tokenizer": "bpe:300",
            "data__order": "sequential",
            "data__batch_size": 2,
            "data__sequence_length": 16,
            "schedule__warmup_steps": 2,
            "probe__positions": 128,
            "probe__eval_every_steps": 4,
        } | overrides
        texts = []
        for name, value in fields.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            texts.append(f"{name.replace('__', '.')}={text}")
        return build_config("quick", overrides=texts, interventions=parse_arm(arm))

    return build


@pytest.fixture(scope="session")
def tiny_tokens(tiny_config: Callable[..., RunConfig], shared_cache: Path) -> TokenData:
    """The tokens of the tiny text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        return data.prepare(tiny_config().data)


@pytest.fixture(scope="session")
def tiny_probe(tiny_tokens: TokenData, shared_cache: Path) -> ProbeData:
    """The 128 probe positions of the tiny text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        return data.probe_data(tiny_tokens, positions=128, sequence_length=16)


@pytest.fixture
def double() -> Iterator[None]:
    """Use double precision: float32 noise can flip an int8 rounding, which changes logits by 1e-3."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Event]]:
    """Train one pack under `runs/` and return its events.

    `stop_after` and `crash_after` count the steps of this call; `watch` is called with the trainer and each event.
    """
    # fsync takes half of the time of a tiny run
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def run(
        configs: RunConfig | Sequence[RunConfig],
        *,
        names: Sequence[str] | None = None,
        stop_after: int | None = None,
        crash_after: int | None = None,
        watch: Callable[[Trainer, Event], None] | None = None,
        runs_dir: Path | str = "runs",
        **options: Any,
    ) -> list[Event]:
        configs = [configs] if isinstance(configs, RunConfig) else configs
        step = itertools.count(1)

        def should_stop() -> bool:
            done = next(step)
            if done == crash_after:
                raise SystemError("the machine went down")
            return done == stop_after

        # at every evaluation: the default depends on the time
        options.setdefault("checkpoint_every", configs[0].eval_every_steps)
        chosen = TrainOptions(runs_dir=tmp_path / runs_dir, device="cpu", should_stop=should_stop, **options)
        with open_trainer(configs, chosen, names=names or [config.run_name for config in configs]) as trainer:
            events = []
            for event in loop.train(trainer):
                events.append(event)
                if watch is not None:
                    watch(trainer, event)
            return events

    return run


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Discover plug-ins anew; afterwards forget them and restore modules and sys.path."""
    for name in ("DISABLE_PLUGINS", "ALLOWED_PLUGINS", "TRACEBACK"):
        monkeypatch.delenv(f"BITNETCTL_{name}", raising=False)
    modules, path = dict(sys.modules), list(sys.path)
    forget_plugins()
    yield
    sys.path[:] = path
    for name in set(sys.modules) - set(modules):
        if name.startswith(("made_up", "bitnetctl_")):
            del sys.modules[name]
    sys.modules.update(modules)
    forget_plugins()


@pytest.fixture
def distribution(tmp_path: Path, fresh_registry: None) -> Distribution:
    """Install a distribution: `points` are its entry points, its module is `made_up_NAME`."""

    def install(
        name: str = "halved",
        code: str = HALVED,
        *,
        version: str = "1.2",
        points: Mapping[str, str] | str | None = None,
        folder: str = "site",
    ) -> Path:
        site = tmp_path / folder
        module = f"made_up_{name.replace('-', '_')}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        points = {name: f"{module}:Halved"} if points is None else points
        lines = points if isinstance(points, str) else "".join(f"{key} = {value}\n" for key, value in points.items())
        (info / "entry_points.txt").write_text(f"[bitnetctl.interventions]\n{lines}", encoding="utf-8")
        (site / f"{module}.py").write_text(textwrap.dedent(code), encoding="utf-8")
        if str(site) not in sys.path:
            sys.path.append(str(site))
        forget_plugins()
        return site

    return install


@pytest.fixture
def pack_arms(tiny_tokens: TokenData) -> PackArms:
    """Build a pack of one config under several arms, each with its effective config."""

    def build(config: RunConfig, *arms: str) -> Pack:
        compositions = [compose(arm) for arm in arms]
        configs = [composition.configure(config) for composition in compositions]
        return Pack(configs, compositions, tiny_tokens, torch.device("cpu"))

    return build
