"""What the command ``husai compare`` makes: comparison, document, table."""
