"""`vig audit`: whether gains are a signal."""
