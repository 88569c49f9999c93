"""The step as a program on the device: run uncaptured here, it does what the host does step by step."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from bitnetctl import capture
from bitnetctl.capture import CapturedPack, can_be_captured
from bitnetctl.config import RunConfig, parse_arm
from bitnetctl.data import TokenData
from bitnetctl.intervention import Composition, Intervention
from bitnetctl.plugins import compose
from bitnetctl.step import Pack

TinyConfig = Callable[..., RunConfig]
CPU = torch.device("cpu")


def both(
    configs: Sequence[RunConfig], tokens: TokenData, arms: Sequence[str] = (), device: torch.device = CPU
) -> tuple[Pack, CapturedPack]:
    """The same runs twice: stepped by the host, and as a program."""

    def built(kind: type[Pack]) -> Pack:
        compositions = [compose(parse_arm(arm)) for arm in arms or [""] * len(configs)]
        effective = [each.configure(config) for each, config in zip(compositions, configs, strict=True)]
        return kind(effective, compositions, tokens, device)

    program = built(CapturedPack)
    assert isinstance(program, CapturedPack)
    return built(Pack), program


def assert_alike(host: Pack, program: Pack, tolerance: float = 1e-6) -> None:
    for key, packed in host.model.packed.items():
        torch.testing.assert_close(program.model.packed[key], packed, rtol=0, atol=tolerance, msg=key)


@pytest.mark.usefixtures("double")
def test_the_program_trains_as_the_host_does(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    configs = [
        tiny_config(seed=0, optimizer__max_norm=0.1),
        tiny_config(seed=1, data__order="shuffled", optimizer__name="adamw", optimizer__max_norm="none"),
        tiny_config(seed=2, schedule__kind="cosine", optimizer__exempt="norms,head"),
    ]
    host, program = both(configs, tiny_tokens, ["", "label-smoothing", "fp-first:fraction=0.25,ramp=0.25"])
    # over the stage boundary at step 6, where the weight decay and with it the program change
    for step in range(1, 13):
        host.step(step)
        program.step(step)
        for figure in ("loss_R", "objective_R", "grad_norm_R"):
            torch.testing.assert_close(getattr(program, figure), getattr(host, figure), rtol=1e-9, atol=1e-9)
    assert_alike(host, program, 1e-8)
    assert len(program._warm) > 2


def test_tables_are_made_anew_where_they_end(
    tiny_config: TinyConfig, tiny_tokens: TokenData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "_BLOCK", 5)
    host, program = both([tiny_config()], tiny_tokens)
    for step in range(1, 13):
        host.step(step)
        program.step(step)
        torch.testing.assert_close(program.loss_R, host.loss_R, rtol=1e-5, atol=1e-5)
    # as after a resume: a step that does not follow the last
    again = both([tiny_config()], tiny_tokens)[1]
    again.step(7)
    fresh = both([tiny_config()], tiny_tokens)[0]
    fresh.step(7)
    assert_alike(fresh, again)


def test_moments_are_forgotten_on_time(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    host, program = both([tiny_config(optimizer__reset_moments_every_steps=3)], tiny_tokens)
    for step in range(1, 9):
        host.step(step)
        program.step(step)
    ours, theirs = program.members[0].optimizer.state(), host.members[0].optimizer.state()
    assert {key: value.item() for key, value in ours.items() if key.endswith("/step")} == {
        key: 2.0 for key in ours if key.endswith("/step")
    }
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-6)


class Broken(Intervention):
    """A loss that is not finite from a step on, told by the batch alone."""

    capturable = True

    def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        loss = torch.nn.functional.cross_entropy(logits_TV, targets_T)
        return torch.where(loss < 5.9, torch.full_like(loss, torch.nan), loss)


def test_a_run_that_diverges_keeps_its_weights_unasked(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    absurd = tiny_config(seed=1, schedule__peak_learning_rate=1e38, schedule__warmup_steps=0)
    _, program = both([tiny_config(), absurd, tiny_config(seed=2)], tiny_tokens)
    calm = both([tiny_config(), tiny_config(seed=1), tiny_config(seed=2)], tiny_tokens)[1]
    kept: Tensor | None = None
    for step in range(1, 7):
        program.step(step)
        calm.step(step)
        if kept is None and program._failed_at_R[1]:
            failed_at, kept = step, program.model.packed["qkv"][1].clone()
    # nobody asked in between: the first step that failed is known all the same, and nothing was updated since
    program.mark_diverged(6)
    assert kept is not None
    assert program.members[1].diverged_at == failed_at
    assert torch.equal(program.model.packed["qkv"][1], kept)
    for run in (0, 2):
        assert program.members[run].diverged_at is None
        assert torch.equal(program.model.packed["qkv"][run], calm.model.packed["qkv"][run])


def test_what_needs_the_host_is_not_captured() -> None:
    assert can_be_captured([Composition(), compose(parse_arm("label-smoothing+reduced-lr"))])
    assert not can_be_captured([Composition(), compose(parse_arm("adaptive-clipping"))])

    class Plain(Intervention):
        def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
            return logits_TV.sum()

    assert not can_be_captured([Composition([Plain(Plain.Settings())])])
    assert can_be_captured([Composition([Broken(Broken.Settings())])])


@pytest.mark.gpu
def test_a_captured_step_is_the_host_s_on_a_card(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    configs = [tiny_config(seed=seed, steps=24) for seed in range(3)]
    host, program = both(configs, tiny_tokens, device=torch.device("cuda"))
    for step in range(1, 25):
        host.step(step)
        program.step(step)
    assert program.capture_error is None
    assert program._graphs
    torch.testing.assert_close(program.loss_R, host.loss_R, rtol=1e-3, atol=1e-3)
