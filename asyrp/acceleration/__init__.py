"""Speed: precision, compilation, Winograd convolutions, and work in background threads."""
