"""The work of ``husai compare``, ``husai features`` and ``husai consensus``, on files."""
