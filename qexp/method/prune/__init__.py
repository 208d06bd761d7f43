"""Methods that leave fewer weights, or fewer different ones.

Their result is again an fp32 network, from which a chain can go on.

Methods: `weights` (single weights become zero), `channels` (whole channels go), `low_rank` (layers become two smaller
ones), `cluster` (weights share values).

What helps them: `base` (what these methods are, and their network on disk), `reduction` (makes a network as small as
asked), `masks` (which weights are left), `dependency_graph` (which channels go together), `sparse` (presses channels
towards zero), `factorable` (which layers can have a low rank), `factors` (their factors), `kmeans` (shared values).
"""
