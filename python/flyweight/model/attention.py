"""Which attention kernel runs: the only place that knows, and the masks that keep documents apart.

Shapes: B sequences, T tokens, S keys (T, or more from a cache), H query heads, G key and value
heads, K head_dim, R half of rope_dims, N blocks of ``_BLOCK`` tokens that cover T.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from flyweight.errors import InvalidArgumentError
from flyweight.model.config import BOS_TOKEN

__all__ = [
    "Documents",
    "Positions",
    "attend",
    "attention_kernel",
    "available_kernels",
    "document_ids",
    "document_mask",
    "live_kernel",
    "positions_in_documents",
    "require_gradients",
]

Documents: TypeAlias = Tensor | BlockMask
"""Who may attend to whom: (B, 1, T, S) bool, or the block mask of FlexAttention."""


class Positions(NamedTuple):
    """Where tokens stand: what attention knows of them besides their queries, keys and values."""

    cos: Tensor
    """Cosines of the rotary angles, (T, R), or (B, T, R) where rows differ."""
    sin: Tensor
    """Their sines."""
    documents: Documents | None = None
    """None is one document a row."""


_BLOCK = 128

_SDPA_ORDERS = {
    "sdpa": [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
}
"""Backends of torch's own attention on CUDA, the best first. Others than ours are not used."""


def _flash_functions() -> dict[str, Callable[..., Any]]:
    found = {}
    for name, package in (("fa3", "flash_attn_interface"), ("fa2", "flash_attn")):
        try:
            found[name] = import_module(package).flash_attn_func
        except (ImportError, OSError):  # not installed, or built for another torch or CUDA
            continue
    return found


_FLASH_FUNCTIONS = _flash_functions()
_forced = os.environ.get("FLYWEIGHT_ATTENTION", "auto")


def available_kernels(device: str) -> tuple[str, ...]:
    """Names that `attention_kernel` takes for tensors on ``cpu`` or ``cuda``, besides ``auto``."""
    return (*_FLASH_FUNCTIONS, *_SDPA_ORDERS, "flex") if device == "cuda" else ("sdpa", "flex")


def live_kernel(device: str, dtype: torch.dtype = torch.bfloat16) -> str:
    """The kernel that causal attention runs on here and now.

    Parameters
    ----------
    device : ``cpu`` or ``cuda``
    dtype : of queries, keys and values

    Returns
    -------
    ``fa3`` is FlashAttention-3 and ``fa2`` FlashAttention-2, of their own packages; ``sdpa``
    torch's attention (on CUDA that of cuDNN where it takes the shapes, then flash), ``cudnn`` and
    ``flash`` one backend of it and no other; ``flex`` FlexAttention

    Raises
    ------
    InvalidArgumentError
        The kernel asked for is unknown, or cannot run on this device.

    Notes
    -----
    FlashAttention-2 is only taken when asked for: torch's flash backend is the same algorithm, and
    cuDNN's should be faster on Hopper.
    """
    names = available_kernels(device)
    if _forced == "auto":
        is_narrow = dtype in (torch.bfloat16, torch.float16)
        return "fa3" if "fa3" in names and is_narrow else "sdpa"
    if _forced not in names:
        raise InvalidArgumentError(
            f"attention kernel {_forced!r} (FLYWEIGHT_ATTENTION or attention_kernel()) on "
            f"{device}, expected one of auto, {', '.join(names)}"
        )
    return _forced


def require_gradients(device: str) -> None:
    """Refuse a kernel that cannot train, before a training begins.

    Parameters
    ----------
    device : ``cpu`` or ``cuda``

    Raises
    ------
    InvalidArgumentError
        ``flex`` is asked for on a CPU, where it has no gradients.
    """
    if device == "cpu" and _forced == "flex":
        raise InvalidArgumentError(
            "attention kernel 'flex' (FLYWEIGHT_ATTENTION or attention_kernel()) has no gradients "
            "on cpu, expected auto or sdpa for training"
        )


