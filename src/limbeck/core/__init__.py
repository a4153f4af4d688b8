"""The engine room. Importing this package imports no torch: the catalogue of methods must start at once."""
