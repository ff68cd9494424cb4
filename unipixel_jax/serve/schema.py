"""What requests and responses look like: pydantic's models, from which the OpenAPI schema comes. Unknown fields are refused everywhere."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_PROMPT = 100_000
MAX_REFERENCES = 256
MAX_CLICKS, MAX_POINTS = 64, 32
MAX_TURNS = 256
_PHOTO = (
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAALUlEQVR4nGOUsznBQEvARFPTRy0YtWDUglELRi0YtWDUglELRi0YtWDUAioCAEpTAWLOOMVTAAAAAElFTkSuQmCC"
)
"""A photo of 32 x 32 pixels for the examples of the schema."""


class Strict(BaseModel):
    """No unknown fields, no infinities, and numbers that are numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


Whole = Annotated[int, Field(ge=0, le=1_000_000)]
Coordinate = Annotated[float, Field(ge=0, le=1_000_000)]


class RunLengths(Strict):
    """A mask in COCO's compressed run lengths."""

    size: Annotated[list[int], Field(min_length=2, max_length=2, description="height and width in pixels")]
    counts: Annotated[str, Field(max_length=1 << 24, description="the runs, as pycocotools writes them")]


class PointReference(Strict):
    """A point on an object."""

    point: Annotated[list[Coordinate], Field(min_length=2, max_length=2, description="x and y in pixels")]
    frame: Annotated[Whole, Field(description="the frame, counted among those that the language model looks at")] = 0


class BoxReference(Strict):
    """A rectangle around an object."""

    box: Annotated[list[Coordinate], Field(min_length=4, max_length=4, description="left, top, right and bottom in pixels")]
    frame: Annotated[Whole, Field(description="see PointReference")] = 0


class MaskReference(Strict):
    """The pixels of an object."""

    mask: RunLengths
    frame: Annotated[Whole, Field(description="see PointReference")] = 0


Reference = PointReference | BoxReference | MaskReference
References = Annotated[list[Reference], Field(max_length=MAX_REFERENCES, description="what each <region> of the prompt stands for, in its order")]
SampleFrames = Annotated[int, Field(ge=1, le=128, description="frames of a clip that the language model looks at, spread evenly")]
NewTokens = Annotated[int | None, Field(ge=1, le=1 << 20, description="where the answer is cut off; the service has a limit of its own")]

Points = Annotated[list[Annotated[list[Coordinate], Field(min_length=2, max_length=2)]], Field(max_length=MAX_POINTS)]


class ObjectClicks(Strict):
    """What marks one object on one frame: points, a box, a brush stroke and a mask, at least one of which says where it is."""

    on: Annotated[Points, Field(description="points on the object, each x and y in pixels")] = []
    off: Annotated[Points, Field(description="points beside it")] = []
    box: Annotated[list[Coordinate] | None, Field(min_length=4, max_length=4, description="left, top, right and bottom in pixels")] = None
    brush: Annotated[RunLengths | None, Field(description="a stroke along the object, for which up to eight of its points stand")] = None
    mask: Annotated[RunLengths | None, Field(description="a mask of the object, which points and the box correct; alone, a clip takes it as it is")] = None
    frame: Annotated[Whole, Field(description="the number of the frame in the clip")] = 0
    number: Annotated[int | None, Field(ge=1, le=MAX_CLICKS, description="the object: 1, 2, ... without gaps; null in all where each is its own")] = None


class MediaRequest(Strict):
    """A prompt about a photo or a clip, or clicks in it. In a form it is the part `request`, and the photo, the video or the frames are parts `file`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "Please segment the large blue square.", "media": _PHOTO},
                {"prompt": "What is <region>?", "references": [{"point": [16, 16]}], "media": _PHOTO, "max_new_tokens": 24},
                {"clicks": [{"on": [[16, 16], [18, 14]], "off": [[2, 2]]}, {"box": [8, 8, 24, 24]}], "media": _PHOTO},
                {"clicks": [{"number": 1, "on": [[16, 16]]}, {"number": 1, "frame": 1, "off": [[2, 2]], "box": [8, 8, 24, 24]}], "frames": [_PHOTO, _PHOTO]},
            ]
        }
    )

    prompt: Annotated[str | None, Field(max_length=MAX_PROMPT, description="any words; each <|seg|> in them is segmented as well")] = None
    clicks: Annotated[list[ObjectClicks], Field(max_length=MAX_CLICKS, description="what marks objects, in place of a prompt, for SAM 2.1 alone")] = []
    media: Annotated[str | None, Field(description="a photo or a video in base64; in JSON only")] = None
    frames: Annotated[list[str] | None, Field(min_length=1, max_length=256, description="photos of one size, the frames of a clip; in JSON only")] = None
    references: References = []
    sample_frames: SampleFrames = 16
    max_new_tokens: NewTokens = None
    answer_start: Annotated[str, Field(max_length=MAX_PROMPT, description="words with which the answer has to begin")] = ""

    @model_validator(mode="after")
    def _one_kind(self) -> MediaRequest:
        if self.media is not None and self.frames is not None:
            raise ValueError("media and frames are given: give one of them")
        if self.prompt is None and not self.clicks:
            raise ValueError("neither a prompt nor clicks are given: say what to look for, or mark it")
        of_words = ("prompt", "references", "sample_frames", "max_new_tokens", "answer_start")
        if self.clicks and (idle := [name for name in of_words if getattr(self, name) != MediaRequest.model_fields[name].default]):
            raise ValueError(f"clicks are given with {', '.join(idle)}: leave those out, or mark what a prompt speaks of by references in place of clicks")
        return self


class Timing(BaseModel):
    """Seconds since the request came: until its body was read, until the answer was there, and until its masks were."""

    read: float
    answered: float
    total: float


class Usage(BaseModel):
    """Tokens of the prompt, those of the media included, and of the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class SegmentedObject(BaseModel):
    """What one <|seg|> stands for, or what clicks mark, on each frame."""

    number: Annotated[int, Field(description="from 1 on")]
    found: Annotated[bool, Field(description="whether it is to be seen on any frame")]
    span: Annotated[list[int] | None, Field(description="where its <|seg|> begins and ends in the text, in characters; null if there is none")]
    scores: Annotated[list[float], Field(description="probability that it is on the frame times the predicted IoU of its mask")]
    presence: Annotated[list[float], Field(description="probability that it is on the frame")]
    boxes: Annotated[list[list[int] | None], Field(description="COCO's x, y, width, height in pixels; null where the mask is empty")]
    areas: Annotated[list[int], Field(description="pixels")]
    masks: list[RunLengths]


