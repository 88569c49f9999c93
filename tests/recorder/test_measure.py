"""The recorder's columns are those of the product's own probe, and measuring leaves everything as it was."""

import functools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitnetctl.config import ModelConfig, ProbeConfig
from bitnetctl.data import ProbeData, TokenData
from bitnetctl.engine import cost
from bitnetctl.errors import ConfigError, DataError
from bitnetctl.model.packed import PackedModel
from bitnetctl.recorder import HeldOutProbe
from bitnetctl.recorder.measure import CallableProbe
from bitnetctl.trainer.evaluate import Probe

CPU = torch.device("cpu")
VOCAB = 61


class Output(NamedTuple):
    loss: None
    logits: Tensor


class Net(nn.Module):
    """A model with dropout, and a part that stays in eval mode."""

    def __init__(self, columns: int = VOCAB) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.embed = nn.Embedding(VOCAB, 16)
        self.embed.weight.data.normal_(generator=generator)
        self.drop, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()
        self.head = nn.Linear(16, columns, bias=False)
        self.head.weight.data.normal_(generator=generator)
        self.seen: list[tuple[torch.dtype, tuple[int, ...], bool]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen.append((tokens.dtype, tuple(tokens.shape), torch.is_grad_enabled()))
        logits: Tensor = self.head(self.frozen(self.drop(self.embed(tokens).cumsum(1))))
        return logits


def tokens(seed: int, count: int, most: int = VOCAB) -> Any:
    return np.random.default_rng(seed).integers(0, most, count)


@pytest.fixture
def probe() -> HeldOutProbe:
    return HeldOutProbe.from_tokens(
        tokens(0, 3000), tokens(1, 400, 40), vocab_size=VOCAB, positions=96, sequence_length=12
    )


def packed() -> PackedModel:
    return PackedModel([ModelConfig(hidden_size=32, num_layers=2, initialization="default")], VOCAB, [0], CPU)


@pytest.mark.parametrize("rows_per_chunk", [None, 1, 3])
def test_the_columns_are_those_of_our_own_trainer_to_the_last_bit(
    probe: HeldOutProbe, rows_per_chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed()
    own = Probe(probe.prompts, probe.data, VOCAB, CPU)
    if rows_per_chunk is not None:
        monkeypatch.setattr(cost, "_CPU_CHUNK_BYTES", rows_per_chunk * 12 * 4 * VOCAB)
    (expected,) = own.measure(model, [1.0])
    assert int(expected["UniquePredictions"] or 0) > 5

    def call(tokens_PT: Tensor) -> Tensor:
        return model.prepared([1.0])(tokens_PT.unsqueeze(0)).view(*tokens_PT.shape, VOCAB)

    assert CallableProbe(probe).measure(call) == expected
    assert CallableProbe(probe, rows_per_chunk=rows_per_chunk).measure(call) == expected


def test_a_probe_of_prepared_data_is_that_of_its_runs(tiny_tokens: TokenData, tiny_probe: ProbeData) -> None:
    probe = HeldOutProbe.from_data(tiny_tokens, positions=128, sequence_length=16)
    for name in ("inputs_PT", "targets_PT"):
        assert (getattr(probe.data, name) == getattr(tiny_probe, name)).all()
    same = HeldOutProbe.from_tokens(
        tiny_tokens.train_N, tiny_tokens.held_out_N, vocab_size=300, positions=128, sequence_length=16
    )
    assert same.fingerprint == probe.fingerprint
    assert probe.data.target_bytes == tiny_probe.target_bytes
    assert (same.data.unigram_loss, same.data.bigram_loss) == (tiny_probe.unigram_loss, tiny_probe.bigram_loss)
    assert probe.metadata()["fingerprint"] == tiny_tokens.fingerprint
    assert probe.prompts == ProbeConfig(positions=128)


FORMS: dict[str, Callable[[Net], Callable[[Tensor], Any]]] = {
    "module": lambda net: net,
    "method": lambda net: net.forward,
    "partial": functools.partial,
    "tuple": lambda net: lambda x: (net(x), None),
    "attribute": lambda net: lambda x: Output(None, net(x)),
    "mapping": lambda net: lambda x: {"loss": None, "logits": net(x)},
    "bf16": lambda net: lambda x: net(x).to(torch.bfloat16),
    "fp64": lambda net: lambda x: net(x).double(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_model_gives_its_logits(probe: HeldOutProbe, form: str) -> None:
    net = Net().eval()
    expected = CallableProbe(probe).measure(net)
    found = CallableProbe(probe).measure(FORMS[form](net))
    if form == "bf16":
        assert found["HeldOutLoss"] == pytest.approx(expected["HeldOutLoss"], rel=1e-2)
        assert found["HeldOutLoss"] != expected["HeldOutLoss"]
    else:
        assert found == expected


def test_columns_beyond_the_vocabulary_are_cut(probe: HeldOutProbe) -> None:
    net = Net().eval()
    expected = CallableProbe(probe).measure(net)

    def padded(x: Tensor) -> Tensor:
        return torch.cat([net(x), torch.full((*x.shape, 3), 1e4)], dim=-1)

    assert CallableProbe(probe).measure(padded) == expected


def test_a_training_module_is_measured_in_eval_mode_and_left_as_it_was(probe: HeldOutProbe) -> None:
    expected = CallableProbe(probe).measure(Net().eval())
    net = Net().train()
    net.frozen.eval()
    net.head.weight.grad = torch.ones_like(net.head.weight)
    torch.manual_seed(3)
    random.seed(3)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]  # noqa: NPY002

    def noisy(x: Tensor) -> Any:
        torch.rand(5)
        random.random()
        np.random.rand(5)  # noqa: NPY002
        return net(x)

    assert CallableProbe(probe).measure(noisy, net) == expected
    assert (net.training, net.drop.training, net.frozen.training, net.head.training) == (True, True, False, True)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(net.head.weight.grad, torch.ones_like(net.head.weight))
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    # whole rows, and then the random prompts
    assert net.seen == [(torch.int64, (8, 12), False), (torch.int64, (20, 8), False)]
    # what a model keeps of an evaluation can be used in the next step
    net.head(net.embed(torch.zeros(1, dtype=torch.long))).sum().backward()


def test_a_model_that_fails_is_left_as_it_was(probe: HeldOutProbe) -> None:
    net = Net().train()
    net.frozen.eval()

    def broken(x: Tensor) -> Tensor:
        net(x)
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        CallableProbe(probe).measure(broken, net)
    assert (net.training, net.drop.training, net.frozen.training) == (True, True, False)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: torch.zeros(*x.shape, VOCAB - 1), r"shape \(8, 12, 60\) for tokens \(8, 12\), not \(8, 12, 61\)"),
        (lambda x: torch.zeros(len(x), 1, VOCAB), r"shape \(8, 1, 61\)"),
        (lambda x: torch.zeros(x.numel(), VOCAB), r"shape \(96, 61\)"),
        (lambda x: (torch.tensor(1.0), torch.zeros(*x.shape, VOCAB)), r"shape \(\)"),
        (lambda x: x.unsqueeze(-1).expand(-1, -1, VOCAB), "a tensor of torch.int64"),
        (lambda x: None, "returned a NoneType"),
        (lambda x: (), "returned a tuple"),
    ],
)
def test_anything_but_logits_is_one_clear_error(probe: HeldOutProbe, model: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CallableProbe(probe).measure(model)


def test_logits_that_are_not_finite_give_nan(probe: HeldOutProbe) -> None:
    found = CallableProbe(probe).measure(lambda x: torch.full((*x.shape, VOCAB), float("nan")))
    for name in ("HeldOutLoss", "UniquePredictions", "RandomPromptUnique", "TopShare"):
        assert found[name] != found[name], name


def test_the_tokens_are_given_where_the_module_is(probe: HeldOutProbe) -> None:
    meter = CallableProbe(probe)
    assert meter.device_of(lambda x: x) == CPU
    assert meter.device_of(Net().to("meta")) == torch.device("meta")
    assert meter.device_of(lambda x: x, Net().to("meta")) == torch.device("meta")
    assert CallableProbe(probe, "cuda:1").device_of(Net()) == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("train", "held_out", "settings", "message"),
    [
        ([1, 2, VOCAB], tokens(0, 500), {}, "token 61 of the training text is not below vocab_size 61"),
        ([1, 2], [-1] * 500, {}, "token -1 of the held-out text"),
        ([], tokens(0, 500), {}, "no training tokens"),
        ([[1, 2]], tokens(0, 500), {}, r"shape \(1, 2\) and type int64, not whole numbers \[N\]"),
        ([0.5], tokens(0, 500), {}, "type float64"),
        ([1, 2], tokens(0, 96), {}, "96 held-out tokens support at most 84 positions in rows of 12, not 96"),
        ([1, 2], [3], {}, "support at most 0 positions"),
        ([1, 2], tokens(0, 500), {"positions": 0}, "probe: positions"),
        ([1, 2], tokens(0, 500), {"random_prompts": 0}, "probe: random_prompts"),
        ([1, 2], tokens(0, 500), {"sequence_length": 0}, "sequence_length is 0"),
    ],
)
def test_tokens_that_make_no_probe(train: Any, held_out: Any, settings: dict[str, int], message: str) -> None:
    arguments = {"positions": 96, "sequence_length": 12} | settings
    with pytest.raises((ConfigError, DataError), match=message):
        HeldOutProbe.from_tokens(train, held_out, vocab_size=VOCAB, **arguments)


