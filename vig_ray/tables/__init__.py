"""Reading the tables that stages write: finding their directories, a few rows, or scanning all of them."""
