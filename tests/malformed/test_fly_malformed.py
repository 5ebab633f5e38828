"""Damaged .fly files: one clear error that says where, never a crash, never wrong weights."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import zlib

import brotli
import numpy as np
import pytest

import flyweight
from flyweight.artifact import unpack
from flyweight.codecs.codec import PlaneSpec, codec_by_name
from flyweight.errors import CorruptStreamError, FlyweightError, UnsupportedError
from flyweight.format.container import write_container
from flyweight.format.header import read_directory
from flyweight.format.stored import PlainTensor
from flyweight.format.wire import Reader, read_fields, read_pairs, write_varint, write_zigzag
from flyweight.quant.grid import Grid, QuantizedTensor
from flyweight.submission.decode_streams import FLY_DAMAGE, FlyError, decode_planes
from flyweight.submission.decoder import decode_fly


def small_file() -> bytes:
    """Three tensors, a config and metadata in a few hundred bytes."""
    rng = np.random.default_rng(0)
    codes = np.clip(rng.normal(0, 2, size=(4, 40)).round(), -7, 7).astype(np.int8)
    tensors = {
        "blocks.0.w": QuantizedTensor(
            shape=(4, 40),
            dtype=np.dtype(np.float32),
            grid=Grid(lo=-7, hi=7),
            codes=codes,
            scales=rng.random((4, 1)).astype(np.float16),
        ),
        "columns": QuantizedTensor(
            shape=(2, 3),
            dtype=np.dtype(np.float32),
            grid=Grid(lo=-7, hi=7, has_column_scales=True),
            codes=codes[:2, :3].copy(),
            scales=rng.random((2, 1)).astype(np.float16),
            column_scales=rng.random(3).astype(np.float16),
        ),
        "gain": PlainTensor(values=np.ones(5, dtype=np.float32), dtype=np.dtype(np.float32)),
    }
    return write_container(tensors, config={1: 8}, metadata={"k": "v"})[0]


def sealed(data: bytearray) -> bytes:
    """The file with its last checksum made right again."""
    data[-4:] = struct.pack("<I", zlib.crc32(bytes(data[:-4])))
    return bytes(data)


def with_directory(directory: bytes, body: bytes = b"") -> bytes:
    """A file around any directory, checksums right."""
    head = struct.pack("<4sBBII", b"\x89FLY", 1, 0, len(directory), zlib.crc32(directory))
    return sealed(bytearray(head + directory + body + bytes(4)))


def test_every_truncation_is_refused() -> None:
    data = small_file()
    for length in range(len(data)):
        with pytest.raises(CorruptStreamError):
            unpack(data[:length])
        with pytest.raises(FlyError):
            decode_fly(data[:length])
    with pytest.raises(CorruptStreamError, match="its directory says"):
        unpack(data + b"\0")


def test_every_flipped_bit_is_refused() -> None:
    data = small_file()
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(FlyweightError):
                unpack(bytes(damaged))
            with pytest.raises(FlyError):
                decode_fly(bytes(damaged))


def test_damage_names_the_tensor() -> None:
    data = small_file()
    start = 14 + struct.unpack_from("<I", data, 6)[0]
    file = flyweight.open(data)
    position = len(data) - 4 - sum(section.length for section in file.sections.values())
    assert start < position
    for name, section in file.sections.items():
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(CorruptStreamError, match=f"section '{name}' at byte {position}"):
            unpack(sealed(damaged))
        position += section.length


def test_flips_behind_right_checksums_never_crash() -> None:
    """What an attacker can do: any byte changed, every checksum recomputed."""
    data = small_file()
    length = struct.unpack_from("<I", data, 6)[0]
    for position in range(14, len(data) - 4):
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] = value
            if position < 14 + length:
                checksum = zlib.crc32(bytes(damaged[14 : 14 + length]))
                struct.pack_into("<I", damaged, 10, checksum)
            try:
                tensors = unpack(sealed(damaged))
            except FlyweightError:
                tensors = {}
            assert sum(array.nbytes for array in tensors.values()) < 1 << 24
            with contextlib.suppress(FlyError):
                decode_fly(sealed(damaged))


def test_other_files_and_versions_are_named() -> None:
    data = bytearray(small_file())
    with pytest.raises(CorruptStreamError, match="not a .fly file: starts with 50 4b 03 04"):
        flyweight.open(b"PK\x03\x04" + bytes(40))
    with pytest.raises(CorruptStreamError, match="3 bytes are too few"):
        flyweight.open(b"\x89FL")
    data[4] = 2
    with pytest.raises(UnsupportedError, match="version 2 .* reads version 1"):
        flyweight.open(sealed(data))
    data[4:6] = b"\x01\x80"
    with pytest.raises(UnsupportedError, match="flags 0x80"):
        flyweight.open(sealed(data))


def test_empty_file_on_disk(tmp_path) -> None:
    path = tmp_path / "empty.fly"
    path.touch()
    with pytest.raises(CorruptStreamError, match=r"empty.fly: the file is empty"):
        flyweight.open(path)


def plain_entry(
    name: bytes = b"w",
    *,
    kind: int = 0,
    dtype: int = 9,
    shape: tuple[int, ...] = (4,),
    rest: bytes = b"\x00\x00\x04",
) -> bytes:
    """A directory entry by hand."""
    return (
        b"\x00"
        + write_varint(len(name))
        + name
        + bytes([kind << 5 | dtype, len(shape)])
        + b"".join(write_varint(size) for size in shape)
        + rest
        + struct.pack("<I", zlib.crc32(b"abcd"))
    )


def test_the_entry_by_hand_is_right() -> None:
    data = with_directory(b"\x01\x00\x00" + plain_entry(), b"abcd")
    assert unpack(data)["w"].tobytes() == b"abcd"


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        (plain_entry(kind=3), UnsupportedError, "kind 3"),
        (plain_entry(dtype=31), UnsupportedError, "dtype id 31"),
        (plain_entry(shape=(1,) * 9), CorruptStreamError, "9 axes"),
        (plain_entry(rest=b"\x09\x00\x04"), UnsupportedError, "layout id 9"),
        (plain_entry(rest=b"\x00\x00\x00"), CorruptStreamError, "4 symbols in 0 bytes"),
        (plain_entry(shape=(1 << 40,)), CorruptStreamError, "cannot be in 4 bytes"),
        (plain_entry(shape=(1 << 62, 1 << 62)), CorruptStreamError, "more than 1099511627776"),
        (plain_entry(shape=(0, 1 << 62)), CorruptStreamError, "more than 1099511627776"),
        (plain_entry(name=b"n" * 1025), CorruptStreamError, "a name of 1025 bytes"),
        (plain_entry(kind=2, dtype=1, rest=b"\x08\x00\x00\x04"), CorruptStreamError, "be cast"),
        (plain_entry(kind=2, dtype=1, rest=b"\x01\x00\x00\x04"), CorruptStreamError, "be cast"),
        (plain_entry(shape=(0,)), CorruptStreamError, "0 symbols in 4 bytes"),
        (plain_entry(name=b"\xff"), CorruptStreamError, "not UTF-8"),
        (plain_entry(kind=2, rest=b"\x02\x00\x00\x04"), CorruptStreamError, "come back as uint8"),
        (
            plain_entry(kind=1, dtype=1, rest=b"\x08\x00\x01\x00"),
            UnsupportedError,
            "grid flags 0x8",
        ),
        (b"\x05\x01w" + plain_entry()[3:], CorruptStreamError, "shares 5 bytes"),
    ],
)
def test_lying_directories(entry: bytes, error: type[Exception], message: str) -> None:
    data = with_directory(b"\x01\x00\x00" + entry, b"abcd")
    with pytest.raises(error, match=message):
        flyweight.open(data)


def test_packed_symbols_outside_the_alphabet() -> None:
    grid = b"\x00" + write_zigzag(60) + write_varint(67) + b"\x00"
    parts = b"\x03\x00\x07" + b"\x00\x00\x02"
    directory = b"\x01\x00\x00" + plain_entry(kind=1, dtype=1, shape=(1, 8), rest=grid + parts)
    body = b"\xff" * 7 + np.float16(1).tobytes()
    directory = directory[:-4] + struct.pack("<I", zlib.crc32(body))
    data = with_directory(directory, body)
    with pytest.raises(CorruptStreamError, match="'w': packed: symbol 127 at 0 is outside"):
        unpack(data)
    with pytest.raises(FlyError, match="outside the alphabet"):
        decode_fly(data)


def test_values_that_no_writer_stores() -> None:
    body = b"\x02\x01\x00\x01"
    entry = plain_entry(dtype=13)[:-4] + struct.pack("<I", zlib.crc32(body))
    with pytest.raises(CorruptStreamError, match="a bool is neither 0 nor 1"):
        unpack(with_directory(b"\x01\x00\x00" + entry, body))
    body = b"\x00" + np.float16(np.nan).tobytes()
    rest = b"\x00\x01\x02\x00" + b"\x00\x00\x01" + b"\x00\x00\x02"
    entry = plain_entry(kind=1, dtype=1, shape=(1, 1), rest=rest)[:-4]
    entry += struct.pack("<I", zlib.crc32(body))
    with pytest.raises(CorruptStreamError, match="scales: a value is not finite"):
        unpack(with_directory(b"\x01\x00\x00" + entry, body))


def column_scaled(column_scales: bytes, rest: bytes) -> bytes:
    """A row of two codes, 0 and 1, with a row scale of 2 and these column scales."""
    body = b"\x00\x01" + np.float16(2).tobytes() + column_scales
    rest = b"\x04\x00\x01\x00" + b"\x00\x00\x02" + b"\x00\x00\x02" + rest
    entry = plain_entry(kind=1, dtype=1, shape=(1, 2), rest=rest)[:-4]
    entry += struct.pack("<I", zlib.crc32(body))
    return with_directory(b"\x01\x00\x00" + entry, body)


def test_column_scales_by_hand() -> None:
    data = column_scaled(np.array([3, 5], np.float16).tobytes(), b"\x00\x00\x04")
    assert unpack(data)["w"].tolist() == decode_fly(data)[0]["w"].tolist() == [[0.0, 10.0]]


@pytest.mark.parametrize(
    ("column_scales", "rest", "message"),
    [
        (
            np.array([3, np.inf], np.float16),
            b"\x00\x00\x04",
            "column_scales: a value is not finite",
        ),
        (np.array([3], np.float16), b"\x00\x00\x02", "2 symbols, expected 4"),
        (np.array([], np.float16), b"\x00\x00\x00", "column_scales: 4 symbols in 0 bytes"),
    ],
)
def test_column_scales_that_no_writer_stores(
    column_scales: np.ndarray, rest: bytes, message: str
) -> None:
    with pytest.raises(CorruptStreamError, match=message):
        unpack(column_scaled(column_scales.tobytes(), rest))


def test_unknown_codec_names_tensor_and_id() -> None:
    data = with_directory(b"\x01\x00\x00" + plain_entry(rest=b"\x00\xc8\x04"), b"abcd")
    with pytest.raises(UnsupportedError, match="tensor 'w': codec id 200"):
        unpack(data)


def test_names_out_of_order_or_twice() -> None:
    for names in ((b"b", b"a"), (b"a", b"a")):
        directory = b"\x02\x00\x00" + b"".join(plain_entry(name) for name in names)
        with pytest.raises(CorruptStreamError, match="out of order or there twice"):
            flyweight.open(with_directory(directory, b"abcdabcd"))


def test_more_tensors_than_the_directory_holds() -> None:
    with pytest.raises(CorruptStreamError, match="needs 1 bytes"):
        read_directory(write_varint(1 << 50) + b"\x00\x00")
    with pytest.raises(CorruptStreamError, match="1 bytes are left"):
        read_directory(b"\x00\x00\x00\x07")


@pytest.mark.parametrize("raw", [b"\x80", b"\x80\x00", b"\xff" * 9 + b"\x01", b"\xff" * 12])
def test_malformed_varints(raw: bytes) -> None:
    with pytest.raises(CorruptStreamError):
        Reader(raw, "test").varint()


@pytest.mark.parametrize("value", [0, 1, -1, 127, 128, -129, 2**31, -(2**31), 2**62 - 1, -(2**62)])
def test_zigzag_round_trip(value: int) -> None:
    reader = Reader(write_zigzag(value), "test")
    assert reader.zigzag() == value
    assert reader.is_done


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x10\x02\x08\x02", "field 1 comes after field 2"),
        (b"\x00\x02", "field 0 comes after"),
        (b"\x09abc", "needs 8 bytes"),
        (b"\x0a\x02\xff\xff", "not UTF-8"),
        (b"\x0b\xff\xff\xff\xff\x7f", "needs 1 bytes"),
    ],
)
def test_malformed_config(raw: bytes, message: str) -> None:
    with pytest.raises(CorruptStreamError, match=message):
        read_fields(raw)


def test_unknown_wire_type_and_double_keys() -> None:
    with pytest.raises(UnsupportedError, match="wire type 7"):
        read_fields(b"\x0f")
    with pytest.raises(CorruptStreamError, match="'a' is out of order or there twice"):
        read_pairs(b"\x01a\x01b\x01a\x01c")


def table_of(*fields: tuple[int, int], mode: int = 1) -> bytes:
    """A stream of one way by hand: header, a table of (value, width) fields, and no more."""
    bits = at = 0
    for value, width in fields:
        bits |= value << at
        at += width
    return bytes([mode << 6 | 4]) + bits.to_bytes(-(-at // 8), "little")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ((32, 1), "class by more than 16"),  # class 2^32 took gigabytes
        ((5, 3), "class 17"),
        ((1, 0), "class -1"),
    ],
)
def test_the_shipped_decoder_bounds_the_classes_of_weights(
    table: tuple[int, int], message: str
) -> None:
    """The first symbol's class as a gamma code of so many zeros and so much below its one."""
    zeros, below = table
    stream = table_of((0, 8), (2, 8), (0, 4), (0, zeros), (1, 1), (below, zeros)) + bytes(16)
    with pytest.raises(FlyError, match=message):
        decode_planes([(1, stream, 10, 3, 10)])


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (2, 1, "symbols 2 to 1 of 3"),
        (0, 3, "symbols 0 to 3 of 3"),  # was an IndexError, or read where class 0
        (255, 255, "symbols 255 to 255 of 3"),
        (0, 2, "no weight for symbol 0 or 2"),
    ],
)
def test_the_shipped_decoder_bounds_the_symbols_of_a_table(
    first: int, last: int, message: str
) -> None:
    """All symbols have class 0."""
    stream = table_of((first, 8), (last, 8), (0, 4), (0b1111, 4)) + bytes(16)
    with pytest.raises(FlyError, match=message):
        decode_planes([(1, stream, 10, 3, 10)])


