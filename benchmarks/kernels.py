"""Nodes and bytes of one captured step: how many kernels it launches, and what they read and write.

    python -m benchmarks.kernels [--recipe origin] [--runs 1,16] [--engines graph,compile,fused] [--precision bf16]
        [--top N] [--device auto] [--json FILE] [model.hidden_size=256 …]

Bytes are counted from the stream of operators of a step on tensors without data, so they need neither a GPU nor the
memory of the pack: an operator reads its arguments and writes its results once, a table read at an index counts the
rows that are read, a view counts nothing. Our own Triton kernels are no operators: a public function of
`bitnetctl.kernels` reads its tensor arguments once, or as ACCESS says, and writes what it returns. What torch.compile
has fused is not seen at all. Nodes are those of the CUDA graph of a real step, so they need a GPU; the launches of the
stream come close, without a GPU with attention and the embeddings' gradient as the CPU has them.
"""

import argparse
import contextlib
import ctypes
import functools
import importlib
import inspect
import json
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import bitnetctl.kernels
from benchmarks import harness
from benchmarks.step import VOCABULARIES
from benchmarks.worker import zipf_tokens
from bitnetctl.config import RunConfig, build_config
from bitnetctl.engine import cuda_graph
from bitnetctl.engine.cuda_graph import CapturedPack, GraphCache
from bitnetctl.engine.select import Engine, Execution, captured_pack, choose
from bitnetctl.errors import ConfigError
from bitnetctl.hardware import onednn_keeps_fp32, release_unused
from bitnetctl.model import functional
from bitnetctl.model.matmul import Precision
from bitnetctl.model.parts import Part, supported_parts
from bitnetctl.plugins.composition import Composition


class Access(NamedTuple):
    """Arguments that do not count once: `updated` twice, `read_twice` too where `unless` is None, `few` not at all."""

    updated: tuple[str, ...] = ()
    # counted once, as what is read is
    written: tuple[str, ...] = ()
    read_twice: tuple[str, ...] = ()
    few: tuple[str, ...] = ()
    unless: str = ""


# by module.function; what a function returns is written anyway
ACCESS = {
    "adam.adam_": Access(updated=("weight_RS", "exp_avg_RS", "exp_avg_sq_RS"), written=("copy_RS",)),
    "adam.adam_tiles_": Access(updated=("weight_RS", "exp_avg_RS", "exp_avg_sq_RS"), written=("sums_RT",)),
    "adam.adam_rows_": Access(updated=("weight_RVH", "exp_avg_RVH", "exp_avg_sq_RVH", "slots_RV")),
    "cross_entropy.cross_entropy_": Access(written=("grad_RNV",)),
    "embedding.add_rows_": Access(few=("table_RVH",)),
    "embedding.embedding_rows": Access(few=("slots_RV",)),
    "finish.finish_step": Access(few=("rates_SR", "decays_SR", "steps_S", "metrics_S3R")),
    "norm.norm_quantize_backward": Access(written=("partials_KRPF", "copy_RNF")),
    "probe.add_predictions": Access(updated=("softmax_RV", "counts_RV"), read_twice=("logits_RNV",)),
    "rotary.rotate_": Access(updated=("qkv_RNO",)),
    "ternary.ternary_": Access(written=("out_RS",), read_twice=("flat_RS",), unless="sums_RT"),
}
# operators that move nothing
_VIEWS = {"view", "_unsafe_view", "unflatten", "_reshape_alias", "as_strided", "alias", "detach", "lift_fresh"}
_VIEWS |= {"unsqueeze", "squeeze", "select", "slice", "transpose", "t", "expand", "permute"}
_VIEWS |= {"unbind", "split", "split_with_sizes", "chunk"}
_FACTORIES = {"empty", "new_empty", "empty_strided", "empty_like", "new_empty_strided"}
_OVERWRITING = {"zero_", "fill_", "copy_", "_foreach_copy_", "_foreach_zero_"}
# DRAM hands out no less than a sector
_SECTOR = 32
# steps until a step is captured and replayed
_STEPS = 6


