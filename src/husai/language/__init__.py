"""Language models: booted, read into stores, and measured with SAEs spliced in."""

import lazy_loader

# the names stand in __init__.pyi; each is imported when it is first used
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
