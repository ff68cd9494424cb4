"""A source that needs no files, for tests of the pipeline."""

from dataclasses import dataclass

from unipixel_jax.data.annotation import Annotation, Turn


@dataclass(frozen=True)
class ToySource:
    """Samples of words; ``kinds`` is a run of (data type, count)."""

    name: str
    kinds: tuple[tuple[str, int], ...]

    def __len__(self):
        return sum(count for _, count in self.kinds)

    def __getitem__(self, index):
        kind = self.data_types[index]
        return Annotation(self.name, kind, "multimodal", None, (Turn("plain", f"question {index}", f"answer {index}"),), f"{self.name}-{index}")

    @property
    def data_types(self):
        return [kind for kind, count in self.kinds for _ in range(count)]
