"""The Markdown pages of a study: what each needs from the tables, and the templates."""
