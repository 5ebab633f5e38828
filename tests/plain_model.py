"""The model's formulas in NumPy float64, one sequence, with loops; nothing of the package runs.

They follow what pull requests #578, #585, #1123, #1539, #1683 and #1855 of openai/parameter-golf
compute, feature by feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray
BOS = 1


def norm(x: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 2.0**-23)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def rope_base(c: Any) -> float:
    """#1539: ``10000 (len / 1024)^(16 / 14)`` where the length is above 1024."""
    if c.rope_train_length and c.seq_len > c.rope_train_length:
        stretch = (c.seq_len / c.rope_train_length) ** (c.rope_dims / (c.rope_dims - 2))
        return float(c.rope_base * stretch)
    return float(c.rope_base)


def turn(head: Array, dims: int, base: float) -> Array:
    """Half-split pairs of the first ``dims`` dimensions: ``(p cos + r sin, -p sin + r cos)``."""
    out, half = head.copy(), dims // 2
    for t in range(len(head)):
        for i in range(half):
            angle = t * base ** (-2 * i / dims)
            p, r = head[t, i], head[t, i + half]
            out[t, i] = p * np.cos(angle) + r * np.sin(angle)
            out[t, i + half] = -p * np.sin(angle) + r * np.cos(angle)
    return out


def softmax_rows(scores: Array) -> Array:
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def exclusive(y: Array, v: Array) -> Array:
    """XSA of one head: ``y - (y . vh) vh`` with ``vh = v / max(norm(v), 1e-12)``."""
    out = y.copy()
    for t in range(len(y)):
        unit = v[t] / max(np.sqrt(v[t] @ v[t]), 1e-12)
        out[t] = y[t] - (y[t] @ unit) * unit
    return out


def bigram_bucket(ids: list[int], buckets: int) -> list[int]:
    """``h_1 = n - 1``, then ``((36313 x_t) xor (27191 x_{t-1})) mod (n - 1)``."""
    last = buckets - 1
    return [last] + [((36313 * this) ^ (27191 * before)) % last for before, this in pairwise(ids)]


def smeared(x: Array, ids: Array, gate: Array, *, mask: bool, on_itself: bool) -> Array:
    """``(1 - g) x_t + g x_{t-1}``; what has none before it meets zeros, or (#1683) itself."""
    g, out = sigmoid(gate), np.empty_like(x)
    for t in range(len(x)):
        alone = t == 0 or (mask and ids[t] == BOS)
        before = (x[t] if on_itself else np.zeros_like(x[t])) if alone else x[t - 1]
        out[t] = (1 - g) * x[t] + g * before
    return out


def layer_order(c: Any, *, recur: bool) -> list[int]:
    order = []
    for layer in range(c.num_layers):
        order.append(layer)
        if recur and c.recur_passes and layer == c.recur_last:
            order += list(range(c.recur_first, c.recur_last + 1)) * c.recur_passes
    return order


