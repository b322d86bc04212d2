"""The scorer behind HTTP: a Ray Serve application with a page to look at."""
