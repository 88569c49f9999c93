"""Many runs: claims, sessions, packs, workers."""

from bitnetctl.sweep.executor import sweep_runs
from bitnetctl.sweep.session import Options, Sessions, open_session, train_runs

__all__ = ["Options", "Sessions", "open_session", "sweep_runs", "train_runs"]
