"""Layers that the modules are built from, and that any other model can use."""