SIDE_TABLE = table_of((0, 8), (1, 8), (0, 4), (0b110, 3), (0b1, 1), mode=2)
"""Two symbols of weight 1, so a bit each; a tail, a state and side words are to follow."""


@pytest.mark.parametrize(
    ("rest", "error", "message"),
    [
        (b"\x0b" + struct.pack("<IHH", 1 << 16, 0, 1), FlyError, "a tail of 11 symbols"),
        (b"\xff" * 8 + b"\x7f" + bytes(8), FlyError, "a tail of 9223372036854775807 symbols"),
        (b"\xff" * 9 + b"\x7f" + bytes(8), FlyError, "more than nine bytes"),
        (b"\x0a" + struct.pack("<IH", 1 << 16, 0), FlyError, "side words is below"),
        (b"\x0a" + struct.pack("<I", 1 << 16), StopIteration, None),
        (b"\x0a" + struct.pack("<IHH", 1 << 16, 1, 7), FlyError, "side words do not end"),
        (b"\x00" + struct.pack("<H", 1), ValueError, "buffer is smaller"),
        (b"\x0a" + struct.pack("<IB", 1 << 16, 1), ValueError, "buffer size"),
    ],
)
def test_the_shipped_decoder_bounds_tail_and_side_words(
    rest: bytes, error: type[Exception], message: str | None
) -> None:
    assert issubclass(error, FLY_DAMAGE)
    with pytest.raises(error, match=message):
        decode_planes([(1, SIDE_TABLE + rest, 10, 2, 10)])


