"""The fused loss against the plain one: value, gradient, and what it keeps."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from flyweight.model.cross_entropy import softcapped_cross_entropy  # noqa: E402

CAPS = [0.0, 2.0, 30.0, 60.0]


def some_logits(dtype=None, *, device="cpu", scale=3.0):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(2, 5, 17, generator=generator, dtype=torch.float64)
    targets = torch.randint(17, (2, 5), generator=generator)
    logits = logits.to(device=device, dtype=dtype or torch.float64)
    return logits.requires_grad_(), targets.to(device)


def plain(logits, targets, cap):
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
    capped = cap * torch.tanh(logits / cap) if cap else logits
    return torch.nn.functional.cross_entropy(capped, targets.flatten())


@pytest.mark.parametrize("cap", CAPS)
def test_value_against_numpy(cap):
    logits, targets = some_logits()
    z = logits.detach().numpy()
    z = cap * np.tanh(z / cap) if cap else z
    picked = np.take_along_axis(z, targets.numpy()[..., None], -1)[..., 0]
    expected = (np.log(np.exp(z).sum(-1)) - picked).mean()
    assert softcapped_cross_entropy(logits, targets, cap).item() == pytest.approx(expected, 1e-12)


@pytest.mark.parametrize("cap", CAPS)
def test_gradient_is_the_derivative(cap):
    logits, targets = some_logits()
    assert torch.autograd.gradcheck(lambda x: softcapped_cross_entropy(x, targets, cap), logits)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_as_the_plain_form(cap, dtype):
    logits, targets = some_logits(dtype)
    fused, expected = (f(logits, targets, cap) for f in (softcapped_cross_entropy, plain))
    assert fused.dtype == torch.float32
    assert fused.item() == pytest.approx(expected.item(), rel=1e-6)
    grads = [torch.autograd.grad(loss, logits)[0] for loss in (fused, expected)]
    assert grads[0].dtype == dtype
    rtol = 1e-5 if dtype == torch.float32 else 2**-7  # one rounding of each, to 8 bits
    torch.testing.assert_close(*grads, rtol=rtol, atol=1e-7)


def test_large_logits_neither_overflow_nor_lose_their_gradient():
    logits, targets = some_logits(torch.bfloat16, scale=1e4)
    loss = softcapped_cross_entropy(logits, targets, 30.0)
    (grad,) = torch.autograd.grad(loss, logits)
    assert 0 <= loss.item() <= 60
    assert torch.isfinite(grad).all()


def test_nothing_in_float32_is_kept_but_a_number_per_token():
    logits, targets = some_logits(torch.bfloat16)
    saved = []

    def note(tensor):
        saved.append((tensor.dtype, tensor.numel()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        softcapped_cross_entropy(logits, targets, 30.0)
    wide = [numel for dtype, numel in saved if dtype == torch.float32]
    assert max(wide, default=0) <= targets.numel()
    assert (torch.bfloat16, logits.numel()) in saved


@pytest.mark.cuda
@pytest.mark.filterwarnings("default")  # of the compiler
@pytest.mark.parametrize("cap", CAPS)
def test_compiled_on_cuda(cap):
    logits, targets = some_logits(torch.bfloat16, device="cuda")
    compiled = torch.compile(softcapped_cross_entropy, fullgraph=True, dynamic=False)
    losses = [f(logits, targets, cap) for f in (compiled, plain)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    grads = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    torch.testing.assert_close(*grads, rtol=2**-7, atol=1e-7)
