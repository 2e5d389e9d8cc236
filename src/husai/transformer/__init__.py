"""The transformer, its training, its progress measures and its Fourier structure."""

import lazy_loader

# the names stand in __init__.pyi; each is imported when it is first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