class Segmented(BaseModel):
    """The objects of an answer."""

    size: Annotated[list[int], Field(description="height and width of the media in pixels")]
    frames: Annotated[list[int], Field(description="the number of each frame in the clip; 0 for a photo; with clicks, from the first marked frame on")]
    objects: list[SegmentedObject]


class SegmentResponse(Segmented):
    """An answer and its objects."""

    model: str
    text: Annotated[str, Field(description="the answer, special tokens included; empty with clicks")]
    usage: Usage
    timing: Timing


class TextPart(Strict):
    """Words of a turn."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_PROMPT)]


class ImageAddress(Strict):
    """A photo."""

    url: Annotated[str, Field(description="data:image/...;base64,...; other addresses are refused")]
    detail: Annotated[Literal["auto", "low", "high"], Field(description="taken, and without effect")] = "auto"


class ImagePart(Strict):
    """A photo of a turn; several are the frames of one clip."""

    type: Literal["image_url"]
    image_url: ImageAddress


class VideoAddress(Strict):
    """A video."""

    url: Annotated[str, Field(description="data:video/...;base64,...; other addresses are refused")]


class VideoPart(Strict):
    """A video of a turn."""

    type: Literal["video_url"]
    video_url: VideoAddress


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Turn(Strict):
    """A turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_PROMPT)] | Annotated[list[Part], Field(min_length=1, max_length=512)]
    name: Annotated[str | None, Field(description="taken, and without effect")] = None


class StreamOptions(Strict):
    """What a stream also holds."""

    include_usage: bool = False


class ChatExtension(Strict):
    """What OpenAI's form has no word for."""

    references: References = []
    sample_frames: SampleFrames = 16
    segment: Annotated[bool, Field(description="whether the objects of the answer are segmented")] = True


class ChatRequest(Strict):
    """A conversation about one photo or clip, in OpenAI's form."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "shapes_tiny",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_PHOTO}"}},
                                {"type": "text", "text": "Please segment the large blue square."},
                            ],
                        }
                    ],
                    "max_tokens": 24,
                }
            ]
        }
    )

    model: Annotated[str, Field(max_length=500)]
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_TURNS)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: NewTokens = None
    max_completion_tokens: NewTokens = None
    temperature: Annotated[float | None, Field(ge=0, le=100, description="0 takes the likeliest token (default: 0)")] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0, le=1_000_000)] = None
    seed: Annotated[int | None, Field(ge=-(1 << 63), lt=1 << 63)] = None
    n: Annotated[Literal[1] | None, Field(description="one answer")] = 1
    frequency_penalty: Annotated[float | None, Field(ge=0, le=0, description="there is none")] = 0
    presence_penalty: Annotated[float | None, Field(ge=0, le=0, description="there is none")] = 0
    logprobs: Annotated[Literal[False] | None, Field(description="there are none")] = None
    stop: Annotated[None, Field(description="there are no stop words")] = None
    user: Annotated[str | None, Field(description="taken, and without effect")] = None
    unipixel: ChatExtension = ChatExtension()


class Message(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The one answer."""

    index: int = 0
    message: Message
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatResponse(BaseModel):
    """An answer in OpenAI's form, with its objects in `unipixel`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    unipixel: Segmented


class Model(BaseModel):
    """The model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "unipixel-jax"


class Models(BaseModel):
    """The one model that the service has."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """Whether the service takes requests."""

    status: Literal["ready", "starting", "stopping"]
    model: str
    waiting: Annotated[int, Field(description="requests that are taken and not yet answered")]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: str


class ErrorResponse(BaseModel):
    """A request that was not answered."""

    error: ErrorDetail
