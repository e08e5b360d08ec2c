from __future__ import annotations

import pydantic
import pytest
import torch

from polyglyph.model.transformer import ModelConfig, Transformer


def small(**changes: object) -> Transformer:
    values: dict[str, object] = {
        "vocabulary_size": 37, "d_model": 24, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2,
        "d_ff": 20, "context": 33,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(ModelConfig.model_validate({**values, **changes}))
    with torch.no_grad():  # larger than at the start, so that attention matters in the tests
        for parameter in model.parameters():
            parameter.mul_(5.0) if parameter.ndim == 2 else parameter.add_(
                0.1 * torch.randn_like(parameter)
            )
    return model


def plain_forward(
    model: Transformer, ids: torch.Tensor, hidden: torch.Tensor | None = None
) -> torch.Tensor:
    """An independent Llama-like forward of one row (T,), written with loops over heads; hidden
    (T, T) bool: the keys that a query doesn't see, by default the later ones."""
    config, norm = model.config, torch.nn.functional.rms_norm
    half, eps = config.d_head // 2, config.norm_eps
    cos, sin = (torch.cat([t[: len(ids)]] * 2, -1) for t in (model.cos, model.sin))

    def turn(x: torch.Tensor) -> torch.Tensor:
        return x * cos + torch.cat([-x[:, half:], x[:, :half]], -1) * sin

    x = model.embedding[ids]
    if hidden is None:
        hidden = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    for block in model.blocks:
        h = norm(x, (config.d_model,), block.attention_norm.weight, eps)
        heads = (block.attention.qkv(h)).split(config.d_head, -1)
        out = []
        for n in range(config.n_heads):
            kv = config.n_heads + n // (config.n_heads // config.n_kv_heads)
            q, k, v = heads[n], heads[kv], heads[kv + config.n_kv_heads]
            if config.qk_norm:
                q = norm(q, (config.d_head,), block.attention.q_norm, eps)
                k = norm(k, (config.d_head,), block.attention.k_norm, eps)
            out.append(turn(q) @ turn(k).T / config.d_head**0.5)
            out[-1] = out[-1].masked_fill(hidden, -torch.inf).softmax(-1) @ v
        x = x + block.attention.out(torch.cat(out, -1))
        h = norm(x, (config.d_model,), block.feed_forward_norm.weight, eps)
        gate, up = block.feed_forward.gate_up(h).chunk(2, -1)
        x = x + block.feed_forward.down(torch.nn.functional.silu(gate) * up)
    return norm(x, (config.d_model,), model.norm.weight, eps)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_equals_a_plain_forward(qk_norm: bool) -> None:
    model = small(qk_norm=qk_norm)
    ids = torch.randint(0, 37, (2, 17))
    expected = torch.stack([plain_forward(model, row) for row in ids])
    torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-4)
    loss = [torch.autograd.grad(x.sin().sum(), model.parameters(), allow_unused=True)
            for x in (model(ids), expected)]  # fmt: skip
    for got, wanted in zip(*loss, strict=True):
        if wanted is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def test_packed_documents_equal_separate_rows() -> None:
    model = small()
    lengths = [5, 1, 11, 7]
    ids = torch.randint(0, 37, (2, sum(lengths)))
    doc_id = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).expand(2, -1)
    packed = model(ids, doc_id=doc_id)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        torch.testing.assert_close(packed[:, part], model(ids[:, part]), rtol=1e-5, atol=1e-5)
        start += length


def test_a_document_changes_no_other_document_and_no_earlier_id() -> None:
    model = small()
    ids = torch.randint(0, 37, (1, 12))
    doc_id = torch.tensor([[0] * 5 + [1] * 7])
    changed = ids.clone()
    changed[0, 3] = (ids[0, 3] + 1) % 37
    before, after = model(ids, doc_id=doc_id), model(changed, doc_id=doc_id)
    assert torch.equal(before[:, :3], after[:, :3]) and torch.equal(before[:, 5:], after[:, 5:])
    assert not torch.allclose(before[:, 3:5], after[:, 3:5])


def blocks() -> tuple[torch.Tensor, torch.Tensor]:
    """(doc_id, prefix_end) of two documents in 17 places, each with a block that reads itself."""
    doc_id = torch.tensor([[0] * 9 + [1] * 8])
    prefix_end = torch.arange(17)[None].clone()
    prefix_end[0, 2:7], prefix_end[0, 9:12] = 6, 11
    return doc_id, prefix_end


def test_conditioning_blocks_read_themselves_whole() -> None:
    model = small()
    doc_id, prefix_end = blocks()
    ids = torch.randint(0, 37, (1, 17))
    for start, stop in ((0, 9), (9, 17)):
        own = prefix_end[0, start:stop] - start
        due = plain_forward(model, ids[0, start:stop], torch.arange(stop - start) > own[:, None])
        packed = model(ids, doc_id=doc_id, prefix_end=prefix_end)[0, start:stop]
        alone = model(ids[:, start:stop], prefix_end=own[None])[0]
        wanted = torch.autograd.grad(due.sin().sum(), model.blocks.parameters())
        for got in (packed, alone):
            torch.testing.assert_close(got, due, rtol=1e-4, atol=1e-4)
            grads = torch.autograd.grad(got.sin().sum(), model.blocks.parameters())
            for grad, expected in zip(grads, wanted, strict=True):
                torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-3)


def test_a_block_changes_nothing_before_it_and_no_other_document() -> None:
    model = small()
    doc_id, prefix_end = blocks()
    ids = torch.randint(0, 37, (1, 17))
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] + 1) % 37  # the last id of the first document's block
    before, after = (model(x, doc_id=doc_id, prefix_end=prefix_end) for x in (ids, changed))
    assert torch.equal(before[:, :2], after[:, :2]) and torch.equal(before[:, 9:], after[:, 9:])
    assert not torch.isclose(before[0, 2:9], after[0, 2:9]).all(1).any()
    causal = model(ids, doc_id=doc_id)
    torch.testing.assert_close(causal[:, :2], before[:, :2], rtol=1e-5, atol=1e-5)
    assert not torch.isclose(causal[0, 2:6], before[0, 2:6]).all(1).any()


def test_autocast_and_bf16_weights_stay_near_fp32() -> None:
    model = small()
    ids = torch.randint(0, 37, (2, 9))
    exact = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(ids)
    # Three layers of sums over 24 with 8-bit factors; the states have size 1.
    torch.testing.assert_close(cast.float(), exact, rtol=0, atol=0.15)
    halved = model.bfloat16()(ids)
    assert halved.dtype == torch.bfloat16
    torch.testing.assert_close(halved.float(), exact, rtol=0, atol=0.25)


def test_tied_embeddings_share_one_matrix() -> None:
    tied, untied = small(tie_embeddings=True), small()
    assert tied.head_weight is tied.embedding
    assert untied.n_parameters - tied.n_parameters == 37 * 24


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(pydantic.ValidationError, match="n_kv_heads"):
        small(n_kv_heads=3)
    with pytest.raises(pydantic.ValidationError, match="d_model"):
        small(d_model=26)
    with pytest.raises(ValueError, match="context of 33"):
        small()(torch.zeros(1, 34, dtype=torch.int64))
