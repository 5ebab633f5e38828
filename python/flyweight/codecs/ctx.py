"""Static range ANS with a table per class of row and column (docs/format.md, "CTX").

Rows and columns of a weight matrix differ in their deviation, columns of embeddings also in their
mean. Classes that say so cost a few bits a line, and then no symbol is coded adaptively: decoding
stays a table look-up per symbol.
"""

from __future__ import annotations

import numpy as np

from flyweight.codecs.ans import AnsCodec
from flyweight.codecs.codec import PlaneSpec, check_symbols, register
from flyweight.codecs.ctx_classes import ClassPlan, plan_classes
from flyweight.codecs.ctx_fit import escape, fit_family, table_counts
from flyweight.codecs.ctx_tables import PROB_BITS, ShapeFamily, family_freqs, read_family
from flyweight.errors import CorruptStreamError
from flyweight.kernels.rans import histogram, rans_decode, rans_encode
from flyweight.typing import Symbols, Words

__all__ = ["CtxCodec"]

MODE_CLASSES = 3
MAPS = 3
"""Of rows, of columns, and of the means of columns."""
MAX_VARINT_BYTES = 9
MAX_LOG_WAYS = 6
SYMBOLS_PER_WAY = 1 << 11
MAX_ALPHABET = 255
"""One symbol is kept for the escape."""


ESTIMATE_ERROR = 64.0
"""Bits by which a plan that is tried may seem to lose: at one or two bits a symbol, with rows
unlike each other, it saves up to a seventh of the size more than the estimate says."""


class CtxCodec:
    """Gaussian tables by row class and column class; where they cannot pay, an ans stream.

    Notes
    -----
    Header byte as in ans, with mode 3 and 12 ``prob_bits``; with other modes it is an ans stream.
    """

    codec_id = 4
    name = "ctx"
    decode_rank = 2

    def encode(self, symbols: Symbols, spec: PlaneSpec) -> bytes:
        plain = AnsCodec().encode(symbols, spec)
        coded = self.encode_if_promising(symbols, spec)
        return plain if coded is None or len(coded) > len(plain) else coded

    def decode(self, stream: bytes | memoryview, spec: PlaneSpec) -> Symbols:
        view = memoryview(stream)
        if not len(view) or view[0] >> 6 != MODE_CLASSES:
            return AnsCodec().decode(view, spec)
        return _decode_classes(view, spec)

    def encode_if_promising(self, symbols: Symbols, spec: PlaneSpec) -> bytes | None:
        """The stream, or None where moments say that classes cannot beat ans."""
        check_symbols(symbols, spec)
        plan = _plan(symbols, spec)
        return None if plan is None else _encode_classes(symbols, spec, plan)

    @staticmethod
    def overhead_bytes(stream: bytes | memoryview, *, alphabet_size: int) -> int:
        """Bytes of a stream that are its header, tables and maps, not coded symbols."""
        view = memoryview(stream)
        if not len(view) or view[0] >> 6 != MODE_CLASSES:
            return AnsCodec.overhead_bytes(view, alphabet_size=alphabet_size)
        _, taken = read_family(view[1:], alphabet_size=alphabet_size)
        _, rest = _split_parts(view[1 + taken :])
        return len(view) - len(rest)


def _plan(symbols: Symbols, spec: PlaneSpec) -> ClassPlan | None:
    if not 2 <= spec.alphabet_size <= MAX_ALPHABET or not spec.count or not spec.columns:
        return None
    counts = histogram(np.ascontiguousarray(symbols), alphabet_size=spec.alphabet_size)
    plan = plan_classes(symbols.reshape(-1, spec.columns), counts)
    return plan if plan is not None and plan.saved_bits > -ESTIMATE_ERROR else None


