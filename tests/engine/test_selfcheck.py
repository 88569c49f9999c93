"""Fast paths are taken on a device only where they agree with the plain operations; a refusal is said once."""

import io
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from configs import TinyConfig
from torch import Tensor

from bitnetctl.config import RunConfig
from bitnetctl.engine import selfcheck
from bitnetctl.engine.agreement import Check, run_check
from bitnetctl.engine.select import Execution
from bitnetctl.engine.selfcheck import proven
from bitnetctl.files import cache_folder
from bitnetctl.model.parts import PARTS, Part

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="beside a GPU kernels are not interpreted")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
READY = f"{selfcheck._ANSWER}\n"
AGREES = f'{selfcheck._ANSWER}{{"problem": null}}\n'
# each part alone and all together
CHECKS = len(PARTS) + 1
FUSED = Execution(engine="fused", precision="fp32", kernels=frozenset(PARTS))


@pytest.fixture
def small(tiny_config: TinyConfig) -> RunConfig:
    return tiny_config(
        steps=20_000,
        model__hidden_size=16,
        model__num_attention_heads=2,
        model__num_key_value_heads=2,
        model__num_layers=1,
        data__batch_size=1,
        data__sequence_length=4,
    )


@pytest.fixture
def check(small: RunConfig) -> Callable[..., Check]:
    def make(part: str, **fields: Any) -> Check:
        fields = {"precision": "fp32", "interpolates": False, **fields}
        return Check(part=part, config=selfcheck.small_config(small), vocab_size=300, **fields)

    return make


