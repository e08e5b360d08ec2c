from __future__ import annotations

import pytest
import torch

from polyglyph.model.kv_cache import KVCache
from polyglyph.model.transformer import ModelConfig, Transformer

CONFIG = ModelConfig(
    vocabulary_size=29, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=12, context=40
)


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    for parameter in model.parameters():
        parameter.data.mul_(4.0)
    return model.requires_grad_(False)


def test_cached_equals_uncached_with_rows_of_different_lengths(model: Transformer) -> None:
    ids = torch.randint(0, 29, (3, 20))
    whole = model(ids)
    cache = KVCache(CONFIG, 3, 24)
    read = [0, 0, 0]
    for counts in ([5, 1, 7], [1, 1, 1], [3, 2, 0], [1, 4, 1], [1, 1, 1]):
        step = torch.zeros(3, max(counts), dtype=torch.int64)
        for row, count in enumerate(counts):
            step[row, :count] = ids[row, read[row] : read[row] + count]
        hidden = model(step, cache=cache)
        cache.advance(counts)
        for row, count in enumerate(counts):
            expected = whole[row, read[row] : read[row] + count]
            torch.testing.assert_close(hidden[row, :count], expected, rtol=1e-4, atol=1e-4)
            read[row] += count
    assert cache.lengths.tolist() == read and cache.longest == max(read)


def test_kept_rows_go_on_as_before(model: Transformer) -> None:
    ids = torch.randint(0, 29, (3, 9))
    cache = KVCache(CONFIG, 3, 9)
    model(ids[:, :8], cache=cache)
    cache.advance([8, 6, 8])
    cache.keep([2, 1])
    assert cache.lengths.tolist() == [8, 6]
    hidden = model(ids[[2, 1]][:, [8]], cache=cache)
    torch.testing.assert_close(hidden[0], model(ids[2:])[0, 8:], rtol=1e-4, atol=1e-4)


def test_padding_behind_the_end_of_cache_and_context_harms_no_row(model: Transformer) -> None:
    ids = torch.randint(0, 29, (2, 40))
    cache = KVCache(CONFIG, 2, 40)
    model(ids[:, :39], cache=cache)
    cache.advance([39, 20])
    step = torch.stack([ids[0, 39:].repeat(15), ids[1, 20:35]])
    hidden = model(step, cache=cache)
    cache.advance([1, 15])
    torch.testing.assert_close(hidden[0, 0], model(ids[:1])[0, -1], rtol=1e-4, atol=1e-4)
    expected = model(ids[1:, :35])[0, 20:]
    torch.testing.assert_close(hidden[1], expected, rtol=1e-4, atol=1e-4)
    after = model(ids[:, 35:36], cache=cache)
    torch.testing.assert_close(after[1], model(ids[1:, :36])[0, 35:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="41 ids in a cache for 40"):
        cache.advance([1, 1])


def test_documents_and_cache_exclude_each_other(model: Transformer) -> None:
    ids = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="doc_id and cache"):
        model(ids, doc_id=ids, cache=KVCache(CONFIG, 1, 3))


def test_a_prompts_block_is_read_whole_into_an_empty_cache(model: Transformer) -> None:
    ids = torch.randint(0, 29, (2, 14))
    prefix_end = torch.arange(14).repeat(2, 1)
    prefix_end[0, 1:6], prefix_end[1, :4] = 5, 3
    whole = model(ids, prefix_end=prefix_end)
    cache = KVCache(CONFIG, 2, 14)
    counts = [9, 6]  # the second row is padded
    hidden = model(ids[:, :9], prefix_end=prefix_end[:, :9], cache=cache)
    cache.advance(counts)
    torch.testing.assert_close(hidden[0], whole[0, :9], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hidden[1, :6], whole[1, :6], rtol=1e-4, atol=1e-4)
    step = torch.stack([row[n : n + 5] for row, n in zip(ids, counts, strict=True)])
    hidden = model(step, cache=cache)
    for row, n in enumerate(counts):
        torch.testing.assert_close(hidden[row], whole[row, n : n + 5], rtol=1e-4, atol=1e-4)
    cache.advance([5, 5])
    with pytest.raises(ValueError, match="prefix_end: blocks are read whole"):
        model(ids[:, :1], prefix_end=prefix_end[:, :1], cache=cache)
