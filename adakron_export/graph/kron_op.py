"""`adakron::KronAdapter`, version 1: the operator, and its body in standard operators.

docs/reference/kron_adapter.md is its specification.
"""

from __future__ import annotations

import functools

import onnx
import onnx.defs
import onnx_ir as ir
from onnx.defs import OpSchema

DOMAIN = "adakron"
OP_TYPE = "KronAdapter"
VERSION = 1
INPUTS = ("X", "A1", "B1", "A2", "B2", "U")
OUTPUT = "Y"

# Each body line reads P, the product, and writes Z. `Gelu` exists since opset 20.
_ACTIVATION_BODIES = {
    "gelu": "Z = Gelu (P)",
    "gelu_tanh": 'Z = Gelu <approximate = "tanh"> (P)',
    "relu": "Z = Relu (P)",
    "silu": "S = Sigmoid (P) Z = Mul (P, S)",
    "tanh": "Z = Tanh (P)",
}
_ACTIVATION_BODIES_BEFORE_20 = {
    "gelu": """
        root = Constant <value_float = 1.4142135623730951> ()
        root_like = CastLike (root, P)
        half = Constant <value_float = 0.5> ()
        half_like = CastLike (half, P)
        one = Constant <value_float = 1.0> ()
        one_like = CastLike (one, P)
        scaled = Div (P, root_like)
        erf = Erf (scaled)
        shifted = Add (erf, one_like)
        halved = Mul (P, half_like)
        Z = Mul (halved, shifted)
    """,
    "gelu_tanh": """
        cubic = Constant <value_float = 0.044715> ()
        cubic_like = CastLike (cubic, P)
        scale = Constant <value_float = 0.7978845608028654> ()
        scale_like = CastLike (scale, P)
        half = Constant <value_float = 0.5> ()
        half_like = CastLike (half, P)
        one = Constant <value_float = 1.0> ()
        one_like = CastLike (one, P)
        square = Mul (P, P)
        cube = Mul (square, P)
        bent = Mul (cube, cubic_like)
        inner = Add (P, bent)
        scaled = Mul (inner, scale_like)
        tanh = Tanh (scaled)
        shifted = Add (tanh, one_like)
        halved = Mul (P, half_like)
        Z = Mul (halved, shifted)
    """,
}


def body_text(order: str, activation: str, *, opset: int) -> str:
    """The function's body in ONNX's text syntax.

    Args:
        order: ``a2_a1`` or ``a1_a2``.
        activation: A name of the ``activation`` attribute.
        opset: Version of the standard operators it is written in.
    """
    left, right = ("a2", "a1") if order == "a2_a1" else ("a1", "a2")
    activate = _ACTIVATION_BODIES[activation]
    if opset < 20:
        activate = _ACTIVATION_BODIES_BEFORE_20.get(activation, activate)
    return f"""
        <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
        {OP_TYPE} <order: string = "{order}", activation: string = "{activation}"> ({", ".join(INPUTS)}) => ({OUTPUT})
        {{
            m1 = MatMul (X, A1)
            a1 = Add (m1, B1)
            m2 = MatMul (X, A2)
            a2 = Add (m2, B2)
            last = Constant <value_ints = [-1]> ()
            before_last = Constant <value_ints = [-2]> ()
            column = Unsqueeze ({left}, last)
            row = Unsqueeze ({right}, before_last)
            outer = Mul (column, row)
            flat = Constant <value_ints = [0, 0, -1]> ()
            P = Reshape (outer, flat)
            {activate}
            delta = MatMul (Z, U)
            {OUTPUT} = Add (X, delta)
        }}
    """


def kron_function(order: str, activation: str, *, opset: int) -> ir.Function:
    """The operator's function, to be carried by a model; arguments as for `body_text`."""
    proto = onnx.parser.parse_function(body_text(order, activation, opset=opset))
    return ir.serde.deserialize_function(proto)


@functools.cache
def register_schema() -> None:
    """Make `onnx` know the operator, so that exporter and checker hold nodes to it."""
    kinds = [(name, "T", doc) for name, doc in zip(INPUTS, _INPUT_DOCS, strict=True)]
    schema = OpSchema(
        OP_TYPE,
        DOMAIN,
        VERSION,
        doc="Y = X + activation(kron(X A1 + B1, X A2 + B2)) U; see docs/reference/kron_adapter.md.",
        inputs=[OpSchema.FormalParameter(name, kind, doc) for name, kind, doc in kinds],
        outputs=[OpSchema.FormalParameter(OUTPUT, "T", "[batch, tokens, hidden]")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "Any float")],
        attributes=[
            OpSchema.Attribute("order", onnx.helper.make_attribute("order", "a2_a1"), "Left and right factor"),
            OpSchema.Attribute(
                "activation", onnx.helper.make_attribute("activation", "gelu"), "Applied to the product"
            ),
        ],
    )
    onnx.defs.register_schema(schema)


_INPUT_DOCS = (
    "[batch, tokens, hidden]",
    "[hidden, r / k]",
    "[r / k]",
    "[hidden, k]",
    "[k]",
    "[r, hidden]",
)
