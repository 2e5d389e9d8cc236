"""What a campaign takes: measured, estimated, and held against its budget."""
