"""Hessians of every matrix against activations recomputed by hand."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyweight.errors import InvalidArgumentError
from flyweight.model.config import ModelConfig

torch = pytest.importorskip("torch")

from flyweight.model.blocks import rms_norm  # noqa: E402
from flyweight.model.transformer import Transformer  # noqa: E402
from flyweight.train.calibrate import collect_hessians, collect_in_sequence  # noqa: E402

LOOKUPS: dict[str, Any] = {
    "xsa_layers": 1,
    "bigram_buckets": 11,
    "bigram_dim": 6,
    "ve_layers": 1,
    "ve_dim": 10,
}


def build(*, tied: bool = True, **features: Any) -> Transformer:
    config = ModelConfig(
        vocab_size=16,
        num_layers=2,
        model_dim=8,
        num_heads=2,
        num_kv_heads=1,
        mlp_hidden=12,
        seq_len=8,
        rope_dims=4,
        ln_scale=True,
        smear_gate=True,
        tied_embeddings=tied,
        **features,
    )
    model, generator = Transformer(config), torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(16, (rows, 8), generator=generator) for rows in (3, 2)]


def outer_mean(rows: torch.Tensor) -> np.ndarray:
    flat = rows.detach().double().reshape(-1, rows.shape[-1])
    return (flat.mT @ flat / len(flat)).numpy()


@pytest.mark.parametrize("tied", [True, False])
def test_every_matrix_gets_the_mean_outer_product_of_its_inputs(tied: bool) -> None:
    model = build(tied=tied)
    result = collect_hessians(model, batches())
    assert result.n_tokens == 40
    weights = {name: p for name, p in model.named_parameters() if name.endswith(".weight")}
    if not tied:
        del weights["tok_emb.weight"]  # only a lookup
    assert set(result.matrices) == set(weights)
    for name, matrix in result.matrices.items():
        assert matrix.dtype == np.float32
        assert matrix.shape == (weights[name].shape[1],) * 2
        assert np.array_equal(matrix, matrix.T)

    tokens = torch.cat(batches())
    embedded = model.smear(rms_norm(model.tok_emb(tokens)), tokens)
    head = "tok_emb.weight" if tied else "lm_head.weight"
    for name, rows in (
        ("blocks.0.attn.c_q.weight", rms_norm(embedded)),
        (head, model.hidden(tokens)),
    ):
        np.testing.assert_allclose(result.matrices[name], outer_mean(rows), atol=1e-5)


def test_inputs_of_the_second_linears_are_what_the_first_made() -> None:
    model = build()
    result = collect_hessians(model, batches())
    captured: list[torch.Tensor] = []
    handle = model.blocks[1].mlp.proj.register_forward_pre_hook(
        lambda module, inputs: captured.append(inputs[0])
    )
    model(torch.cat(batches()))
    handle.remove()
    expected = outer_mean(captured[0])
    np.testing.assert_allclose(
        result.matrices["blocks.1.mlp.proj.weight"], expected, rtol=1e-4, atol=1e-4
    )


def test_result_does_not_depend_on_the_batches_and_leaves_no_hook() -> None:
    model = build()
    one = collect_hessians(model, [torch.cat(batches())])
    two = collect_hessians(model, iter(batches()))
    for name, matrix in one.matrices.items():
        np.testing.assert_allclose(matrix, two.matrices[name], rtol=1e-4, atol=1e-4)
    assert not any(module._forward_hooks for module in model.modules())


def test_making_the_batches_is_not_counted() -> None:
    model = build(**LOOKUPS)

    def drawn() -> Iterator[torch.Tensor]:
        for batch in batches():
            model(batch)
            yield batch

    one = collect_hessians(model, batches(), sensitivities=True)
    two = collect_hessians(model, drawn(), sensitivities=True)
    assert one.row_sensitivities is not None
    assert two.row_sensitivities is not None
    for name, matrix in one.matrices.items():
        assert np.array_equal(matrix, two.matrices[name])
        assert np.array_equal(one.row_sensitivities[name], two.row_sensitivities[name])


def test_matmul_precision_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        collect_hessians(build(), batches())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_batches() -> None:
    with pytest.raises(InvalidArgumentError, match="no calibration batches"):
        collect_hessians(build(), [])


def by_hand(model: Transformer, tokens: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """Gradients (tokens, rows) at the outputs of linears and lookups, labels drawn by the model."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            output.retain_grad()
            outputs[f"{name}.weight"] = output

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding)
    ]
    logits = model(tokens).flatten(0, 1)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    model.zero_grad()
    for handle in handles:
        handle.remove()
    return {name: out.grad.flatten(0, -2).double() for name, out in outputs.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_sensitivities_are_mean_squared_gradients(tied: bool) -> None:
    model, tokens = build(tied=tied, **LOOKUPS), torch.cat(batches())
    model.bigram.embed.weight.requires_grad_(False)
    result = collect_hessians(
        model, [tokens], sensitivities=True, generator=torch.Generator().manual_seed(5)
    )
    rows = result.row_sensitivities
    assert rows is not None
    named = dict(model.named_parameters())
    weights = {name for name in named if name.endswith(".weight")}
    assert set(rows) == set(result.matrices) == weights
    for name in weights:
        assert rows[name].dtype == result.matrices[name].dtype == np.float32
        assert rows[name].shape == named[name].shape[:1]
        assert result.matrices[name].shape == (named[name].shape[1],) * 2
    model.bigram.embed.weight.requires_grad_(True)
    tables = {"tok_emb.weight", "bigram.embed.weight", "ve_shared.embed.weight"}
    for name, gradient in by_hand(model, tokens, 5).items():
        if name in tables - ({"tok_emb.weight"} if tied else set()):
            np.testing.assert_allclose(result.matrices[name], outer_mean(gradient), atol=1e-6)
        elif name not in tables:
            expected = gradient.square().mean(0).numpy()
            np.testing.assert_allclose(rows[name], expected, rtol=1e-3, atol=1e-9)
    counts = torch.bincount(tokens.flatten(), minlength=16).numpy()
    np.testing.assert_allclose(rows["ve_shared.embed.weight"], counts / 40, rtol=1e-6)
    assert rows["bigram.embed.weight"][10] == pytest.approx(5 / 40)  # first positions


def test_head_is_the_mean_over_all_labels() -> None:
    model, tokens = build(tied=False, softcap=2.0), torch.cat(batches())
    result = collect_hessians(model, [tokens], sensitivities=True)
    assert result.row_sensitivities is not None
    raw = (model.hidden(tokens).flatten(0, 1) @ model.lm_head.weight.T).detach().requires_grad_()
    expected = torch.zeros(16)
    for label in range(16):
        log_p = (2.0 * torch.tanh(raw / 2.0)).log_softmax(-1)[:, label]
        (gradient,) = torch.autograd.grad(log_p.sum(), raw)
        expected += (log_p.detach().exp()[:, None] * gradient.square()).mean(0)
    found = result.row_sensitivities["lm_head.weight"]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)


