"""`vig audit`: whether gains are a signal, and whether a selection by them tilts what is trained on."""
