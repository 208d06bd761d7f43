"""Methods that leave fewer weights, or fewer different ones.

Their result is again an fp32 network, from which a chain can go on.

Methods: `weights` (single weights become zero), `channels` (whole channels go), `cluster` (weights share values).

What helps them: `base` (what these methods are, and their network on disk), `masks` (which weights are left),
`dependency_graph` (which channels go together), `kmeans` (shared values).
"""
