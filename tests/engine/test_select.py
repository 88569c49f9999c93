"""Engine, precision and threads: what is chosen, what is refused, and how closely the precisions agree with fp32."""

import math
import shutil
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from configs import TinyConfig

from bitnetctl.config import RunConfig, build_config, parse_arm
from bitnetctl.data import TokenData
from bitnetctl.engine import select
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.engine.select import Engine, Execution, choose, choose_threads, make_pack
from bitnetctl.errors import ConfigError
from bitnetctl.model.matmul import Matmul, Operand, Precision, Quantization, int8_sum_is_exact
from bitnetctl.model.parts import PARTS
from bitnetctl.plugins.composition import Composition
from bitnetctl.plugins.registry import compose

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TERNARY = Quantization(off=False, quant_lambda_R=None)

# largest difference from fp32 over 20 steps of the tiny run: of the loss in nats, of the gradient norm relative
TOLERANCES: dict[Precision, tuple[float, float]] = {"fp32": (0.0, 0.0), "bf16": (0.03, 0.1), "int8": (0.03, 0.1)}


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Set whether devices have bf16 matmuls."""

    def set_bf16(has: bool) -> None:
        monkeypatch.setattr(select, "has_bf16_matmul", lambda device: has)

    return set_bf16


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set which compilers are installed, and whether Triton is."""
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)

    def install(*names: str, triton: bool = True) -> None:
        monkeypatch.setattr(select, "has_triton", lambda: triton)
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in names else None)

    return install


@pytest.mark.parametrize(
    ("size", "device", "has_bf16", "engine", "precision"),
    [
        (64, CPU, True, "eager", "fp32"),
        (256, CPU, True, "eager", "bf16"),
        (256, CPU, False, "eager", "fp32"),
        (64, GPU, True, "fused", "bf16"),
        (256, GPU, False, "fused", "fp32"),
        (1024, GPU, True, "fused", "bf16"),
    ],
)
def test_choice_by_default(
    bf16: Any, compilers: Any, size: int, device: torch.device, has_bf16: bool, engine: str, precision: str
) -> None:
    bf16(has_bf16)
    compilers("gcc", "g++")
    config = build_config("origin", size=size)
    vocab_size = 2048 if size == 64 else 50257
    chosen = choose(config, vocab_size, device)
    assert (chosen.engine, chosen.precision) == (engine, precision)
    # fp32 matmuls have nothing to cast
    without = {"gradients"} if precision == "fp32" else set()
    assert chosen.kernels == (set(PARTS) - without if engine == "fused" else set())


@pytest.mark.parametrize(
    ("steps", "fields", "precision", "engine"),
    [
        (20_000, {}, "int8", "compile"),
        (2_000, {}, "int8", "graph"),
        (200_000, {"model.hidden_size": "16384"}, "bf16", "compile"),
        (200_000, {}, "bf16", "fused"),
    ],
)
def test_layers_without_kernels_are_compiled_where_it_pays(
    bf16: Any, compilers: Any, steps: int, fields: dict[str, str], precision: str, engine: str
) -> None:
    bf16(True)
    compilers("gcc")
    overrides = [f"{name}={value}" for name, value in (fields | {"steps": str(steps)}).items()]
    config = build_config("origin", overrides=overrides)
    assert choose(config, 50257, GPU, precision=precision).engine == engine
    compilers()
    assert choose(config, 50257, GPU, precision=precision).engine == "graph"


@pytest.mark.parametrize(
    ("requested", "device", "has_bf16", "message"),
    [
        ({"engine": "graph"}, CPU, True, "take eager or compile"),
        ({"engine": "fused"}, CPU, True, "take eager or compile"),
        ({"engine": "fast"}, CPU, True, "unknown; take auto, eager, graph, compile, fused"),
        ({"precision": "bf16"}, CPU, False, "has no bf16 matmuls; take --precision fp32"),
        ({"precision": "int8"}, CPU, True, "take fp32 or bf16"),
        ({"precision": "fp8"}, CPU, True, "unknown; take auto, fp32, bf16, int8"),
    ],
)
def test_what_the_device_cannot_do_is_refused(
    bf16: Any, requested: dict[str, Any], device: torch.device, has_bf16: bool, message: str
) -> None:
    bf16(has_bf16)
    with pytest.raises(ConfigError, match=message):
        choose(build_config("quick"), 2048, device, **requested)


