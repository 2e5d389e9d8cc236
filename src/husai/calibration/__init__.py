"""What scores, gate and trainers are worth on features that are known."""
