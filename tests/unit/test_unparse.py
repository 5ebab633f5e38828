"""Source text of trees: f-strings that every Python can read, and nothing else changed."""

from __future__ import annotations

import ast

import pytest

from flyweight.errors import InvalidArgumentError
from flyweight.submission.script import MODULES, _module_text
from flyweight.submission.unparse import unparse


@pytest.mark.parametrize(
    ("source", "written"),
    [
        (r"""f"{a['k']} {', '.join(b)}" """, r"""f"{a['k']} {', '.join(b)}" """),
        (r"""f'a"{b}' f"c'{d}" """, r"""f'a"{b}c\'{d}' """),
        (r"""f"it's {a}" "\n\\" """, r"""f"it's {a}\n\\" """),
        (r"""f'{{{a}}}' """, r"""f'{{{a}}}' """),
        (r"""f'{a!r:>{b}.3f}{c:%d}' """, r"""f'{a!r:>{b}.3f}{c:%d}' """),
        (r"""f'{ {1: 2}[a] }' """, r"""f'{ {1: 2}[a]}' """),
        (r"""f'{(lambda: f(a))}{(b := f(c))}' """, r"""f'{(lambda: f(a))}{(b := f(c))}' """),
        (r"""f'''{f("it's")} {g('"')}''' """, r"""f'''{f("it's")} {g('"')}''' """),
        (r"""f"{f'{a}'}{b}" """, r"""f"{f'{a}'}{b}" """),
        (r"""len(f"{a}").b[f'{c}'] """, r"""len(f'{a}').b[f'{c}'] """),
    ],
)
def test_fstrings_are_written_as_python_3_11_reads_them(source, written):
    text = unparse(ast.parse(source).body[0])
    assert text == written.strip()
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(source))


def test_a_tree_is_not_changed_by_writing_it():
    tree = ast.parse("x = f'{a}'")
    before = ast.dump(tree)
    unparse(tree)
    assert ast.dump(tree) == before


def test_what_python_3_11_cannot_read_is_refused():
    newline = ast.parse(r"f'{x}'").body[0]
    newline.value.values[0].value = ast.Constant("\n")
    with pytest.raises(InvalidArgumentError, match="line 1: an f-string that Python 3.11 cannot"):
        unparse(newline)


@pytest.mark.parametrize("module", MODULES)
def test_what_is_shipped_means_the_same_as_its_source(module):
    tree = ast.parse(_module_text(module))
    assert ast.dump(ast.parse(unparse(tree))) == ast.dump(tree)