def test_the_tail_by_hand_is_right() -> None:
    """All ten symbols are in the side words: a state of ten bits, the low half hidden."""
    symbols = [1, 0, 1, 1, 0, 0, 0, 1, 1, 0]
    state = 1 << 16
    for symbol in reversed(symbols):
        state = state // 2048 * 4096 + state % 2048 + 2048 * symbol
    low, high = state & 0xFFFF, state >> 16
    stream = SIDE_TABLE + b"\x0a" + struct.pack("<IH", 1 << 16 | low, high)
    assert decode_planes([(1, stream, 10, 2, 10)])[0].tolist() == symbols
    assert codec_by_name("ans").decode(stream, PlaneSpec(10, 2, 10)).tolist() == symbols


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (b"\x00\xff\x01\x80\x02\x00", "257 codes from -128 on"),
        (b"\x00\x00" + b"\xff" * 4 + b"\x7f\x00", "34359738368 codes"),  # took a list as long
        (b"\x00\x00" + b"\xff" * 9 + b"\x7f\x00", "more than nine bytes"),
        (b"\x08\x00\x01\x00", "grid flags 0x8"),
    ],
)
def test_the_shipped_decoder_bounds_the_alphabet(rest: bytes, message: str) -> None:
    rest += b"\x00\x01\x02" + b"\x00\x00\x02"
    entry = plain_entry(kind=1, dtype=1, shape=(1, 2), rest=rest)
    with pytest.raises(FlyError, match=message):
        decode_fly(with_directory(b"\x01\x00\x00" + entry, b"\x00\x00\x00\x3c"))


