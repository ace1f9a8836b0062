"""The gemel command; thin."""
