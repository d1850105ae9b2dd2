"""A context compiled into weights, with a report of what it keeps."""
