"""The study: proposes recipes, has them merged and scored, keeps what happened, and compares."""
