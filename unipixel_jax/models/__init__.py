"""The models: Qwen2.5-VL, SAM 2.1, and UniPixel, which joins them."""
