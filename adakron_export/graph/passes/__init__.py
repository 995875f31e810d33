"""Rewrites of a captured graph: one idea a file, each an `onnx_ir.passes.InPlacePass`."""
