"""Tasks of lmms-eval: `--tasks lmms:NAME` runs the package in an environment of its own and brings its results back."""
