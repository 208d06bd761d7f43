"""Methods that give a network fewer bits: they all end in one graph with quantize and dequantize nodes.

Methods: `static`, `reconstruct`, `qat`, `mixed`, `uncalibrated`.

What helps them: `base` (the steps that all share), `decompositions` (operators without integer kernels, in terms of
others), `placement` (where quantizers stand in a graph), `observers` (how a range is found), `numerics` (scales, zero
points and rounding), `fake_quantize` (the quantizer of one tensor), `corrections` (equalisation and bias correction),
`smoothing` (SmoothQuant), `channel_axis` (where the channels of a tensor go), `remedies` (which of these helps),
`blocks` (pieces of a graph), `qat_graph` (a graph that can be trained), `sensitivity` and `bit_plan` (how many bits
each layer gets), `accuracy_control` (which layers go back to floating point), `layer_statistics` (what rounding did),
`converted` (what computes in integers in the end).
"""
