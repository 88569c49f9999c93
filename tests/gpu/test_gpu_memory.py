"""CUDA graphs and memory: graphs that are dropped, memory that is given back, and what happens where there is none."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from configs import TinyConfig
from on_gpu import CAPTURED, GPU, MARKS, build, captured, train

from bitnetctl.data import TokenData
from bitnetctl.engine import cuda_graph
from bitnetctl.engine.cuda_graph import GraphCache
from bitnetctl.hardware import release_unused

pytestmark = MARKS


@pytest.mark.parametrize("engine", CAPTURED)
def test_ten_packs_give_their_memory_back(tiny_config: TinyConfig, tiny_tokens: TokenData, engine: str) -> None:
    held = []
    for _ in range(10):
        pack = build(engine, [tiny_config(steps=40)], tiny_tokens)
        train(pack, range(1, 9))
        captured(pack)
        del pack
        release_unused(GPU)
        held.append(torch.cuda.memory_reserved(GPU))
    # the first leaves workspaces of libraries behind
    assert held[1:] == held[:1] * 9


def test_a_ninth_graph_drops_the_oldest_and_the_others_replay() -> None:
    counts = {key: torch.zeros((), device=GPU) for key in range(cuda_graph._MAX_GRAPHS + 1)}
    calls = Counter[int]()
    graphs = GraphCache(GPU)

    def adding(key: int) -> Callable[[], None]:
        def add() -> None:
            calls[key] += 1
            # memory of the pool that the graphs share
            counts[key].add_(torch.ones(1000, device=GPU).sum() / 1000)

        return add

    def run(key: int, times: int) -> None:
        for _ in range(times):
            graphs.run(key, adding(key))

    for key in counts:
        run(key, 5)
    assert graphs.error is None
    assert list(graphs._graphs) == [key for key in counts if key]
    for key in counts:
        run(key, 5)
    # key 0 was warmed up and captured again, which dropped key 1, and so on
    assert list(graphs._graphs) == [key for key in counts if key]
    assert {key: count.item() for key, count in counts.items()} == dict.fromkeys(counts, 10.0)
    assert set(calls.values()) == {8}
    # what is left replays
    run(8, 5)
    assert (calls[8], counts[8].item()) == (8, 15.0)


def test_out_of_memory_in_a_capture_leaves_the_gpu_usable() -> None:
    count = torch.zeros((), device=GPU)

    def large() -> None:
        count.add_(1)
        if torch.cuda.is_current_stream_capturing():
            torch.empty(2**45, device=GPU)

    def small() -> None:
        count.add_(1)

    graphs = GraphCache(GPU)
    for _ in range(3):
        graphs.run("a", large)
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run("a", large)
    again = GraphCache(GPU)
    for _ in range(6):
        again.run("a", small)
    assert again._graphs
    assert count.item() == 3 + 6
