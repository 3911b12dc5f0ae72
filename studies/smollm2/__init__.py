"""SmolLM2-135M and two siblings fine-tuned on the CPU, scored on real data."""