def test_what_is_requested_is_taken(bf16: Any, compilers: Any) -> None:
    bf16(True)
    compilers("g++")
    chosen = choose(build_config("quick"), 2048, CPU, "compile", "bf16")
    assert chosen == Execution(engine="compile", precision="bf16")
    chosen = choose(build_config("quick"), 2048, GPU, "eager", "int8")
    assert chosen == Execution(engine="eager", precision="int8")


@pytest.mark.parametrize(
    ("names", "triton", "variables", "engine"),
    [
        (["gcc"], True, {}, "fused"),
        (["clang"], True, {}, "fused"),
        (["gcc"], False, {}, "graph"),
        # Triton looks for these two only
        (["cc", "g++"], True, {}, "graph"),
        (["icx"], True, {"CC": "icx"}, "fused"),
        (["gcc"], True, {"CC": "icx"}, "graph"),
    ],
)
def test_a_gpu_compiles_only_with_triton_and_a_compiler(
    compilers: Any,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    triton: bool,
    variables: dict[str, str],
    engine: str,
) -> None:
    compilers(*names, triton=triton)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = build_config("origin", size=1024)
    assert choose(config, 50257, GPU, precision="fp32").engine == engine
    if engine == "graph":
        for requested in ("compile", "fused"):
            refusal = rf"^--engine {requested}: cuda needs .+ for it; take --engine graph$"
            with pytest.raises(ConfigError, match=refusal):
                choose(config, 50257, GPU, requested, "fp32")


@pytest.mark.parametrize(
    ("names", "variables", "platform", "missing"),
    [
        (["g++"], {}, "linux", None),
        (["clang++"], {}, "linux", "g++"),
        (["clang++"], {}, "darwin", None),
        (["icpx"], {"CXX": "icpx"}, "linux", None),
        (["g++"], {"CXX": "icpx"}, "linux", "icpx"),
    ],
)
def test_the_cpu_compiles_with_a_cpp_compiler(
    compilers: Any,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    variables: dict[str, str],
    platform: str,
    missing: str | None,
) -> None:
    compilers(*names, triton=False)
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if missing is None:
        assert choose(build_config("quick"), 2048, CPU, "compile", "fp32").engine == "compile"
        return
    with pytest.raises(ConfigError) as caught:
        choose(build_config("quick"), 2048, CPU, "compile", "fp32")
    assert str(caught.value) == (
        f"--engine compile: cpu needs a C++ compiler, {missing} or another in CXX, for it; take --engine eager"
    )


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        (["model.hidden_size=72"], None),
        (["model.hidden_size=72", "model.num_key_value_heads=1"], "a matrix of 108×72 is not made of multiples of 8"),
        (["model.intermediate_ratio=1.05"], "a matrix of 134×64 is not made of multiples of 8"),
        (["data.sequence_length=17"], None),
        (["data.sequence_length=16"], "16 tokens at once are fewer than 17"),
        (["probe.random_prompts=2"], "16 tokens at once are fewer than 17"),
    ],
)
def test_int8_matmuls_need_certain_shapes(bf16: Any, overrides: list[str], refusal: str | None) -> None:
    bf16(True)
    config = build_config("quick", overrides=overrides)
    if refusal is None:
        assert choose(config, 2048, GPU, precision="int8").precision == "int8"
        return
    with pytest.raises(ConfigError) as caught:
        choose(config, 2048, GPU, precision="int8")
    assert str(caught.value) == f"--precision int8: {refusal}; take bf16"


