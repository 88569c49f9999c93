"""How the next token is chosen: greedy, or drawn from what top-k, top-p and min-p leave. No torch here."""

import math
from dataclasses import dataclass

from bitnetctl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen; raises ConfigError for a value out of range.

    `temperature` 0 is greedy. `top_k` keeps the most probable tokens (None: all), `top_p` of these the fewest whose
    fraction of their probability is at least that, `min_p` those at least that fraction as probable as the most
    probable one.
    """

    temperature: float = 0.8
    top_k: int | None = 50
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature {self.temperature:g}: take a number from 0, which is greedy")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top-k {self.top_k}: take a whole number from 1, or 0 for all tokens")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p {self.top_p:g}: take a number above 0 up to 1, which is all tokens")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min-p {self.min_p:g}: take a number from 0, which is all tokens, to 1")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed}: take a whole number from 0")
