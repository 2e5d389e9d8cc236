"""Planted dictionaries: synthetic activations whose true features are known.

A planted world is a dictionary of unit rows and a law that says how they fire. Rows of data are

    x = Σ_i c_i d_i + bias + noise

with sparse coefficients c (the *codes*). Everything random is drawn from two seeds:
``dictionary_seed`` fixes the world (dictionary, bias, co-occurrence, magnitude parameters) and
``data_seed`` the rows. Rows are generated in blocks of :data:`BLOCK_ROWS`, each from a generator
of its own, so that a stream of any batch size equals the same rows held in memory.
"""

import lazy_loader

# the names are listed in __init__.pyi; each is imported when it is first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
