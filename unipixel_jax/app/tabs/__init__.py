"""The tabs of the page: each file has a function that builds its tab, and the functions that answer its events, which need no browser."""
