"""Pages that answer to mouse and keys, as one file each."""
