"""How a sample of each task becomes a conversation with masks, points, boxes or memories."""
