"""What makes a frozen U-Net fast: precision, compilation, Winograd, work beside the computation."""