def test_a_long_row_of_nothing_takes_no_memory() -> None:
    """No rows of 2^32 columns: an index of the columns took 32 GiB."""
    rest = b"\x00\x00\x01\x00" + b"\x00\x00\x00" * 2
    entry = plain_entry(kind=1, dtype=1, shape=(0, 1 << 32), rest=rest)
    data = with_directory(b"\x01\x00\x00" + entry)
    tracemalloc.start()
    with contextlib.suppress(FlyError):
        assert decode_fly(data)[0]["w"].shape == (0, 1 << 32)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_a_zstd_frame_gets_no_more_memory_than_its_symbols_need() -> None:
    """Found by fuzzing: a frame of 16 bytes that says 3 GiB got them, for four symbols."""
    frame = bytes.fromhex("28b52ffde0") + struct.pack("<Q", 3 << 30) + b"\x01\x00\x00"
    entry = plain_entry(rest=b"\x00\x02" + write_varint(len(frame)))
    entry = entry[:-4] + struct.pack("<I", zlib.crc32(frame))
    data = with_directory(b"\x01\x00\x00" + entry, frame)
    tracemalloc.start()
    with pytest.raises(CorruptStreamError, match="the frame says 3221225472 symbols, expected 4"):
        unpack(data)
    with pytest.raises(FlyError, match="more than its symbols"):
        decode_fly(data)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_a_brotli_stream_gets_no_more_memory_than_its_symbols_need() -> None:
    """27 bytes held 16 MiB, for four symbols."""
    stream = brotli.compress(bytes(1 << 24))
    tracemalloc.start()
    with pytest.raises(FlyError, match="does not hold 4 symbols"):
        decode_planes([(3, stream, 4, 256, 4)])
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_the_shipped_decoder_reads_whole_brotli_streams() -> None:
    """Larger than what one call gives; every end is needed."""
    symbols = np.random.default_rng(0).integers(0, 4, size=1 << 17, dtype=np.uint8)
    stream = brotli.compress(symbols.tobytes())
    plane = (symbols.size, 4, symbols.size)
    assert np.array_equal(decode_planes([(3, stream, *plane)])[0], symbols)
    for damaged in (stream[:-1], stream[:-9], stream + b"x", b""):
        with pytest.raises(FlyError):
            decode_planes([(3, damaged, *plane)])
