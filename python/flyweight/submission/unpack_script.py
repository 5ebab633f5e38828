"""What a self-extracting script would execute, found without running any of it.

Many entries of the challenge ship ``exec(lzma.decompress(base64.b85decode("...")))`` or
``exec(open(other_file).read())``. The argument is computed by a small evaluator that knows
literals, module-level names and the decoders below, and nothing else; the rest is reported.
Output is bounded, so that a decompression bomb is a finding.
"""

from __future__ import annotations

import ast
import base64
import binascii
import bz2
import codecs
import io
import lzma
import tokenize
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brotli

from flyweight.errors import CorruptStreamError, DataError, UnsupportedError
from flyweight.submission.fstrings import downgrade_fstrings

__all__ = ["MAX_SOURCE_BYTES", "Source", "parse_source", "read_source", "unpack_script"]

MAX_SOURCE_BYTES = 8_000_000
"""What one layer may unpack to; the largest script of the challenge has 158,429 bytes."""
_MAX_LAYERS = 8
_MAX_DEPTH = 60
_MAX_WINDOW = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One layer of a script."""

    name: str
    """File name, and what was undone to get there, as ``train_gpt.py > b85decode > lzma``."""
    text: str
    """Source of the layer."""
    packed: bool
    """Whether it is a string that another layer executes; False for a file."""
    problems: tuple[str, ...]
    """Calls of ``exec`` whose argument could not be found, and why."""


def unpack_script(path: Path) -> list[Source]:
    """All layers of a script, the shipped file first, the innermost last.

    Parameters
    ----------
    path : the script; other files are read only from its folder

    Raises
    ------
    DataError
        The file is missing, or is not Python that can be read.
    """
    try:
        text = read_source(path.read_bytes(), path.name)
    except OSError as error:
        raise DataError(f"{path.name} is missing") from error
    layers: list[Source] = []
    waiting = [(path.name, text, False)]
    while waiting:
        name, text, packed = waiting.pop(0)
        problems: list[str] = []
        inner: list[tuple[str, str, bool]] = []
        try:
            tree = parse_source(text, name)
        except DataError as error:
            if not layers:
                raise
            problems.append(str(error))
            tree = ast.Module(body=[], type_ignores=[])
        for call in _executed(tree):
            if 1 + len(layers) + len(waiting) + len(inner) >= _MAX_LAYERS:
                problems.append(f"line {call.lineno}: more than {_MAX_LAYERS} layers")
                break
            try:
                evaluator = _Evaluator(tree, path)
                value = evaluator.value(call.args[0])
                text_inside = _executed_text(value, evaluator.steps)
                inner.append((f"{name} > {evaluator.steps}", text_inside, evaluator.is_packed))
            except (CorruptStreamError, UnsupportedError, DataError) as error:
                problems.append(f"line {call.lineno}: exec of what cannot be found: {error}")
        layers.append(Source(name=name, text=text, packed=packed, problems=tuple(problems)))
        waiting.extend(inner)
    return layers


def read_source(data: bytes, name: str) -> str:
    """Text of a script in the encoding that it names, as Python reads it.

    Raises
    ------
    DataError
        The encoding is not known, or the bytes are not text in it.

    References
    ----------
    PEP 263; without a byte order mark or a comment that names one the encoding is UTF-8.
    """
    # Python ends a line at any kind of newline, detect_encoding only at this one
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(lines).readline)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes, in an encoding that has them
            return data.decode(encoding)
    except (SyntaxError, LookupError, ValueError) as error:
        raise DataError(f"{name}: not text that Python can read: {error}") from error


def parse_source(text: str, name: str) -> ast.Module:
    """A script as a tree.

    Raises
    ------
    DataError
        It is not Python, or nested too deeply.
    """
    try:
        try:
            return ast.parse(text)
        except SyntaxError:  # it may be one only for a Python older than the script's
            return ast.parse(downgrade_fstrings(text))
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{name}: not Python that can be read: {error}") from error
    except (RecursionError, MemoryError) as error:  # the latter is the parser's own stack
        raise DataError(f"{name}: nested too deeply to be read") from error


def _executed_text(value: Any, name: str) -> str:
    """What ``exec`` makes of a value: only bytes may name their encoding."""
    if isinstance(value, (bytes, bytearray)):
        return read_source(bytes(value), name)
    if isinstance(value, str):
        return value
    raise UnsupportedError(f"a {type(value).__name__} is no source")


def _executed(tree: ast.Module) -> list[ast.Call]:
    """Calls of ``exec`` and ``eval`` that have an argument; ``model.eval()`` has another name."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("exec", "eval")
        and node.args
    ]


# --- decoders, all bounded ------------------------------------------------------------------------


def _bounded(data: bytes, what: str) -> bytes:
    if len(data) > MAX_SOURCE_BYTES:
        raise CorruptStreamError(f"{what} unpacks to more than {MAX_SOURCE_BYTES:,} bytes")
    return data


