"""How a sample of each role becomes a conversation with masks, points, boxes or memories."""
