"""Names that graphs, sessions and those who read them share."""

REWRITES_KEY = "adakron_export.rewrites"  # metadata of a model: our passes that it went through
MODULE_KEY = "adakron_export.module"  # metadata of a node: the module of the model that it comes from
SHIFTED_KEY = "adakron_export.shifted"  # the same: what it puts out is off by a bias that is added later, or never
EXACT_SUMS = "session.x64quantprecision"  # ONNX Runtime's entry: integer products are exact without VNNI too
FLOAT_PRODUCTS = "session.disable_quant_qdq"  # the same: products between QuantizeLinear and back are float ones
PLAIN_ATTENTION, MULTI_HEAD_ATTENTION = "plain", "MultiHeadAttention"  # forms that `tune` tries
ATTENTION_OPSET = 23  # the first with operators for attention, RMS norms and rotations
