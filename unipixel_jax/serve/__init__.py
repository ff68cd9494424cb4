"""The service: the model behind HTTP, for programs (docs/service.md)."""
