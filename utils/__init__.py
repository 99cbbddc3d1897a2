"""Files, errors, terminal, downloads, prompts, and published LPIPS curves."""