def _lzma(
    data: bytes,
    format: int = lzma.FORMAT_AUTO,  # noqa: A002 - its name in lzma
    memlimit: Any = None,
    filters: Any = None,
) -> bytes:
    for each in filters or ():
        if not isinstance(each, dict) or int(each.get("dict_size", 0)) > _MAX_WINDOW:
            raise CorruptStreamError(f"lzma: a window of more than {_MAX_WINDOW:,} bytes")
    limit = None if format == lzma.FORMAT_RAW else 2 * _MAX_WINDOW
    decoder = lzma.LZMADecompressor(format=format, memlimit=limit, filters=filters)
    return _bounded(decoder.decompress(data, MAX_SOURCE_BYTES + 1), "lzma")


def _zlib(data: bytes, wbits: int = zlib.MAX_WBITS, bufsize: int = 0) -> bytes:
    decoder = zlib.decompressobj(wbits)
    return _bounded(decoder.decompress(data, MAX_SOURCE_BYTES + 1), "zlib")


def _bz2(data: bytes) -> bytes:
    return _bounded(bz2.BZ2Decompressor().decompress(data, MAX_SOURCE_BYTES + 1), "bz2")


def _brotli(data: bytes) -> bytes:
    decoder = brotli.Decompressor()
    out = decoder.process(data, output_buffer_limit=MAX_SOURCE_BYTES + 1)
    while not decoder.is_finished() and len(out) <= MAX_SOURCE_BYTES:
        more = decoder.process(b"", output_buffer_limit=MAX_SOURCE_BYTES + 1)
        if not more:
            raise CorruptStreamError("brotli: the stream ends too early")
        out += more
    return _bounded(bytes(out), "brotli")


def _codec(data: Any, encoding: str = "utf-8", errors: str = "strict") -> Any:
    if encoding.lower() in ("hex", "hex_codec", "base64", "base64_codec", "rot13", "rot_13"):
        return codecs.decode(data, encoding)
    if isinstance(data, (bytes, bytearray)):
        return bytes(data).decode(encoding, errors)
    raise UnsupportedError(f"codecs.decode to {encoding!r}")


_DECODERS: dict[str, Callable[..., Any]] = {
    "lzma.decompress": _lzma,
    "zlib.decompress": _zlib,
    "gzip.decompress": lambda data: _zlib(data, 31),
    "bz2.decompress": _bz2,
    "brotli.decompress": _brotli,
    "base64.b85decode": base64.b85decode,
    "base64.a85decode": base64.a85decode,
    "base64.b64decode": base64.b64decode,
    "base64.urlsafe_b64decode": base64.urlsafe_b64decode,
    "base64.standard_b64decode": base64.standard_b64decode,
    "base64.decodebytes": base64.decodebytes,
    "base64.b32decode": base64.b32decode,
    "base64.b16decode": base64.b16decode,
    "binascii.unhexlify": binascii.unhexlify,
    "binascii.a2b_hex": binascii.a2b_hex,
    "binascii.a2b_base64": binascii.a2b_base64,
    "bytes.fromhex": bytes.fromhex,
    "codecs.decode": _codec,
}
_CONSTANTS = {
    f"lzma.{name}": getattr(lzma, name)
    for name in dir(lzma)
    if name.startswith(("FORMAT_", "FILTER_"))
} | {"zlib.MAX_WBITS": zlib.MAX_WBITS}
_METHODS = ("decode", "encode", "replace", "strip", "join")


