"""A live model and items in, a scorecard out; knows no recipe and no optimiser."""
