"""Static unpacking and the scan: sources are found without running them, mistakes by rule."""

from __future__ import annotations

import base64
import bz2
import lzma
import zlib

import brotli
import pytest

from flyweight.errors import DataError
from flyweight.submission.fstrings import downgrade_fstrings
from flyweight.submission.named_files import opened_files
from flyweight.submission.scan import Finding, scan_source
from flyweight.submission.unpack_script import (
    MAX_SOURCE_BYTES,
    Source,
    parse_source,
    unpack_script,
)

PLAIN = "print('inner')\nx = 1\n"
RAW = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2}]}


def unpacked(tmp_path, text, **files):
    (tmp_path / "train_gpt.py").write_text(text)
    for name, content in files.items():
        (tmp_path / f"{name}.py").write_text(content)
    return unpack_script(tmp_path / "train_gpt.py")


def packed(source):
    return base64.b85encode(lzma.compress(source.encode(), **RAW)).decode()


BZ2 = bz2.compress(PLAIN.encode()).hex()
BROTLI = base64.b85encode(brotli.compress(PLAIN.encode())).decode()
WRAPPERS = {
    "lzma raw, base85": "import lzma as L,base64 as B\n"
    f'exec(L.decompress(B.b85decode("{packed(PLAIN)}"),format=L.FORMAT_RAW,'
    'filters=[{"id":L.FILTER_LZMA2}]))',
    "lzma xz, base64": "import lzma, base64\n"
    f"DATA = {base64.b64encode(lzma.compress(PLAIN.encode()))!r}\n"
    "exec(compile(lzma.decompress(base64.b64decode(DATA)), 'x', 'exec'))",
    "zlib, ascii85": "from zlib import decompress\nfrom base64 import a85decode as a\n"
    f"exec(decompress(a({base64.a85encode(zlib.compress(PLAIN.encode()))!r})).decode('utf-8'))",
    "bz2, hex": f"import bz2\nexec(bz2.decompress(bytes.fromhex('{BZ2}')))",
    "brotli, in parts": "import brotli, base64\nP = 'x'\n"
    f"A = {BROTLI[:9]!r}\nexec(brotli.decompress(base64.b85decode(A + {BROTLI[9:]!r})))",
    "imports in place": f"exec(__import__('zlib').decompress({zlib.compress(PLAIN.encode())!r}))",
    "reversed": f"exec({PLAIN[::-1]!r}[::-1])",
}


@pytest.mark.parametrize("text", WRAPPERS.values(), ids=WRAPPERS)
def test_packed_sources_are_found(tmp_path, text):
    layers = unpacked(tmp_path, text)
    assert [layer.text for layer in layers] == [text, PLAIN]
    assert layers[1].packed
    assert not any(layer.problems for layer in layers)


def test_layers_in_layers_and_other_files(tmp_path):
    inner = f"import zlib\nexec(zlib.decompress({zlib.compress(PLAIN.encode())!r}))"
    reader = 'exec(open(__file__.replace("train_gpt.py","other.py")).read())'
    layers = unpacked(tmp_path, reader, other=inner)
    assert [layer.text for layer in layers] == [reader, inner, PLAIN]
    assert [layer.packed for layer in layers] == [False, False, True]
    assert layers[1].name == "train_gpt.py > other.py"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("exec(something())", "no static value for a call of 'something'"),
        ("exec(open('../secret.py').read())", "is no file of the folder"),
        ("exec(open('/etc/passwd').read())", "is no file of the folder"),
        ("import zlib\nexec(zlib.decompress(b'junk'))", "zlib.decompress: Error"),
        ("import brotli\nexec(brotli.decompress(b'junk'))", "brotli: the stream ends too early"),
        ("import lzma\nexec(lzma.decompress(b'junk'))", "lzma.decompress"),
        ("exec(1)", "a int is no source"),
        ("import os\nexec(os.environ['X'])", "no static value for"),
        ("x = x\nexec(x)", "nested too deeply"),
        ("exec('a' + b'b')", "a sum of str and bytes"),
    ],
)
def test_what_cannot_be_found_is_said(tmp_path, text, problem):
    layers = unpacked(tmp_path, text)
    assert any(problem in line for layer in layers for line in layer.problems), layers


@pytest.mark.parametrize(
    ("module", "compress"),
    [("zlib", zlib.compress), ("bz2", bz2.compress), ("lzma", lzma.compress),
     ("brotli", lambda data: brotli.compress(data, quality=5))],
)  # fmt: skip
def test_bombs_are_a_finding(tmp_path, module, compress):
    bomb = compress(bytes(MAX_SOURCE_BYTES + 10))
    layers = unpacked(tmp_path, f"import {module}\nexec({module}.decompress({bomb!r}))")
    assert len(layers) == 1
    assert "unpacks to more than 8,000,000 bytes" in layers[0].problems[0]