class _Evaluator:
    """The value of an expression, as far as it is made of literals and known decoders."""

    def __init__(self, tree: ast.Module, path: Path) -> None:
        self.path = path
        self._names: dict[str, ast.expr] = {}
        self._imported: dict[str, str] = {}
        self._steps: list[str] = []
        self.is_packed = True
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self._imported |= {a.asname or a.name: a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                self._imported |= {
                    a.asname or a.name: f"{node.module}.{a.name}" for a in node.names
                }
        for statement in tree.body:
            if isinstance(statement, ast.Assign):
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        self._names[target.id] = statement.value

    @property
    def steps(self) -> str:
        """What was undone, outermost packing first."""
        return " > ".join(self._steps) or "string"

    def value(self, node: ast.expr, depth: int = 0) -> Any:
        """Of an expression.

        Raises
        ------
        UnsupportedError
            Something in it is not known.
        CorruptStreamError
            A decoder finds its input damaged or too large.
        """
        if depth > _MAX_DEPTH:
            raise UnsupportedError("it is nested too deeply")
        down = depth + 1
        match node:
            case ast.Constant():
                return node.value
            case ast.Name(id="__file__"):
                return str(self.path)
            case ast.Name() if node.id in self._names:
                return self.value(self._names[node.id], down)
            case ast.List() | ast.Tuple():
                return [self.value(item, down) for item in node.elts]
            case ast.Dict():
                keys = [self.value(key, down) for key in node.keys if key is not None]
                return dict(
                    zip(keys, [self.value(item, down) for item in node.values], strict=True)
                )
            case ast.BinOp(op=ast.Add()):
                return _joined(self.value(node.left, down), self.value(node.right, down))
            case ast.UnaryOp(op=ast.USub()):
                return -int(self.value(node.operand, down))
            case ast.Subscript(slice=ast.Slice(lower=None, upper=None, step=ast.expr() as step)):
                return self.value(node.value, down)[:: int(self.value(step, down))]
            case ast.Attribute() if self._dotted(node) in _CONSTANTS:
                return _CONSTANTS[self._dotted(node)]
            case ast.Call():
                return self._call(node, down)
        raise UnsupportedError(f"no static value for {ast.unparse(node)[:60]!r}")

    def _dotted(self, node: ast.expr) -> str:
        """Full name of a function, aliases of imports resolved; empty if it has none."""
        match node:
            case ast.Name():
                return self._imported.get(node.id, node.id)
            case ast.Attribute():
                base = self._dotted(node.value)
                return f"{base}.{node.attr}" if base else ""
            case ast.Call(func=ast.Name(id="__import__"), args=[ast.Constant(value=str() as name)]):
                return name
        return ""

    def _call(self, node: ast.Call, depth: int) -> Any:
        name = self._dotted(node.func)
        if name == "compile" and node.args:
            return self.value(node.args[0], depth)
        if name in _DECODERS:
            arguments = [self.value(item, depth) for item in node.args]
            options = {k.arg: self.value(k.value, depth) for k in node.keywords if k.arg}
            return self._decode(name, arguments, options)
        if isinstance(node.func, ast.Attribute):
            if node.func.attr in ("read", "read_text", "read_bytes"):
                return self._read(node, node.func.value, node.func.attr, depth)
            if node.func.attr in _METHODS:
                owner = self.value(node.func.value, depth)
                arguments = [self.value(item, depth) for item in node.args]
                try:
                    return getattr(owner, node.func.attr)(*arguments)
                except (TypeError, ValueError, AttributeError, LookupError) as error:
                    raise UnsupportedError(f"{node.func.attr}: {error}") from error
        if name in ("os.path.dirname", "os.path.abspath", "os.path.realpath", "str"):
            found = self.value(node.args[0], depth)
            return str(Path(found).parent) if name.endswith("dirname") else found
        if name in ("os.path.join", "pathlib.Path") and node.args:
            return str(Path(*[str(self.value(item, depth)) for item in node.args]))
        raise UnsupportedError(f"no static value for a call of {ast.unparse(node.func)[:60]!r}")

    def _decode(self, name: str, arguments: list[Any], options: dict[str, Any]) -> Any:
        try:
            value = _DECODERS[name](*arguments, **options)
        except CorruptStreamError:
            raise
        except (ValueError, TypeError, OSError, EOFError, LookupError, MemoryError) as error:
            raise CorruptStreamError(f"{name}: {error}") from error
        except (lzma.LZMAError, zlib.error, brotli.error, binascii.Error) as error:
            raise CorruptStreamError(f"{name}: {error}") from error
        self._steps.append(name)
        return value

    def _read(self, call: ast.Call, opened: ast.expr, method: str, depth: int) -> str | bytes:
        """A file of the script's folder: its bytes, or its text in the encoding it is opened in."""
        if not (isinstance(opened, ast.Call) and opened.args):
            raise UnsupportedError("a file whose name is not known")
        name = str(self.value(opened.args[0], depth))
        file, folder = Path(self.path.parent, name).resolve(), self.path.parent.resolve()
        if not file.is_relative_to(folder) or not file.is_file():
            raise DataError(f"{name!r} is no file of the folder")
        if file.stat().st_size > MAX_SOURCE_BYTES:
            raise CorruptStreamError(f"{file.name} has more than {MAX_SOURCE_BYTES:,} bytes")
        if method == "read":
            modes = [*opened.args[1:2], *(k.value for k in opened.keywords if k.arg == "mode")]
            is_binary = any("b" in str(self.value(mode, depth)) for mode in modes)
            named, keywords = opened.args[3:4], opened.keywords
        else:
            is_binary = method == "read_bytes"
            named, keywords = call.args[:1], call.keywords
        named = [*named, *(k.value for k in keywords if k.arg == "encoding")]
        data = file.read_bytes()
        self._steps.append(file.name)
        self.is_packed = False
        if is_binary:
            return data
        try:
            return data.decode(*[str(self.value(encoding, depth)) for encoding in named[:1]])
        except (LookupError, ValueError) as error:
            raise CorruptStreamError(f"{file.name}: {error}") from error


def _joined(left: Any, right: Any) -> Any:
    if type(left) is type(right) and isinstance(left, (str, bytes)):
        return left + right
    raise UnsupportedError(f"a sum of {type(left).__name__} and {type(right).__name__}")
