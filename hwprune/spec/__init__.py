"""What the user names by a text: models (``model``), weights (``weights``) and data (``data``).

One kind of source a file; ``importing`` brings in the user's own code for both. Nothing here unpickles a user's file:
weights go through safetensors or ``torch.load(weights_only=True)``, arrays through ``numpy.load(allow_pickle=False)``,
and an exported program is checked member by member before torch reads it.
"""
