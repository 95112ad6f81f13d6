"""The text of a syntax tree."""

from __future__ import annotations

from intarsia.dsl.parser import parse_program
from intarsia.dsl.show import show
from intarsia.ir.errors import Source

TEXT = """\
fn f(x: f32[N]) -> f32 {
    a, b = g(x)
    a = 2 * a
    c[i] = x[i]; a[i] = x[i]
    return a
}
"""


def test_the_text_of_a_tree() -> None:
    assert (
        show(parse_program(Source("f.ita", TEXT[:24] + " return 2 * -x }")))
        == """\
Program
  declarations[0]: Function name=f  # 1:1
    parameters[0]: Parameter name=x const=False  # 1:6
      type: TensorTypeExpr name=f32  # 1:9
        dims[0]: Dim  # 1:13
          size: DimName name='N'  # 1:13
    result: TensorTypeExpr name=f32  # 1:20
    body[0]: Return  # 1:26
      values[0]: Binary operator='*'  # 1:33
        left: Number text='2' value=2  # 1:33
        right: Unary operator='-'  # 1:37
          operand: Name name='x'  # 1:38
"""
    )
