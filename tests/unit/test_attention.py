"""Every attention kernel against a plain loop, and documents that do not see each other."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from flyweight.errors import InvalidArgumentError
from flyweight.model.config import BOS_TOKEN

torch = pytest.importorskip("torch")

from torch.nn.attention.flex_attention import BlockMask, create_block_mask  # noqa: E402

from flyweight.model.attention import (  # noqa: E402
    attend,
    attention_kernel,
    available_kernels,
    document_ids,
    document_mask,
    live_kernel,
    positions_in_documents,
)

# Flex without a compiler is slow, says so, and is what there is to compare with on a CPU.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

GPU_KERNELS = ["sdpa", "cudnn", "flash", "flex", "fa3", "fa2"]


@pytest.fixture(autouse=True)
def _own_graphs() -> None:
    """What other tests compiled of the same functions does not count."""
    torch.compiler.reset()


def some_heads(length=150, *, heads=4, groups=2, width=16, dtype=None, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, count, length, width) for count in (heads, groups, groups)]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    return [x.to(device, dtype or torch.float32) for x in drawn]


def some_tokens(length=150, *, device="cpu"):
    """Documents of length 1, of many blocks, cut off at the left, from the first column."""
    tokens = torch.full((2, length), 7)
    tokens[0, [3, 4, 60, 140]] = BOS_TOKEN
    tokens[1, 0] = BOS_TOKEN
    return tokens.to(device)


def loop(q, k, v, tokens=None):
    """Causal attention in float64, one query at a time, documents found by looking back."""
    q, k, v = (x.detach().double().cpu().numpy() for x in (q, k, v))
    y = np.zeros_like(q)
    for b, h, t in np.ndindex(q.shape[:3]):
        start = 0
        if tokens is not None:
            before = np.flatnonzero(tokens[b, : t + 1].cpu().numpy() == BOS_TOKEN)
            start = before[-1] if before.size else 0
        g = h // (q.shape[1] // k.shape[1])
        scores = k[b, g, start : t + 1] @ q[b, h, t] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        y[b, h, t] = weights @ v[b, g, start : t + 1] / weights.sum()
    return torch.from_numpy(y)


def run(heads, tokens=None):
    mask = None if tokens is None else document_mask(tokens)
    return attend(*heads, is_causal=True, documents=mask)


def with_gradients(function, heads, tokens=None):
    heads = [x.detach().requires_grad_() for x in heads]
    y = function(heads, tokens)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), heads)]


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "flex"])
@pytest.mark.parametrize("has_documents", [False, True])
@pytest.mark.parametrize(("length", "groups"), [(150, 2), (128, 4), (9, 1)])
def test_kernels_against_a_loop(kernel, has_documents, length, groups):
    heads = some_heads(length, groups=groups)
    tokens = some_tokens(150)[:, :length] if has_documents else None
    with attention_kernel(kernel):
        y = run(heads, tokens)
    torch.testing.assert_close(y.double(), loop(*heads, tokens), rtol=0, atol=2e-6)


@pytest.mark.parametrize("has_documents", [False, True])
def test_gradients_against_attention_written_out(has_documents):
    def written_out(heads, tokens):
        q, k, v = heads
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        ids = torch.zeros(2, q.shape[2]) if tokens is None else document_ids(tokens)
        hidden = (ids[:, None, :, None] != ids[:, None, None, :]) | torch.ones(
            q.shape[2], q.shape[2], dtype=torch.bool
        ).triu(1)
        return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v

    heads, tokens = some_heads(), some_tokens() if has_documents else None
    got, expected = (with_gradients(f, heads, tokens) for f in (run, written_out))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_each_document_is_as_if_it_were_alone(kernel):
    heads, tokens = some_heads(), some_tokens()
    cuts = [0, 3, 4, 60, 140, 150]
    with attention_kernel(kernel):
        together = run(heads, tokens)[:1]
        for a, b in pairwise(cuts):
            alone = run([x[:1, :, a:b] for x in heads])
            torch.testing.assert_close(together[:, :, a:b], alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_later_tokens_and_other_documents_change_no_bit(kernel):
    q, k, v = some_heads()
    tokens = some_tokens()
    changed = k.detach().clone(), v.detach().clone()
    for x in changed:
        x[0, :, :60] += 1.0  # documents before the one of positions 60 to 139
        x[0, :, 100:] -= 1.0
    with attention_kernel(kernel):
        before, after = run([q, k, v], tokens), run([q, *changed], tokens)
    assert torch.equal(before[0, :, 60:100], after[0, :, 60:100])
    assert not torch.equal(before[0, :, 100:], after[0, :, 100:])


@pytest.mark.parametrize("length", [1, 127, 128, 129, 384, 400])
def test_the_block_mask_is_that_of_torch(length):
    generator = torch.Generator().manual_seed(length)
    tokens = torch.where(torch.rand(3, length, generator=generator) < 0.01, BOS_TOKEN, 7)
    tokens[2] = 7
    ids = document_ids(tokens)
    with attention_kernel("flex"):
        ours = document_mask(tokens)
    assert isinstance(ours, BlockMask)

    def sees(b, h, q, k):
        return (ids[b, q] == ids[b, k]) & (k <= q)

    theirs = create_block_mask(sees, 3, None, length, length, device="cpu")
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    dense_ids = ids[:, None, :] == ids[:, :, None]
    full = ours.full_kv_num_blocks
    for b, i in np.ndindex(3, full.shape[-1]):
        for j in ours.full_kv_indices[b, 0, i, : full[b, 0, i]].tolist():
            block = dense_ids[b, 128 * i : 128 * i + 128, 128 * j : 128 * j + 128]
            assert j < i
            assert block.all()


def test_most_of_a_long_single_document_needs_no_mask():
    with attention_kernel("flex"):
        mask = document_mask(torch.full((1, 1024), 7))
    assert mask.full_kv_num_blocks.flatten().tolist() == list(range(8))
    assert mask.kv_num_blocks.flatten().tolist() == [1] * 8


def test_documents_and_positions():
    tokens = torch.tensor([[5, 5, BOS_TOKEN, 5, BOS_TOKEN, 5], [BOS_TOKEN, 5, 5, 5, 5, BOS_TOKEN]])
    assert document_ids(tokens).tolist() == [[0, 0, 1, 1, 2, 2], [1, 1, 1, 1, 1, 2]]
    assert positions_in_documents(tokens).tolist() == [[0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 0]]


def test_one_query_over_a_cache():
    q, k, v = some_heads()
    mask = document_mask(some_tokens())[:, :, -1:]
    last = attend(q[:, :, -1:], k, v, is_causal=False, documents=mask)
    torch.testing.assert_close(last, run([q, k, v], some_tokens())[:, :, -1:])
    last = attend(q[:, :, -1:], k, v, is_causal=False)
    torch.testing.assert_close(last, run([q, k, v])[:, :, -1:])


@pytest.mark.parametrize("kernel", ["nonsense", "cudnn", "fa3"])
def test_a_kernel_that_is_not_there(kernel):
    match = f"'{kernel}'.* on cpu, expected one of auto, sdpa, flex"
    with attention_kernel(kernel), pytest.raises(InvalidArgumentError, match=match):
        run(some_heads())
    assert live_kernel("cpu") == "sdpa"


def test_float32_is_not_for_flash_attention_3(monkeypatch):
    monkeypatch.setattr("flyweight.model.attention._FLASH_FUNCTIONS", {"fa3": None})
    assert live_kernel("cuda", torch.float32) == "sdpa"
    assert live_kernel("cuda", torch.bfloat16) == "fa3"


def test_packages_get_heads_last(monkeypatch):
    def flash_attn_func(q, k, v, *, causal):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, enable_gqa=True
        )
        return y.transpose(1, 2), None

    module = "flyweight.model.attention"
    monkeypatch.setattr(f"{module}._FLASH_FUNCTIONS", {"fa3": flash_attn_func})
    monkeypatch.setattr(f"{module}.live_kernel", lambda *_: "fa3")
    heads = some_heads()
    torch.testing.assert_close(run(heads).double(), loop(*heads), rtol=0, atol=2e-6)


@pytest.mark.parametrize("has_documents", [False, True])
@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_one_graph_whatever_the_documents(kernel, has_documents):
    heads, tokens = some_heads(256), some_tokens(256) if has_documents else None
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(run, backend=count, fullgraph=True, dynamic=False)
    with attention_kernel(kernel):
        torch.testing.assert_close(compiled(heads, tokens), run(heads, tokens))
        if has_documents:
            other = tokens.clone()
            other[:, ::3] = BOS_TOKEN
            torch.testing.assert_close(compiled(heads, other), run(heads, other))
    assert len(graphs) == 1


@pytest.mark.cuda
@pytest.mark.filterwarnings("default")  # of the compiler: TF32 is off, a softmax is split
@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("has_documents", [False, True])
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("kernel", GPU_KERNELS)
def test_kernels_on_cuda(kernel, groups, has_documents, is_compiled):
    if kernel not in available_kernels("cuda"):
        pytest.skip(f"{kernel} is not installed")
    heads = some_heads(512, groups=groups, width=64, dtype=torch.bfloat16, device="cuda")
    tokens = some_tokens(512, device="cuda") if has_documents else None
    function = torch.compile(run, fullgraph=True, dynamic=False) if is_compiled else run
    with attention_kernel(kernel):
        got = with_gradients(function, heads, tokens)
    wide = [x.cpu().float() for x in heads]
    expected = with_gradients(run, wide, None if tokens is None else tokens.cpu())
    for x, y in zip(got, expected, strict=True):
        error = (x.cpu().float() - y).norm() / y.norm()
        assert error < 0.03, f"relative error {error:.4f}, bfloat16 keeps 0.004"
