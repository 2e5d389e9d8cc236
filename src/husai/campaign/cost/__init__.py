"""What a campaign costs: measured, estimated, and compared with its budget."""