def _encode_classes(symbols: Symbols, spec: PlaneSpec, plan: ClassPlan) -> bytes:
    rows, cols = _tables_of_lines(plan.rows, plan.columns, plan.column_means, plan.family)
    matrix = symbols.reshape(-1, spec.columns)
    shape = (plan.family.tables, spec.alphabet_size)
    family = fit_family(plan.family, table_counts(matrix, rows, cols, shape))
    freqs = family_freqs(family, alphabet_size=spec.alphabet_size)
    coded, escaped = escape(matrix, rows, cols, freqs)
    log_ways = min((max(spec.count // SYMBOLS_PER_WAY, 1)).bit_length() - 1, MAX_LOG_WAYS)
    header = (PROB_BITS - 8) | log_ways << 3 | MODE_CLASSES << 6
    maps = [(plan.rows, family.deviations), (plan.columns, family.deviations)]
    maps += [(plan.column_means, len(family.means)), (escaped, spec.alphabet_size)]
    parts = [AnsCodec().encode(m, PlaneSpec(m.size, n, m.size)) if m.size else b"" for m, n in maps]
    hidden, rest = _hide(parts[-1], ways=1 << log_ways)
    payload = rans_encode(
        coded,
        freqs,
        prob_bits=PROB_BITS,
        ways=1 << log_ways,
        row_classes=rows,
        col_classes=cols,
        hidden=hidden,
    )
    sized = [_put_size(len(part)) + part for part in parts[:-1]]
    head = bytes([header]) + family.to_bytes()
    return b"".join([head, *sized, _put_size(len(parts[-1])), rest, payload])


def _decode_classes(view: memoryview, spec: PlaneSpec) -> Symbols:
    """Inverse of :func:`_encode_classes`."""
    log_ways = view[0] >> 3 & 7
    if view[0] & 7 != PROB_BITS - 8 or log_ways > MAX_LOG_WAYS:
        raise CorruptStreamError(f"ctx: header {view[0]:#04x} is not defined")
    if not spec.count or spec.alphabet_size > MAX_ALPHABET:
        raise CorruptStreamError(
            f"ctx: no classes of {spec.count} symbols of an alphabet of {spec.alphabet_size}"
        )
    family, taken = read_family(view[1:], alphabet_size=spec.alphabet_size)
    maps, view = _split_parts(view[1 + taken :])
    escaped_size, view = _take_size(view)
    behind = max(escaped_size - (2 << log_ways), 0)
    rest, payload = view[:behind], view[behind:]
    sizes = (spec.count // spec.columns, spec.columns, spec.columns)
    alphabets = (family.deviations, family.deviations, len(family.means))
    row_map, col_map, mean_map = (
        AnsCodec().decode(part, PlaneSpec(size, alphabet, size))
        for part, size, alphabet in zip(maps, sizes, alphabets, strict=True)
    )
    rows, cols = _tables_of_lines(row_map, col_map, mean_map, family)
    hidden = np.zeros(1 << log_ways, dtype=np.uint16)
    symbols = rans_decode(
        payload,
        family_freqs(family, alphabet_size=spec.alphabet_size),
        count=spec.count,
        prob_bits=PROB_BITS,
        ways=1 << log_ways,
        row_classes=rows,
        col_classes=cols,
        hidden=hidden,
    )
    escaped = _unhide(hidden, rest, escaped_size)
    escapes = np.flatnonzero(symbols == spec.alphabet_size)
    if escapes.size:
        escape_spec = PlaneSpec(escapes.size, spec.alphabet_size, escapes.size)
        symbols[escapes] = AnsCodec().decode(escaped, escape_spec)
    elif len(escaped):
        raise CorruptStreamError(f"ctx: {len(escaped)} bytes of escaped symbols, but no escape")
    return symbols


def _tables_of_lines(
    rows: Symbols, columns: Symbols, column_means: Symbols, family: ShapeFamily
) -> tuple[Symbols, Symbols]:
    """What each row and each column adds to the index of the table, below 64."""
    means = np.uint8(len(family.means))
    return rows * means, columns * means + column_means


def _put_size(size: int) -> bytes:
    """A varint, see docs/format.md, "Numbers and text"."""
    out = bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


def _take_size(view: memoryview) -> tuple[int, memoryview]:
    """Inverse of :func:`_put_size`, and what is behind it."""
    size = 0
    for length, byte in enumerate(view[:MAX_VARINT_BYTES]):
        size |= (byte & 127) << 7 * length
        if byte < 128:
            if length and not byte:
                break
            return size, view[length + 1 :]
    raise CorruptStreamError(f"ctx: {bytes(view[:MAX_VARINT_BYTES]).hex(' ')} is no size")


def _hide(stream: bytes, *, ways: int) -> tuple[Words, bytes]:
    """What of a stream the states of the payload carry along for free, and the rest."""
    fitting = stream[: 2 * ways].ljust(2 * ways, b"\0")
    return np.frombuffer(fitting, dtype="<u2").astype(np.uint16), stream[2 * ways :]


def _unhide(hidden: Words, rest: memoryview, size: int) -> bytes:
    """Inverse of :func:`_hide`."""
    fitting = hidden.astype("<u2").tobytes()
    stream = fitting[:size] + bytes(rest)
    if len(stream) != size or any(fitting[size:]):
        raise CorruptStreamError(f"ctx: the escaped symbols are not {size} bytes")
    return stream


def _split_parts(view: memoryview) -> tuple[list[memoryview], memoryview]:
    """The maps, each behind its size, and what is left."""
    parts = []
    for number in range(MAPS):
        size, view = _take_size(view)
        if size > len(view):
            raise CorruptStreamError(f"ctx: part {number} has {size} bytes, {len(view)} are left")
        parts.append(view[:size])
        view = view[size:]
    return parts, view


register(CtxCodec())