def test_tied_embedding_keeps_the_cost_of_both_roles() -> None:
    tied, untied = build(), build(tied=False)
    with torch.no_grad():
        untied.load_state_dict({**tied.state_dict(), "lm_head.weight": tied.tok_emb.weight})
    one, two = (collect_hessians(m, batches(), sensitivities=True) for m in (tied, untied))
    assert one.row_sensitivities is not None
    assert two.row_sensitivities is not None

    def parts(result: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
        return result.row_sensitivities[name], result.matrices[name]

    s, h = parts(one, "tok_emb.weight")
    head_s, head_h = parts(two, "lm_head.weight")
    table_s, table_h = parts(two, "tok_emb.weight")
    expected_rows = head_s * np.trace(head_h) + table_s * np.trace(table_h)
    np.testing.assert_allclose(s * np.trace(h), expected_rows, rtol=1e-4)
    expected = head_s.sum() * head_h + table_s.sum() * table_h
    np.testing.assert_allclose(s.sum() * h, expected, rtol=1e-3, atol=1e-5)


def test_prediction_is_in_nats_per_token() -> None:
    model = build(tied=False, **LOOKUPS)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(16, (256, 8), generator=generator)
    result = collect_hessians(model, [tokens], sensitivities=True, generator=generator)
    assert result.row_sensitivities is not None
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        log_p = model(tokens).log_softmax(-1)
        for name, h in result.matrices.items():
            s, predicted, measured = result.row_sensitivities[name], 0.0, 0.0
            for _ in range(8):
                d = 0.01 * torch.randn(state[name].shape, generator=generator)
                model.load_state_dict({**state, name: state[name] + d})
                log_q = model(tokens).log_softmax(-1)
                measured += float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
                predicted += 0.5 * float(np.einsum("r,ri,ij,rj->", s, d.numpy(), h, d.numpy()))
            assert 0.5 < predicted / measured < 2, name


def test_sensitivities_leave_the_model_as_it_was() -> None:
    model = build(**LOOKUPS)
    model.tok_emb.weight.requires_grad_(False)
    collect_hessians(model, batches(), sensitivities=True)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad == (name != "tok_emb.weight")
    assert not any(module._forward_hooks for module in model.modules())


def test_labels_follow_the_generator() -> None:
    def rows(seed: int) -> np.ndarray:
        result = collect_hessians(
            build(), batches(), sensitivities=True, generator=torch.Generator().manual_seed(seed)
        )
        assert result.row_sensitivities is not None
        return result.row_sensitivities["blocks.0.mlp.fc.weight"]

    assert np.array_equal(rows(1), rows(1))
    assert not np.array_equal(rows(1), rows(2))


def test_autocast_keeps_float32_sums() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = collect_hessians(build(**LOOKUPS), batches(), sensitivities=True)
    exact = collect_hessians(build(**LOOKUPS), batches(), sensitivities=True)
    for name, matrix in exact.matrices.items():
        assert result.matrices[name].dtype == np.float32
        trace = np.trace(matrix)
        np.testing.assert_allclose(result.matrices[name] / trace, matrix / trace, atol=0.05)


def test_deadline_ends_the_pass_after_at_least_one_batch() -> None:
    assert collect_hessians(build(), batches(), max_seconds=0.0).n_tokens == 24

    def slowly() -> Iterator[torch.Tensor]:
        for _ in range(100):
            time.sleep(0.02)
            yield batches()[1]

    assert 16 <= collect_hessians(build(), slowly(), max_seconds=0.2).n_tokens < 1600


def run_rank(rank: int, folder: str) -> None:
    """What a process of the next test does."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    result = collect_hessians(build(**LOOKUPS), [batches()[rank]], sensitivities=True)
    assert result.row_sensitivities is not None
    np.savez(f"{folder}/h{rank}.npz", n_tokens=result.n_tokens, **result.matrices)
    np.savez(f"{folder}/s{rank}.npz", **result.row_sensitivities)
    try:
        collect_hessians(build(), batches() if rank else [])
        raise AssertionError("a rank without batches passed")
    except InvalidArgumentError:
        torch.distributed.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    folder = Path(__file__).parent
    code = "import sys, test_calibrate; test_calibrate.run_rank(int(sys.argv[1]), sys.argv[2])"
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=folder) for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    alone = [
        collect_hessians(
            build(**LOOKUPS),
            [batch],
            sensitivities=True,
            generator=torch.Generator().manual_seed(rank),
        )
        for rank, batch in enumerate(batches())
    ]
    for rank in range(2):
        found, rows = np.load(tmp_path / f"h{rank}.npz"), np.load(tmp_path / f"s{rank}.npz")
        assert found["n_tokens"] == 40
        for name in set(alone[0].matrices) - {"tok_emb.weight"}:  # a product of sums
            mean = 0.6 * alone[0].matrices[name] + 0.4 * alone[1].matrices[name]
            np.testing.assert_allclose(found[name], mean, rtol=1e-4, atol=1e-6)
            parts = [result.row_sensitivities for result in alone]
            assert parts[0] is not None
            assert parts[1] is not None
            mean = 0.6 * parts[0][name] + 0.4 * parts[1][name]
            np.testing.assert_allclose(rows[name], mean, rtol=1e-4, atol=1e-9)
        one = np.load(tmp_path / "h0.npz")
        assert all(np.array_equal(found[name], one[name]) for name in one)


def test_only_some_weights() -> None:
    model, names = build(**LOOKUPS), ["blocks.1.attn.c_k.weight", "bigram.proj.weight"]
    whole = collect_hessians(model, batches())
    some = collect_hessians(model, batches(), only=names)
    assert set(some.matrices) == set(names)
    assert some.n_tokens == whole.n_tokens
    for name in names:
        np.testing.assert_array_equal(some.matrices[name], whole.matrices[name])


def test_in_sequence_each_block_meets_what_the_quantized_ones_before_it_give() -> None:
    model, whole = build(**LOOKUPS), collect_hessians(build(**LOOKUPS), batches())
    given: list[list[str]] = []

    def rounded(names: Any, hessians: Any) -> dict[str, np.ndarray]:
        given.append(list(names))
        weights = {n: model.get_parameter(n).detach().numpy() for n in names}
        assert set(hessians) == {n for n in names if n in whole.matrices}
        return {n: np.round(w * 4) / 4 for n, w in weights.items() if w.ndim == 2}

    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    found = collect_in_sequence(model, batches(), rounded)
    assert given[1:] == [[n for n in before if n.startswith(f"blocks.{b}.")] for b in range(2)]
    assert sorted(name for names in given for name in names) == sorted(before)
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert set(found.matrices) == set(whole.matrices)
    # Nothing is quantized yet when the head is met; everything before the last block when that is.
    for name in ("tok_emb.weight", "bigram.proj.weight"):
        np.testing.assert_array_equal(found.matrices[name], whole.matrices[name])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and not name.startswith("blocks.1."):
                weight.copy_(torch.round(weight * 4) / 4)
    last = collect_hessians(model, batches())
    for name in given[2]:
        if name in found.matrices:
            np.testing.assert_array_equal(found.matrices[name], last.matrices[name])
            assert not np.array_equal(found.matrices[name], whole.matrices[name])


def test_weights_come_back_after_an_error() -> None:
    model = build()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def rounded(names: Any, hessians: Any) -> dict[str, np.ndarray]:
        if any(name.startswith("blocks.1.") for name in names):
            raise InvalidArgumentError("no")
        return {n: np.zeros(before[n].shape, dtype=np.float32) for n in names}

    with pytest.raises(InvalidArgumentError, match="no"):
        collect_in_sequence(model, batches(), rounded)
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