class UnknownEngineError(Exception):
    """This version or machine does not have the engine."""


def main() -> int:
    """Count and print."""
    parser = harness.argument_parser(__doc__)
    harness.add_device(parser, default="auto")
    parser.add_argument("--recipe", choices=sorted(VOCABULARIES), default="origin")
    parser.add_argument("--runs", default="1,16", metavar="LIST", help="runs of each pack")
    parser.add_argument("--engines", default="graph,compile,fused", metavar="LIST")
    parser.add_argument("--precision", choices=get_args(Precision), default="bf16")
    parser.add_argument("--top", type=int, default=12, metavar="N", help="operators in the second table")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="change the model or batch")
    arguments = parser.parse_args()
    sizes = [1] if arguments.quick else [int(size) for size in arguments.runs.split(",")]
    rows, operators, notes = table(arguments, arguments.engines.split(","), sizes)
    harness.report("operators by bytes a parameter", operators, {}, None)
    title, metadata = f"kernels: recipe {arguments.recipe}", {**harness.machine(arguments.device), **notes}
    harness.report(f"{title}, {arguments.precision}", rows, metadata, None)
    if arguments.json is not None:
        content = {"title": title, "rows": rows, "operators": operators, **metadata}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def table(
    arguments: argparse.Namespace, engines: Sequence[str], sizes: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, str]]:
    """Return a row for each engine and size, the operators with the most bytes, and why some are missing."""
    config = build_config(arguments.recipe, overrides=arguments.overrides)
    vocab_size, device = VOCABULARIES[arguments.recipe], arguments.device
    rows: list[dict[str, Any]] = []
    operators: list[dict[str, Any]] = []
    notes: dict[str, str] = {}
    columns = ("nodes", "launches of the stream", "GB a step", "bytes a parameter")
    for engine in engines:
        for runs in sizes:
            name, row = f"{engine}, {runs} runs", {"engine": engine, "runs": runs, **dict.fromkeys(columns)}
            try:
                if device.type == "cuda":
                    row["nodes"] = captured_nodes(config, vocab_size, device, engine, arguments.precision, runs)
                if engine != "compile":
                    traffic, parameters = counted(config, vocab_size, device, engine, arguments.precision, runs)
                    row["launches of the stream"] = sum(traffic.launches.values())
                    row["GB a step"] = traffic.total / 1e9
                    row["bytes a parameter"] = traffic.total / parameters
                    operators += _top(name, traffic, parameters, arguments.top)
            except (UnknownEngineError, ConfigError, torch.OutOfMemoryError) as error:
                notes[name] = str(error)
            rows.append(row)
    if "compile" in engines:
        notes["compile"] = "its bytes are those of kernels that Inductor writes, which are not counted"
    return rows, operators, notes


def _top(name: str, traffic: "Traffic", parameters: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "step": name,
            "operator": operator,
            "launches": traffic.launches[operator],
            "MB": size / 1e6,
            "bytes a parameter": size / parameters,
        }
        for operator, size in traffic.bytes.most_common(count)
    ]


def counted(
    config: RunConfig, vocab_size: int, device: torch.device, engine: str, precision: Precision, runs: int
) -> tuple["Traffic", int]:
    """Return the traffic of a step of a pack without data, and the parameters of its runs; raises what `_pack` does."""
    traffic = Traffic()
    # asked of a real matmul, once in a process
    onednn_keeps_fp32()
    with _without_graphs(), _without_launches(traffic), FakeTensorMode(allow_non_fake_inputs=True):
        pack = _pack(config, vocab_size, device, engine, precision, runs)
        # Adam allocates its moments, and the tables are filled
        pack.step(1)
        with counting_kernels(traffic), traffic:
            traffic.start()
            pack._step_on_device(pack._keys[0])
    return traffic, pack.model.num_parameters * runs


