"""Methods, which decide what number format each tensor gets and which weights are left.

Methods: `none`, `half`, `chain`, `onnx_dynamic` and `torch_ao` here; those that quantise lie in `quantize/`, those that
remove or share weights in `prune/`.

What helps them: `base` (what a method is), `artifacts` (the folder that one makes), `graph` (exporting and writing
graphs), `layers` (what the layers of a graph are), `batch_norms` (how they are folded), `verification` (whether a graph
computes what its network does), `bits` (bit widths and their spelling), `layers_csv` (what an artifact says of each
layer), `fine_tuning`.
"""
