"""The cost of a campaign: measured, estimated, and compared with its budget."""
