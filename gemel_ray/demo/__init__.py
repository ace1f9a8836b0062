"""The whole story in one command: originals, a merge search, a release, and what it is worth under a small budget."""
