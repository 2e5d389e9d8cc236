"""The transformer, its training, its progress measures and its Fourier structure."""