def _pack(
    config: RunConfig, vocab_size: int, device: torch.device, engine: str, precision: Precision, runs: int
) -> CapturedPack:
    """Return a pack whose step runs on the device; raises UnknownEngineError."""
    if engine not in get_args(Engine) or engine == "eager":
        raise UnknownEngineError(f"this version has no engine {engine} that captures a step")
    configs = [config.model_copy(update={"seed": seed}) for seed in range(runs)]
    kernels = supported_parts(config.model, precision) if engine == "fused" else frozenset[Part]()
    execution = Execution(engine=engine, precision=precision, kernels=kernels)  # type: ignore[arg-type]
    compositions, tokens = [Composition() for _ in configs], zipf_tokens(vocab_size, config)
    try:
        return captured_pack(configs, compositions, tokens, device, execution)
    except ImportError as error:
        raise UnknownEngineError(f"engine {engine} needs what is not installed: {error}") from error


@contextlib.contextmanager
def _without_graphs() -> Iterator[None]:
    """Let packs run their steps uncaptured, and keep no cached constant without data."""
    kept = cuda_graph.GraphCache
    functional.cached_constant.cache_clear()
    cuda_graph.GraphCache = lambda device: None  # type: ignore[assignment,misc,return-value]
    try:
        yield
    finally:
        cuda_graph.GraphCache = kept  # type: ignore[misc]
        functional.cached_constant.cache_clear()


