"""`adakron::BottleneckAdapter`, version 1, and that of a bank: the operators, and their bodies in standard ones.

docs/reference/bottleneck_adapter.md is its specification.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import onnx
import onnx.defs
import onnx_ir as ir
from onnx.defs import OpSchema

from adakron_export.graph.kron_op import (
    DOMAIN,
    VERSION,
    activation_body,
    bank_inputs,
    chosen_activation,
    gathered,
)

OP_TYPE = "BottleneckAdapter"
INPUTS = ("X", "R", "D", "B", "U", "C")
OUTPUT = "Y"
BANK_OP_TYPE = "BottleneckAdapterBank"
BANK_INPUTS = ("X", "R", "IDS", "D", "U")
BIAS_INPUT = "B"  # of bottlenecks; LoRA has none
_DOCS = (
    "[batch, tokens, reads]", "[batch, tokens, hidden]", "[reads, width]", "[width]", "[width, hidden]", "[hidden]",
)  # fmt: skip


def body_text(activation: str, *, opset: int, has_bias: bool) -> str:
    """The function's body in ONNX's text syntax.

    Args:
        activation: A name of the ``activation`` attribute.
        opset: Version of the standard operators it is written in.
        has_bias: Whether the last input is given.
    """
    inputs = ", ".join(INPUTS if has_bias else INPUTS[:-1])
    added = "delta = MatMul (Z, U) whole = Add (delta, C)" if has_bias else "whole = MatMul (Z, U)"
    return f"""
        <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
        {OP_TYPE} <activation: string = "{activation}"> ({inputs}) => ({OUTPUT})
        {{
            down = MatMul (X, D)
            P = Add (down, B)
            {activation_body(activation, opset)}
            {added}
            {OUTPUT} = Add (R, whole)
        }}
    """


def bottleneck_function(activation: str, *, opset: int, has_bias: bool) -> ir.Function:
    """The operator's function, to be carried by a model; arguments as for `body_text`."""
    proto = onnx.parser.parse_function(body_text(activation, opset=opset, has_bias=has_bias))
    return ir.serde.deserialize_function(proto)


def bank_body_text(
    activations: Sequence[str], *, opset: int, has_bias: bool, casts: bool = False
) -> str:  # fmt: skip
    """The body of the operator of a bank, which computes with the weights of each row's own adapter.

    Args:
        activations: Those to compute; with several, ``CODE`` says by row which counts.
        opset: Version of the standard operators it is written in.
        has_bias: Whether the down-projection has one.
        casts: Whether the stacks are in another dtype than ``X``.
    """
    inputs = bank_inputs([*BANK_INPUTS, *([BIAS_INPUT] if has_bias else [])], activations)
    biased = f"{gathered(BIAS_INPUT, casts=casts)} P = Add (down, {BIAS_INPUT}_rows)"
    return f"""
        <domain: "{DOMAIN}", opset_import: ["" : {opset}]>
        {BANK_OP_TYPE} <activations: string = "{" ".join(activations)}"> ({inputs}) => ({OUTPUT})
        {{
            {gathered("D", casts=casts)}
            {"down" if has_bias else "P"} = MatMul (X, D_rows)
            {biased if has_bias else ""}
            {chosen_activation(activations, opset, casts=casts)}
            {gathered("U", casts=casts)}
            delta = MatMul (Z, U_rows)
            {OUTPUT} = Add (R, delta)
        }}
    """


def bank_function(activations: Sequence[str], *, opset: int, has_bias: bool, casts: bool) -> ir.Function:
    """The function of a bank's operator, to be carried by a model; arguments as for `bank_body_text`."""
    text = bank_body_text(activations, opset=opset, has_bias=has_bias, casts=casts)
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))


@functools.cache
def register_schema() -> None:
    """Make `onnx` know the operator, so that exporter and checker hold nodes to it."""
    option = OpSchema.FormalParameterOption
    inputs = [
        OpSchema.FormalParameter(name, "T", doc, param_option=option.Optional if name == "C" else option.Single)
        for name, doc in zip(INPUTS, _DOCS, strict=True)
    ]
    schema = OpSchema(
        OP_TYPE,
        DOMAIN,
        VERSION,
        doc="Y = R + activation(X D + B) U + C; see docs/reference/bottleneck_adapter.md.",
        inputs=inputs,
        outputs=[OpSchema.FormalParameter(OUTPUT, "T", "[batch, tokens, hidden]")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "Any float")],
        attributes=[
            OpSchema.Attribute("activation", onnx.helper.make_attribute("activation", "relu"), "In the bottleneck")
        ],
    )
    onnx.defs.register_schema(schema)
