"""Prompts, published LPIPS curves, and downloads."""