class PlainModel:
    """One set of weights; :meth:`logits` is the whole function.

    Parameters
    ----------
    c : a ModelConfig
    weights : by the artifact's tensor names, arrays
    """

    def __init__(self, c: Any, weights: Mapping[str, Array]) -> None:
        self.c = c
        self.w = {name: np.asarray(value, np.float64) for name, value in weights.items()}

    def values(self, n: Array, ids: Array, layer: int, first: Array | None) -> tuple[Array, Array]:
        """Values that the attention of a layer uses, and those before the value residual."""
        c, w, at = self.c, self.w, f"blocks.{layer}.attn"
        v = n @ w[f"{at}.c_v.weight"].T
        ve_index = layer - (c.num_layers - c.ve_layers)
        added = np.zeros_like(v)
        if ve_index >= 0 and c.ve_own_proj:  # #1683: r (Wve VE[x]), after the value residual
            proj = w[f"ve_shared.projs.{ve_index}.weight"]
            added = w[f"ve_layer_scales.{ve_index}"] * (w["ve_shared.embed.weight"][ids] @ proj.T)
        elif ve_index >= 0:  # #578: t_l s_v W_ve E_ve[x], before it (#1123)
            looked_up = w["ve_shared.embed.weight"][ids] @ w["ve_shared.proj.weight"].T
            v = v + w[f"ve_layer_scales.{ve_index}"] * w["ve_shared.scale"] * looked_up
        raw = v
        if c.value_residual:
            mix = w[f"{at}.value_mix"]
            v = mix[0] * (raw if first is None else first) + mix[1] * raw
        return v + added, raw

    def attention(
        self, n: Array, ids: Array, layer: int, first: Array | None
    ) -> tuple[Array, Array]:
        c, w, at = self.c, self.w, f"blocks.{layer}.attn"
        k, per_group, heads = c.head_dim, c.num_heads // c.num_kv_heads, []
        queries, keys = (n @ w[f"{at}.c_{x}.weight"].T for x in "qk")
        values, raw = self.values(n, ids, layer, first)
        for h in range(c.num_heads):
            g = h // per_group
            own = slice(g * k, g * k + k)
            q = turn(norm(queries[:, h * k : h * k + k]), c.rope_dims, rope_base(c))
            q = q * w[f"{at}.q_gain"][h]
            scores = q @ turn(norm(keys[:, own]), c.rope_dims, rope_base(c)).T / np.sqrt(k)
            scores[np.triu_indices(len(n), 1)] = -np.inf
            y = softmax_rows(scores) @ values[:, own]
            if layer >= c.num_layers - c.xsa_layers:
                y = exclusive(y, values[:, own])
            if c.gated_attention:
                gate = sigmoid(n @ w[f"{at}.gate_weight"][h] + w[f"{at}.gate_bias"][h])
                y = y * gate[:, None]
            heads.append(y)
        return np.concatenate(heads, -1) @ w[f"{at}.proj.weight"].T, raw

    def mlp(self, n: Array, layer: int) -> Array:
        at = f"blocks.{layer}.mlp"
        z = n @ self.w[f"{at}.fc.weight"].T
        return np.where(z > 0, z, self.c.leaky_slope * z) ** 2 @ self.w[f"{at}.proj.weight"].T

    def embedded(self, ids: Array) -> Array:
        c, w = self.c, self.w
        x = w["tok_emb.weight"][ids]
        mask = c.smear_document_mask
        if c.smear_gate and c.smear_first:
            x = smeared(x, ids, w["smear.gate"], mask=mask, on_itself=True)
        if c.bigram_buckets:
            rows = bigram_bucket([int(i) for i in ids], c.bigram_buckets)
            looked_up = w["bigram.embed.weight"][rows] @ w["bigram.proj.weight"].T
            x = x + w["bigram.scale"] * looked_up
        x = norm(x)
        if c.smear_gate and not c.smear_first:
            x = smeared(x, ids, w["smear.gate"], mask=mask, on_itself=False)
        return x

    def skipped(self, x: Array, skip: Array, i: int) -> Array:
        w_skip = self.w["skip_weights"][i] * skip
        if not self.c.skip_gates:
            return x + w_skip
        g = sigmoid(self.w["skip_gates"][i])
        return g * x + (1 - g) * w_skip

    def logits(self, ids: Array, *, recur: bool = True) -> Array:
        c, w = self.c, self.w
        x = self.embedded(ids)
        x0, lane_b, first, stack = x, None, None, []
        order = layer_order(c, recur=recur)
        half, skips = len(order) // 2, c.num_layers // 2 if c.unet_skips else 0
        for step, layer in enumerate(order):
            at, scale = f"blocks.{layer}", 1 / np.sqrt(layer + 1) if c.ln_scale else 1
            if half <= step < half + skips:
                x = self.skipped(x, stack.pop(), step - half)
            if c.lanes_from and layer >= c.lanes_from and lane_b is None:
                lane_b = x
            mix = w.get(f"{at}.resid_mix", np.array([[1.0], [0.0]]))
            u = mix[0] * x + mix[1] * x0
            out, raw = self.attention(scale * norm(u), ids, layer, first)
            first = raw if first is None else first
            x = u + w.get(f"{at}.attn_scale", 1.0) * out
            fed = x if lane_b is None else lane_b
            fed = fed + w.get(f"{at}.mlp_scale", 1.0) * self.mlp(scale * norm(fed), layer)
            x, lane_b = (fed, None) if lane_b is None else (x, fed)
            if step < half:
                stack.append(x)
        if lane_b is not None:
            mu = w["lane_merge"]
            x = mu * x + (1 - mu) * lane_b
        head = w["tok_emb.weight" if c.tied_embeddings else "lm_head.weight"]
        logits = norm(x) @ head.T
        return c.softcap * np.tanh(logits / c.softcap) if c.softcap else logits
