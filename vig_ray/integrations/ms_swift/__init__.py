"""ms-swift: a plugin, in a folder of its own, since ms-swift puts a plugin's folder first on the path of imports."""
