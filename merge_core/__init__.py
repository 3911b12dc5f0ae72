"""Tensors and recipes: open parents, plan a merge, apply it in place or write it out."""
