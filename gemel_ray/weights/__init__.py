"""Content-addressed blobs and immutable releases on any pyarrow.fs file system."""
