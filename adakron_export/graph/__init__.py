"""From a folded module to an ONNX graph, and from there to a graph for one runtime."""
