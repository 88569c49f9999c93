"""The callback in trainings of Lightning's Trainer: rows, rates, resume, errors."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import LENGTH, VOCAB, make_probe, manifest, recorded, tokens

from bitnetctl.errors import ConfigError
from bitnetctl.recorder.measure import CallableProbe

PACKAGES = [name for name in ("lightning", "pytorch_lightning") if importlib.util.find_spec(name)]
if not PACKAGES:
    pytest.skip("needs lightning", allow_module_level=True)
# its own use of torch warns
pytestmark = pytest.mark.filterwarnings("default")

STEPS = 6


@pytest.fixture(scope="module", params=PACKAGES)
def pl(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Yield the package, with the callback's module imported for it."""
    name = "lightning.pytorch" if request.param == "lightning" else request.param
    hidden: dict[str, Any] = {
        one: sys.modules.pop(one) for one in ("lightning.pytorch", "pytorch_lightning") if one in sys.modules
    }
    library = hidden.get(name) or importlib.import_module(name)
    sys.modules[name] = library
    sys.modules.pop("bitnetctl.integrations.lightning", None)
    importlib.import_module("bitnetctl.integrations.lightning")
    yield library
    sys.modules.update(hidden)


def make_module(pl: Any, **changes: Any) -> Any:
    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.drop = torch.nn.Embedding(VOCAB, 8), torch.nn.Dropout(0.1)
            self.head = torch.nn.Linear(8, VOCAB)
            self.error: BaseException | None = changes.get("error")

        def forward(self, x: torch.Tensor) -> Any:
            return self.head(self.drop(self.embed(x)))

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            if self.error is not None and self.trainer.global_step == 3:
                raise self.error
            return torch.nn.functional.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.01, weight_decay=0.1)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (step + 1))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Module()


def train(pl: Any, callback: Any, *, module: Any = None, resume: str | None = None, **changes: Any) -> tuple[Any, Any]:
    rows = torch.from_numpy(tokens(2, 60 * LENGTH)).view(-1, LENGTH)
    module = module or make_module(pl)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    known = {"max_steps": STEPS, "accelerator": "cpu", "enable_model_summary": False, **quiet}
    callbacks = [callback, *changes.pop("others", ())]
    trainer = pl.Trainer(callbacks=callbacks, **known | changes)
    pl.seed_everything(5, verbose=False)
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=2), ckpt_path=resume)  # type: ignore[arg-type]
    return trainer, module


def callback(path: str = "runs/a.csv", **settings: Any) -> Any:
    from bitnetctl.integrations.lightning import CollapseCallback

    return CollapseCallback(path, **{"probe": make_probe(), "arm": "adam", "size": 8, **settings})


def test_rows_hold_what_the_training_did(pl: Any) -> None:
    trainer, module = train(pl, callback(eval_every_steps=2))
    run = recorded()
    assert run.steps.tolist() == [1, 2, 4, 6]
    # the rates of the step itself, not of the next
    assert run.column("LR") == pytest.approx([0.01 / step for step in (1, 2, 4, 6)])
    assert run.column("WD") == [0.1] * 4
    assert trainer.global_step == STEPS
    expected = CallableProbe(make_probe()).measure(module)
    assert {name: run.row(3)[name] for name in expected} == expected
    assert (run.arm, run.seed, run.size, run.planned_steps, run.is_complete) == ("adam", 5, 8, STEPS, True)
    tree = manifest()
    assert tree["status"] == "finished"
    assert tree["external"]["trainer"] == f"{pl.__name__} {pl.__version__}"
    assert tree["external"]["settings"]["optimizer"] == "Adam"


def test_loss_and_gradients_are_those_of_the_step(pl: Any) -> None:
    train(pl, callback(), max_steps=1)
    module = make_module(pl).eval()
    row = recorded().row(0)
    # dropout aside, the loss of the first batch of an untrained model
    batch = torch.from_numpy(tokens(2, 60 * LENGTH)).view(-1, LENGTH)[:2]
    loss = torch.nn.functional.cross_entropy(module(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    loss.backward()
    norm = torch.stack([weight.grad.norm() for weight in module.parameters()]).norm()
    assert row["Loss"] == pytest.approx(float(loss), rel=0.05)
    assert row["GradNorm"] == pytest.approx(float(norm), rel=0.2)


def test_measuring_changes_nothing_of_the_training(pl: Any) -> None:
    _, measured = train(pl, callback())
    _, plain = train(pl, pl.Callback())
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, measured.state_dict()[name]), name


def test_accumulated_batches_are_one_step(pl: Any) -> None:
    train(pl, callback("runs/one.csv", eval_every_steps=1), max_steps=1)
    train(pl, callback(eval_every_steps=1), accumulate_grad_batches=3, max_steps=3)
    run = recorded()
    assert run.steps.tolist() == [1, 2, 3]
    assert run.row(0)["Loss"] != recorded("runs/one.csv").row(0)["Loss"]
    assert manifest()["external"]["settings"]["trainer.accumulate_grad_batches"] == 3


def test_epochs_tell_the_planned_steps(pl: Any) -> None:
    train(pl, callback(eval_every_steps=20), max_steps=-1, max_epochs=2)
    assert (recorded().planned_steps, recorded().steps.tolist()) == (60, [1, 20, 40, 60])


def test_a_training_goes_on_from_its_checkpoint(pl: Any) -> None:
    saving = importlib.import_module(f"{pl.__name__}.callbacks").ModelCheckpoint(
        "out", every_n_train_steps=3, save_top_k=-1
    )
    train(pl, callback(eval_every_steps=2), others=[saving], enable_checkpointing=True)
    whole = Path("runs/a.csv").read_text(encoding="utf-8")
    (saved,) = Path("out").glob("*step=3.ckpt")
    train(pl, callback(eval_every_steps=2), resume=str(saved))
    assert [session["from_step"] for session in manifest()["sessions"]] == [0, 3]
    again = Path("runs/a.csv").read_text(encoding="utf-8")
    assert again.splitlines()[:3] == whole.splitlines()[:3]
    assert recorded().steps.tolist() == [1, 2, 4, 6]
    with pytest.raises(ConfigError, match="has rows of a run"):
        train(pl, callback(eval_every_steps=2))


def test_an_error_is_noted(pl: Any) -> None:
    with pytest.raises(ValueError, match="boom"):
        train(pl, callback(eval_every_steps=2), module=make_module(pl, error=ValueError("boom")))
    assert (manifest()["status"], manifest()["message"]) == ("failed", "ValueError: boom")
    assert recorded().steps.tolist() == [1, 2]


def test_a_function_of_the_module_and_ternary_weights(pl: Any) -> None:
    train(pl, callback())
    settings = {"logits": lambda module, x: (module(x), None), "ternary_codes": lambda module: {"up": torch.zeros(3)}}
    train(pl, callback("runs/b.csv", **settings))
    assert recorded().column("HeldOutLoss") == recorded("runs/b.csv").column("HeldOutLoss")
    assert recorded("runs/b.csv").column("ZeroFraction") == [1.0] * STEPS


def test_bf16_measures_as_it_trains(pl: Any) -> None:
    train(pl, callback("runs/whole.csv"))
    train(pl, callback(), precision="bf16-mixed")
    whole, mixed = recorded("runs/whole.csv").row(0)["HeldOutLoss"], recorded().row(0)["HeldOutLoss"]
    assert mixed != whole
    assert mixed == pytest.approx(whole, rel=1e-2)
