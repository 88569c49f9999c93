"""Record a training of any program, so that `bitnetctl verify` and `analyze` judge it like a run of their own."""

from bitnetctl.recorder.probe import HeldOutProbe as HeldOutProbe
from bitnetctl.recorder.recorder import HealthChange as HealthChange, Recorder as Recorder