@pytest.mark.parametrize(
    ("device", "engine", "arms", "expected"),
    [
        (GPU, "graph", ["", "label-smoothing"], "captured"),
        (GPU, "compile", ["", ""], "captured"),
        (GPU, "graph", ["", "adaptive-clipping"], "eager"),
        (GPU, "eager", ["", ""], "eager"),
        (CPU, "compile", ["", ""], "eager"),
    ],
)
def test_a_pack_is_captured_where_all_of_its_steps_can_be(
    device: torch.device,
    engine: Engine,
    arms: list[str],
    expected: str,
    tiny_config: TinyConfig,
    tiny_tokens: TokenData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(select, "CapturedPack", lambda *_, **options: ("captured", options["compiled"]))
    monkeypatch.setattr(select, "Pack", lambda *_, **options: ("eager", options["compiled"]))
    compositions = [compose(parse_arm(arm)) for arm in arms]
    made: object = make_pack(
        [tiny_config()] * 2, compositions, tiny_tokens, device, Execution(engine=engine, precision="fp32")
    )
    assert made == (expected, engine == "compile")


def test_only_a_gpu_captures(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    graph = Execution(engine="graph", precision="fp32")
    pack = make_pack([tiny_config()], [Composition()], tiny_tokens, CPU, graph)
    assert not isinstance(pack, CapturedPack)


@pytest.mark.parametrize(
    ("one", "two", "expected"), [(1e-3, 2e-3, 1), (2e-3, 1e-3, 2), (2e-3, 1.9e-3, 1), (9.0, 1.0, 2), (1.0, 4.0, 1)]
)
def test_threads_are_chosen_by_measurement(
    one: float,
    two: float,
    expected: int,
    tiny_config: TinyConfig,
    tiny_tokens: TokenData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.setattr(select, "_step_seconds", lambda pack: {1: one, 2: two}[counts[-1]])
    pack = Pack([tiny_config()], [Composition()], tiny_tokens, CPU)
    assert choose_threads(pack, 2) == expected
    assert counts[-1] == 2
    # slow steps are timed less often, and those that are far behind no more after the first that counts
    behind = max(one, two) > 4 * min(one, two)
    assert len(counts) == (19 if one + two < 1 else 6 if behind else 7)
    assert choose_threads(pack, 1) == 1


@pytest.mark.parametrize(
    ("limit", "tried"), [(2, [2, 1]), (3, [3, 2, 1]), (4, [4, 2, 1]), (6, [6, 4, 2, 1]), (64, [64, 32, 16, 8, 4, 2, 1])]
)
def test_threads_are_tried_in_powers_of_two(
    limit: int, tried: list[int], tiny_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    pack = Pack([tiny_config()], [Composition()], tiny_tokens, CPU)
    for best in tried:
        counts.clear()
        monkeypatch.setattr(select, "_step_seconds", lambda pack, best=best: 1 + abs(math.log2(counts[-1] / best)))
        assert choose_threads(pack, limit) == best
        assert counts[: len(tried)] == tried
        assert counts[-1] == limit


def test_timing_a_step_changes_no_weight(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    timed, plain = (Pack([tiny_config()], [Composition()], tiny_tokens, CPU) for _ in range(2))
    select._step_seconds(timed)
    for pack in (timed, plain):
        pack.step(1)
    for key, packed in plain.model.packed.items():
        assert torch.equal(timed.model.packed[key], packed), key


def train(config: RunConfig, tokens: TokenData, precision: Precision, steps: int = 20) -> list[tuple[float, float]]:
    pack = Pack([config], [Composition()], tokens, CPU, precision=precision)
    metrics = []
    for step in range(1, steps + 1):
        pack.step(step)
        metrics.append((pack.loss_R.item(), pack.grad_norm_R.item()))
    return metrics


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_precisions_agree_within_their_tolerance(
    precision: Precision, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    # widths in multiples of 8 and more than 16 tokens, as int8 matmuls need them
    config = tiny_config(steps=20, model__hidden_size=64, data__batch_size=4)
    loss_tolerance, norm_tolerance = TOLERANCES[precision]
    plain, fast = (train(config, tiny_tokens, each) for each in ("fp32", precision))
    assert fast != plain
    for (loss, norm), (fast_loss, fast_norm) in zip(plain, fast, strict=True):
        assert fast_loss == pytest.approx(loss, abs=loss_tolerance)
        assert fast_norm == pytest.approx(norm, rel=norm_tolerance)
    assert plain[-1][0] < plain[0][0] - 0.2


def operands(precision: Precision, width: int = 96) -> tuple[Matmul, Operand, Operand]:
    generator = torch.Generator().manual_seed(0)
    matmul = Matmul(precision, CPU)
    x = matmul.activations(torch.randn(2, 40, width, generator=generator), TERNARY)
    (weight,) = matmul.weights(torch.randn(2, 1, 48, width, generator=generator), [24, 24], TERNARY)
    return matmul, x, weight


def test_sums_of_int8_times_ternary_are_exact() -> None:
    _, x, weight = operands("int8")
    assert x.values.dtype == weight.values.dtype == torch.int8
    whole = torch.bmm(x.values.double(), weight.values.double().mT)
    assert torch.equal(torch.bmm(x.values.float(), weight.values.float().mT).double(), whole)
    # bf16 holds every code, and its matmuls accumulate in fp32
    assert torch.equal(x.values.to(torch.bfloat16).double(), x.values.double())
    sums = [torch._int_mm(a, b.t()) for a, b in zip(x.values, weight.values, strict=True)]
    assert torch.equal(torch.stack(sums).double(), whole)
    assert int8_sum_is_exact(132_000)
    assert not int8_sum_is_exact(133_000)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-2), ("int8", 1e-6)])
def test_matmuls_are_those_of_double_precision(precision: Precision, tolerance: float) -> None:
    exact, exact_x, exact_weight = operands("fp32")
    expected = torch.bmm(exact_x.values.double(), exact_weight.values.double().mT)
    matmul, x, weight = operands(precision)
    out = matmul.multiply(x, weight).double()
    assert (out - expected).abs().max() < tolerance * expected.abs().max()

    grad = torch.randn(2, 40, 48, generator=torch.Generator().manual_seed(1))
    grad_weight = torch.empty(2, 48, 96)
    matmul.multiply_into(grad_weight, matmul.cast(grad).mT, matmul.dequantize(x))
    grad_x = torch.bmm(matmul.cast(grad), matmul.dequantize(weight))
    grad_x_expected = torch.bmm(grad, exact.dequantize(exact_weight))
    grad_weight_expected = torch.bmm(grad.mT, exact.dequantize(exact_x))
    for ours, theirs in ((grad_x, grad_x_expected), (grad_weight, grad_weight_expected)):
        assert (ours - theirs).abs().max() < max(tolerance, 0.0 if precision == "fp32" else 1e-2) * theirs.abs().max()


def test_a_padded_vocabulary_is_never_seen(
    tiny_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitnetctl.model import packed, storage

    config = tiny_config().model
    plain = packed.PackedModel([config, config], 300, [0, 1], CPU)
    monkeypatch.setitem(storage._VOCABULARY_MULTIPLE, "cpu", 64)
    padded = packed.PackedModel([config, config], 300, [0, 1], CPU)
    tokens_RBT = torch.randint(300, (2, 2, 9), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens_RBT[..., :-1], tokens_RBT[..., 1:].flatten(1)
    assert padded.num_parameters == plain.num_parameters
    torch.testing.assert_close(padded.forward(inputs, [1.0, 1.0]), plain.forward(inputs, [1.0, 1.0]))
    for model in (plain, padded):
        activations = model.forward_for_backward(inputs, TERNARY)
        _, grad_RNH = model.head_loss(activations.hidden_RNH, targets)
        model.backward(activations, grad_RNH)
    torch.testing.assert_close(padded.gradient_norms(), plain.gradient_norms())
    for key, gradient in plain.gradients.items():
        assert padded.gradients[key].shape == gradient.shape
        torch.testing.assert_close(padded.gradients[key], gradient, rtol=1e-4, atol=1e-6)
    for key, flat in plain.flat_parameters(1).items():
        assert torch.equal(padded.flat_parameters(1)[key], flat)
