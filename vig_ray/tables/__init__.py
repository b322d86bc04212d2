"""Reading the tables that stages write: which directory is meant, its rows, scans of all of it."""
