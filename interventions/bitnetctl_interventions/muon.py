"""Muon for the matrices of the layers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from bitnetctl.config import RunConfig
from bitnetctl.intervention import Intervention, InterventionSettings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


class Muon(Intervention):
    """Step the matrices of the layers along their orthogonalized momentum; embeddings, head and norms use AdamW.

    Both decays are decoupled, so compare it with `optimizer.name=adamw`: against coupled decay (adam, as in the
    recipes origin and quick) the gain is that of decoupling, too.
    """

    summary = "Muon for the matrices of the layers, AdamW for embeddings, head and norms"
    source = (
        "Jordan et al. 2024, kellerjordan.github.io/posts/muon; "
        "Liu et al. 2025, Muon is Scalable for LLM Training, arXiv 2502.16982, section 2"
    )

    class Settings(InterventionSettings):
        """Momentum, orthogonalization, and how the learning rate of AdamW becomes that of Muon."""

        momentum: Annotated[float, Field(ge=0, lt=1, description="momentum of the gradients")] = 0.95
        nesterov: Annotated[bool, Field(description="Nesterov momentum")] = True
        ns_steps: Annotated[int, Field(gt=0, lt=100, description="Newton-Schulz iterations")] = 5
        adjust_lr: Annotated[
            Literal["match_rms_adamw", "original"],
            Field(
                description="match_rms_adamw: update of AdamW's size, 0.2 · sqrt(max(rows, columns)), so that the "
                "schedule serves both; original: sqrt(max(1, rows / columns))"
            ),
        ] = "match_rms_adamw"
        lr_factor: Annotated[
            float, Field(ge=0, description="learning rate of the matrices / scheduled one; scales their decay, too")
        ] = 1.0

    settings: Settings

    def make_optimizer(self, parameters: "Mapping[str, Tensor]", config: RunConfig) -> "list[Optimizer]":
        """Return torch's Muon, batched over matrices of one shape, and AdamW with the betas of the config."""
        import torch

        from bitnetctl_interventions.optimizers import BatchedMuon, matrices_and_rest

        matrices, rest = matrices_and_rest(parameters)
        settings, adam = self.settings, config.optimizer
        muon = BatchedMuon(
            [{"params": matrices, "lr_factor": settings.lr_factor, "capturable": True}],
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            ns_steps=settings.ns_steps,
            adjust_lr_fn=settings.adjust_lr,
        )
        return [muon, torch.optim.AdamW(rest, betas=adam.betas, eps=adam.eps, fused=True, capturable=True)]
