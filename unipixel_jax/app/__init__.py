"""The page on which all that the model can do is tried in a browser. It needs the extra ``app``."""