def test_bits_per_byte_are_known_where_the_bytes_are() -> None:
    held_out = tokens(1, 400, 40)
    sizes = np.arange(400) % 5
    known = {"vocab_size": VOCAB, "positions": 96, "sequence_length": 12}
    probe = HeldOutProbe.from_tokens(tokens(0, 3000), held_out, held_out_bytes=sizes, **known)
    starts = [row * 399 // 8 for row in range(8)]
    total = sum(int(sizes[start + 1 : start + 13].sum()) for start in starts)
    assert probe.data.target_bytes == total
    found = CallableProbe(probe).measure(Net().eval())
    assert found["HeldOutLoss"] is not None
    assert found["HeldOutBitsPerByte"] == pytest.approx(found["HeldOutLoss"] / np.log(2) * 96 / total)
    sizes[starts[3] + 2] = -1
    unknown = HeldOutProbe.from_tokens(tokens(0, 3000), held_out, held_out_bytes=sizes, **known)
    assert CallableProbe(unknown).measure(Net().eval())["HeldOutBitsPerByte"] is None
    with pytest.raises(DataError, match=r"of shape \(399,\), not \(400,\)"):
        HeldOutProbe.from_tokens(tokens(0, 3000), held_out, held_out_bytes=sizes[1:], **known)


def test_lists_arrays_and_tensors_make_one_probe(probe: HeldOutProbe) -> None:
    for kind in (list, torch.tensor, lambda found: np.asarray(found, dtype=np.uint16)):
        other = HeldOutProbe.from_tokens(
            kind(tokens(0, 3000)), kind(tokens(1, 400, 40)), vocab_size=VOCAB, positions=96, sequence_length=12
        )
        assert other.fingerprint == probe.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": 84},
        {"sequence_length": 8},
        {"random_prompts": 19},
        {"random_prompt_tokens": 7},
        {"prompt_seed": 1},
        {"vocab_size": 62},
        {"train_tokens": tokens(2, 3000)},
        {"held_out_tokens": tokens(2, 400)},
    ],
)
def test_the_fingerprint_tells_probes_apart(probe: HeldOutProbe, changes: dict[str, Any]) -> None:
    own = {"train_tokens": tokens(0, 3000), "held_out_tokens": tokens(1, 400, 40), "vocab_size": VOCAB}
    settings = {**own, "positions": 96, "sequence_length": 12} | changes
    assert HeldOutProbe.from_tokens(**settings).fingerprint != probe.fingerprint
