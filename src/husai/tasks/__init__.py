"""What the data is: modular arithmetic and planted dictionaries."""
