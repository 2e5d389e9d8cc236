"""Single features: what each one means and does, how sure its match is, and which to keep."""

import lazy_loader

# The public names are listed in __init__.pyi; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