def test_windows_that_take_too_much_memory(tmp_path):
    text = (
        "import lzma\nexec(lzma.decompress(b'x', format=lzma.FORMAT_RAW, "
        "filters=[{'id': lzma.FILTER_LZMA2, 'dict_size': 4000000000}]))"
    )
    assert "window" in unpacked(tmp_path, text)[0].problems[0]


def test_endless_layers_end(tmp_path):
    layers = unpacked(tmp_path, "exec(open(__file__).read())")
    assert len(layers) == 8
    assert "more than 8 layers" in layers[-1].problems[0]


def test_scripts_that_are_none(tmp_path):
    with pytest.raises(DataError, match="not Python"):
        unpacked(tmp_path, "def")
    with pytest.raises(DataError, match="is missing"):
        unpack_script(tmp_path / "no.py")
    layers = unpacked(tmp_path, "exec('def')")
    assert "not Python" in layers[1].problems[0]


def test_a_script_is_read_in_the_encoding_that_it_names(tmp_path):
    hidden = "x = 1  # \\nprint('hidden')\n"
    for data in (
        f"# coding: unicode_escape\n{hidden}".encode(),
        f"#!/usr/bin/python\r# vim: set fileencoding=unicode_escape :\r{hidden}".encode(),
        b"#" + bytes(100_000 * b".") + f"\n# coding=unicode_escape\n{hidden}".encode(),
    ):
        (tmp_path / "train_gpt.py").write_bytes(data)
        assert "\nprint('hidden')" in unpack_script(tmp_path / "train_gpt.py")[0].text
        layers = unpacked(tmp_path, f"exec({data!r})")
        assert "\nprint('hidden')" in layers[1].text
        layers = unpacked(tmp_path, f"exec({data.decode()!r})")  # of text Python reads no cookie
        assert "\nprint('hidden')" not in layers[1].text
    (tmp_path / "train_gpt.py").write_bytes("\ufeffx = 'ü'".encode())
    assert unpack_script(tmp_path / "train_gpt.py")[0].text == "x = 'ü'"
    (tmp_path / "train_gpt.py").write_bytes("# coding: latin-1\nx = 'ü'".encode("latin-1"))
    assert unpack_script(tmp_path / "train_gpt.py")[0].text.endswith("x = 'ü'")


def test_other_files_are_read_in_the_encoding_they_are_opened_in(tmp_path):
    (tmp_path / "other.py").write_bytes("# coding: latin-1\nx = 'ü'".encode("latin-1"))
    for call in (
        "open('other.py', 'rb').read()",
        "open('other.py', mode='rb').read()",
        "open('other.py', encoding='latin-1').read()",
        "Path('other.py').read_text('latin-1')",
        "Path('other.py').read_text(encoding='latin-1')",
        "Path('other.py').read_bytes()",
    ):
        layers = unpacked(tmp_path, f"from pathlib import Path\nexec({call})")
        assert layers[-1].text.endswith("x = 'ü'"), call
    layers = unpacked(tmp_path, "exec(open('other.py').read())")
    assert "other.py: 'utf-8' codec can't decode" in layers[0].problems[0]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"x = '\xfc'", "invalid or missing encoding declaration"),
        (b"#\n#\nx = '\xfc'", "'utf-8' codec can't decode"),
        (b"# coding: klingon\nx = 1", "unknown encoding: klingon"),
        (b"# coding: rot13\nx = 1", "is not a text encoding"),
        (b"\xef\xbb\xbf# coding: latin-1\nx = 1", "encoding problem"),
        (b"x = 1\x00", "null bytes"),
    ],
)
def test_scripts_that_are_no_text(tmp_path, data, match):
    (tmp_path / "train_gpt.py").write_bytes(data)
    with pytest.raises(DataError, match=rf"train_gpt.py: not .* can .*read.*{match}"):
        unpack_script(tmp_path / "train_gpt.py")


def test_fstrings_of_newer_pythons():
    new = 'x = f"{a["k"]:.2f} {{}} {"\\n".join(b)}" # f"{"\ny = "plain {a["\n'
    old = downgrade_fstrings(new)
    assert old.count("\n") == new.count("\n")
    assert "f\"{a['k']:.2f} {{}} {'n'.join(b)}\"" in old
    assert len(parse_source('x = f"{a["k"]}"\ny = 1', "x").body) == 2


