"""SAM 2.1 (arXiv 2408.00714) with UniPixel's hidden-token prompts."""
