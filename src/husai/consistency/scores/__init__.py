"""What two SAEs are scored by."""
