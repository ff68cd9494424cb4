"""The cases of a recording and their random inputs, which are drawn on the CPU from the seed, so that they are the same for every device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .kinds import Tensors, read_media
from .reference import Session
from .training import adapter_shapes

CONVERSATION = [
    {"role": "user", "content": [{"type": "text", "text": "Segment the small circle."}]},
    {"role": "assistant", "content": "Here it is: <|seg|>."},
    {"role": "user", "content": "What is it doing now?"},
    {"role": "assistant", "content": "It moves to the right."},
]


TRAININGS: dict[str, dict[str, Any]] = {
    "seg": {"tuning": ["seg"], "lora": None, "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.03, "max_grad_norm": 1.0}},
    "lora": {
        "tuning": ["lora", "embedding", "ref", "ref_enc", "msk", "seg", "sam2"],
        "lora": {"rank": 4, "alpha": 8},
        "optimizer": {
            "learning_rate": 1e-4, "lora_lr": 3e-4, "sam2_enc_lr": 2e-5, "sam2_dec_lr": 5e-5, "weight_decay": 0.1, "warmup_ratio": 0.2, "max_grad_norm": 1.0,
        },
    },
}  # fmt: skip
"""The tuned modules, adapters and optimizer of each case of training. They are like the reference's second and third stage, but the one with
adapters gives every group a learning rate of its own, and its weights decay."""


@dataclass(frozen=True)
class Plan:
    """Sizes of the inputs. Grids are (time, height, width) in patches; frame sizes are (height, width) and image sizes (width, height), in pixels.

    ``clips`` gives the number of frames of each tracked clip, and the size that its masks are resized to (None: the size of SAM 2's frames).
    """

    grids: dict[str, list[list[int]]] = dataclasses.field(
        default_factory=lambda: {"vision_image": [[1, 8, 12]], "vision_videos": [[2, 8, 12], [3, 6, 10]], "vision_window_edges": [[1, 10, 14], [2, 14, 6]]}
    )
    text_lengths: tuple[int, int] = (37, 29)
    clip_grid: tuple[int, int, int] = (3, 8, 10)
    second_image_grid: tuple[int, int, int] = (1, 6, 8)
    image_frames: int = 3
    clips: dict[str, tuple[int, tuple[int, int] | None]] = dataclasses.field(
        default_factory=lambda: {"sam2_video": (20, (45, 70)), "sam2_single": (1, None), "sam2_video_b": (9, (96, 64))}
    )
    generate_frames: int = 5
    generate_size: tuple[int, int] = (51, 77)
    train_grid: tuple[int, int, int] = (2, 8, 10)
    train_frames: int = 4
    photo_size: tuple[int, int] = (301, 423)
    clip_size: tuple[int, int] = (352, 208)
    clip_length: int = 7
    sampled_frames: int = 4
    long_clip_size: tuple[int, int] = (84, 56)
    long_clip_length: int = 40

    @property
    def media(self) -> dict[str, tuple[tuple[int, int], int]]:
        """The sizes and lengths of the clips under ``media/`` by name, in the order in which they are drawn."""
        return {"clip": (self.clip_size, self.clip_length), "long_clip": (self.long_clip_size, self.long_clip_length)}


class Maker:
    """Makes the inputs of every case for one model.

    Args:
        session: gives the model's configuration and processor, and reads the media of e2e cases.
        plan: the sizes.
        seed: seed of the recording; each case draws from a generator that is seeded by this and the case's number.
    """

    def __init__(self, session: Session, plan: Plan, seed: int) -> None:
        model, processor = session.model()
        self.session, self.plan, self.seed = session, plan, seed
        self.config, self.tokenizer, self.dtype = model.config, processor.tokenizer, session.torch_dtype
        self.processor = processor
        self.plain = min(self.tokenizer.all_special_ids)
        self.rng = torch.Generator()

    def cases(self) -> Iterator[tuple[dict[str, Any], Tensors]]:
        """Yield every case's entry of ``export.json`` with its inputs, in the order of the recording."""
        for place, (entry, make) in enumerate(self._table()):
            self.rng.manual_seed(1000 * self.seed + place)
            yield entry, make(entry)

    def _table(self) -> list[tuple[dict[str, Any], Any]]:
        plan = self.plan
        table: list[tuple[dict[str, Any], Any]] = [({"name": name, "kind": "vision"}, self._vision) for name in plan.grids]
        table += [
            ({"name": "text", "kind": "text"}, self._text),
            ({"name": "multimodal", "kind": "multimodal"}, lambda entry: self._clip(self._ids(20))),
            ({"name": "rope_index", "kind": "rope_index"}, self._rope_index),
            ({"name": "refer", "kind": "multimodal"}, self._refer),
            ({"name": "memory", "kind": "multimodal"}, self._memory),
            ({"name": "sam2_image", "kind": "sam2_image"}, lambda entry: {"frames": self._frames(plan.image_frames)}),
        ]
        table += [({"name": name, "kind": "sam2_video"}, self._sam2_video) for name in plan.clips]
        table += [({"name": name, "kind": "generate", "max_new_tokens": 8}, self._generate) for name in ("generate", "generate_seg_in_prompt")]
        if self.dtype == torch.float32:
            table += [({"name": f"train_loss{end}", "kind": "train_loss", "batch_mode": bool(end)}, self._train_loss) for end in ("", "_batch_mode")]
        prompts = {
            "e2e_image": ("media/photo.png", "Please segment the red circle.", 16),
            "e2e_video": ("media/clip", "Where is the moving square? It is <|seg|>, please provide the segmentation mask.", 16),
            "e2e_video_sampled": ("media/clip", "Segment the object <|seg|> now.", plan.sampled_frames),
        }
        for name, (media, prompt, sample_frames) in prompts.items():
            entry = {"name": name, "kind": "e2e", "media": media, "prompt": prompt, "sample_frames": sample_frames, "max_new_tokens": 6}
            table.append((entry, self._e2e))
        table.append(({"name": "smart_resize", "kind": "smart_resize"}, self._smart_resize))
        table.append(({"name": "chatml_labels", "kind": "chatml_labels", "messages": CONVERSATION}, self._chatml_labels))
        table.append(({"name": "lora", "kind": "multimodal", "adapter": "adapter"}, lambda entry: self._clip(self._ids(10))))
        if self.dtype == torch.float32:
            table += [({"name": f"train_steps_{name}", "kind": "train_steps", "steps": 20, **how}, self._train_steps) for name, how in TRAININGS.items()]
        # the last one, since a case's place in the table seeds its inputs
        prompt = "Please segment the blue square <|seg|> in this video."
        every = {"media": "media/long_clip", "prompt": prompt, "sample_frames": 16, "every_frame": True, "max_new_tokens": 3}
        table.append(({"name": "e2e_every_frame", "kind": "e2e", **every}, self._e2e))
        return table

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.rng).to(self.dtype)

    def _frames(self, count: int) -> torch.Tensor:
        """Return frames [count, 3, S, S] of coarse blots under noise; SAM cannot tell frames of noise alone from one another."""
        side = self.config.sam2_image_size
        blots = torch.nn.functional.interpolate(torch.randn(count, 3, 4, 4, generator=self.rng), size=(side, side), mode="bicubic")
        return (blots + 0.4 * torch.randn(count, 3, side, side, generator=self.rng)).to(self.dtype)

    def _ids(self, count: int) -> list[int]:
        return torch.randint(self.plain, (count,), generator=self.rng).tolist()

    def _patches(self, grids: list[list[int]]) -> torch.Tensor:
        return self._normal(sum(t * h * w for t, h, w in grids), 3 * 2 * 14 * 14)

    def _media_ids(self, token: int, grid: tuple[int, int, int]) -> list[int]:
        t, h, w = grid
        return [self.config.vision_start_token_id, *[token] * (t * h * w // 4), self.config.vision_end_token_id]

    def _clip(self, tail: list[int], grid: tuple[int, int, int] | None = None) -> Tensors:
        """Return the inputs for a prompt with a few tokens, a clip of random pixels, and the given tokens."""
        grid = grid or self.plan.clip_grid
        ids = self._ids(7) + self._media_ids(self.config.video_token_id, grid) + tail
        return {
            "input_ids": torch.tensor([ids]),
            "pixel_values_videos": self._patches([list(grid)]),
            "video_grid_thw": torch.tensor([grid]),
            "second_per_grid_ts": torch.tensor([1.0]),
        }

    def _vision(self, entry: dict[str, Any]) -> Tensors:
        grids = self.plan.grids[entry["name"]]
        return {"pixel_values": self._patches(grids), "grid_thw": torch.tensor(grids)}

    def _text(self, entry: dict[str, Any]) -> Tensors:
        lengths = torch.tensor(self.plan.text_lengths)
        mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
        return {"input_ids": torch.tensor([self._ids(mask.shape[1]) for _ in lengths]) * mask, "attention_mask": mask}

    def _rope_index(self, entry: dict[str, Any]) -> Tensors:
        image, clip = self.plan.second_image_grid, self.plan.train_grid
        still, moving = self._media_ids(self.config.image_token_id, image), self._media_ids(self.config.video_token_id, clip)
        ids = self._ids(2) + still + self._ids(2) + moving + self._ids(3)
        alone = self._clip(self._ids(20))
        return {
            "input_ids": torch.tensor([ids]),
            "image_grid_thw": torch.tensor([image]),
            "video_grid_thw": torch.tensor([clip]),
            "second_per_grid_ts": torch.tensor([0.5]),
            "input_ids_b": alone["input_ids"],
            "video_grid_thw_b": alone["video_grid_thw"],
            "second_per_grid_ts_b": torch.tensor([0.6]),
        }

    def _points(self, count: int) -> torch.Tensor:
        return torch.rand(1, count, 2, generator=self.rng) * self.config.sam2_image_size

    def _refer(self, entry: dict[str, Any]) -> Tensors:
        ref, last = self.config.ref_token_id, 2 * self.plan.clip_grid[0] - 1
        inputs = self._clip([*self._ids(5), ref, *self._ids(4), ref, ref, *self._ids(3)])
        box = self._points(2).sort(dim=1).values
        for i, (coords, labels) in enumerate((([self._points(1)], [1]), ([box], [2, 3]), ([self._points(1)], [1]))):
            inputs[f"point_coords.{i}"] = coords[0]
            inputs[f"point_labels.{i}"] = torch.tensor([labels], dtype=torch.int32)
        return inputs | {"point_frames": torch.tensor([0, last // 2 + 1, last])}

    def _memory(self, entry: dict[str, Any]) -> Tensors:
        t, h, w = self.plan.clip_grid
        mask = torch.rand(t, 2, h // 2, w // 2, generator=self.rng) < 0.35
        mask[-1, 1] = False
        held = int(mask.flatten(2).any(-1).sum())
        return self._clip([*self._ids(3), *[self.config.mem_token_id] * held, *self._ids(6)]) | {"refer_mask": mask}

    def _sam2_video(self, entry: dict[str, Any]) -> Tensors:
        count, size = self.plan.clips[entry["name"]]
        side = self.config.sam2_image_size
        width = self.session.model()[0].sam2.hidden_dim
        hidden = self._normal(1, self.config.sam2_hidden_tokens, width)
        return {"frames": self._frames(count), "hidden": hidden, "frame_size": torch.tensor(size or (side, side))}

    def _generate(self, entry: dict[str, Any]) -> Tensors:
        # the two cases differ in one token only, so that the second shows what a <|seg|> in the prompt changes
        self.rng.manual_seed(1000 * self.seed + 999)
        tail = self._ids(9)
        if entry["name"] == "generate_seg_in_prompt":
            tail[5] = self.config.seg_token_id
        frames = self.plan.generate_frames
        grid = ((frames + 1) // 2, *self.plan.clip_grid[1:])
        return self._clip(tail, grid) | {"frames": self._frames(frames), "frame_size": torch.tensor(self.plan.generate_size)}

    def _train_loss(self, entry: dict[str, Any]) -> Tensors:
        seg, count, side = self.config.seg_token_id, self.plan.train_frames, self.config.sam2_image_size
        answer = [seg, *self._ids(3), seg, *self._ids(4)]
        inputs = self._clip([*self._ids(6), self.config.ref_token_id, *answer], self.plan.train_grid)
        labels = inputs["input_ids"].clone()
        labels[:, : -len(answer)] = -100
        mask = torch.zeros(count, 2, side, side, dtype=torch.bool)
        for frame in range(count):
            near = side // 8 + frame * side // (4 * count)
            mask[frame, 0, near : near + side // 4, near // 2 : near // 2 + side // 3] = True
            mask[frame, 1, side // 2 : side // 2 + side // 5, near : near + side // 5] = frame != count - 1
        point = {"point_coords": self._points(1), "point_labels": torch.tensor([[1]], dtype=torch.int32), "point_frames": torch.tensor([1])}
        return inputs | point | {"labels": labels, "frames": self._frames(count), "label_mask": mask}

    def _train_steps(self, entry: dict[str, Any]) -> Tensors:
        inputs = self._train_loss(entry)
        if entry["lora"]:
            shapes = adapter_shapes(self.session.model()[0], entry["lora"]["rank"])
            inputs |= {f"lora.{name}": self._normal(*shape) / 5 for name, shape in shapes.items()}
        return inputs

    def _e2e(self, entry: dict[str, Any]) -> Tensors:
        data = read_media(self.session, entry)[0]
        return {"input_ids": data["input_ids"], "second_per_grid_ts": torch.as_tensor(data["second_per_grid_ts"], dtype=torch.float32)}

    def _smart_resize(self, entry: dict[str, Any]) -> Tensors:
        sides = torch.randint(16, 3000, (190, 2), generator=self.rng)
        sides = torch.cat([sides, torch.tensor([[28, 28], [1080, 1920], [1, 199], [3000, 15], [14, 42]])])
        sides = sides[sides.max(1).values <= 200 * sides.min(1).values]
        limits = torch.tensor([[3136, 12845056], [128 * 784, 256 * 784], [128 * 784, 16 * 256 * 784]])
        return {"hw_min_max": torch.cat([sides, limits[torch.arange(len(sides)) % 3]], dim=1)}

    def _chatml_labels(self, entry: dict[str, Any]) -> Tensors:
        entry["text"] = self.processor.apply_chat_template(entry["messages"]).strip()
        return {"input_ids": torch.tensor(self.tokenizer(entry["text"]).input_ids)}
