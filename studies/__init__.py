"""Studies that can be repeated: each folder makes its models and data and says what it measured."""