@contextmanager
def attention_kernel(name: str) -> Iterator[None]:
    """Run attention inside the block on one kernel; for the whole process, compiled code included.

    Raises
    ------
    InvalidArgumentError
        When attention is called: there is no such kernel on its device.
    """
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def attend(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    *,
    is_causal: bool,
    documents: Documents | None = None,
) -> Tensor:
    """Softmax attention with scale ``1 / sqrt(K)``; head h reads keys and values ``h // (H / G)``.

    Parameters
    ----------
    q_BHTK, k_BGSK, v_BGSK : queries, keys, values of one dtype
    is_causal : position t sees keys 0 to t, where fewer queries than keys stand at the end of them;
        False sees all S keys
    documents : from `document_mask`, which is causal itself; it takes the place of ``is_causal``

    Returns
    -------
    (B, H, T, K)

    Raises
    ------
    InvalidArgumentError
        As `live_kernel`.
    """
    kernel = live_kernel(q_BHTK.device.type, q_BHTK.dtype)
    if q_BHTK.shape[2] < k_BGSK.shape[2] and (is_causal or documents is not None):
        mask = _tail_mask(q_BHTK.shape[2], k_BGSK.shape[2], documents, q_BHTK.device)
        return _masked(q_BHTK, k_BGSK, v_BGSK, mask)
    is_grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    if kernel == "flex" and documents is None and is_causal:
        documents = _block_mask(torch.zeros_like(q_BHTK[:, 0, :, 0], dtype=torch.int64))
    if isinstance(documents, BlockMask) or (kernel == "flex" and documents is None):
        mixed: Tensor = flex_attention(
            q_BHTK, k_BGSK, v_BGSK, block_mask=documents, enable_gqa=is_grouped
        )
        return mixed
    if documents is not None:
        return _masked(q_BHTK, k_BGSK, v_BGSK, documents)
    if kernel in _FLASH_FUNCTIONS:
        heads_last = [x.transpose(1, 2) for x in (q_BHTK, k_BGSK, v_BGSK)]
        y = _FLASH_FUNCTIONS[kernel](*heads_last, causal=is_causal)
        y_BTHK: Tensor = y[0] if isinstance(y, tuple) else y  # FlashAttention-3 gave log-sums too
        return y_BTHK.transpose(1, 2)
    if q_BHTK.device.type != "cuda":
        return nn.functional.scaled_dot_product_attention(
            q_BHTK, k_BGSK, v_BGSK, is_causal=is_causal, enable_gqa=is_grouped
        )
    with sdpa_kernel(_SDPA_ORDERS[kernel], set_priority=True):
        return nn.functional.scaled_dot_product_attention(
            q_BHTK, k_BGSK, v_BGSK, is_causal=is_causal, enable_gqa=is_grouped
        )


def _tail_mask(
    queries: int, keys: int, documents: Documents | None, device: torch.device
) -> Tensor:
    """Which keys the last queries see, (1 or B, 1, queries, keys) bool."""
    if isinstance(documents, Tensor):
        return documents[:, :, -queries:]
    rows_T1 = torch.arange(keys - queries, keys, device=device)[:, None]
    columns_S = torch.arange(keys, device=device)
    if documents is None:
        return (columns_S <= rows_T1)[None, None]
    first_B = torch.arange(documents.shape[0], device=device)[:, None, None]
    sees_BTS: Tensor = documents.mask_mod(first_B, torch.zeros_like(first_B), rows_T1, columns_S)
    return sees_BTS[:, None]


def _masked(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask_B1TS: Tensor) -> Tensor:
    """With repeated heads: kernels that take both a mask and groups are the slow ones."""
    repeats = q_BHTK.shape[1] // k_BGSK.shape[1]
    k_BHSK, v_BHSK = (x.repeat_interleave(repeats, dim=1) for x in (k_BGSK, v_BGSK))
    return nn.functional.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask_B1TS)


def document_ids(tokens_BT: Tensor) -> Tensor:
    """Number of each token's document in its row, (B, T) int64.

    Tokens before the first ``BOS_TOKEN`` belong to document 0, whose start the row cut off.
    """
    return (tokens_BT == BOS_TOKEN).cumsum(1)


def positions_in_documents(tokens_BT: Tensor) -> Tensor:
    """Distance to the start of the document, or of the row in its first one, (B, T) int64."""
    columns_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    starts_BT = torch.where(tokens_BT == BOS_TOKEN, columns_T, 0).cummax(1).values
    return columns_T - starts_BT