# --- the scan -------------------------------------------------------------------------------------


def found(text):
    source = Source(name="x", text=text, packed=False, problems=())
    return {(finding.rule, finding.status) for finding in scan_source(source)}


SCORE_FIRST = """
def evaluate(model, val_tokens):
    for chunk in range(9):
        part = val_tokens[chunk : chunk + 2]
        with torch.inference_mode():
            nats = model(part)
        for _ in range(3):
            loss = model(part)
            loss.backward()
"""
TRAINS_FIRST = """
def adapt(model, tokens):
    for epoch in range(30):
        loss = model(tokens)
        loss.backward()

def main():
    val_tokens = load()
    adapt(model, val_tokens)
    with torch.no_grad():
        model(val_tokens)
"""
TRAINS_ON_TRAINING_DATA = """
def main():
    val_tokens, best = load(), 9
    while True:
        score(val_tokens)
        x, y = loader.next_batch()
        loss = model(x, y)
        loss.backward()
"""


def test_the_order_of_scoring_and_training():
    assert found(SCORE_FIRST) == {("train after score", "WARN")}
    assert found(TRAINS_FIRST) == {("train before score", "FAIL")}
    assert found(TRAINS_FIRST.replace("loss.backward()", "torch.autograd.backward(loss)")) == {
        ("train before score", "FAIL")
    }
    assert found(TRAINS_ON_TRAINING_DATA) == set()


def test_training_in_a_helper_after_scoring():
    text = """
def learn(model, rows):
    loss = model(rows)
    loss.backward()

@torch.no_grad()
def score(model, rows):
    return model(rows)

def evaluate(model, val_data):
    for rows in val_data.chunks():
        score(model, rows)
        learn(model, rows)
"""
    assert found(text) == {("train after score", "WARN")}
    swapped = text.replace(
        "        score(model, rows)\n        learn(model, rows)\n",
        "        learn(model, rows)\n        score(model, rows)\n",
    )
    assert found(swapped) == {("train before score", "FAIL")}


def test_targets_in_lookup_keys():
    text = """
def look(counts, ctx, tgt, mask):
    full_key = ((ctx * 36313) ^ (tgt * 27191)) & mask
    return counts[full_key]
"""
    assert found(text) == {("target in a lookup key", "FAIL")}
    assert found(text.replace("return counts[full_key]", "counts[full_key] = 1")) == {
        ("target in a lookup key", "WARN")
    }
    assert found(text.replace("tgt", "older")) == set()


TABLE = """
def build_table(sp, n):
    assert sp.piece_to_id("▁") != sp.unk_id()
    for i in range(n):
        if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i):
            continue
        if sp.is_byte(i):
            base[i] = 1
            continue
        piece = sp.id_to_piece(i)
        if piece.startswith("▁"):
            has_leading_space[i] = True
            piece = piece[1:]
        base[i] = len(piece.encode("utf-8"))
"""


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ('len(piece.encode("utf-8"))', 'len(piece.encode("utf-8")) + 1', "FAIL"),
        ("base[i] = 1\n", "base[i] = len(sp.id_to_piece(i).encode())\n", "FAIL"),
        (" or sp.is_unused(i)", "", "FAIL"),
        ('    assert sp.piece_to_id("▁") != sp.unk_id()\n', "", "WARN"),
    ],
)
def test_wrong_byte_tables(old, new, status):
    assert found(TABLE) == set()
    assert old in TABLE
    assert found(TABLE.replace(old, new)) == {("byte table", status)}


def test_a_leading_space_counted_only_in_the_table_is_for_a_person():
    text = TABLE.replace('encode("utf-8"))', 'encode("utf-8")) + 1').replace(
        "has_leading_space", "x"
    )
    assert found(text) == {("byte table", "WARN")}


def test_files_and_findings_as_text():
    source = Source(name="x", text="open('a.bin'); b = 'no file'", packed=False, problems=())
    assert opened_files(source) == ["a.bin"]
    finding = Finding(rule="r", status="FAIL", line=3, evidence="e")
    assert str(finding) == "r: line 3: e"


TOP_LEVEL = "val_tokens = load()\nfor x in val_tokens:\n    model(x).backward()\n"
SAME_NAMES = (
    "class A:\n def step(self, val_tokens):\n  self.m(val_tokens).backward()\n"
    "class B:\n def step(self, x):\n  pass\n"
)
METHOD_AND_FUNCTION = (
    "class A:\n def step(self, x):\n  self.m(x).backward()\n"
    "def step(x):\n  return x\n"
    "def go(val_tokens):\n  step(val_tokens)\n"
)


