"""The commands of ``husai``: what each takes and prints. They call the library for the work."""
