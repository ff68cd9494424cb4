"""What whoever runs the service decides."""

from __future__ import annotations

from dataclasses import dataclass

from unipixel_jax.errors import UserError


@dataclass(frozen=True)
class Settings:
    """The service's limits. All are positive.

    Attributes:
        model_name: the name of the model by which requests ask for it.
        max_batch: answers that are generated together.
        max_new_tokens: where an answer is cut off at the latest.
        queue: requests that are taken and not yet answered; further ones get status 429.
        max_upload: bytes of a request's body.
        max_pixels: pixels of a photo or a frame.
        max_frames: frames of a clip.
        upload_seconds: the time within which a request's body must have come.
        seconds: the time within which a request must be answered, from its arrival. Of a tracked clip, within which each next frame must come.
        grace: the seconds for which a service that is told to stop goes on with what it has taken.
        devices: devices that take requests, each with a copy of the weights, or as many together as the model's mesh has; None for all of this machine.
        api_key: the key that requests must give; "" for none.
        cors_origins: the origins whose pages may call the service from a browser.
    """

    model_name: str
    max_batch: int = 16
    max_new_tokens: int = 512
    queue: int = 64
    max_upload: int = 64 << 20
    max_pixels: int = 32_000_000
    max_frames: int = 3000
    upload_seconds: float = 60.0
    seconds: float = 120.0
    grace: float = 30.0
    devices: int | None = None
    api_key: str = ""
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_new_tokens", "queue", "max_upload", "max_pixels", "max_frames", "upload_seconds", "seconds", "grace"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected more than 0")