@contextlib.contextmanager
def _without_launches(traffic: "Traffic") -> Iterator[None]:
    """Count the launches of Triton kernels instead of running them: there is no data."""
    try:
        jit, interpreter = (importlib.import_module(f"triton.runtime.{name}") for name in ("jit", "interpreter"))
    except ImportError:
        yield
        return
    kept = {each: each.run for each in (jit.JITFunction, interpreter.InterpretedFunction)}

    def launch(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        traffic.launched(getattr(kernel, "__name__", None) or kernel.fn.__name__)

    for each in kept:
        each.run = launch
    try:
        yield
    finally:
        for each, run in kept.items():
            each.run = run


class Traffic(TorchDispatchMode):
    """Adds up what operators read and write, by their name, once it is started."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self._is_on = False
        # the function of ours that runs
        self.within: str | None = None

    @property
    def total(self) -> int:
        """Bytes read and written by everything."""
        return sum(self.bytes.values())

    def start(self) -> None:
        """Count from here on."""
        self._is_on = True

    def moved(self, name: str, size: int) -> None:
        """Add the bytes of a call."""
        if self._is_on:
            self.bytes[name] += size

    def launched(self, name: str) -> None:
        """Add a launch of a kernel, by a function of ours or by itself."""
        if self._is_on:
            self.launches[self.within or name] += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        namespace, _, name = func._schema.name.partition("::")
        # prim: questions about a tensor, such as its device
        if namespace != "prim" and name not in _VIEWS and name not in _FACTORIES:
            values = {**dict(zip((each.name for each in func._schema.arguments), args, strict=False)), **kwargs}
            self.moved(name, operator_bytes(name, func._schema.arguments, values, out))
            self.launched(name)
        return out


def operator_bytes(name: str, arguments: Sequence[Any], values: Mapping[str, Any], out: Any) -> int:
    """Return what an operator reads and writes; `values` are its arguments by name."""
    match name:
        case "_fused_adam_" | "_fused_adamw_":
            size = nbytes(values["self"])
            # weight, gradient and two moments; the gradient is written back where it is scaled
            return (7 + (values.get("grad_scale") is not None)) * size
        case "embedding" | "index" | "index_select":
            return 2 * nbytes(out)
        case "index_put_" | "index_add_":
            return 3 * nbytes(values["values"] if name == "index_put_" else values["source"])
        case "index_copy_":
            return 2 * nbytes(values["source"])
        case "gather" | "scatter_add_":
            rows: int = values["index"].numel()
            return 2 * _SECTOR * rows
    written = [each.name for each in arguments if each.alias_info is not None and each.alias_info.is_write]
    size = nbytes([value for key, value in values.items() if key not in written])
    in_place = name.endswith("_") and name not in _OVERWRITING
    size += (2 if in_place else 1) * nbytes([values.get(key) for key in written])
    return size if written else size + nbytes(out)


def nbytes(tree: Any) -> int:
    """Return the bytes in memory of all tensors in a tree; of an expanded one those that there are."""
    total = 0
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            size = leaf.element_size()
            for length, stride in zip(leaf.shape, leaf.stride(), strict=True):
                size *= length if stride else min(length, 1)
            total += size
    return total


@contextlib.contextmanager
def counting_kernels(traffic: Traffic) -> Iterator[None]:
    """Count the calls of the public functions of `bitnetctl.kernels`, wherever they have been imported."""
    wrapped = {
        function: _counted(function, f"{module.__name__.rpartition('.')[2]}.{name}", traffic)
        for module in _kernel_modules()
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    }
    places = [
        (module, name, value)
        for module in [each for key, each in sys.modules.items() if key.partition(".")[0] == "bitnetctl"]
        for name, value in list(vars(module).items())
        if inspect.isfunction(value) and value in wrapped
    ]
    for module, name, value in places:
        setattr(module, name, wrapped[value])
    try:
        yield
    finally:
        for module, name, value in places:
            setattr(module, name, value)


def _kernel_modules() -> list[Any]:
    found = pkgutil.iter_modules(bitnetctl.kernels.__path__, "bitnetctl.kernels.")
    return [importlib.import_module(each.name) for each in found]


def _counted(function: Callable[..., Any], name: str, traffic: Traffic) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if traffic.within is not None:
            # a part of the function that calls it
            return function(*args, **kwargs)
        traffic.within = name
        try:
            out = function(*args, **kwargs)
        finally:
            traffic.within = None
        traffic.moved(name, _function_bytes(name, dict(signature.bind(*args, **kwargs).arguments), out))
        return out

    return call


def _function_bytes(name: str, values: Mapping[str, Any], out: Any) -> int:
    """Return what a function of ours reads and writes: an argument that it also returns is counted once."""
    access = ACCESS.get(name, Access())
    given = {id(leaf) for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}
    size = nbytes([value for key, value in values.items() if key not in access.few])
    again = () if values.get(access.unless) is not None else access.read_twice
    size += nbytes([values.get(key) for key in (*access.updated, *again)])
    return size + nbytes([leaf for leaf in tree_leaves(out) if id(leaf) not in given])


def captured_nodes(
    config: RunConfig, vocab_size: int, device: torch.device, engine: str, precision: Precision, runs: int
) -> int | None:
    """Return the nodes of a step's CUDA graph, None where there is none; raises what `_pack` and `choose` raise."""
    choose(config, vocab_size, device, engine, precision)
    with keeping_graphs():
        pack = _pack(config, vocab_size, device, engine, precision, runs)
        for step in range(1, _STEPS + 1):
            pack.step(step)
        pack.wait()
    nodes = step_nodes(pack.graphs)
    del pack
    release_unused(device)
    return nodes


@contextlib.contextmanager
def keeping_graphs() -> Iterator[None]:
    """Let torch keep the graphs captured within, so that their nodes can be counted."""
    kept = torch.cuda.CUDAGraph
    torch.cuda.CUDAGraph = functools.partial(kept, keep_graph=True)  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        torch.cuda.CUDAGraph = kept  # type: ignore[misc]


def step_nodes(graphs: GraphCache | None) -> int | None:
    """Return the nodes of the last graph of a cache, captured within `keeping_graphs`; None if there is none."""
    if graphs is None or not graphs._graphs:
        return None
    handle = next(reversed(graphs._graphs.values())).raw_cuda_graph()
    count = ctypes.c_size_t()
    # torch has loaded the runtime with global symbols
    status = ctypes.CDLL(None).cudaGraphGetNodes(ctypes.c_void_p(handle), None, ctypes.byref(count))
    return None if status else count.value


if __name__ == "__main__":
    raise SystemExit(main())
