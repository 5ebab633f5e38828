"""Document-boundary attention in the whole model: each document as if it were alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from flyweight.model.config import BOS_TOKEN, ModelConfig

torch = pytest.importorskip("torch")

from flyweight.evaluate.config import ScoreConfig  # noqa: E402
from flyweight.evaluate.scorer import WindowScorer  # noqa: E402
from flyweight.evaluate.window import sliding_windows  # noqa: E402
from flyweight.model.attention import attention_kernel  # noqa: E402
from flyweight.model.generate import Continuation, generate  # noqa: E402
from flyweight.model.transformer import Transformer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

# All that sees only within a document, besides attention; the bigram hash does not.
FEATURES: dict[str, Any] = {
    "vocab_size": 23,
    "num_layers": 5,
    "model_dim": 24,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_hidden": 40,
    "seq_len": 24,
    "rope_dims": 4,
    "smear_gate": True,
    "smear_document_mask": True,
    "unet_skips": True,
    "resid_mix": True,
    "xsa_layers": 3,
    "ve_layers": 2,
    "ve_dim": 10,
    "value_residual": True,
    "gated_attention": True,
    "recur_first": 1,
    "recur_last": 2,
    "recur_passes": 1,
    "skip_gates": True,
    "lanes_from": 3,
}


@pytest.fixture(autouse=True)
def _own_graphs() -> None:
    """What other tests compiled of the same functions does not count."""
    torch.compiler.reset()


def build(*, document_mask: bool = True, **changes: Any) -> Transformer:
    generator = torch.Generator().manual_seed(0)
    model = Transformer(ModelConfig(**FEATURES | changes, document_mask=document_mask))
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def some_tokens() -> Any:
    """Rows (3, 24): cut off at the left, from the first column, of one document."""
    tokens = torch.randint(2, 23, (3, 24), generator=torch.Generator().manual_seed(1))
    tokens[0, [5, 6, 17]] = BOS_TOKEN
    tokens[1, [0, 9]] = BOS_TOKEN
    return tokens


def starts(row: Any) -> list[int]:
    return sorted({0, *np.flatnonzero(row.numpy() == BOS_TOKEN)})


@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_each_document_is_as_if_it_were_alone(kernel: str) -> None:
    model, tokens = build(), some_tokens()
    with torch.no_grad(), attention_kernel(kernel):
        together = model(tokens)
        for row, logits in zip(tokens, together, strict=True):
            for a, b in pairwise([*starts(row), 24]):
                alone = model(row[None, a:b])[0]
                torch.testing.assert_close(logits[a:b], alone, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_documents_alone() -> None:
    model, tokens = build(), some_tokens()
    targets = tokens.roll(-1, 1)
    model.loss(tokens, targets).backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for row, target in zip(tokens, targets, strict=True):
        for a, b in pairwise([*starts(row), 24]):
            loss = model.loss(row[None, a:b], target[None, a:b])
            (loss * (b - a) / tokens.numel()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_no_bit_leaks_between_documents_or_from_later_tokens() -> None:
    model, tokens = build(), some_tokens()
    changed = tokens.clone()
    changed[0, :5] = changed[0, 12:17] = 9
    with torch.no_grad():
        before, after = model(tokens)[0], model(changed)[0]
    assert torch.equal(before[5:12], after[5:12])
    assert torch.equal(before[17:], after[17:])
    assert not torch.equal(before[12:17], after[12:17])


def test_rows_of_one_document_do_not_notice() -> None:
    tokens = some_tokens()[2:]
    with torch.no_grad():
        logits = [build(document_mask=on)(tokens) for on in (True, False)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_generation_is_the_full_forward() -> None:
    model, tokens = build(bigram_buckets=19, bigram_dim=6), some_tokens()
    expected = model(tokens).detach().numpy()
    text = Continuation(model, sequences=3, length=24)
    for t in range(24):
        found = text.append(tokens[:, t]).numpy()
        np.testing.assert_allclose(found, expected[:, t], rtol=1e-4, atol=1e-4)
    drawn = generate(model, sequences=1, length=24, temperature=1e-4)
    assert torch.equal(model(drawn)[:, :-1].argmax(-1), drawn[:, 1:])


def test_a_window_that_cuts_a_document_starts_with_its_rest() -> None:
    model, stream = build(), some_tokens()[:2].flatten()
    windows = sliding_windows(stream.numel() - 1, seq_len=24, stride=3)
    config = ScoreConfig(seq_len=24, stride=3)
    found = WindowScorer(model, stream, config).score(windows)
    for begin, first, end in zip(windows.begin, windows.first, windows.end, strict=True):
        for i in range(first, end):
            bos = [j for j in range(begin, i + 1) if stream[j] == BOS_TOKEN]
            context = stream[bos[-1] if bos else begin : i + 1]
            logits = model(context[None])[0, -1].detach()
            expected = torch.nn.functional.cross_entropy(logits, stream[i + 1])
            assert found[i] == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_one_graph_whatever_the_documents(kernel: str) -> None:
    model, graphs = build().requires_grad_(kernel == "sdpa"), []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model.loss, backend=count, fullgraph=True, dynamic=False)
    with attention_kernel(kernel):
        for tokens in (some_tokens(), some_tokens().roll(1, 0), torch.full((3, 24), BOS_TOKEN)):
            expected = model.loss(tokens, tokens).item()
            assert compiled(tokens, tokens).item() == pytest.approx(expected, rel=1e-5)
    assert len(graphs) == 1


@pytest.mark.cuda
@pytest.mark.filterwarnings("default")  # of the compiler: TF32 is off, a softmax is split
@pytest.mark.parametrize("kernel", ["auto", "sdpa"])
def test_compiled_training_on_cuda(kernel: str) -> None:
    model = build(model_dim=256, mlp_hidden=256, seq_len=512, vocab_size=64)
    tokens = torch.randint(0, 64, (4, 512), generator=torch.Generator().manual_seed(2))
    loss = model.loss(tokens, tokens)
    loss.backward()
    expected = model.blocks[0].attn.c_k.weight.grad.clone()
    model.zero_grad()
    model.cuda()
    compiled = torch.compile(model.loss, fullgraph=True, dynamic=False)
    with attention_kernel(kernel):
        compiled(tokens.cuda(), tokens.cuda()).backward()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            narrow = compiled(tokens.cuda(), tokens.cuda())
    got = model.blocks[0].attn.c_k.weight.grad.cpu()
    assert (got - expected).norm() < 1e-2 * expected.norm()
    assert narrow.item() == pytest.approx(loss.item(), rel=0.03)
