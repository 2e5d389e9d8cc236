"""How far scores, gate and trainers can be trusted, measured on features that are known."""
