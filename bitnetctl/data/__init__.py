"""Text source → split → tokenizer → memory-mapped tokens → batches and the probe; text and tokens are hashed.

Shape legend: N tokens of one side of the split, B rows of a batch, T tokens of a row, T1 = T + 1, P probe rows,
M = P x T probe positions, W windows of an epoch, V vocabulary, C contexts, K distinct bigrams.
"""

from bitnetctl.data.batches import Batches
from bitnetctl.data.probe import ProbeData, probe_data
from bitnetctl.data.sources import Progress, no_progress
from bitnetctl.data.store import TokenData, Tokens, cache_folder, prepare
from bitnetctl.data.tokenizer import load_tokenizer, vocab_size_of

__all__ = [
    "Batches",
    "ProbeData",
    "Progress",
    "TokenData",
    "Tokens",
    "cache_folder",
    "load_tokenizer",
    "no_progress",
    "prepare",
    "probe_data",
    "vocab_size_of",
]