def document_mask(tokens_BT: Tensor) -> Documents:
    """Each token sees those of its own document up to itself; to be made once per batch.

    Parameters
    ----------
    tokens_BT : (B, T) ids; ``BOS_TOKEN`` opens a document

    Returns
    -------
    for `attend`; shapes depend on (B, T) alone, so that compiled code never waits for the device
    or compiles again. Compiled for CUDA it is a block mask, which skips blocks of 128 tokens whose
    documents differ, unless ``sdpa`` is asked for; elsewhere (B, 1, T, T) bool, unless ``flex`` is.
    """
    ids_BT, device = document_ids(tokens_BT), tokens_BT.device.type
    is_compiled = device == "cuda" and torch.compiler.is_compiling()
    kernel = live_kernel(device)
    if kernel == "flex" or (is_compiled and _forced != "sdpa"):
        return _block_mask(ids_BT)
    return (ids_BT[:, :, None] == ids_BT[:, None, :]).tril()[:, None]


def _block_mask(ids_BT: Tensor) -> BlockMask:
    length = ids_BT.shape[1]

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (ids_BT[b, q] == ids_BT[b, k]) & (k <= q)

    part_kv, which_kv, whole_kv, whole_which_kv, *q_side = _document_blocks(ids_BT)
    part_q, which_q, whole_q, whole_which_q = q_side
    keys = (part_kv, which_kv, whole_kv, whole_which_kv)
    queries = (part_q, which_q, whole_q, whole_which_q)
    return BlockMask((length, length), *keys, *queries, (_BLOCK, _BLOCK), sees)


def _find_blocks(ids_BT: Tensor) -> list[Tensor]:
    """What blocks of keys each block of queries sees in part and in whole, and the other way round.

    From the first and last document of each block: ids never fall, so no pair is looked at.
    """
    length = ids_BT.shape[1]
    last_BN = nn.functional.pad(ids_BT, (0, -length % _BLOCK), value=-1)[:, _BLOCK - 1 :: _BLOCK]
    last_BN = torch.where(last_BN < 0, ids_BT[:, -1:], last_BN)
    first_BN = ids_BT[:, ::_BLOCK]
    blocks_N = torch.arange(first_BN.shape[1], device=ids_BT.device)
    rows_N1, columns_N = blocks_N[:, None], blocks_N
    meets_BNN = (first_BN[:, :, None] <= last_BN[:, None, :]) & (columns_N <= rows_N1)
    is_full_BNN = (last_BN[:, :, None] == first_BN[:, None, :]) & (columns_N < rows_N1)
    both = (meets_BNN & ~is_full_BNN, is_full_BNN)
    chosen = (*both, *(seen_BNN.mT for seen_BNN in both))
    return [listed for seen_BNN in chosen for listed in _listed(seen_BNN)]


def _shape_blocks(ids_BT: Tensor) -> list[Tensor]:
    batch, blocks = len(ids_BT), -(-ids_BT.shape[1] // _BLOCK)
    shapes = ((batch, 1, blocks), (batch, 1, blocks, blocks)) * 4
    return [ids_BT.new_empty(shape, dtype=torch.int32) for shape in shapes]


def _operator(
    name: str, schema: str, function: Callable[..., Any], shapes: Callable[..., Any]
) -> Callable[..., Any]:
    """What compilers call as it is, and whose results have the layout that it gave them."""
    operator = torch.library.custom_op(
        f"flyweight::{name}", function, mutates_args=(), schema=schema
    )
    operator.register_fake(shapes)
    return operator


_document_blocks = _operator(
    "document_blocks", "(Tensor ids_BT) -> Tensor[]", _find_blocks, _shape_blocks
)
"""FlexAttention's kernels take the layout of these for granted, which compilers may change."""


def _listed(chosen_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """How many columns each row has, and which, those first: (B, 1, N) and (B, 1, N, N) int32."""
    order_BNN = torch.argsort(chosen_BNN.to(torch.int32), dim=-1, descending=True, stable=True)
    count_BN = chosen_BNN.sum(-1)
    lists = (count_BN[:, None], order_BNN[:, None])
    counts, orders = (x.to(torch.int32, memory_format=torch.contiguous_format) for x in lists)
    return counts, orders
