"""Reports on a release: one self-contained HTML page, and its plots as pictures."""
