"""`adakron::KronAdapter`, version 1: the operator, and its body in standard operators.

docs/reference/kron_adapter.md is its specification.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import onnx
import onnx.defs
import onnx_ir as ir
from onnx.defs import OpSchema

DOMAIN = "adakron"
OP_TYPE = "KronAdapter"
VERSION = 1
INPUTS = ("X", "A1", "B1", "A2", "B2", "U")
OUTPUT = "Y"
BANK_OP_TYPE = "KronAdapterBank"
BANK_INPUTS = ("X", "IDS", "A", "B", "U")
CODE_INPUT = "CODE"  # of a bank with several activations

# Each body line reads P, the product, and writes Z. `Gelu` exists since opset 20.
_ACTIVATION_BODIES = {
    "gelu": "Z = Gelu (P)",
    "gelu_tanh": 'Z = Gelu <approximate = "tanh"> (P)',
    "relu": "Z = Relu (P)",
    "silu": "S = Sigmoid (P) Z = Mul (P, S)",
    "tanh": "Z = Tanh (P)",
    "leaky_relu": "Z = LeakyRelu <alpha = 0.01> (P)",
    "identity": "Z = Identity (P)",
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
    activate = activation_body(activation, opset)
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


def bank_body_text(a1: int, k: int, activations: Sequence[str], *, opset: int, casts: bool = False) -> str:
    """The body of the operator of a bank, which computes with the weights of each row's own adapter.

    Each weight's rows are gathered right before they are read: gathered earlier, they lie between the activations, and
    ONNX Runtime takes 1.06 of the time at 8x128.

    Args:
        a1: Width of the first small network, r / k.
        k: Width of the second one, the left factor of the product.
        activations: Those to compute; with several, ``CODE`` says by row which counts.
        opset: Version of the standard operators it is written in.
        casts: Whether the stacks are in another dtype than ``X``.
    """
    inputs = bank_inputs(BANK_INPUTS, activations)
    attributes = f'k: int = {k}, activations: string = "{" ".join(activations)}"'
    return f"""
        <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
        {BANK_OP_TYPE} <{attributes}> ({inputs}) => ({OUTPUT})
        {{
            {gathered("A", casts=casts)}
            m = MatMul (X, A_rows)
            {gathered("B", casts=casts)}
            both = Add (m, B_rows)
            sizes = Constant <value_ints = [{k}, {a1}]> ()
            a2, a1 = Split <axis = -1> (both, sizes)
            last = Constant <value_ints = [-1]> ()
            before_last = Constant <value_ints = [-2]> ()
            column = Unsqueeze (a2, last)
            row = Unsqueeze (a1, before_last)
            outer = Mul (column, row)
            flat = Constant <value_ints = [0, 0, -1]> ()
            P = Reshape (outer, flat)
            {chosen_activation(activations, opset, casts=casts)}
            {gathered("U", casts=casts)}
            delta = MatMul (Z, U_rows)
            {OUTPUT} = Add (X, delta)
        }}
    """


def bank_inputs(names: Sequence[str], activations: Sequence[str]) -> str:
    """The inputs of a bank's operator, one of which says by row which of several activations counts."""
    return ", ".join([*names, *([CODE_INPUT] if len(activations) > 1 else [])])


def gathered(stack: str, *, casts: bool) -> str:
    """Lines that write the rows of a stack, as ``STACK_rows``."""
    if not casts:
        return f"{stack}_rows = Gather <axis = 0> ({stack}, IDS)"
    return f"{stack}_wide = Gather <axis = 0> ({stack}, IDS) {stack}_rows = CastLike ({stack}_wide, X)"


def chosen_activation(activations: Sequence[str], opset: int, *, casts: bool) -> str:
    """Lines that read P, and CODE where there are several, and write Z."""
    if len(activations) == 1:
        return activation_body(activations[0], opset)
    shares = ", ".join(f"share_{index}" for index in range(len(activations)))
    lines = [gathered(CODE_INPUT, casts=casts)]
    lines.append(f"{shares} = Split <axis = -1, num_outputs = {len(activations)}> ({CODE_INPUT}_rows)")
    total = ""
    for index, activation in enumerate(activations):  # each is 0 at 0, and is that where its share is 0
        body = activation_body(activation, opset)
        for name in re.findall(r"(\w+) = [A-Z]", body):
            body = re.sub(rf"\b{name}\b", f"{name}_{index}", body)
        body = re.sub(r"\bP\b", f"P_{index}", body)
        lines += [f"P_{index} = Mul (P, share_{index})", body]
        result = "Z" if index == len(activations) - 1 else f"total_{index}"
        lines.append(f"{result} = Add ({total}, Z_{index})" if total else "")
        total = result if total else "Z_0"
    return "\n".join(lines)


def activation_body(activation: str, opset: int) -> str:
    """Lines that read P and write Z, in the standard operators of an opset."""
    body = _ACTIVATION_BODIES[activation]
    return _ACTIVATION_BODIES_BEFORE_20.get(activation, body) if opset < 20 else body


def bank_function(a1: int, k: int, activations: Sequence[str], *, opset: int, casts: bool) -> ir.Function:
    """The function of a bank's operator, to be carried by a model; arguments as for `bank_body_text`."""
    proto = onnx.parser.parse_function(bank_body_text(a1, k, activations, opset=opset, casts=casts))
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
