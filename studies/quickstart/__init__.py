"""The quickstart study: a family of tiny language models, made in a minute without a network."""
