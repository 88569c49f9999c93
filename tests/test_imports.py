"""Imports point one way, and what only judges starts without torch."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitnetctl
from bitnetctl.config import build_config
from bitnetctl.records import NAMES

ROOT = Path(bitnetctl.__file__).parent

# a module, or the modules of a folder, may import what stands in a line above it
ORDER = (
    "bitnetctl",
    "allowance errors escape signals streams units",
    "files hardware",
    "config",
    "locks",
    "records intervention data kernels",
    "model checkpoint",
    "plugins analysis",
    "engine verdict",
    "claims",
    "inference",
    "formats",
    "trainer report",
    "sweeps monitor testing recorder",
    "integrations",
    "api",
    "cli",
    "__main__",
)
# the same inside of each folder
INSIDE = {
    "config": ("schema numbers", "load", "arms", "__init__"),
    "records": (
        "schema paths naming encoding foreign one_run",
        "manifest cells metrics samples",
        "dialect",
        "reader writer recorded",
        "checksum logs plausible",
        "find",
        "status run collapse follow",
        "load",
        "provenance distinct",
        "siblings",
        "membership",
        "planned",
        "inventory",
        "bundle __init__",
    ),
    "data": (
        "listing bpe token_file",
        "inspection duplicates token_bytes",
        "documents copies tokenizer",
        "sources",
        "split",
        "store",
        "batches cache_lookup ngrams",
        "probe",
        "__init__",
    ),
    "kernels": ("__init__ lerp", "cross_entropy embedding norm probe rotary ternary", "adam", "finish"),
    "model": (
        "quantization functional parameters",
        "matmul storage",
        "parts",
        "layer",
        "packed",
        "fused kv_cache",
        "__init__",
    ),
    "plugins": (
        "aspects blame values",
        "torch_aspects optimizers",
        "isolation quantizer",
        "composition scaffold project",
        "checked_class",
        "registry",
        "__init__",
    ),
    "analysis": (
        "stats summary factors text_quality",
        "wording least_squares arms odd_cell",
        "permutation effects finding_wording",
        "interaction agreement steps_to_loss",
        "anova",
        "findings",
        "study",
        "__init__",
    ),
    "engine": (
        "accumulation optim schedule cost predictions",
        "plugin_optimizer",
        "pack",
        "cuda_graph",
        "fused",
        "select",
        "agreement",
        "selfcheck",
        "__init__",
    ),
    "verdict": (
        "options outcome",
        "rule limits",
        "aggregate",
        "wording",
        "accounting checks",
        "criteria",
        "seeds power decidable",
        "judge",
        "facts",
        "reasons",
        "headline next_step",
        "summary",
        "__init__",
    ),
    "claims": ("claim looks", "judged", "__init__"),
    "inference": (
        "sampling decoding trained quality",
        "sampler",
        "text_stream run_health",
        "generation evaluation",
        "text_samples",
        "__init__",
    ),
    "formats": (
        "exported gates check_inputs hf_files llama_worker model_content refusals targets",
        "gguf_vocabulary safetensors_reader",
        "gguf_layout hf_config stated",
        "hf_layout sensitivity",
        "hf_reload gguf_file llama_cpp bitnetctl_safetensors masters consistency",
        "hf_card hf_read",
        "hf_check",
        "gguf hf reading packed_from_file",
        "__init__",
    ),
    "trainer": (
        "options resolved events evaluate provenance",
        "artifacts extend import_model",
        "loop resume",
        "factory",
        "__init__",
    ),
    "report": (
        "fold columns seed_plot",
        "fitted head claim mean_curves",
        "texts figure",
        "html trajectory markdown plots summary_csv junit figure_drawing",
        "screen claim_text",
        "terminal verification",
        "overview",
        "__init__",
    ),
    "recorder": ("probe", "measure files", "recorder", "__init__"),
    "integrations": ("base", "transformers lightning", "__init__"),
    "sweeps": ("plan queue packing executors", "search executor", "__init__"),
    "monitor": ("text view", "lines", "board", "table", "curves", "screen", "live", "console", "__init__"),
    # a command imports no other command
    "cli": (
        "options",
        "training requested inputs generation_output",
        "judging claim_runs claim_seeds searching",
        "claiming",
        "config eval export importing interventions library analyze power generate train sweep verify",
        "__init__",
    ),
}
RANKS = {name: rank for rank, line in enumerate(ORDER) for name in line.split()}
JUDGING = {
    *(
        "analysis",
        "claims",
        "config",
        "errors",
        "escape",
        "files",
        "locks",
        "monitor",
        "records",
        "report",
        "streams",
        "units",
        "verdict",
    )
}
TRAINER_LIBRARIES = {"torch", "safetensors", "tokenizers"}


def unit(module: str) -> str:
    """Return a module's name in ORDER: its own, or that of its folder."""
    return module.split(".")[1] if "." in module else module


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield full names of what a module imports, in functions too; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package.rsplit(".", level - 1)[0] if level else ""
                full = ".".join(part for part in (base, module) if part)
                yield from (f"{full}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Name(id="__import__") | ast.Attribute(attr="import_module") | ast.Name(id="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def read(root: Path, name: str) -> dict[str, set[str]]:
    """Return the imports of every module below `root`, a package called `name`."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = [name, *path.relative_to(root).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        package = module if is_package else module.rpartition(".")[0]
        modules[module] = set(imported(ast.parse(path.read_text(encoding="utf-8")), package))
    return modules


IMPORTS = read(ROOT, "bitnetctl")


def units(module: str) -> set[str]:
    """Return what a module imports of bitnetctl, as names of ORDER."""
    own = {name for name in IMPORTS[module] if name.partition(".")[0] == "bitnetctl"}
    # what is no module is an attribute of the package itself, such as its version
    names = {unit(name) if ".".join(name.split(".")[:2]) in IMPORTS else "bitnetctl" for name in own}
    return names - {unit(module)}


def test_the_walker_sees_every_form_of_import() -> None:
    code = """
import a.b, c
from d.e import f
from . import g
from .h import i
from ..j import k
def function():
    import l
    if x:
        from m import n
    importlib.import_module("o.p")
    __import__("q")
"""
    names = set(imported(ast.parse(code), "top.sub"))
    assert names == {"a.b", "c", "d.e.f", "top.sub.g", "top.sub.h.i", "top.j.k", "l", "m.n", "o.p", "q"}


def test_every_module_has_its_place() -> None:
    assert {unit(module) for module in IMPORTS} == set(RANKS)
    assert len(RANKS) == sum(len(line.split()) for line in ORDER)


@pytest.mark.parametrize("module", IMPORTS)
def test_imports_point_downwards(module: str) -> None:
    upwards = {name for name in units(module) if RANKS[name] >= RANKS[unit(module)]}
    # the package itself offers lazily what the commands are made of
    assert upwards <= ({"api"} if module == "bitnetctl" else set()), f"{module} may not import {upwards}"


def inside(module: str) -> str:
    """Return a module's name in INSIDE: its own, that of its folder's folder, or `__init__`."""
    return (*module.split("."), "__init__")[2]


@pytest.mark.parametrize("folder", sorted({unit(module) for module in IMPORTS if module.count(".") > 1}))
def test_imports_inside_a_folder_point_downwards(folder: str) -> None:
    ranks = {name: rank for rank, line in enumerate(INSIDE[folder]) for name in line.split()}
    modules = [module for module in IMPORTS if unit(module) == folder]
    assert {inside(module) for module in modules} == set(ranks)
    for module in modules:
        own = {name for name in IMPORTS[module] if name.startswith(f"bitnetctl.{folder}.")}
        below = {inside(name) for name in own} & set(ranks) - {inside(module)}
        upwards = {name for name in below if ranks[name] >= ranks[inside(module)]}
        assert not upwards, f"{module} may not import {upwards}"


def test_commands_that_judge_reach_the_trainer_through_what_trains_only() -> None:
    assert units("bitnetctl.cli.analyze") <= JUDGING | {"api"}
    for module in ("verify", "claiming"):
        assert units(f"bitnetctl.cli.{module}") <= JUDGING | {"api", "sweeps", "trainer", "plugins", "signals"}


def test_the_order_is_that_of_the_design() -> None:
    chains = (
        "cli sweeps trainer engine model config errors",
        "trainer engine plugins intervention config errors",
        "engine data config errors",
        "trainer plugins records files errors",
        "cli report verdict analysis records config errors",
        "monitor trainer records",
    )
    for chain in chains:
        ranks = [RANKS[name] for name in chain.split()]
        assert ranks == sorted(set(ranks), reverse=True), chain


def test_the_judging_side_knows_nothing_of_the_trainer() -> None:
    seen: set[str] = set()
    for module, names in IMPORTS.items():
        if unit(module) in JUDGING:
            seen.add(unit(module))
            others = units(module) - JUDGING - {"bitnetctl"}
            # what happens in a training is plain data
            events = {name for name in names if name.startswith("bitnetctl.trainer.")}
            assert others <= {"trainer"}, module
            assert all(name.startswith("bitnetctl.trainer.events.") for name in events), module
            assert not {name.partition(".")[0] for name in names} & TRAINER_LIBRARIES, module
    assert seen == JUDGING


def test_folders_of_the_trainer_load_nothing_by_themselves() -> None:
    for folder in ("engine", "formats", "inference", "model", "monitor", "plugins", "sweeps", "trainer"):
        assert (ROOT / folder / "__init__.py").read_bytes() == b""


def test_core_names_no_concrete_intervention() -> None:
    for module, names in IMPORTS.items():
        assert not any(name.partition(".")[0] == "bitnetctl_interventions" for name in names), module


def test_interventions_need_no_more_than_the_seams() -> None:
    import bitnetctl_interventions

    folder = Path(next(iter(bitnetctl_interventions.__path__)))
    for module, names in read(folder, "bitnetctl_interventions").items():
        own = {unit(name) for name in names if name.partition(".")[0] == "bitnetctl"}
        assert own <= {"config", "errors", "intervention"}, module


def heavy_after(code: str, *arguments: str, code_expected: int = 0) -> list[str]:
    """Run code in a fresh interpreter and return which heavy libraries it has loaded."""
    report = "import sys; print(*sorted({'torch', 'pandas', 'scipy', 'tokenizers'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("BITNETCTL_")},
    )
    assert done.returncode == code_expected, done.stderr
    return done.stdout.splitlines()[-1].split()


def test_the_command_line_and_the_library_start_light() -> None:
    assert heavy_after("import bitnetctl.cli") == []
    assert heavy_after("import bitnetctl; bitnetctl.load_recipe('quick'); bitnetctl.train") == []


def test_a_command_line_loads_what_it_shows_when_it_shows_it() -> None:
    code = "import sys, bitnetctl.cli; print(*{name.split('.')[1] for name in sys.modules if 'bitnetctl.' in name})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"report", "verdict", "monitor", "engine"} & set(done.stdout.split())


def test_the_probe_for_heavy_imports_works() -> None:
    assert "pandas" in heavy_after("import pandas")


def test_judging_loads_no_torch(tmp_path: Path) -> None:
    config = build_config("quick", steps=20)
    values = {"Step": "20", "Loss": "5.0", "UniquePredictions": "90", "LR": "0.1", "WD": "0", "ProbePositions": "256"}
    row = ",".join(values.get(name, "") for name in NAMES)
    (tmp_path / f"{config.run_name}.csv").write_text(f"{','.join(NAMES)}\n{row}\n", encoding="utf-8")
    code = "import sys; from bitnetctl.cli import run; assert run(sys.argv[1:]) in (0, 1, 4, 5)"
    arguments = ["verify", "--recipe", "quick", "--steps", "20", "--no-train", "--runs-dir", str(tmp_path)]
    bundle, junit, csv = str(tmp_path / "all.zip"), str(tmp_path / "junit.xml"), f"{tmp_path / config.run_name}.csv"
    for command in (
        arguments,
        [*arguments, "--json"],
        ["verify", csv, "--bundle", bundle, "--junit", junit, "--report", str(tmp_path / "report.md")],
        ["verify", bundle],
        ["analyze", csv],
    ):
        assert not {"torch", "tokenizers"} & set(heavy_after(code, *command))