SHARED_HELPER = (
    "def size(x):\n  return len(x)\n"
    "def go(val_tokens, rows):\n"
    "  n = size(val_tokens)\n"
    "  model(rows, size(rows)).backward()\n"
)


@pytest.mark.parametrize("text", [TOP_LEVEL, SAME_NAMES], ids=["top level", "same names"])
def test_training_is_found_wherever_it_is(text):
    assert found(text) == {("train before score", "FAIL")}


def test_a_function_is_no_method_of_its_name():
    assert found(METHOD_AND_FUNCTION) == set()


def test_a_helper_of_scoring_and_training_taints_neither():
    assert found(SHARED_HELPER) == set()


GLOBAL = """
data = read(val_tokens)
def adapt(model):
    model(data).backward()
"""
GLOBAL_BY_STATEMENT = """
def load(val_tokens):
    global data
    data = val_tokens
def adapt(model):
    model(data).backward()
"""
CLOSURE = """
def evaluate(model, val_tokens):
    rows = val_tokens[:9]
    def step():
        loss = model(rows)
        loss.backward()
    step()
"""
NONLOCAL = """
def evaluate(model, val_tokens):
    loss = None
    def score():
        nonlocal loss
        loss = model(val_tokens)
    score()
    loss.backward()
"""
DEFAULT = """
def evaluate(model, val_tokens):
    def step(rows, *, n=1, more=val_tokens):
        model(rows, more).backward()
    optimizer.step(step)
"""
CONSTRUCTOR = """
class Adapter:
    def __init__(self, model, tokens):
        self.model, self.n = model, 1
        self.rows = tokens.long()
    def step(self):
        loss = self.model(self.rows)
        loss.backward()
def main():
    Adapter(model, val_tokens).step()
"""
INHERITED = """
class Base:
    def __init__(self, tokens):
        self.rows = tokens
class Adapter(Base):
    def batch(self, n):
        return self.rows[:n]
    def step(self):
        model(self.batch(9)).backward()
def main():
    Adapter(val_tokens).step()
"""
DATACLASS = """
@dataclass
class Adapter:
    model: nn.Module
    rows: Tensor
    def step(self):
        self.model(self.rows).backward()
def main():
    Adapter(model, rows=val_tokens).step()
"""


@pytest.mark.parametrize(
    "text",
    [GLOBAL, GLOBAL_BY_STATEMENT, CLOSURE, NONLOCAL, DEFAULT, CONSTRUCTOR, INHERITED, DATACLASS],
    ids=["global", "global statement", "closure", "nonlocal", "default", "constructor",
         "inherited", "dataclass"],
)  # fmt: skip
def test_tokens_are_followed_through_names_around_and_objects(text):
    assert found(text) == {("train before score", "FAIL")}
    assert found(text.replace("val_tokens", "train_tokens")) == set()


CALLBACK = """
def evaluate(model, val_tokens):
    for rows in val_tokens.chunks():
        with torch.no_grad():
            model(rows)
        def closure():
            loss = model(rows)
            loss.backward()
        optimizer.step(closure)
"""
LOCAL_OF_THE_SAME_NAME = """
rows = val_tokens[:9]
def train(model, loader):
    rows = loader.next()
    model(rows).backward()
def step(rows):
    model(rows).backward()
def compiled(model, x):
    (lambda rows: model(rows))(x).backward()
"""
TWO_LOADERS = """
class Loader:
    def __init__(self, tokens):
        self.tokens = tokens
    def next(self):
        return self.tokens[:9]
class Other:
    def __init__(self, val_tokens):
        self.tokens = val_tokens
    def next(self):
        return self.tokens
def main():
    train, val = Loader(train_tokens), Loader(val_tokens)
    loss = model(train.next())
    loss.backward()
"""
MADE_UNDER_NO_GRAD = """
class Adapter:
    def __init__(self, model, rows):
        self.model, self.rows = model, rows
        with torch.no_grad():
            self.model.reset()
    def step(self):
        self.model(self.rows).backward()
def main(val_tokens):
    for rows in val_tokens.chunks():
        adapter = Adapter(model, rows)
        adapter.step()
"""


def test_a_callback_is_called_where_it_is_defined():
    assert found(CALLBACK) == {("train after score", "WARN")}


@pytest.mark.parametrize("text", [LOCAL_OF_THE_SAME_NAME, TWO_LOADERS])
def test_other_things_of_the_same_name_are_not_tainted(text):
    assert found(text) == set()


def test_a_constructor_is_no_scoring():
    assert found(MADE_UNDER_NO_GRAD) == {("train before score", "FAIL")}
