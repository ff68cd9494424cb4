"""Models by name: a Hub id, a torch checkpoint or a converted directory becomes a converted directory; and a loaded model becomes one again."""
