"""Text source → split → tokenizer → memory-mapped tokens → batches and the probe; text and tokens are hashed.

Shape legend: N tokens of one side of the split, B rows of a batch, T tokens of a row, T1 = T + 1, P probe rows,
M = P x T probe positions, W windows of an epoch, V vocabulary, C contexts, K distinct bigrams.
"""

from bitnetctl.data.batches import Batches as Batches
from bitnetctl.data.cache_lookup import cached_tokenizer as cached_tokenizer, cached_tokens as cached_tokens
from bitnetctl.data.probe import ProbeData as ProbeData, probe_data as probe_data
from bitnetctl.data.sources import Progress as Progress, no_progress as no_progress
from bitnetctl.data.store import (
    TokenData as TokenData,
    Tokens as Tokens,
    cache_folder as cache_folder,
    prepare as prepare,
)
from bitnetctl.data.tokenizer import load_tokenizer as load_tokenizer, vocab_size_of as vocab_size_of