@pytest.mark.parametrize("interpolates", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_every_part_agrees_here(part: str, interpolates: bool, check: Callable[..., Check]) -> None:
    assert run_check(check(part, interpolates=interpolates), CPU) is None


def test_a_check_does_not_depend_on_what_changes_no_kernel(tiny_config: TinyConfig) -> None:
    other = tiny_config(data__gradient_accumulation=4, optimizer__learning_rate_factors__head=0.5, seed=0)
    assert selfcheck.small_config(other) == selfcheck.small_config(tiny_config(seed=0))


def test_bf16_agrees_within_its_tolerance(check: Callable[..., Check]) -> None:
    assert [run_check(check(part, precision="bf16"), CPU) for part in ("layers", "loss")] == [None, None]


@pytest.mark.parametrize(
    ("part", "module", "name", "problem"),
    [
        ("loss", "bitnetctl.model.fused", "cross_entropy_", "the loss differs by"),
        ("layers", "bitnetctl.model.fused", "norm_quantize_backward", "the norm differs by"),
        ("weights", "bitnetctl.model.fused", "ternary_", "the norm differs by"),
        ("update", "bitnetctl.engine.fused", "adam_rows_", "the updates of embed differ by"),
        ("update", "bitnetctl.engine.fused", "square_sums", "the norm differs by"),
    ],
)
def test_a_wrong_kernel_is_found(
    part: str, module: str, name: str, problem: str, check: Callable[..., Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(__import__(module, fromlist=[name]), name)

    def wrong(*args: Any, **options: Any) -> Any:
        if name == "ternary_":
            right(*args, **options)
            args[1].mul_(1.2)
            return None
        if name == "adam_rows_":
            return None
        result = right(*args, **options)
        return result * 1.1 if isinstance(result, Tensor) else result

    monkeypatch.setattr(f"{module}.{name}", wrong)
    found = run_check(check(part), CPU)
    assert found is not None
    assert found.startswith(problem)


@pytest.mark.parametrize(("precision", "interpolates"), [("fp32", True), ("bf16", False)])
def test_all_parts_agree_together(precision: str, interpolates: bool, check: Callable[..., Check]) -> None:
    assert run_check(check("together", kernels=PARTS, precision=precision, interpolates=interpolates), CPU) is None


@pytest.mark.parametrize(
    ("name", "wrong", "problem"),
    [
        ("adam_tiles_", lambda arguments, _: arguments[6].mul_(1.1), "the quantized weights of qkv differ by 0.2"),
        ("adam_", lambda _, copy_RS: copy_RS.mul_(1.1), "the quantized weights of head differ by 0.1"),
        ("adam_", lambda arguments, _: arguments[0].mul_(1.01), "head of a diverged run is updated"),
    ],
)
def test_what_an_update_leaves_to_the_next_step_is_compared(
    name: str,
    wrong: Callable[[Sequence[Tensor], Tensor], Tensor],
    problem: str,
    check: Callable[..., Check],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bitnetctl.kernels.adam import Coefficient

    right = getattr(__import__("bitnetctl.engine.fused", fromlist=[name]), name)

    def update(*arguments: Any, **options: Any) -> None:
        right(*arguments, **options)
        # only in the step after those whose updates are compared: the first run is diverged there
        if arguments[4][:, Coefficient.SKIP].tolist() == [1.0, 0.0] and options.get("copy_RS", arguments) is not None:
            wrong(arguments, options.get("copy_RS"))  # type: ignore[arg-type]

    monkeypatch.setattr(f"bitnetctl.engine.fused.{name}", update)
    found = run_check(check("together", kernels=PARTS, precision="bf16"), CPU)
    assert found is not None
    assert found.startswith(problem)


def test_a_kernel_that_is_wrong_below_a_lambda_of_a_half_is_found(
    check: Callable[..., Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitnetctl.kernels.ternary import ternary_ as right

    def wrong(*args: Any, quant_lambda_R: Tensor | None, **options: Any) -> None:
        clamped_R = None if quant_lambda_R is None else quant_lambda_R.clamp(min=0.5)
        right(*args, quant_lambda_R=clamped_R, **options)

    monkeypatch.setattr("bitnetctl.model.fused.ternary_", wrong)
    assert run_check(check("weights"), CPU) is None
    found = run_check(check("weights", interpolates=True), CPU)
    assert found is not None
    assert found.endswith("with λ of 1 and 0.25")


def test_fewer_tokens_than_positions_of_the_probe(check: Callable[..., Check]) -> None:
    assert run_check(replace(check("probe"), vocab_size=50), CPU) is None


def test_a_kernel_that_fails_is_named(check: Callable[..., Check], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("out of registers\nmore")

    monkeypatch.setattr("bitnetctl.model.fused.ternary_", fail)
    assert run_check(check("weights"), CPU) == "RuntimeError: out of registers more"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, token_cache: object) -> dict[str, str | None]:
    """A pretended card and what is wrong on it by part; counts the checks under "checked"."""
    problems: dict[str, str | None] = {}

    def outcomes(checks: Sequence[Check], device: torch.device) -> list[str | None]:
        problems["checked"] = str(int(problems.get("checked") or 0) + len(checks))
        return [problems.get(check.part) for check in checks]

    monkeypatch.setattr(selfcheck, "_in_a_process", outcomes)
    monkeypatch.setattr(selfcheck, "device_name", lambda device: "Card 9000")
    monkeypatch.setattr(selfcheck, "_unsaved", {})
    return problems


def prove(execution: Execution, config: RunConfig, log: Callable[[str], None] = lambda line: None) -> Execution:
    return proven(execution, [config], 300, GPU, interpolates=False, log=log)


def test_outcomes_are_kept_for_card_versions_and_shape(
    card: dict[str, str | None], small: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    assert prove(FUSED, small, lines.append) == FUSED
    assert len(lines) == 1
    assert "checking fast kernels on Card 9000" in lines[0]
    assert prove(FUSED, small, lines.append) == FUSED
    assert (card["checked"], len(lines)) == (str(CHECKS), 1)
    # the weights of a seed and the number of layers change no kernel
    prove(FUSED, small.model_copy(update={"seed": 5, "steps": 7}))
    assert card["checked"] == str(CHECKS)
    monkeypatch.setattr(selfcheck, "driver_version", lambda: "999.9")
    prove(FUSED, small)
    assert card["checked"] == str(2 * CHECKS)
    wider = small.model_copy(update={"model": small.model.model_copy(update={"hidden_size": 32})})
    prove(FUSED, wider)
    assert card["checked"] == str(3 * CHECKS)


def test_a_part_that_disagrees_is_left_out_and_said(card: dict[str, str | None], small: RunConfig) -> None:
    card["loss"] = "the loss differs by 0.3 (at most 1e-05)"
    for _ in range(2):
        lines: list[str] = []
        execution = prove(FUSED, small, lines.append)
        assert execution == replace(FUSED, kernels=frozenset[Part](PARTS) - {"loss"})
        refusal = "own kernels for loss are not used on Card 9000: the loss differs by 0.3 (at most 1e-05)"
        assert lines[-1] == refusal


def test_without_any_part_the_layers_are_compiled_or_nothing_is(
    card: dict[str, str | None], small: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitnetctl.engine.select._missing_to_compile", lambda device: None)
    card.update(dict.fromkeys(PARTS, "RuntimeError: broken"))
    assert prove(FUSED, small.model_copy(update={"steps": 200_000})).engine == "compile"
    assert prove(FUSED, small.model_copy(update={"steps": 200})) == Execution(engine="graph", precision="fp32")
    card["compile"] = "the gradient of o differs by 0.4 (at most 0.03)"
    lines: list[str] = []
    other = small.model_copy(update={"steps": 200_000, "data": small.data.model_copy(update={"batch_size": 2})})
    assert prove(FUSED, other, lines.append).engine == "graph"
    assert lines[-1].startswith("compiled layers are not used on Card 9000: the gradient of o")


def test_parts_that_agree_alone_must_agree_together(card: dict[str, str | None], small: RunConfig) -> None:
    card["together"] = "the norm differs by 2 (at most 0.05)"
    lines: list[str] = []
    assert not prove(FUSED, small, lines.append).kernels
    assert lines[1] == "own kernels together are not used on Card 9000: the norm differs by 2 (at most 0.05)"


def test_an_outcome_is_for_the_runs_and_the_lambdas_that_it_was_made_for(
    small: RunConfig, token_cache: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Check] = []

    def outcomes(checks: Sequence[Check], device: torch.device) -> list[None]:
        made.extend(checks)
        return [None] * len(checks)

    monkeypatch.setattr(selfcheck, "_in_a_process", outcomes)
    monkeypatch.setattr(selfcheck, "device_name", lambda device: "Card 9000")
    off = small.model_copy(update={"model": small.model.model_copy(update={"quantization": 0.0})})
    wanted = [([small], 1, False, 1.0), ([off], 1, False, 0.0), ([small, off, small], 4, True, 1.0)]
    for configs, runs, interpolates, quantization in wanted:
        proven(FUSED, configs, 300, GPU, interpolates=False, log=lambda line: None)
        assert (made[-1].runs, made[-1].interpolates) == (runs, interpolates)
        assert made[-1].config.model.quantization == quantization
    assert len(made) == 3 * CHECKS
    assert [selfcheck._runs(count) for count in (1, 2, 9, 40)] == [1, 2, 16, 16]


@pytest.mark.parametrize("size", [50_257, 32_000, 50_304, 30_001])
def test_a_smaller_vocabulary_needs_the_same_padding(size: int) -> None:
    smaller = selfcheck.small_vocabulary(size)
    assert smaller % 64 == size % 64
    assert 8192 < smaller < 10_049
    assert selfcheck.small_vocabulary(300) == 300


def test_a_cache_that_cannot_be_written_is_said_to_nobody_and_checks_are_made_once(
    card: dict[str, str | None], small: RunConfig
) -> None:
    cache_folder().parent.mkdir(parents=True, exist_ok=True)
    cache_folder().write_text("no folder")
    for _ in range(2):
        assert prove(FUSED, small) == FUSED
    assert card["checked"] == str(CHECKS)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"problem": 3}'])
def test_a_damaged_record_is_checked_again(content: bytes, card: dict[str, str | None], small: RunConfig) -> None:
    prove(FUSED, small)
    records = list((cache_folder() / "checks").iterdir())
    assert {json.loads(path.read_bytes())["device"] for path in records} == {"Card 9000"}
    for path in records:
        path.write_bytes(content)
    assert prove(FUSED, small) == FUSED
    assert card["checked"] == str(2 * CHECKS)


def test_what_is_plain_is_not_checked(card: dict[str, str | None], small: RunConfig) -> None:
    for execution in (Execution(engine="graph", precision="bf16"), Execution(engine="eager", precision="fp32")):
        assert prove(execution, small) == execution
    assert proven(FUSED, [small], 300, CPU, interpolates=False, log=print) == FUSED
    assert "checked" not in card


def test_checks_run_in_a_process_of_their_own(check: Callable[..., Check]) -> None:
    assert selfcheck._in_a_process([check("loss"), check("gradients")], CPU) == [None, None]


def test_a_check_that_ends_its_process_fails_alone(
    check: Callable[..., Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[subprocess.CompletedProcess[str] | subprocess.TimeoutExpired] = [
        subprocess.CompletedProcess([], -11, f"{READY}{AGREES}", "illegal memory access\n"),
        subprocess.TimeoutExpired([], 180, output=f"{READY}{AGREES}".encode()),
        subprocess.CompletedProcess([], 0, f"{READY}a library's notice\n{AGREES}", ""),
    ]

    def run(*args: object, **options: object) -> subprocess.CompletedProcess[str]:
        answer = answers.pop(0)
        if isinstance(answer, subprocess.TimeoutExpired):
            raise answer
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    problems = selfcheck._in_a_process([check(part) for part in PARTS[:5]], CPU)
    assert problems == [
        None,
        "the check ended with -11: illegal memory access",
        None,
        "the check took more than 180 s",
        None,
    ]


def test_checks_after_one_that_has_lost_the_gpu_are_made_again(
    check: Callable[..., Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = AGREES.replace("null", '"AcceleratorError: an illegal memory access"')
    answers = [f"{READY}{AGREES}{failed}", f"{READY}{AGREES}"]
    run = lambda *_, **options: subprocess.CompletedProcess([], 0, answers.pop(0), "")  # noqa: E731
    monkeypatch.setattr(subprocess, "run", run)
    problems = selfcheck._in_a_process([check(part) for part in PARTS[:3]], CPU)
    assert problems == [None, "AcceleratorError: an illegal memory access", None]


def test_a_process_whose_gpu_is_lost_makes_no_more_checks(
    check: Callable[..., Check], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"device": "cpu", "checks": [selfcheck._as_json(check(part)) for part in ("loss", "probe")]}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(job)))
    monkeypatch.setattr(selfcheck, "_is_usable", lambda device: False)
    selfcheck.main()
    assert capsys.readouterr().out == READY + AGREES


def test_a_gpu_for_one_process_is_checked_in_this_one(
    check: Callable[..., Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = subprocess.CompletedProcess([], 1, "", "all CUDA-capable devices are busy or unavailable")
    monkeypatch.setattr(subprocess, "run", lambda *_, **options: busy)
    assert selfcheck._in_a_process([check("gradients")], CPU) == [None]


def test_what_may_go_well_the_next_time_is_not_kept(card: dict[str, str | None], small: RunConfig) -> None:
    card["loss"] = "OutOfMemoryError: CUDA out of memory"
    assert prove(FUSED, small).kernels == set(PARTS) - {"loss"}
    card["loss"] = None
    assert prove(FUSED, small) == FUSED


def test_what_may_be_mended_is_kept_for_this_process_only(
    card: dict[str, str | None], small: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    card["loss"] = "CalledProcessError: Command '['gcc', 'main.c']' returned non-zero exit status 1."
    for _ in range(2):
        assert prove(FUSED, small).kernels == set(PARTS) - {"loss"}
    # and those that agree, together
    assert card["checked"] == str(CHECKS + 1)
    monkeypatch.setattr(selfcheck, "_unsaved", {})
    card["loss"] = None
    assert prove(FUSED, small) == FUSED
    assert card["checked"] == str(CHECKS + 2)


def test_a_process_that_answers_nothing_is_not_asked_for_ever(
    check: Callable[..., Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = subprocess.CompletedProcess([], 0, f"{selfcheck._ANSWER}\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **options: ready)
    problems = selfcheck._in_a_process([check("loss"), check("update")], CPU)
    assert problems == ["the check ended without an answer"] * 2
