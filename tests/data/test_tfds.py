"""The builders of tensorflow-datasets that we read, on tiny data sets with their features."""

import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.features.feature import TensorInfo

from unipixel_jax.data.annotation import DrawOptions
from unipixel_jax.data.draw import draw
from unipixel_jax.data.tfds.source import open_tfds
from unipixel_jax.errors import UserError

HEIGHT, WIDTH = 40, 60
BOX = tfds.features.BBox(0.1, 0.1, 0.5, 0.5)


def encoded(array, kind):
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def square(at, size=12):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[at : at + size, at + 5 : at + 5 + size] = True
    return mask


class RefCoco(tfds.core.GeneratorBasedBuilder):
    """The features of tensorflow-datasets' ref_coco 1.1.0."""

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="refcoco_unc"),)

    def _info(self):
        marked = {"id": np.int64, "area": np.int64, "bbox": tfds.features.BBoxFeature(), "label": np.int64}
        named = {
            "gt_box_index": np.int64,
            "mask": tfds.features.Image(encoding_format="png"),
            "refexp": tfds.features.Sequence({"refexp_id": np.int64, "raw": tfds.features.Text()}),
        }
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/id": np.int64,
            "objects": tfds.features.Sequence({**marked, **named}),
            "coco_annotations": tfds.features.Sequence(marked),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(3):
            objects = [{"id": 10 + i, "area": 1, "bbox": BOX, "label": 1} for i in range(2)]
            named = [
                {
                    **marked,
                    "gt_box_index": i,
                    "mask": encoded(square(4 + 10 * i), "png"),
                    "refexp": [{"refexp_id": j, "raw": f"{'left' if i == 0 else 'right'} one {j}"} for j in range(2)],
                }
                for i, marked in enumerate(objects)
            ]
            image = encoded(np.full((HEIGHT, WIDTH, 3), 40 * number, np.uint8), "jpeg")
            yield number, {"image": image, "image/id": 100 + number, "objects": named, "coco_annotations": objects}


class Davis(tfds.core.GeneratorBasedBuilder):
    """The features of tensorflow-datasets' davis 2.1.0."""

    VERSION = tfds.core.Version("2.1.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="480p"),)

    def _info(self):
        video = {"frames": tfds.features.Image(shape=(None, None, 3)), "segmentations": tfds.features.Image(shape=(None, None, 1), use_colormap=True)}
        features = {"video": tfds.features.Sequence(video), "metadata": {"num_frames": np.int64, "video_name": np.str_}}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6, 2), "validation": self._generate_examples(5, 0)}

    def _generate_examples(self, count, objects):
        frames = [encoded(np.full((HEIGHT, WIDTH, 3), 9 * i, np.uint8), "jpeg") for i in range(count)]
        labels = np.zeros((count, HEIGHT, WIDTH), np.uint8)
        for i, number in np.ndindex(count, objects):
            labels[i][square(2 * i + 12 * number, 8)] = number + 1
        marks = [encoded(label, "png") for label in labels]
        yield 0, {"video": {"frames": frames, "segmentations": marks}, "metadata": {"num_frames": count, "video_name": "bear"}}


@pytest.fixture(autouse=True)
def without_tensorflow(monkeypatch):
    """Writing lists in lists, as ref_coco has them, needs the name of a type from TensorFlow, for which numpy's does as well. Reading needs neither."""
    monkeypatch.setattr(TensorInfo, "dtype", property(lambda info: info.np_dtype))


def prepare(builder, root, **options):
    builder(data_dir=str(root), **{"file_format": "array_record", **options}).download_and_prepare()


def test_ref_coco(tmp_path):
    prepare(RefCoco, tmp_path)
    source = pickle.loads(pickle.dumps(open_tfds("tfds:ref_coco/refcoco_unc", tmp_path)))
    assert len(source) == 3 and source.data_types == ["seg_image"] * 3
    annotation = source[1]
    assert (annotation.name, annotation.source, annotation.task) == ("101", "tfds:ref_coco/refcoco_unc", "segmentation")
    assert [turn.text for turn in annotation.turns] == ["left one 0", "left one 1", "right one 0", "right one 1"]
    np.testing.assert_array_equal(annotation.turns[0].masks.read([0], (HEIGHT, WIDTH)), square(4)[None, None])
    np.testing.assert_array_equal(annotation.turns[3].masks.read([0], (HEIGHT, WIDTH)), square(14)[None, None])
    example = draw(annotation, DrawOptions(image_size=32), np.random.default_rng(0))
    assert example.masks.shape == (3, 1, 32, 32) and example.masks.any(axis=(1, 2, 3)).all()
    assert example.clip.is_image and abs(int(example.clip.frames[0, 0, 0, 0]) - 40) < 3


def test_davis(tmp_path):
    prepare(Davis, tmp_path)
    source = open_tfds("tfds:davis", tmp_path)
    assert len(source) == 1 and source.data_types == ["mem_point_video"]
    example = draw(source[0], DrawOptions(sample_frames=(4, 4), image_size=80), np.random.default_rng(0))
    assert example.clip.frames.shape == (4, HEIGHT, WIDTH, 3) and example.masks.shape == (2, 4, 80, 80)
    assert "[0] <|seg|> [1] <|seg|>" in example.messages[-1]["content"]
    for mask, reference in zip(example.masks, example.references, strict=True):
        (x, y), frame = reference.coords[0].astype(int), reference.frame
        assert mask[frame, y, x], "the point lies on its object"
    with pytest.raises(UserError, match="bear: no object is marked in the first frame"):
        open_tfds("tfds:davis", tmp_path, "validation")[0]


def test_a_mask_of_another_size_is_refused(tmp_path):
    prepare(RefCoco, tmp_path)
    with pytest.raises(UserError, match=r"100/10.png is 60x40 pixels, expected 50x40"):
        open_tfds("tfds:ref_coco", tmp_path)[0].turns[0].masks.read([0], (HEIGHT, 50))


def test_other_file_formats_are_refused(tmp_path):
    prepare(RefCoco, tmp_path, file_format="parquet")
    with pytest.raises(UserError, match=r"is kept as parquet, expected array_record: prepare it with file_format='array_record'"):
        open_tfds("tfds:ref_coco", tmp_path)
