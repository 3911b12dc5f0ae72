"""The quickstart study: a family of tiny language models, made here without a network."""
